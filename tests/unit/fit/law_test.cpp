#include "trainer/fit/law.h"

#include <limits>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/support/expect_error.h"
#include "tests/unit/fit/synthetic.h"
#include "trainer/fit/quantities.h"

namespace uqa::fit {
namespace {

using testing::HasSubstr;

TEST(Law, FindsTheParametersOfRunsWithoutNoise) {
  const Truth truth;
  const auto fit = fit_law(grid(5, 5, 0, 1), {.huber_delta = 1e-3});
  EXPECT_NEAR(fit.irreducible(), truth.e, 1e-4);
  EXPECT_NEAR(fit.exponent(0), truth.alpha, 1e-4);
  EXPECT_NEAR(fit.exponent(1), truth.beta, 1e-4);
  EXPECT_NEAR(std::exp(fit.log_coefficient(0)), truth.a, 1);
  EXPECT_NEAR(std::exp(fit.log_coefficient(1)), truth.b, 4);
  EXPECT_NEAR(std::exp(log_prediction(fit, std::vector<double>{std::log(1e9), std::log(1e10)})), truth.loss(std::log(1e9), std::log(1e10)), 1e-4);
}

TEST(Law, FindsALawOfOneSize) {
  LawData data{.log_x = {{}}, .log_loss = {}};
  for (int i = 0; i < 8; ++i) {
    data.log_x[0].push_back(std::log(1e3) + i);
    data.log_loss.push_back(std::log(2.5 + 40 * std::exp(-0.4 * data.log_x[0].back())));
  }
  const auto fit = fit_law(data, {.huber_delta = 1e-3});
  EXPECT_NEAR(fit.irreducible(), 2.5, 1e-4);
  EXPECT_NEAR(fit.exponent(0), 0.4, 1e-4);
  EXPECT_NEAR(std::exp(fit.log_coefficient(0)), 40, 0.05);
}

/// The mean Huber loss, written down again.
double objective(const LawData& data, const LawFit& fit, const Theta& theta) {
  double sum = 0;
  for (std::size_t i = 0; i < data.num_runs(); ++i) {
    double loss = std::exp(theta[0]);
    for (std::size_t k = 0; k < data.num_terms(); ++k) loss += std::exp(theta[1 + 2 * k] - theta[2 + 2 * k] * (data.log_x[k][i] - fit.center[k]));
    const double r = std::abs(std::log(loss) - data.log_loss[i]);
    sum += r <= fit.delta ? r * r / 2 : fit.delta * (r - fit.delta / 2);
  }
  return sum / static_cast<double>(data.num_runs());
}

TEST(Law, EndsAtAMinimumOfHubersLoss) {
  const auto data = grid(6, 5, 0.01, 2);
  for (const double delta : {1e-3, 1e-2, 1.0}) {
    const auto fit = fit_law(data, {.huber_delta = delta});
    const double here = objective(data, fit, fit.theta);
    EXPECT_NEAR(fit.objective, here, 1e-12);
    for (std::size_t j = 0; j < fit.num_parameters(); ++j) {
      for (const double step : {-1e-3, 1e-3}) {
        auto moved = fit.theta;
        moved[j] += step;
        EXPECT_GT(objective(data, fit, moved), here) << "delta " << delta << ", parameter " << j << ", step " << step;
      }
    }
  }
}

TEST(Law, OneWildRunHardlyMovesIt) {
  auto data = grid(6, 6, 0.002, 3);
  const auto clean = fit_law(data, {});
  data.log_loss[7] += 0.3;
  const auto with_outlier = fit_law(data, {});
  const auto least_squares = fit_law(data, {.huber_delta = 10});
  EXPECT_LT(std::abs(with_outlier.exponent(0) - clean.exponent(0)), 0.01);
  EXPECT_GT(std::abs(least_squares.exponent(0) - clean.exponent(0)), 0.02) << "the outlier is too tame for this test";
}

TEST(Law, TheNoiseIsEstimated) {
  double sum = 0;
  for (std::uint64_t seed = 0; seed < 40; ++seed) sum += fit_law(grid(4, 5, 0.01, 100 + seed), {}).spread / 40;
  EXPECT_NEAR(sum, 0.01, 0.0012);
}

TEST(Law, RefusesWhatItCannotFit) {
  auto data = grid(3, 3, 0.01, 4);
  data.log_loss.resize(4);
  for (auto& x : data.log_x) x.resize(4);
  EXPECT_UQA_ERROR((void)fit_law(data, {}), ErrorCode::kConfig, "runs to fit = 4");
  EXPECT_UQA_ERROR((void)fit_law(grid(2, 6, 0.01, 4), {}), ErrorCode::kConfig, "different sizes = 2");
  data = grid(3, 3, 0.01, 4);
  data.log_loss[2] = std::numeric_limits<double>::quiet_NaN();
  EXPECT_UQA_ERROR((void)fit_law(data, {}), ErrorCode::kNumeric, "not finite");
}

TEST(Compute, ConventionsAreFoundByRegression) {
  const auto data = grid(5, 5, 0, 1);
  std::vector<double> log_c;
  for (std::size_t i = 0; i < data.num_runs(); ++i) log_c.push_back(std::log(6.0) + data.log_x[0][i] + data.log_x[1][i]);
  const auto law = fit_compute(data.log_x[0], data.log_x[1], log_c);
  EXPECT_NEAR(law.p, 1, 1e-9);
  EXPECT_NEAR(law.q, 1, 1e-9);
  EXPECT_NEAR(law.log_k, std::log(6.0), 1e-7);
  EXPECT_NEAR(law.r_squared, 1, 1e-12);
  EXPECT_UQA_ERROR((void)fit_compute(data.log_x[0], data.log_x[0], log_c), ErrorCode::kConfig, "grow together");
}

TEST(Compute, TheFrontierIsTheLeastLossOfACompute) {
  const auto fit = fit_law(grid(5, 5, 0, 1), {.huber_delta = 1e-3});
  for (const ComputeLaw& compute : {ComputeLaw{.log_k = std::log(6.0)}, ComputeLaw{.log_k = 3, .p = 0.6, .q = 1.1}}) {
    const double log_c = compute.log_k + compute.p * std::log(2e7) + compute.q * std::log(3e8);
    const auto best = optimal_sizes(fit, fit.theta, compute, log_c);
    EXPECT_NEAR(compute.log_k + compute.p * best[0] + compute.q * best[1], log_c, 1e-9);
    const double here = log_prediction(fit, best);
    for (const double step : {-0.3, -0.01, 0.01, 0.3}) {
      const double log_n = best[0] + step;
      EXPECT_GT(log_prediction(fit, std::vector<double>{log_n, (log_c - compute.log_k - compute.p * log_n) / compute.q}), here);
    }
    // N_opt grows as C^a.
    const auto more = optimal_sizes(fit, fit.theta, compute, log_c + 1);
    const auto exponents = frontier_quantities(compute);
    EXPECT_NEAR(more[0] - best[0], exponents[0].value(fit.theta), 1e-9);
    EXPECT_NEAR(more[1] - best[1], exponents[1].value(fit.theta), 1e-9);
  }
}

TEST(Compute, RunsToHalveFollowStudent) {
  // t(7) / sqrt(12) = 0.6826; t(30) / sqrt(35) = 0.3452 is too wide, t(31) / sqrt(36) = 0.3399 is not.
  EXPECT_EQ(runs_to_halve(12, 5, 0.95), 24);
  // Many runs: four times as many in all, to a few.
  EXPECT_NEAR(static_cast<double>(runs_to_halve(1000, 5, 0.95)), 3000, 15);
}

}  // namespace
}  // namespace uqa::fit
