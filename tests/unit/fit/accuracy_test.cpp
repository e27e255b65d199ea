#include "trainer/fit/accuracy.h"

#include <cmath>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/random.h"

namespace uqa::fit {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

double sigmoid(double loss) { return 0.25 + 0.45 / (1 + std::exp(3 * (loss - 4))); }

std::vector<AccuracyRun> runs_of(int count, double questions, std::uint64_t seed) {
  PhiloxStream random(seed);
  std::vector<AccuracyRun> runs;
  for (int i = 0; i < count; ++i) {
    const double loss = 2.5 + 3.0 * i / (count - 1);
    double correct = 0;
    for (int q = 0; q < static_cast<int>(questions); ++q) correct += random.uniform_double() < sigmoid(loss) ? 1 : 0;
    runs.push_back({.loss = loss, .accuracy = correct / questions, .num_questions = questions, .users_effect = 1, .log10_sizes = {static_cast<double>(i), 2}});
  }
  return runs;
}

TEST(Accuracy, FindsTheSigmoid) {
  const auto fit = fit_sigmoid(runs_of(16, 4000, 1), 0.25, {.num_resamples = 300});
  ASSERT_TRUE(fit.fitted) << fit.reason;
  EXPECT_TRUE(fit.free_ceiling);
  EXPECT_NEAR(fit.ceiling.value, 0.70, 0.03);
  EXPECT_NEAR(fit.k.value, 3, 0.5);
  EXPECT_NEAR(fit.midpoint.value, 4, 0.1);
  EXPECT_LT(fit.midpoint.interval->low, fit.midpoint.value);
  EXPECT_GT(fit.midpoint.interval->high, fit.midpoint.value);
  EXPECT_NEAR(fit.midpoint.value, 4, 4 * fit.midpoint.standard_error);
  EXPECT_NEAR(fit.overdispersion, 1.2, 0.9);
}

TEST(Accuracy, IntervalsOfTheCurveHoldTheTruth) {
  int covered = 0, total = 0;
  for (std::uint64_t seed = 1; seed <= 40; ++seed) {
    const auto fit = fit_sigmoid(runs_of(12, 500, seed), 0.25, {.num_resamples = 200, .seed = seed});
    ASSERT_TRUE(fit.fitted) << fit.reason;
    for (const std::size_t at : {10u, 20u, 30u}) {
      const auto& [loss, value, low, high] = fit.curve[at];
      ++total;
      covered += low <= sigmoid(loss) && sigmoid(loss) <= high ? 1 : 0;
    }
  }
  EXPECT_GE(covered, 0.85 * total);
}

TEST(Accuracy, UsersWidenTheIntervals) {
  auto runs = runs_of(12, 500, 3);
  const auto narrow = fit_sigmoid(runs, 0.25, {.num_resamples = 300});
  for (auto& run : runs) run.users_effect = 4;
  const auto wide = fit_sigmoid(runs, 0.25, {.num_resamples = 300});
  ASSERT_TRUE(narrow.fitted && wide.fitted);
  const auto width = [](const SigmoidFit& fit) { return fit.curve[20][3] - fit.curve[20][2]; };
  EXPECT_GT(width(wide), 1.4 * width(narrow));
}

TEST(Accuracy, TheUsersEffectIsTheirQuestionsWhenTheyAgree) {
  PhiloxStream random(4);
  std::vector<std::pair<std::int64_t, bool>> same, independent;
  for (std::int64_t user = 0; user < 2000; ++user) {
    const bool right = random.uniform_double() < 0.4;
    for (int q = 0; q < 5; ++q) {
      same.emplace_back(user, right);
      independent.emplace_back(user, random.uniform_double() < 0.4);
    }
  }
  EXPECT_NEAR(users_effect(same), 5, 0.1);
  EXPECT_NEAR(users_effect(independent), 1, 0.1);
  EXPECT_EQ(users_effect({{1, true}, {1, false}}), 1);
}

TEST(Accuracy, RefusesWhatTheRunsCannotSay) {
  EXPECT_THAT(fit_sigmoid(runs_of(3, 500, 1), 0.25, {.num_resamples = 300}).reason, HasSubstr("3 different losses"));
  auto flat = runs_of(12, 400, 1);
  PhiloxStream random(9);
  for (auto& run : flat) {
    double correct = 0;
    for (int q = 0; q < 400; ++q) correct += random.uniform_double() < 0.25 ? 1 : 0;
    run.accuracy = correct / 400;
  }
  const auto fit = fit_sigmoid(flat, 0.25, {.num_resamples = 300});
  EXPECT_FALSE(fit.fitted);
  EXPECT_THAT(fit.reason, HasSubstr("do not differ by more than chance explains"));
}

TEST(Accuracy, TrendsAreToldApart) {
  std::vector<AccuracyRun> runs;
  for (int i = 0; i < 4; ++i) {
    for (int j = 0; j < 3; ++j) {
      runs.push_back({.loss = 3, .accuracy = 0.3 + 0.05 * i + 0.02 * j, .num_questions = 1000, .users_effect = 1, .log10_sizes = {static_cast<double>(i), static_cast<double>(j), 1}});
    }
  }
  const auto trend = fit_accuracy_trend(runs, {"N", "history length", "LLM parameters"}, 0.95);
  ASSERT_THAT(trend.axes, ElementsAre("N", "history length"));
  EXPECT_NEAR(trend.per_decade[0].value, 0.05, 1e-9);
  EXPECT_NEAR(trend.per_decade[1].value, 0.02, 1e-9);
  EXPECT_LT(trend.per_decade[1].interval->low, 0.02);
  for (auto& run : runs) run.log10_sizes[1] = 2 * run.log10_sizes[0];
  EXPECT_THAT(fit_accuracy_trend(runs, {"N", "history length", "LLM parameters"}, 0.95).reason, HasSubstr("cannot be told apart"));
}

}  // namespace
}  // namespace uqa::fit
