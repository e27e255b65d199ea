// models/adapters/mlp_adapter.h - two layers with GELU on the mean of the user's states, as the projector of LLaVA-1.5 (Liu et al. 2023).
#pragma once

#include "models/adapters/adapter.h"
#include "models/layers/linear.h"

namespace uqa::models {

/// Parameters: `fc1.{weight,bias}` [inner, H], `fc2.{weight,bias}` [L, inner].
class MlpAdapterImpl : public AdapterImpl {
 public:
  explicit MlpAdapterImpl(const AdapterConfig& config)
      : AdapterImpl(config, StateView::kMean),
        fc1_(register_module("fc1", Linear(config.encoder_hidden, config.resolved_inner(), Bias::kYes))),
        fc2_(register_module("fc2", Linear(config.resolved_inner(), config.llm_hidden, Bias::kYes))) {}
  void init_weights(std::uint64_t seed) override;
  [[nodiscard]] Tensor forward(const Tensor& states_TH, const PackedLayout& layout) override;

 private:
  Linear fc1_, fc2_;
};

}  // namespace uqa::models
