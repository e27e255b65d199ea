// tests/support/weights.h - weights of two runs, compared.
#pragma once

#include <cmath>
#include <map>
#include <string>

#include "models/torch_pch.h"

namespace uqa::tests {

/// Largest error over largest magnitude, the worst of all tensors; infinite where one is missing.
inline double error_of(const std::map<std::string, at::Tensor>& ours, const std::map<std::string, at::Tensor>& reference, std::string* where = nullptr) {
  double worst = ours.size() == reference.size() ? 0 : INFINITY;
  for (const auto& [name, want] : reference) {
    double error = INFINITY;
    if (const auto found = ours.find(name); found != ours.end() && found->second.sizes() == want.sizes()) {
      const double magnitude = want.abs().max().item<double>();
      error = (want - found->second).abs().max().item<double>() / (magnitude > 0 ? magnitude : 1);
    }
    if (!(error <= worst) && where != nullptr) *where = name;
    worst = std::max(worst, error);
  }
  return worst;
}

/// Without the biases of attention keys: softmax does not change when all scores of a row do, so their gradient is rounding noise alone, which
/// AdamW divides by its own size. No output depends on them.
inline std::map<std::string, at::Tensor> without_key_bias(std::map<std::string, at::Tensor> weights) {
  for (auto& [name, tensor] : weights) {
    if (!name.ends_with("in_proj_bias")) continue;
    const auto parts = tensor.chunk(3);
    tensor = at::cat({parts[0], parts[2]});
  }
  return weights;
}

}  // namespace uqa::tests
