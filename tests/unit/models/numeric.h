// tests/unit/models/numeric.h - numeric comparisons shared by the model tests.
#pragma once

#include <functional>
#include <vector>

#include "models/packed.h"

namespace uqa::models::testing {

inline double max_abs(const Tensor& x) { return x.numel() == 0 ? 0 : x.detach().to(at::kDouble).abs().max().item<double>(); }
/// Largest difference over the largest magnitude of `expected`.
inline double relative_error(const Tensor& actual, const Tensor& expected) {
  return max_abs(actual.detach().to(at::kDouble) - expected.detach().to(at::kDouble)) / max_abs(expected);
}

inline Tensor random_normal(at::IntArrayRef shape, std::uint64_t seed, at::ScalarType type = at::kDouble) {
  auto generator = at::detail::createCPUGenerator(seed);
  return at::randn(shape, generator, at::kDouble).to(type);
}

/// Largest relative error over `inputs` (float64) between autograd's gradient of sum(f() * weights) and central differences.
inline double gradient_error(const std::vector<Tensor>& inputs, const std::function<Tensor()>& f) {
  for (const auto& input : inputs) {
    const_cast<Tensor&>(input).requires_grad_(true);
    const_cast<Tensor&>(input).mutable_grad() = Tensor();
  }
  const auto out = f();
  const auto weights = random_normal(out.sizes(), 4242).view(out.sizes());
  (out * weights).sum().backward();
  const at::NoGradGuard no_grad;
  double worst = 0;
  constexpr double kStep = 1e-6;
  for (const auto& input : inputs) {
    auto numeric = at::zeros_like(input);
    auto* x = input.data_ptr<double>();
    auto* g = numeric.data_ptr<double>();
    for (std::int64_t i = 0; i < input.numel(); ++i) {
      const double saved = x[i];
      x[i] = saved + kStep;
      const double above = (f() * weights).sum().item<double>();
      x[i] = saved - kStep;
      const double below = (f() * weights).sum().item<double>();
      x[i] = saved;
      g[i] = (above - below) / (2 * kStep);
    }
    worst = std::max(worst, relative_error(input.grad(), numeric));
  }
  return worst;
}

}  // namespace uqa::models::testing
