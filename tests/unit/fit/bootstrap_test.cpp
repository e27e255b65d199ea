#include "trainer/fit/bootstrap.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/support/expect_error.h"
#include "tests/unit/fit/synthetic.h"
#include "trainer/fit/coverage.h"
#include "trainer/fit/holdout.h"
#include "trainer/fit/quantities.h"

namespace uqa::fit {
namespace {

using testing::HasSubstr;

const Quantity kAlpha{.name = "alpha", .value = [](const Theta& t) { return t[2]; }};

// Wide limits: 60 studies cannot tell 90 % from 95 %. bench/fit_coverage measures with 200.
TEST(Bootstrap, IntervalsHoldTheTruthAboutAsOftenAsTheySay) {
  for (const std::int64_t runs : {12, 36}) {
    const Json measured = measure_coverage({.num_studies = 60, .num_runs = runs, .noise = 0.005, .bootstrap = {.num_resamples = 300}, .seed = 5});
    for (const char* name : {"E", "A", "alpha", "B", "beta", "a", "b", "loss_at_10x", "new_run_at_10x"}) {
      EXPECT_EQ(measured["with_interval"][name].get<int>(), 60) << name;
      EXPECT_GE(measured["coverage"][name].get<double>(), 0.83) << name << ", " << runs << " runs";
    }
  }
}

TEST(Bootstrap, ALowerConfidenceGivesNarrowerIntervalsThatMissMore) {
  const Json wide = measure_coverage({.num_studies = 60, .num_runs = 12, .noise = 0.005, .bootstrap = {.num_resamples = 300, .confidence = 0.95}, .seed = 6});
  const Json narrow = measure_coverage({.num_studies = 60, .num_runs = 12, .noise = 0.005, .bootstrap = {.num_resamples = 300, .confidence = 0.6}, .seed = 6});
  EXPECT_LT(narrow["median_width"]["alpha"].get<double>(), 0.6 * wide["median_width"]["alpha"].get<double>());
  EXPECT_LT(narrow["coverage"]["alpha"].get<double>(), 0.8);
  EXPECT_GT(narrow["coverage"]["alpha"].get<double>(), 0.4);
}

TEST(Bootstrap, SaysNothingAboutAnIntervalOnThreePoints) {
  LawData data{.log_x = {{10, 12, 14}}, .log_loss = {1.0, 0.8, 0.7}};
  const auto fit = fit_law(data, {});
  const Bootstrap bootstrap(data, fit, {});
  const auto alpha = bootstrap.interval(kAlpha);
  EXPECT_FALSE(alpha.interval.has_value());
  EXPECT_THAT(alpha.reason, HasSubstr("3 runs for 3 parameters leave 0 degrees of freedom"));
  EXPECT_FALSE(bootstrap.new_run(std::vector<double>{15}).interval.has_value());
}

TEST(Bootstrap, SaysSoWhenTheRunsDoNotHoldALaw) {
  // Losses that do not depend on the sizes: refits fall apart in every direction.
  auto data = grid(4, 4, 0, 1);
  PhiloxStream random(3);
  for (auto& y : data.log_loss) y = 1 + 0.1 * random.uniform_double();
  const auto fit = fit_law(data, {});
  const Bootstrap bootstrap(data, fit, {.num_resamples = 300});
  const auto alpha = bootstrap.interval(kAlpha);
  ASSERT_FALSE(alpha.interval.has_value()) << alpha.interval->low << " " << alpha.interval->high;
  EXPECT_THAT(alpha.reason, HasSubstr("cannot be told apart"));
}

TEST(Bootstrap, TheSeedDecides) {
  const auto data = grid(4, 4, 0.01, 8);
  const auto fit = fit_law(data, {});
  const auto low = [&](std::uint64_t seed) { return Bootstrap(data, fit, {.num_resamples = 300, .seed = seed}).interval(kAlpha).interval.value().low; };
  EXPECT_EQ(low(1), low(1));
  EXPECT_NE(low(1), low(2));
}

TEST(Bootstrap, QuantilesInterpolate) {
  EXPECT_DOUBLE_EQ(quantile({3, 1, 2, 4}, 0.5), 2.5);
  EXPECT_DOUBLE_EQ(quantile({3, 1, 2, 4}, 0), 1);
  EXPECT_DOUBLE_EQ(quantile({3, 1, 2, 4}, 1), 4);
  EXPECT_DOUBLE_EQ(quantile({3, 1, 2, 4}, 0.1), 1.3);
}

TEST(Bootstrap, RefusesBadOptions) {
  const auto data = grid(4, 4, 0.01, 8);
  const auto fit = fit_law(data, {});
  EXPECT_UQA_ERROR(Bootstrap(data, fit, {.num_resamples = 100}), ErrorCode::kConfig, "resamples = 100");
  EXPECT_UQA_ERROR(Bootstrap(data, fit, {.confidence = 1}), ErrorCode::kConfig, "confidence = 1");
}

TEST(HoldOut, TheLawPredictsBetterThanBothBaselines) {
  const auto data = grid(6, 5, 0.001, 9);
  const auto holdout = hold_out_largest(data, 3, {}, {.num_resamples = 300});
  ASSERT_EQ(holdout.runs.size(), 3u);
  EXPECT_LT(holdout.law_error, 0.01 * holdout.drop);
  EXPECT_LT(holdout.law_error, 0.5 * holdout.next_largest_error);
  EXPECT_LT(holdout.law_error, 0.5 * holdout.log_line_error);
  EXPECT_EQ(holdout.with_interval, 3);
  EXPECT_GE(holdout.covered, 2);
}

TEST(HoldOut, RunsOfOneSizeStayTogether) {
  LawData data{.log_x = {{}}, .log_loss = {}};
  for (int width = 0; width < 6; ++width) {
    for (int seed = 0; seed < 3; ++seed) {
      data.log_x[0].push_back(5 + width);
      data.log_loss.push_back(std::log(2 + 30 * std::exp(-0.5 * (5 + width))) + 1e-4 * (seed - 1));
    }
  }
  const auto holdout = hold_out_largest(data, 1, {}, {.num_resamples = 300});
  ASSERT_EQ(holdout.runs.size(), 3u);
  double next = 0;
  for (int seed = 0; seed < 3; ++seed) next += std::exp(data.log_loss[static_cast<std::size_t>(12 + seed)]) / 3;
  EXPECT_NEAR(holdout.runs[0].next_largest, next, 1e-12);
  EXPECT_TRUE(hold_out_largest(data, 0, {}, {.num_resamples = 300}).runs.empty());
  EXPECT_THAT(hold_out_largest(data, 15, {}, {.num_resamples = 300}).reason, HasSubstr("3 runs would remain"));
}

TEST(HoldOut, TheStraightLineIsLeastSquares) {
  LawData data{.log_x = {{0, 1, 2, 3}, {0, 1, 0, 1}}, .log_loss = {1, 1.6, 0.6, 1.2}};  // 1 - 0.2 x + 0.8 z
  const auto line = fit_log_line(data);
  ASSERT_EQ(line.size(), 3u);
  EXPECT_NEAR(line[0], 1, 1e-12);
  EXPECT_NEAR(line[1], -0.2, 1e-12);
  EXPECT_NEAR(line[2], 0.8, 1e-12);
}

}  // namespace
}  // namespace uqa::fit
