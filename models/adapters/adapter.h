// models/adapters/adapter.h - turns a user's encoder states into soft tokens for the LLM.
//
//   auto adapter = make_adapter({.kind = "qformer", .encoder_hidden = 64, .llm_hidden = 576, .num_tokens = 8});
//   adapter->init_weights(seed);
//   const auto soft_BKL = adapter->forward(states_TH, layout);
#pragma once

#include <map>
#include <memory>
#include <string>

#include "models/packed.h"

namespace uqa::models {

/// Everything that fixes the structure of an adapter.
struct AdapterConfig {
  /// "linear": mean of the states, one linear layer (the reference). "mlp": mean, then two layers with GELU. "last": the last state, one
  /// linear layer. "attention": num_tokens learned queries pool the states, one linear layer. "qformer": num_tokens learned queries that
  /// look at each other and at the states in num_layers layers (BLIP-2, Li et al. 2023), one linear layer.
  std::string kind = "linear";
  std::int64_t encoder_hidden = 0;  ///< width H of the states; > 0
  std::int64_t llm_hidden = 0;      ///< width L of the soft tokens; > 0
  std::int64_t num_tokens = 1;      ///< soft tokens K of a user: 1 to 64; more than 1 for "attention" and "qformer" only
  std::int64_t inner = 0;           ///< "mlp", "qformer": width of the hidden layer; 0: llm_hidden (mlp), 4 * encoder_hidden (qformer)
  std::int64_t num_layers = 2;      ///< "qformer": > 0
  std::int64_t num_heads = 4;       ///< "attention", "qformer": > 0, divides encoder_hidden
  void validate() const;            ///< Error(kConfig) naming the option, both numbers and the way out
  [[nodiscard]] std::int64_t resolved_inner() const;
};

/// Which of a user's states an adapter looks at: what has to be kept when states are computed once.
enum class StateView {
  kMean,  ///< the mean over the history: one row
  kLast,  ///< the state of the newest interaction: one row
  kAll,   ///< every position
};
[[nodiscard]] const char* name_of(StateView view);  ///< "mean" "last" "all"

/// An adapter. A user's soft tokens depend on the user's own states alone.
class AdapterImpl : public torch::nn::Module {
 public:
  AdapterImpl(AdapterConfig config, StateView view) : config_(std::move(config)), view_(view) {}
  virtual void init_weights(std::uint64_t seed) = 0;
  /// states [T, H] of B histories, none empty -> soft tokens [B, K, L], float32. Histories of one row hold what view() asks for already
  /// (their mean, their last state). Error(kData) for an empty history.
  [[nodiscard]] virtual Tensor forward(const Tensor& states_TH, const PackedLayout& layout) = 0;
  /// Tensors by name, as files hold them: the parameters, folded into plain layers where training used other coordinates.
  [[nodiscard]] virtual std::map<std::string, Tensor> stored() const;
  [[nodiscard]] const AdapterConfig& config() const { return config_; }
  [[nodiscard]] StateView view() const { return view_; }

 private:
  AdapterConfig config_;
  StateView view_;
};
using Adapter = std::shared_ptr<AdapterImpl>;

/// Validates and builds; weights are zero until init_weights() or until they are loaded.
[[nodiscard]] Adapter make_adapter(const AdapterConfig& config);

/// Error(kInternal) unless the layout has as many rows as `states` [T, H], Error(kData) for an empty history.
void require_histories(const Tensor& states_TH, const PackedLayout& layout);
/// Mean of every history's rows, float32: states [T, H] -> [B, H]. Error(kData) for an empty history.
[[nodiscard]] Tensor history_means(const Tensor& states_TH, const PackedLayout& layout);
/// Newest row of every history, float32: states [T, H] -> [B, H]. Error(kData) for an empty history.
[[nodiscard]] Tensor history_lasts(const Tensor& states_TH, const PackedLayout& layout);

}  // namespace uqa::models
