// models/llm/decoder.h - Llama and Qwen2 decoders over packed rows, from Hugging Face directories.
//
//   auto llm = models::load_llm("smollm2-135m-instruct", {.dtype = at::kBFloat16});
//   auto x_TH = llm->embed(ids_T);                                      // replace soft-token rows here
//   auto states_TH = llm->forward(x_TH, positions_T, blocks);           // after the final norm
//   auto logits_NV = llm->logits(states_TH.index_select(0, rows_N));    // only where they are needed
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "core/file.h"
#include "models/layered.h"
#include "models/parallel/sliced.h"
#include "models/parallel/vocabulary.h"

namespace uqa::models {

/// Llama 3's scaling of rotary frequencies (rope_type "llama3"): wavelengths above original_positions / low_factor are stretched by
/// `factor`, those below original_positions / high_factor stay, between them the two are mixed. Grattafiori et al., arXiv 2407.21783.
struct RopeScaling {
  double factor = 1, low_factor = 1, high_factor = 4;
  std::int64_t original_positions = 0;
};

/// config.json, resolved. Only model_type "llama" and "qwen2" with plain RoPE or Llama 3's scaling are accepted; other architectures, RoPE
/// scalings, sliding windows, MLP biases or activations are refused (Error(kData)) naming file, key and value.
struct LlmConfig {
  std::string model_type;
  std::int64_t hidden = 0, num_layers = 0, num_heads = 0, num_kv_heads = 0, head_dim = 0, intermediate = 0, vocab_size = 0;
  std::int64_t max_positions = 0;
  double rope_theta = 10000, norm_eps = 1e-6;
  std::optional<RopeScaling> rope_scaling;
  bool tied_embeddings = false;   ///< lm_head is embed_tokens
  bool qkv_bias = false;          ///< qwen2
  std::vector<std::int64_t> eos_ids;
  /// Throws Error(kData) naming file, key and value.
  [[nodiscard]] static LlmConfig load(const fs::path& directory);
  /// Every tensor of the architecture by its Hugging Face name, with its shape.
  [[nodiscard]] std::map<std::string, std::vector<std::int64_t>> weight_shapes() const;
};

struct LoraOptions {
  std::int64_t rank = 0;    ///< 0: no LoRA; else > 0
  double alpha = 0;         ///< scale is alpha / rank; 0: alpha = 2 * rank
  std::vector<std::string> targets = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"};
};

struct LlmOptions {
  at::ScalarType dtype = at::kFloat;   ///< compute type of the GEMMs (float32 or bfloat16); norms, softmax and logits are float32
  bool trainable = false;              ///< full tuning: float32 master weights that require gradients
  LoraOptions lora;                    ///< low-rank updates, float32 masters, initialised A ~ U, B = 0
  std::uint64_t seed = 0;              ///< for LoRA's A
};

struct GrowingSequences;  // generate.h

/// Keys and values of packed rows, one a layer, in the compute type: [T, K, D], K key/value heads of this rank.
struct PackedCache {
  std::vector<Tensor> k_TKD, v_TKD;
};

/// What one tensor-parallel rank has of a decoder. Where there are more ranks than key/value heads, several ranks hold the same head.
struct LlmSplit {
  SliceRange heads, kv_heads, inner, vocab;
  comm::Communicator kv_sharers;  ///< ranks with the same kv_heads; a group of one: none
  /// Error(kConfig) naming what the degree does not divide and both numbers. Collective over tp.comm.
  [[nodiscard]] static LlmSplit of(const LlmConfig& config, const TensorParallel& tp);
};

/// Frozen weights are plain tensors, not registered; what is trained is registered and listed by trainable_parameters().
/// Tensor parallel: attention heads and MLP are split over the ranks, embeddings and head by rows of the vocabulary. All ranks of the
/// group call every member together with equal arguments and get equal results; a method that computes is a collective.
class LlmImpl : public torch::nn::Module, public Layered {
 public:
  /// Weights are zero until set_weight(); LoRA's A is drawn. Throws Error(kConfig) for options that do not go together.
  LlmImpl(LlmConfig config, LlmOptions options, const TensorParallel& tp = {});
  using torch::nn::Module::to;
  /// Moves the frozen weights, too. Ids, positions and labels may stay on the CPU, where checks of them wait for nothing; tokens come out there.
  void to(torch::Device device, bool non_blocking = false) override;
  /// ids int64 [T] -> float32-or-bf16 rows [T, H] of embed_tokens.
  [[nodiscard]] Tensor embed(const Tensor& ids_T) const;
  /// Runs all layers and the final norm. positions int64 [T] (RoPE); rows attend as `blocks` says: blocks cover all rows, and
  /// a block's prefix rows must lie before it; `keep` (may be null) receives keys and values. -> float32 [T, H]
  [[nodiscard]] Tensor forward(const Tensor& x_TH, const Tensor& positions_T, const std::vector<AttentionBlock>& blocks, PackedCache* keep = nullptr);
  /// Language-model head on selected rows, float32. [N, H] -> [N, vocab], of the whole vocabulary
  [[nodiscard]] Tensor logits(const Tensor& states_NH);
  /// Most likely next token of each row, int64 [N]; the lowest id wins a tie. Error(kNumeric) if a logit is not finite. No gradient.
  [[nodiscard]] Tensor greedy_tokens(const Tensor& states_NH);
  /// Log-probability of token `tokens[n]` in row `rows[n]`: vocabulary_log_probs(), GEMMs in the compute type.
  [[nodiscard]] Tensor token_log_probs(const Tensor& states_RH, const Tensor& rows_N, const Tensor& tokens_N) const;
  /// One more row for each active sequence, [A, H] at positions [A]; the sequences grow by it. No gradient. -> [A, H] after the final norm.
  [[nodiscard]] Tensor forward_next(const Tensor& x_AH, const Tensor& positions_A, GrowingSequences& sequences);
  /// This rank's rows of the head [vocab, H] as they are stored: compute type, or the float32 master when trainable.
  [[nodiscard]] const Tensor& head_weight() const;

