// trainer/fit/coverage.h - how often intervals hold the truth, on synthetic studies with known parameters.
#pragma once

#include "core/json.h"
#include "trainer/fit/bootstrap.h"

namespace uqa::fit {

/// A study: runs on a near-square grid of N in [1e6, 3e8] and D in [1e7, 3e9]; loss = (E + A/N^alpha + B/D^beta) exp(noise z), z standard normal.
struct CoverageOptions {
  std::int64_t num_studies = 200;
  std::int64_t num_runs = 30;   ///< of a study; >= 6
  double noise = 0.003;         ///< standard deviation of log loss
  double e = 1.8, alpha = 0.35, beta = 0.37, a = 480, b = 2000;
  BootstrapOptions bootstrap{.num_resamples = 1000};
  std::uint64_t seed = 1;
};
/// Per quantity (E, A, alpha, B, beta, a, b, the loss of the law at 10 times the largest N and D, the loss of one new run there): share of the studies with an
/// interval that held the truth, studies with an interval, and the median width.
[[nodiscard]] Json measure_coverage(const CoverageOptions& options);

}  // namespace uqa::fit
