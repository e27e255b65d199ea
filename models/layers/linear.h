// models/layers/linear.h - y = x W^T + b with parameters that start at zero: init_weights gives them counter-based values.
#pragma once

#include "models/packed.h"

namespace uqa::models {

enum class Bias { kNo, kYes };

/// Parameters `weight` [out, in] and, with Bias::kYes, `bias` [out], as torch.nn.Linear names them.
class LinearImpl : public torch::nn::Module {
 public:
  LinearImpl(std::int64_t in, std::int64_t out, Bias with_bias) : weight(register_parameter("weight", at::zeros({out, in}))) {
    if (with_bias == Bias::kYes) bias = register_parameter("bias", at::zeros({out}));
  }
  /// [T, in] -> [T, out].
  [[nodiscard]] Tensor forward(const Tensor& x_TF) const { return at::linear(x_TF, weight, bias); }

  Tensor weight;
  Tensor bias;  ///< undefined without bias
};
TORCH_MODULE(Linear);

}  // namespace uqa::models
