// models/encoders/mamba2.h - Mamba4Rec of UQABench: pre-norm Mamba-2 blocks, no MLP, no positions, no final norm. Dao and Gu, arXiv
// 2405.21060; Liu et al., Mamba4Rec, arXiv 2403.03900.
#pragma once

#include "models/user_model.h"

namespace uqa::models {

/// Parameters: layers.<i>.{norm.weight, mixer.{in_proj.weight, conv1d.{weight, bias}, dt_bias, A_log, D, norm.weight, out_proj.weight}}.
/// `dropout` is applied to every block's output; the reference has none.
class Mamba2Impl : public EncoderImpl {
 public:
  explicit Mamba2Impl(const UserModelConfig& config, const TensorParallel& tp = {});
  [[nodiscard]] Tensor forward(const Tensor& x_TH, const PackedLayout& layout, const DropoutContext& context) override;
  void init_weights(std::uint64_t seed, const std::string& prefix) override;
  [[nodiscard]] std::vector<std::vector<Tensor>> layer_parameters() const override;

 private:
  struct Modules;
  std::shared_ptr<Modules> modules_;
};

}  // namespace uqa::models
