// models/layers/gated_norm.h - Mamba-2's gate and RMSNorm in one pass.
#pragma once

#include "models/packed.h"

namespace uqa::models {

/// RMSNorm of y silu(z), over each of `num_groups` equal groups of features by itself, times weight.
/// Shapes: y, z [T, I] (rows may have any stride), weight [I] -> [T, I].  Dtype: float32 or float64, the same for all three.
/// num_groups > 0 divides I.  Memory: backward computes the gate again.
[[nodiscard]] Tensor gated_rms_norm(const Tensor& y_TI, const Tensor& z_TI, const Tensor& weight_I, std::int64_t num_groups, double eps);

/// Parameter `weight` [I], initially one.
class GatedRmsNormImpl : public torch::nn::Module {
 public:
  GatedRmsNormImpl(std::int64_t width, std::int64_t num_groups, double eps)
      : weight(register_parameter("weight", at::ones({width}))), num_groups_(num_groups), eps_(eps) {}
  [[nodiscard]] Tensor forward(const Tensor& y_TI, const Tensor& z_TI) const { return gated_rms_norm(y_TI, z_TI, weight, num_groups_, eps_); }

  Tensor weight;

 private:
  std::int64_t num_groups_;
  double eps_;
};
TORCH_MODULE(GatedRmsNorm);

}  // namespace uqa::models
