#include <cstdio>

#include "comm/communicator.h"
#include "launch/bind.h"
#include "launch/command.h"
#include "launch/device.h"
#include "launch/stage.h"
#include "launch/study_common.h"
#include "trainer/align.h"

namespace uqa::launch {
namespace {

class AlignCommand final : public Command {
 public:
  AlignCommand() {
    options_.add("data", &config_.data, "imported data set (directory of uqa import)", OptionSet::kRequired);
    options_.add("questions", &config_.questions, "question set (directory of uqa questions)", OptionSet::kRequired);
    options_.add("encoder-run", &config_.encoder_run, "run directory of uqa pretrain", OptionSet::kRequired);
    options_.add("llm", &config_.llm, "Hugging Face directory: config.json, safetensors, tokenizer.json", OptionSet::kRequired);
    options_.add("run", &run_, "run directory to make, or to resume", OptionSet::kRequired);
    options_.add("preset", &config_.preset, "where settings that are not given come from: default or faithful (the reference's protocol)");
    options_.add("prompt", &config_.prompt, "soft, or none: the baseline tuned with equal budget that sees no user");
    options_.add("answer", &config_.answer, "what is learned: the option's letter, its words (text), or both");
    options_.add("objective", &config_.objective, "choice: softmax over the four options; contrast: and over the users asked the same; lm: cross-entropy of the answer; chat: of the answer and the chat's markers, as the reference");
    options_.add("group_by_text", &config_.group_by_text, "questions with the same text are one sample of a step");
    options_.add("choice_scale", &config_.choice_scale, "factor of the scores in that softmax (> 0)");
    options_.add("calibrate", &config_.calibrate, "score what an option gains over the same question about the average user (needs prompt soft)");
    options_.add("freeze", &config_.freeze, "what is not trained: subset of encoder,adapter,llm; LoRA is set by lora.rank");
    options_.add("max_questions", &config_.max_questions, "training questions used; 0: all");
    options_.add("validation_fraction", &config_.validation_fraction, "share of the training users held out for validation, in [0, 1)");
    options_.add("validation_questions", &config_.validation_questions, "most questions of one validation");
    options_.add("eval.every", &config_.eval.every, "steps between two evaluations on the held-out users' questions (accuracy by every rule, in metrics.jsonl); 0: never");
    options_.add("eval.max_questions", &config_.eval.max_questions, "most questions of such an evaluation (> 0)");
    options_.add("micro_rows", &config_.micro_rows, "most LLM rows of one forward pass on one rank: bounds memory (> 0)");
    options_.add("optim.other_lr", &config_.other_lr, "learning rate of what is trained beside the adapter; 0: optim.peak_lr");
    options_.add("encoder.eval_when_frozen", &config_.encoder.eval_when_frozen, "a frozen encoder runs without dropout; false: dropout stays on, as in the reference");
    options_.add("lora.rank", &config_.lora.rank, "width of the low-rank updates of the LLM; 0: none");
    options_.add("lora.alpha", &config_.lora.alpha, "the update is scaled by alpha / rank; 0: alpha = 2 * rank");
    options_.add("adapter.kind", &config_.adapter.kind, "linear (mean of the states), mlp, last (newest state), attention (pooling), or qformer");
    options_.add("adapter.tokens", &config_.adapter.tokens, "soft tokens of a user, 1 to 64; more than 1 for attention and qformer");
    options_.add("adapter.inner", &config_.adapter.inner, "mlp, qformer: width of the hidden layer; 0: the LLM's width (mlp), 4 x the encoder's (qformer)");
    options_.add("adapter.layers", &config_.adapter.layers, "qformer: layers (> 0)");
    options_.add("adapter.heads", &config_.adapter.heads, "attention, qformer: heads; divides the encoder's width");
    options_.add("adapter.init", &config_.adapter.init, "whitened: trained on whitened states, stored as one linear layer; words: and starts near the words of its users' answers; plain; auto: whitened for linear and last");
    options_.add("adapter.from", &config_.adapter.from, "start from the adapter of this directory of uqa export or uqa align, made for the same encoder");
    options_.add("adapter.init_scale", &config_.adapter.init_scale, "whitened, words: size of the first soft tokens relative to token embeddings (> 0)");
    options_.add("cache.users", &config_.cache.users, "states of a frozen encoder: computed once and kept in memory, or in an HDF5 file (its path; read if it exists); off: the encoder runs in every step");
    options_.add("cache.max_bytes", &config_.cache.max_bytes, "refuse to keep more (> 0)");
    options_.add("prompt.place", &config_.prompt_format.place, "where the soft token stands: before the whole chat (before), first (user) or last (user_end) in the user turn, or first in the assistant turn (assistant)");
    options_.add("prompt.system", &config_.prompt_format.system, "system text; default: the chat template's own");
    options_.add("prompt.end_token", &config_.prompt_format.end_token, "score an option's words with the end-of-turn token");
    options_.add("prompt.max_tokens", &config_.prompt_format.max_tokens, "objective chat: text is cut on the right to so many tokens; 0: nothing is cut");
    options_.add("prompt.allow_lost_answers", &config_.prompt_format.allow_lost_answers, "objective chat: learn from texts whose answer is cut off, as the reference does");
    bind(options_, config_.loop);
    bind_device(options_, device_);
    options_.add("parallel.llm_tp", &config_.loop.parallel.llm_tp, "tensor-parallel degree of the LLM; 0: parallel.tp");
    options_.add("parallel.encoder_tp", &config_.loop.parallel.encoder_tp, "tensor-parallel degree of the encoder; 0: parallel.tp");
    bind(options_, call_);
  }

  OptionSet& options() override { return options_; }
  [[nodiscard]] Ranks ranks() const override { return Ranks::kMany; }
  [[nodiscard]] bool saves_on_signal() const override { return true; }
  [[nodiscard]] std::string device() const override { return device_; }

  bool parse(const std::vector<std::string>& words) override {
    if (!options_.parse(words)) return false;
    check_device(device_);
    config_ = trainer::align_preset(config_.preset);
    return options_.parse(words);  // what was given goes on top of the preset
  }
  [[nodiscard]] const trainer::AlignConfig& config() const { return config_; }

  void run(comm::Session* session) override {
    apply(call_);
    comm::run_agreed(session->world(), [&] {
      config_.validate();
      config_.check_inputs();
    });
    auto stage = open_stage(*session, {.stage = "align", .run = run_, .loop = config_.loop, .call = call_, .ini = options_.to_ini()});
    const Json result = trainer::run_align(config_, stage.mesh, stage.run);
    if (session->world().rank() == 0) std::printf("%s\n", result.dump(2).c_str());
  }

 private:
  trainer::AlignConfig config_;
  std::string run_, device_ = "cpu";
  CallSettings call_;
  OptionSet options_{"align", "trains the adapter (and LoRA) that shows users to an LLM as one soft token",
                     "mpirun -np 2 uqa align --data data/ml-100k --questions questions --encoder-run runs/trm --llm smollm2-135m-instruct "
                     "--run runs/align --lora.rank=16 --train.dtype=bf16"};
};

}  // namespace

trainer::AlignConfig parse_align(const std::vector<std::string>& words) {
  AlignCommand command;
  UQA_CHECK(command.parse(words), ErrorCode::kConfig, "align: --help stands among the options; remove it");
  command.config().validate();
  return command.config();
}

std::unique_ptr<Command> make_align_command() { return std::make_unique<AlignCommand>(); }

}  // namespace uqa::launch
