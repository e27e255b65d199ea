#include "models/layers/dropout.h"

#include <gtest/gtest.h>

#include "core/random.h"
#include "numeric.h"

namespace uqa::models {
namespace {

using testing::gradient_error;
using testing::random_normal;

PackedLayout layout_of(std::vector<std::int64_t> starts, std::vector<std::int64_t> ids) {
  return {.cu_seqlens = std::move(starts), .sample_ids = std::move(ids)};
}

TEST(Dropout, IsPhiloxInTheDocumentedOrder) {
  constexpr std::int64_t kWidth = 150;
  constexpr double kP = 0.25;
  constexpr std::uint64_t kKey = 0x123456789abcdef;
  std::vector<float> factors(kWidth);
  dropout_factors(kKey, {.sample_id = 7, .position = 3, .lane = 2}, kP, factors.data(), kWidth);
  for (std::uint64_t e = 0; e < kWidth; ++e) {
    const auto words = philox(kKey, (e / 64 * 8 + e % 8) | std::uint64_t{2} << 32, std::uint64_t{7} << 24 | 3);
    const auto half = (words[e / 16 % 4] >> (e / 8 % 2 * 16)) & 0xFFFFu;
    const bool kept = half >= static_cast<std::uint32_t>(kP * 0x1p16);
    EXPECT_FLOAT_EQ(factors[e], kept ? 4.0f / 3 : 0.0f) << e;
  }
}

TEST(Dropout, DropsAtItsRateAndKeepsTheMean) {
  const auto layout = layout_of({0, 400}, {11});
  const auto y = dropout(at::ones({400, 250}), 0.2, 99, layout);
  const double dropped = (y == 0).to(at::kDouble).mean().item<double>();
  EXPECT_NEAR(dropped, 0.2, 4 * std::sqrt(0.2 * 0.8 / 1e5));
  EXPECT_NEAR(y.mean().item<double>(), 1.0, 0.01);
}

TEST(Dropout, RowsAndElementsDrawIndependently) {
  const auto mask = dropout(at::ones({200, 300}), 0.5, 1, layout_of({0, 200}, {0})).gt(0).to(at::kDouble);
  // Shares of 0.5: neighbours in a row and in a column agree half of the time.
  EXPECT_NEAR((mask.narrow(0, 0, 199) == mask.narrow(0, 1, 199)).to(at::kDouble).mean().item<double>(), 0.5, 0.01);
  EXPECT_NEAR((mask.narrow(1, 0, 299) == mask.narrow(1, 1, 299)).to(at::kDouble).mean().item<double>(), 0.5, 0.01);
}

TEST(Dropout, DependsOnTheSampleNotOnItsPlaceInTheBatch) {
  const auto a = random_normal({5, 70}, 1, at::kFloat), b = random_normal({9, 70}, 2, at::kFloat);
  const auto together = dropout(at::cat({a, b}), 0.3, 5, layout_of({0, 5, 14}, {40, 41}));
  const auto swapped = dropout(at::cat({b, a}), 0.3, 5, layout_of({0, 9, 14}, {41, 40}));
  EXPECT_TRUE(at::equal(together.narrow(0, 0, 5), swapped.narrow(0, 9, 5)));
  EXPECT_TRUE(at::equal(together.narrow(0, 5, 9), swapped.narrow(0, 0, 9)));
  EXPECT_TRUE(at::equal(together.narrow(0, 5, 9), dropout(b, 0.3, 5, layout_of({0, 9}, {41}))));
  EXPECT_FALSE(at::equal(together.narrow(0, 5, 9), dropout(b, 0.3, 5, layout_of({0, 9}, {42}))));
}

TEST(Dropout, EveryPartOfTheKeyChangesTheMask) {
  const auto x = at::ones({4, 100});
  const auto layout = layout_of({0, 4}, {3});
  const DropoutContext base{.seed = 1, .step = 2, .micro_step = 3};
  const auto mask = [&](const DropoutContext& context, std::int64_t layer, DropoutSite site) {
    return dropout(x, 0.5, dropout_key(context, layer, site), layout);
  };
  const auto expected = mask(base, 4, DropoutSite::kFfnInner);
  EXPECT_TRUE(at::equal(expected, mask(base, 4, DropoutSite::kFfnInner)));
  EXPECT_FALSE(at::equal(expected, mask({.seed = 9, .step = 2, .micro_step = 3}, 4, DropoutSite::kFfnInner)));
  EXPECT_FALSE(at::equal(expected, mask({.seed = 1, .step = 9, .micro_step = 3}, 4, DropoutSite::kFfnInner)));
  EXPECT_FALSE(at::equal(expected, mask({.seed = 1, .step = 2, .micro_step = 9}, 4, DropoutSite::kFfnInner)));
  EXPECT_FALSE(at::equal(expected, mask(base, 9, DropoutSite::kFfnInner)));
  EXPECT_FALSE(at::equal(expected, mask(base, 4, DropoutSite::kFfnOutput)));
}

TEST(Dropout, GradientUsesTheSameMask) {
  const auto x = random_normal({6, 20}, 8);
  EXPECT_LT(gradient_error({x}, [&] { return dropout(x, 0.4, 3, layout_of({0, 2, 6}, {1, 2})); }), 1e-6);
}

TEST(Dropout, ZeroRateReturnsItsInput) {
  const auto x = random_normal({6, 20}, 8);
  EXPECT_TRUE(dropout(x, 0, 3, layout_of({0, 6}, {1})).is_same(x));
}

}  // namespace
}  // namespace uqa::models
