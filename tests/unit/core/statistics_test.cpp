#include "core/statistics.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <vector>

#include <gtest/gtest.h>

#include "core/random.h"
#include "tests/support/expect_error.h"

namespace uqa {
namespace {

TEST(NormalQuantile, MatchesTablesInBothTails) {
  EXPECT_NEAR(normal_quantile(0.5), 0.0, 1e-12);
  EXPECT_NEAR(normal_quantile(0.975), 1.959963984540054, 1e-9);
  EXPECT_NEAR(normal_quantile(0.025), -1.959963984540054, 1e-9);
  EXPECT_NEAR(normal_quantile(0.8), 0.8416212335729143, 1e-9);
  EXPECT_NEAR(normal_quantile(1e-10), -6.361340902404056, 1e-9);
  EXPECT_UQA_ERROR(normal_quantile(0.0), ErrorCode::kInternal, "0 < p < 1");
  EXPECT_UQA_ERROR(normal_quantile(1.0), ErrorCode::kInternal, "0 < p < 1");
}

TEST(WilsonInterval, MatchesPublishedValues) {
  // Newcombe, Statistics in Medicine 17 (1998), table I: method 3 for 81/263, 15/148, 0/20, 1/29.
  const auto expect = [](std::int64_t correct, std::int64_t n, double low, double high) {
    const auto interval = wilson_interval(correct, n);
    EXPECT_NEAR(interval.low, low, 5e-5) << correct << "/" << n;
    EXPECT_NEAR(interval.high, high, 5e-5) << correct << "/" << n;
  };
  expect(81, 263, 0.2553, 0.3662);
  expect(15, 148, 0.0624, 0.1605);
  expect(0, 20, 0.0, 0.1611);
  expect(1, 29, 0.0061, 0.1718);
}

TEST(WilsonInterval, IsMirroredAndNarrowsWithN) {
  const auto few = wilson_interval(3, 10), mirrored = wilson_interval(7, 10), many = wilson_interval(300, 1000);
  EXPECT_NEAR(few.low, 1 - mirrored.high, 1e-12);
  EXPECT_LT(many.high - many.low, few.high - few.low);
  EXPECT_EQ(wilson_interval(20, 20).high, 1.0);
  EXPECT_EQ(wilson_interval(0, 0).low, 0.0);
  EXPECT_EQ(wilson_interval(0, 0).high, 1.0);
  EXPECT_LT(wilson_interval(3, 10, 0.9).high, few.high);
  EXPECT_UQA_ERROR(wilson_interval(11, 10), ErrorCode::kInternal, "wilson_interval(11, 10)");
}

TEST(MeanProportionInterval, IsNewcombesForADifference) {
  // Newcombe, Statistics in Medicine 17 (1998), 873-890, method 10: 56/70 - 48/80 lies in [0.0524, 0.3339]; the mean of p and 1 - q is (1 + p - q) / 2.
  const auto interval = mean_proportion_interval({{56, 70}, {32, 80}});
  EXPECT_NEAR(2 * interval.low - 1, 0.0524, 5e-5);
  EXPECT_NEAR(2 * interval.high - 1, 0.3339, 5e-5);
  const auto one = mean_proportion_interval({{81, 263}}), wilson = wilson_interval(81, 263);
  EXPECT_NEAR(one.low, wilson.low, 1e-12);
  EXPECT_NEAR(one.high, wilson.high, 1e-12);
  EXPECT_EQ(mean_proportion_interval({{0, 9}, {0, 3}}).low, 0.0);
  EXPECT_UQA_ERROR(mean_proportion_interval({}), ErrorCode::kInternal, "needs a proportion");
}

TEST(McNemarExact, EqualsTheBinomialTail) {
  EXPECT_EQ(mcnemar_exact_p(0, 0), 1.0);
  EXPECT_EQ(mcnemar_exact_p(5, 5), 1.0);
  EXPECT_NEAR(mcnemar_exact_p(0, 5), 2.0 / 32, 1e-12);
  EXPECT_NEAR(mcnemar_exact_p(2, 8), 2.0 * (1 + 10 + 45) / 1024, 1e-12);
  EXPECT_NEAR(mcnemar_exact_p(8, 2), mcnemar_exact_p(2, 8), 1e-15);
  EXPECT_LT(mcnemar_exact_p(1000, 1300), 1e-8);
}

TEST(HolmAdjust, StepsDownAndKeepsOrder) {
  const auto adjusted = holm_adjust({0.01, 0.04, 0.03, 0.005});
  ASSERT_EQ(adjusted.size(), 4u);
  EXPECT_NEAR(adjusted[0], 0.03, 1e-12);
  EXPECT_NEAR(adjusted[1], 0.06, 1e-12);  // 0.04 * 1, raised to the value before it
  EXPECT_NEAR(adjusted[2], 0.06, 1e-12);
  EXPECT_NEAR(adjusted[3], 0.02, 1e-12);
  EXPECT_EQ(holm_adjust({0.9, 0.8}), (std::vector<double>{1, 1}));
  EXPECT_TRUE(holm_adjust({}).empty());
}

double uniform_sign(PhiloxStream& random) { return (random() & 1u) != 0 ? 1.0 : -1.0; }

TEST(SignFlipTest, EnumeratedCaseIsExact) {
  // All eight sign patterns of (1, 2, 4): only the two extreme ones reach |7|.
  const auto result = sign_flip_test({1, 2, 4}, 10, 20'000, 1);
  EXPECT_NEAR(result.difference, 0.7, 1e-12);
  EXPECT_NEAR(result.p, 0.25, 0.02);
}

TEST(SignFlipTest, NoDifferenceGivesPOne) {
  const auto result = sign_flip_test({0, 0, 0}, 9, 500, 1);
  EXPECT_EQ(result.difference, 0.0);
  EXPECT_EQ(result.p, 1.0);
  EXPECT_EQ(result.detectable, 0.0);
}

TEST(SignFlipTest, PValuesAreUniformWhenThereIsNoDifference) {
  PhiloxStream random(stream_key(4, "null"));
  constexpr int kTrials = 1000;
  std::array<int, 10> deciles{};
  for (int trial = 0; trial < kTrials; ++trial) {
    std::vector<double> sums(40);
    for (double& sum : sums) sum = uniform_sign(random) * (1 + random.uniform_double());
    const double p = sign_flip_test(sums, 400, 199, static_cast<std::uint64_t>(trial)).p;
    ++deciles[std::min<std::size_t>(9, static_cast<std::size_t>(p * 10 - 1e-9))];
  }
  double chi_square = 0;
  for (const int count : deciles) chi_square += std::pow(count - kTrials / 10.0, 2) / (kTrials / 10.0);
  EXPECT_LT(chi_square, 27.9);  // 9 degrees of freedom, p = 0.001
}

TEST(SignFlipTest, TheDetectableDifferenceIsFoundFourTimesInFive) {
  PhiloxStream random(stream_key(5, "power"));
  constexpr int kTrials = 600, kUsers = 400, kQuestions = 4000;
  int found = 0;
  // Each user's sum is +-3 around a shift; the spread then tells the detectable difference, which is used as the shift.
  const double spread = 3.0;
  const double shift_total = (normal_quantile(0.975) + normal_quantile(0.8)) * std::sqrt(kUsers * spread * spread);
  for (int trial = 0; trial < kTrials; ++trial) {
    std::vector<double> sums(kUsers);
    for (double& sum : sums) sum = uniform_sign(random) * spread + shift_total / kUsers;
    const auto result = sign_flip_test(sums, kQuestions, 499, static_cast<std::uint64_t>(trial));
    found += result.p <= 0.05;
    // The shift itself adds to the observed spread, so the reported value may lie somewhat above.
    ASSERT_NEAR(result.detectable, shift_total / kQuestions, 0.15 * shift_total / kQuestions);
  }
  EXPECT_NEAR(found / double{kTrials}, 0.8, 0.07);
}

TEST(SignFlipTest, RepeatsForTheSameSeedAndIgnoresTheOrderOfUsersWithoutDifference) {
  const std::vector<double> sums{1, -2, 3, 0.5, 4};
  std::vector<double> padded{0, 1, 0, -2, 3, 0, 0.5, 4, 0};
  EXPECT_EQ(sign_flip_test(sums, 50, 999, 8).p, sign_flip_test(padded, 50, 999, 8).p);
  EXPECT_UQA_ERROR(sign_flip_test(sums, 0, 999, 8), ErrorCode::kInternal, "needs questions");
}

}  // namespace
}  // namespace uqa
