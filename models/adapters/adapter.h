// models/adapters/adapter.h - turns a user's encoder states into soft tokens for the LLM.
#pragma once

#include "models/packed.h"

namespace uqa::models {

/// Linear on every position, then the mean over the history: one soft token (UQABench's SimplePooler). Computed the other
/// way round, mean then linear, which is the same up to rounding and T times cheaper. Parameters: `up_proj.{weight,bias}`.
class LinearMeanAdapterImpl : public torch::nn::Module {
 public:
  LinearMeanAdapterImpl(std::int64_t encoder_hidden, std::int64_t llm_hidden);
  /// As torch.nn.Linear does (uniform +-1/sqrt(in)), from counter-based numbers keyed by name and element.
  void init_weights(std::uint64_t seed);
  /// states [T, H] -> soft tokens [B, 1, llm_hidden], float32.
  [[nodiscard]] Tensor forward(const Tensor& states_TH, const PackedLayout& layout);

 private:
  torch::nn::Linear up_proj_;
};
TORCH_MODULE(LinearMeanAdapter);

}  // namespace uqa::models
