// The fused passes of a decoder layer against plain torch operations, forward and backward, in float32 and bfloat16.

#include <gtest/gtest.h>

#include <cmath>

#include "models/llm/functions.h"
#include "models/llm/kernels.h"
#include "tests/unit/models/numeric.h"

namespace uqa::models::llm {
namespace {

using testing::random_normal;
using testing::relative_error;

/// Tolerance of results that are stored in `type`: a few roundings.
double bound(at::ScalarType type) { return type == at::kFloat ? 2e-6 : 1e-2; }

class LlmFunctions : public ::testing::TestWithParam<at::ScalarType> {};

TEST_P(LlmFunctions, AddNormMatchesPlainOperations) {
  const auto type = GetParam();
  constexpr std::int64_t kRows = 5, kWidth = 37, kSpare = 3;
  auto h = random_normal({kRows, kWidth}, 1, at::kFloat).requires_grad_(true);
  auto delta = random_normal({kRows, kWidth}, 2, type).requires_grad_(true);
  auto weight = random_normal({kWidth}, 3, at::kFloat).requires_grad_(true);
  const auto [sum, normed] = add_norm(h, delta, weight, 1e-5, type, kSpare);
  ASSERT_EQ(normed.sizes(), (at::IntArrayRef{kRows, kWidth + kSpare}));

  auto h64 = h.detach().to(at::kDouble).requires_grad_(true), delta64 = delta.detach().to(at::kDouble).requires_grad_(true);
  auto weight64 = weight.detach().to(at::kDouble).requires_grad_(true);
  const auto sum64 = h64 + delta64;
  const auto normed64 = sum64 * at::rsqrt(sum64.square().mean(-1, true) + 1e-5) * weight64;
  EXPECT_LT(relative_error(sum, sum64), 1e-6);
  EXPECT_LT(relative_error(normed.narrow(1, 0, kWidth), normed64), bound(type));

  const auto a = random_normal({kRows, kWidth}, 4, type), b = random_normal({kRows, kWidth}, 5, at::kFloat);
  ((normed.narrow(1, 0, kWidth) * a).to(at::kFloat).sum() + (sum * b).sum()).backward();
  ((normed64 * a).sum() + (sum64 * b).sum()).backward();
  EXPECT_LT(relative_error(h.grad(), h64.grad()), type == at::kFloat ? 2e-6 : 1e-2);
  EXPECT_EQ(delta.grad().scalar_type(), type);
  EXPECT_LT(relative_error(delta.grad(), delta64.grad()), bound(type));
  EXPECT_LT(relative_error(weight.grad(), weight64.grad()), bound(type));
}

TEST_P(LlmFunctions, NormWithoutDeltaLeavesTheStreamAlone) {
  const auto type = GetParam();
  auto h = random_normal({4, 16}, 1, at::kFloat).requires_grad_(true);
  const auto weight = random_normal({16}, 3, at::kFloat);
  const auto [same, normed] = add_norm(h, Tensor(), weight, 1e-5, type, 0);
  EXPECT_TRUE(same.is_same(h));
  normed.to(at::kFloat).sum().backward();
  auto h64 = h.detach().to(at::kDouble).requires_grad_(true);
  (h64 * at::rsqrt(h64.square().mean(-1, true) + 1e-5) * weight).sum().backward();
  EXPECT_LT(relative_error(h.grad(), h64.grad()), bound(type));
}

TEST_P(LlmFunctions, SwiGluMatchesPlainOperations) {
  const auto type = GetParam();
  constexpr std::int64_t kRows = 5, kInner = 29, kSpare = 2;
  auto x = (random_normal({kRows, 2 * kInner}, 1, type) * 4).detach().requires_grad_(true);
  const auto out = swiglu_activation(x, kSpare).narrow(1, 0, kInner);
  auto x64 = x.detach().to(at::kDouble).requires_grad_(true);
  const auto halves = x64.chunk(2, 1);
  const auto out64 = at::silu(halves[0]) * halves[1];
  EXPECT_LT(relative_error(out, out64), bound(type));
  const auto a = random_normal({kRows, kInner}, 4, type);
  (out * a).to(at::kFloat).sum().backward();
  (out64 * a).sum().backward();
  EXPECT_LT(relative_error(x.grad(), x64.grad()), bound(type));
}

TEST_P(LlmFunctions, RopeHeadsMatchPlainOperations) {
  const auto type = GetParam();
  constexpr std::int64_t kRows = 6, kHeads = 4, kKv = 2, kWidth = 10;
  const auto positions = at::tensor({0, 1, 2, 0, 7, 30}, at::kLong);
  auto qkv = random_normal({kRows, (kHeads + 2 * kKv) * kWidth}, 1, type).requires_grad_(true);
  auto bias = random_normal({(kHeads + 2 * kKv) * kWidth}, 2, at::kFloat).requires_grad_(true);
  const auto heads = rope_heads(qkv, bias, rope_tables(positions, kWidth, 100.0), kHeads, kKv, kWidth);

  auto qkv64 = qkv.detach().to(at::kDouble).requires_grad_(true), bias64 = bias.detach().to(at::kDouble).requires_grad_(true);
  const auto all = (qkv64 + bias64).view({kRows, kHeads + 2 * kKv, kWidth});
  const auto angles = at::outer(positions.to(at::kDouble), at::pow(100.0, at::arange(0, kWidth, 2, at::kDouble) / -static_cast<double>(kWidth)))
                          .repeat({1, 2})
                          .unsqueeze(1);
  const auto turned = all.narrow(1, 0, kHeads + kKv);
  const auto parts = turned.chunk(2, -1);
  const auto rotated = turned * angles.cos() + at::cat({-parts[1], parts[0]}, -1) * angles.sin();
  const auto expected = at::cat({rotated, all.narrow(1, kHeads + kKv, kKv)}, 1);
  const auto actual = at::cat({heads.q_TND, heads.k_TKD, heads.v_TKD}, 1);
  EXPECT_LT(relative_error(actual, expected), type == at::kFloat ? 5e-6 : 1e-2);

  const auto a = random_normal(expected.sizes(), 4, type);
  (actual * a).to(at::kFloat).sum().backward();
  (expected * a).sum().backward();
  EXPECT_LT(relative_error(qkv.grad(), qkv64.grad()), type == at::kFloat ? 5e-6 : 1e-2);
  EXPECT_LT(relative_error(bias.grad(), bias64.grad()), type == at::kFloat ? 5e-6 : 1e-2);
}

TEST(LlmRope, Llama3ScalingStretchesLongWavelengthsOnly) {
  const RopeScaling scaling{.factor = 8, .low_factor = 1, .high_factor = 4, .original_positions = 256};
  const auto positions = at::tensor({1}, at::kLong);
  const auto plain = rope_tables(positions, 16, 1000), scaled = rope_tables(positions, 16, 1000, scaling);
  int kept = 0, mixed = 0, stretched = 0;
  for (std::int64_t i = 0; i < 8; ++i) {
    const double frequency = std::pow(1000.0, -static_cast<double>(i) / 8), wavelength = 2 * M_PI / frequency;
    double expected = frequency;
    if (wavelength > 256) {
      expected = frequency / 8;
      ++stretched;
    } else if (wavelength > 64) {
      const double share = (256 / wavelength - 1) / 3;
      expected = (1 - share) * frequency / 8 + share * frequency;
      ++mixed;
    } else {
      ++kept;
    }
    EXPECT_NEAR(scaled.sin_TR[0][i].item<double>(), std::sin(expected), 1e-6) << i;
    EXPECT_NEAR(plain.sin_TR[0][i].item<double>(), std::sin(frequency), 1e-6) << i;
  }
  EXPECT_TRUE(kept > 0 && mixed > 0 && stretched > 0);
}

TEST_P(LlmFunctions, CrossEntropyRowsMatchPlainOperations) {
  const auto type = GetParam();
  auto logits = random_normal({7, 61}, 1, type) * 5;
  const auto labels = at::tensor({0, 60, 3, 3, 17, 44, 9}, at::kLong);
  auto logits64 = logits.to(at::kDouble).requires_grad_(true);
  const auto losses64 = at::cross_entropy_loss(logits64, labels, {}, at::Reduction::None);
  losses64.sum().backward();
  const auto losses = cross_entropy_rows_(logits, labels, /*to_gradient=*/true);
  EXPECT_LT(relative_error(losses, losses64), 2e-6);
  EXPECT_LT(relative_error(logits, logits64.grad()), bound(type));
}

TEST_P(LlmFunctions, LogitsThatAreNotFiniteMakeTheLossNotFinite) {
  for (const double bad : {std::numeric_limits<double>::quiet_NaN(), std::numeric_limits<double>::infinity()}) {
    auto logits = random_normal({2, 61}, 1, GetParam());
    logits.select(0, 1)[5] = bad;
    const auto losses = cross_entropy_rows_(logits, at::tensor({4, 4}, at::kLong), /*to_gradient=*/false);
    EXPECT_TRUE(std::isfinite(losses[0].item<double>()));
    EXPECT_FALSE(std::isfinite(losses[1].item<double>()));
  }
}

INSTANTIATE_TEST_SUITE_P(Types, LlmFunctions, ::testing::Values(at::kFloat, at::kBFloat16),
                         [](const auto& instance) { return instance.param == at::kFloat ? "Float32" : "BFloat16"; });

}  // namespace
}  // namespace uqa::models::llm
