// tests/unit/models/plain_case.h - a function from LibTorch's own operators against the fused kernel: results and all gradients.
#pragma once

#include <gtest/gtest.h>

#include "tests/unit/models/numeric.h"

namespace uqa::models::testing {

inline void expect_near(const Tensor& got, const Tensor& want, double tolerance, const std::string& what) {
  ASSERT_TRUE(got.defined() && want.defined()) << what;
  ASSERT_EQ(got.sizes(), want.sizes()) << what;
  ASSERT_EQ(got.scalar_type(), want.scalar_type()) << what;
  if (want.numel() == 0) return;
  const auto scale = std::max(1e-6, max_abs(want));
  EXPECT_LE(max_abs(got.to(at::kDouble) - want.to(at::kDouble)) / scale, tolerance) << what;
}

inline double tolerance_of(at::ScalarType type) { return type == at::kDouble ? 1e-12 : type == at::kFloat ? 1e-5 : 2e-2; }

using Tensors = std::vector<Tensor>;
using Differentiable = std::function<Tensor(const Tensors& inputs)>;

/// f(values), then the gradient of its weighted sum by each value (undefined where there is none).
inline Tensors result_and_gradients(const Differentiable& f, const Tensors& values) {
  Tensors leaves;
  for (const auto& value : values) leaves.push_back(value.detach().clone().requires_grad_());
  const auto out = f(leaves);
  out.backward(random_normal(out.sizes(), 77, out.scalar_type()));
  Tensors results{out.detach()};
  for (const auto& leaf : leaves) results.push_back(leaf.grad());
  return results;
}

inline void expect_same(const Differentiable& plain, const Differentiable& fused, const Tensors& values, double tolerance) {
  const auto got = result_and_gradients(plain, values), want = result_and_gradients(fused, values);
  for (std::size_t i = 0; i < want.size(); ++i) expect_near(got[i], want[i], tolerance, i == 0 ? "result" : fmt::format("gradient {}", i - 1));
}

/// Users of these many interactions, seconds to years apart.
inline PackedLayout layout_of_lengths(const std::vector<std::int64_t>& lengths) {
  PackedLayout layout;
  std::int64_t now = 1'600'000'000;
  for (const auto length : lengths) {
    layout.sample_ids.push_back(10 + layout.num_sequences());
    layout.cu_seqlens.push_back(layout.num_rows() + length);
    for (std::int64_t t = 0; t < length; ++t) layout.timestamps.push_back(now += std::int64_t{1} << (3 * t + length) % 27);
  }
  return layout;
}

/// Uneven and empty users, a batch of an empty user, and a batch of none.
inline std::vector<PackedLayout> layouts_of_all_kinds() {
  return {layout_of_lengths({1, 3, 0, 9, 2, 2, 37, 4, 16, 0, 5}), layout_of_lengths({0}), layout_of_lengths({})};
}

}  // namespace uqa::models::testing
