// trainer/align.h - the alignment stage: an adapter (and LoRA) learns to answer questions about a user from one soft token.
//
//   auto run = RunDirectory(path, "align", ini_text, /*overwrite=*/false, world.rank() == 0);
//   const auto result = run_align(config, mesh, run);      // writes run/model.safetensors, model.json, result.json
//   auto aligned = load_aligned(path, at::kBFloat16);      // what evaluation starts from
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "comm/communicator.h"
#include "data/batch.h"
#include "data/question.h"
#include "models/adapters/adapter.h"
#include "models/llm/decoder.h"
#include "trainer/config.h"
#include "trainer/deviations.h"
#include "trainer/pretrain.h"
#include "trainer/prompt.h"
#include "trainer/training.h"
#include "trainer/user_states.h"

namespace uqa::trainer {

struct AlignLoraConfig {
  std::int64_t rank = 16;  ///< width of the low-rank updates of the LLM's linear layers; 0: none
  double alpha = 0;        ///< the update is scaled by alpha / rank; 0: alpha = 2 * rank
};

struct AlignEncoderConfig {
  /// A frozen encoder runs without dropout, and so once per history. False: dropout stays on, as in the reference, and the encoder runs in every step.
  bool eval_when_frozen = true;
};

struct AlignAdapterConfig {
  std::string kind = "linear";    ///< models::AdapterConfig::kind
  std::int64_t tokens = 1;        ///< soft tokens of a user; 1 to 64
  std::int64_t inner = 0;         ///< mlp, qformer: width of the hidden layer; 0: the kind's own rule
  std::int64_t layers = 2;        ///< qformer
  std::int64_t heads = 4;         ///< attention, qformer
  /// "plain": as torch.nn.Linear, or the kind's own; "whitened": LinearAdapter::init_whitened over the training histories; "words": then
  /// fit_word_start(); "auto": whitened for the kinds linear and last, else plain.
  std::string init = "auto";
  /// Directory of `uqa export`, `uqa align` or `uqa import-checkpoint` whose adapter training starts from; it must be of the same kind and made for the same
  /// encoder. "": none. With every part frozen nothing is trained: the run is made of the parts as they are.
  std::string from;
  double init_scale = 1;          ///< not "plain": root mean square of the first soft tokens, relative to the LLM's token embeddings; > 0
};

struct AlignPromptConfig {
  std::string place = "before";     ///< PromptOptions::place
  std::string system = "default";   ///< system text; "default": the chat template's own
  bool end_token = false;           ///< an option's words end with the end-of-turn token when they are scored
  std::int64_t max_tokens = 0;      ///< objective "chat": text is cut on the right to so many tokens, soft tokens not counted; 0: nothing is cut
  bool allow_lost_answers = false;  ///< learn from texts that max_tokens cuts the answer off, as the reference does; false: refuse
};

/// Questions asked while it learns: accuracy by every rule, in metrics.jsonl. It does not decide which checkpoint is best.
struct AlignEvalConfig {
  std::int64_t every = 0;           ///< steps between two evaluations, and one after the last step; 0: never
  std::int64_t max_questions = 200; ///< most questions of the held-out users that are asked; > 0
};

struct AlignConfig {
  std::string preset = "default";        ///< where unset settings come from: "default" or "faithful" (see align_preset)
  std::string data;                      ///< directory written by `uqa import`; required
  std::string questions;                 ///< directory written by `uqa questions`; required
  std::string encoder_run;               ///< run directory of `uqa pretrain`; required
  std::string llm;                       ///< Hugging Face directory; required
  std::string prompt = "soft";           ///< "soft", or "none": the baseline that is tuned with equal budget and sees no user
  std::string answer = "text";           ///< what is learned: the option's "letter", its words ("text"), or "both"
  /// "choice": softmax over the four options' scores; "contrast": the mean of that and of a softmax over the users who are asked the same
  /// (symmetric, as CLIP's); "lm": cross-entropy of the gold answer; "chat": that of the answer and of the chat's own markers in every turn, as
  /// the reference trains (trainer/chat_example.h).
  std::string objective = "choice";
  double choice_scale = 1;               ///< factor of the scores in that softmax; > 0
  /// Scores are differences from the scores with the average training user's soft token, as Rule::kCalibrated judges; needs prompt "soft",
  /// an objective with options, and a frozen encoder.
  bool calibrate = false;
  std::string freeze = "encoder,llm";    ///< subset of encoder, adapter, llm that is not trained; "" trains all. LoRA is set by lora.rank
  bool group_by_text = true;             ///< questions with the same text are one sample of a step; false: every question is a sample
  double other_lr = 0;                   ///< learning rate of everything but the adapter, in the adapter's schedule; 0: optim.peak_lr
  AlignEncoderConfig encoder;
  AlignLoraConfig lora;
  AlignAdapterConfig adapter;
  StateCacheConfig cache;                ///< where a frozen encoder's states are kept
  AlignPromptConfig prompt_format;
  std::int64_t max_questions = 0;        ///< training questions used; 0: all
  double validation_fraction = 0.1;      ///< share of the training users held out for validation; in [0, 1)
  std::int64_t validation_questions = 400;  ///< most questions of a validation; >= 0
  AlignEvalConfig eval;
  std::int64_t micro_rows = 2048;        ///< most LLM rows of one forward pass on one rank: bounds memory; > 0
  LoopConfig loop{.parallel = {.tables = "replicated"}};  ///< parallel.tables: "replicated" only, every rank reads whole histories
  void validate() const;                 ///< Error(kConfig) naming the field; nothing is opened
  /// Looks at the encoder's and the adapter's model.json, so that what cannot fit is refused before any work: Error(kConfig) naming both numbers.
  void check_inputs() const;
  [[nodiscard]] PromptOptions prompt_options() const;
  [[nodiscard]] models::AdapterConfig adapter_config(std::int64_t encoder_hidden, std::int64_t llm_hidden) const;
};

/// The settings that `preset` gives before options are applied. "default": those above. "faithful": the reference's protocol and published
/// hyper-parameters (docs/design/0008). Error(kConfig).
[[nodiscard]] AlignConfig align_preset(const std::string& preset);

/// The encoder's view of questions: the most recent `max_len` interactions of each span. `num_cut` counts spans that were longer.
[[nodiscard]] std::vector<data::Span> encoder_spans(const std::vector<data::Question>& questions, std::int64_t max_len, std::int64_t* num_cut = nullptr);
/// Error(kConfig) naming the table or feature in which the data set differs from what the encoder was trained on.
void check_same_schema(const models::UserModelConfig& encoder, const data::Schema& schema);
/// `data` with the features that the encoder was trained on. Error(kConfig) naming what the data set lacks, or a table that differs.
[[nodiscard]] data::Dataset select_features(const models::UserModelConfig& encoder, const data::Dataset& data);
/// Digests that tell whether weights changed: of every tensor, and of every file of a Hugging Face directory that is read.
[[nodiscard]] std::string digest_of(const torch::nn::Module& module);
[[nodiscard]] std::string digest_of_llm(const fs::path& directory);

/// Alignment as a task of the shared loop. One sample is a group of training questions with the same text (different users): their
/// common prefix runs once, and a step compares users on equal terms.
class AlignTask : public TrainingTask {
 public:
  /// Opens and tokenises everything; with a frozen encoder its mean states are computed once. Collective over mesh.world(),
  /// errors are agreed.
  AlignTask(AlignConfig config, const comm::Mesh& mesh);
  ~AlignTask() override;

