// trainer/fit/quantities.h - the numbers that a fitted law is read for: E, A, alpha, B, beta, and the exponents a, b of the compute-optimal frontier.
#pragma once

#include <vector>

#include "trainer/fit/bootstrap.h"

namespace uqa::fit {

/// C = k N^p D^q over the runs; (6, 1, 1) for the convention C = 6 N D.
struct ComputeLaw {
  double log_k = 0, p = 1, q = 1;
  double r_squared = 1;  ///< of the regression that found them
};

/// Regression of log C on log N and log D. Error(kConfig) with fewer than 3 runs or sizes that do not vary.
[[nodiscard]] ComputeLaw fit_compute(const std::vector<double>& log_n, const std::vector<double>& log_d, const std::vector<double>& log_c);

/// Of L(N) or L(D): E, A, alpha (or E, B, beta).
[[nodiscard]] std::vector<Quantity> law_quantities(const LawFit& fit, const std::vector<std::string>& axes);
/// Of L(N, D): N_opt ~ C^a, D_opt ~ C^b with a = beta / (p beta + q alpha), b = alpha / (p beta + q alpha).
[[nodiscard]] std::vector<Quantity> frontier_quantities(const ComputeLaw& compute);
/// (log N, log D) that give the least loss for log C.
[[nodiscard]] std::array<double, 2> optimal_sizes(const LawFit& fit, const Theta& theta, const ComputeLaw& compute, double log_c);

/// How many more runs of the same design halve an interval: Student's quantile over the square root of the number of runs.
[[nodiscard]] std::int64_t runs_to_halve(std::int64_t num_runs, std::int64_t num_parameters, double confidence);

}  // namespace uqa::fit
