// models/encoders/trm_plus.h - Trm++ of UQABench: pre-norm transformer with RMSNorm, rotary positions and a SiLU-gated MLP, no
// biases, no final norm.
#pragma once

#include "models/user_model.h"

namespace uqa::models {

/// Parameters: layers.<i>.{norm1, attn.{q,k,v,o}_proj, norm2, mlp.{up_proj_g, up_proj_x, down_proj}}.weight.
class TrmPlusImpl : public EncoderImpl {
 public:
  explicit TrmPlusImpl(const UserModelConfig& config, const TensorParallel& tp = {});
  [[nodiscard]] Tensor forward(const Tensor& x_TH, const PackedLayout& layout, const DropoutContext& context) override;
  void init_weights(std::uint64_t seed, const std::string& prefix) override;
  [[nodiscard]] std::vector<std::vector<Tensor>> layer_parameters() const override;

 private:
  struct Modules;
  std::shared_ptr<Modules> modules_;
};

}  // namespace uqa::models