  [[nodiscard]] std::string stage() const override { return "align"; }
  [[nodiscard]] std::vector<NamedParameter> parameters() const override;
  [[nodiscard]] std::vector<models::Layered*> layered_models() const override;
  [[nodiscard]] std::int64_t num_samples() const override;
  [[nodiscard]] std::int64_t cost(std::int64_t sample) const override;
  [[nodiscard]] std::unique_ptr<TaskBatch> load(const std::vector<std::int64_t>& samples) const override;
  [[nodiscard]] Tensor loss_sum(const TaskBatch& batch, std::int64_t micro, const models::DropoutContext& context) override;
  /// Accuracy on the held-out users' questions by the rule that is trained (text, else letter). Collective.
  [[nodiscard]] std::optional<Validation> validate(const comm::Mesh& mesh) override;
  [[nodiscard]] std::int64_t evaluate_every() const override;
  /// Accuracy by every rule on questions of the held-out users.
  [[nodiscard]] std::map<std::string, double> evaluate(const comm::Mesh& mesh) override;
  /// 2 per weight of a matrix product and row forward and again for the gradient of its input, 2 more where the weight is trained;
  /// head and attention scores left out.
  [[nodiscard]] double flops(std::int64_t num_interactions, std::int64_t num_tokens, std::int64_t num_labels) const override;
  /// encoder_s: time in the encoder; 0 where its states were computed once. Only for prompt "soft", and on the CPU: on a device the call returns before the work is done.
  [[nodiscard]] std::map<std::string, double> take_figures() override;
  void set_training(bool on) override;
  void save_model(const fs::path& directory, const comm::Mesh& mesh) const override;

  /// Counts and sizes for run.json.
  [[nodiscard]] Json describe() const;
  /// How this run differs from the reference.
  [[nodiscard]] Deviations deviations() const;
  /// Bytes of the gradients that "encoder", "adapter" and "llm" hold at this moment: 0 for a frozen part.
  [[nodiscard]] std::map<std::string, std::int64_t> gradient_bytes() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

/// The whole stage: run.json, training (or resume), model.safetensors, model.json, result.json. Collective over mesh.world().
/// Returns what result.json holds.
[[nodiscard]] Json run_align(const AlignConfig& config, const comm::Mesh& mesh, RunDirectory& run);

/// An aligned model, ready to answer.
struct AlignedModel {
  Json info;                                  ///< all of model.json
  PromptOptions prompt_options;
  std::string prompt;                         ///< "soft" or "none": what it was trained with
  std::string llm_directory, data, questions; ///< paths it was trained with
  models::Llm llm{nullptr};                   ///< with LoRA; nothing requires a gradient
  models::UserModel encoder{nullptr};         ///< null for "none"
  models::UserModelConfig encoder_config;
  models::Adapter adapter;                    ///< null for "none"
  Tensor average_user_KL;                     ///< soft tokens of the average training user; undefined for "none" and for a trained encoder
};
/// How an aligned model lies on the ranks: `axis` has the groups of both.
struct AlignedSplit {
  comm::Communicator axis;
  models::TensorParallel llm, encoder;
  at::Device device{at::kCPU};  ///< where this rank's parts are put
};
/// Reads model.json and model.safetensors of an align run, and the encoder and LLM that it names; refuses (Error(kData)) when either
/// has changed since. `dtype` is the type of the LLM's GEMMs; absent: as it was trained. A rank keeps its parts as `split` says; collective over
/// split.axis, whose ranks agree on errors.
[[nodiscard]] AlignedModel load_aligned(const fs::path& run_directory, std::optional<at::ScalarType> dtype = std::nullopt, const AlignedSplit& split = {});

}  // namespace uqa::trainer