  /// Float32 parameters that are trained, in an order that is the same everywhere: "lora.<layer>.<target>.A|B", or Hugging Face
  /// names when the whole model is trainable. Empty for a frozen model.
  [[nodiscard]] std::vector<std::pair<std::string, Tensor>> trainable_parameters() const;
  /// Those of them that belong to a layer.
  [[nodiscard]] std::vector<std::vector<Tensor>> layer_parameters() const override;
  /// What those trained parameters that are parts of larger ones are parts of, by name.
  [[nodiscard]] const std::map<std::string, ParameterLayout>& trainable_layouts() const;
  /// A plain model's whole tensors by Hugging Face name with LoRA merged in: float32, new storage.
  [[nodiscard]] std::map<std::string, Tensor> merge_lora() const;
  /// Copies this rank's part of one whole tensor of the architecture in, from any floating type; name and shape as weight_shapes() says,
  /// else Error(kInternal).
  void set_weight(const std::string& name, const Tensor& value);

  [[nodiscard]] const LlmConfig& config() const { return config_; }
  [[nodiscard]] const LlmOptions& options() const { return options_; }
  [[nodiscard]] const LlmSplit& split() const { return split_; }
  [[nodiscard]] const TensorParallel& tp() const { return tp_; }

 private:
  /// Layers and final norm; `attend(layer, q, k, v)` -> [T, N, D].
  template <typename Attend>
  Tensor run_layers(const Tensor& x_TH, const Tensor& positions_T, Attend&& attend);

  [[nodiscard]] Tensor local_logits(const Tensor& states_NH);
  /// The fused q, k, v bias of a layer as this rank computes with it.
  [[nodiscard]] Tensor bias_of(std::size_t layer) const;
  [[nodiscard]] ParameterLayout bias_layout() const;
  [[nodiscard]] VocabularySlice vocabulary() const { return {.first = split_.vocab.begin, .comm = tp_.comm}; }

  LlmConfig config_;
  LlmOptions options_;
  TensorParallel tp_;
  LlmSplit split_;
  struct Modules;
  std::shared_ptr<Modules> modules_;
};
TORCH_MODULE(Llm);

/// Builds the model and loads model.safetensors or the shards of model.safetensors.index.json, tied or untied. Every tensor of the
/// architecture must be there with the right shape and none may be left over: Error(kData) naming file and tensor. A tensor-parallel rank
/// reads its own part only. Collective over tp.comm, whose ranks agree on errors.
[[nodiscard]] Llm load_llm(const fs::path& directory, const LlmOptions& options, const TensorParallel& tp = {});

/// Sum over labelled rows of the next-token cross-entropy in float32, in row chunks so that [T, vocab] logits never exist at once.
/// states [T, H] (final norm applied), labels int64 [T], -100 = no loss; the label at row t is the token that row t predicts.
[[nodiscard]] Tensor next_token_loss(LlmImpl& llm, const Tensor& states_TH, const Tensor& labels_T);

/// Greedy continuation of one prompt, one token at a time with a KV cache; `soft` [k, H] (may be undefined) is put in front.
/// Stops at an eos id (included) or after max_new_tokens; `stop_at_eos` false never stops early. generate.h continues many at once.
[[nodiscard]] std::vector<std::int64_t> generate_greedy(LlmImpl& llm, const std::vector<std::int64_t>& prompt, const Tensor& soft_kH,
                                                        std::int64_t max_new_tokens, bool stop_at_eos = true);

}  // namespace uqa::models
