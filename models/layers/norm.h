// models/layers/norm.h - normalisation of packed rows.
#pragma once

#include "models/packed.h"

namespace uqa::models {

/// x / sqrt(mean(x^2) + eps) * weight, computed in float32 (float64 for float64), with a hand-written gradient.
/// Shapes: x [T, F], weight [F] -> [T, F] in x's dtype (float32, bfloat16 or float64); weight float32 or float64.
[[nodiscard]] Tensor rms_norm(const Tensor& x_TF, const Tensor& weight_F, double eps);

/// Parameter `weight` [F], initially one.
class RmsNormImpl : public torch::nn::Module {
 public:
  RmsNormImpl(std::int64_t width, double eps) : weight(register_parameter("weight", at::ones({width}))), eps_(eps) {}
  [[nodiscard]] Tensor forward(const Tensor& x_TF) const { return rms_norm(x_TF, weight, eps_); }

  Tensor weight;

 private:
  double eps_;
};
TORCH_MODULE(RmsNorm);

/// torch's layer_norm over the last dimension; parameters `weight` (initially one) and `bias` (zero), [F].
class LayerNormImpl : public torch::nn::Module {
 public:
  LayerNormImpl(std::int64_t width, double eps)
      : weight(register_parameter("weight", at::ones({width}))), bias(register_parameter("bias", at::zeros({width}))), eps_(eps) {}
  [[nodiscard]] Tensor forward(const Tensor& x_TF) const { return at::layer_norm(x_TF, {weight.size(0)}, weight, bias, eps_); }

  Tensor weight, bias;

 private:
  double eps_;
};
TORCH_MODULE(LayerNorm);

}  // namespace uqa::models
