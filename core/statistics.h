// core/statistics.h - intervals and paired tests for accuracies.
#pragma once

#include <cstdint>
#include <vector>

namespace uqa {

struct Interval {
  double low = 0, high = 0;
};

/// Wilson score interval of a proportion (E. B. Wilson, JASA 1927). `n` 0 gives [0, 1].
[[nodiscard]] Interval wilson_interval(std::int64_t correct, std::int64_t n, double confidence = 0.95);

/// A proportion with its counts.
struct Proportion {
  std::int64_t correct = 0, n = 0;
};
/// Interval of the unweighted mean of independent proportions: the distances of their Wilson limits, squared and added (MOVER; Newcombe, Statistics in
/// Medicine 1998; Zou and Donner, Statistics in Medicine 2008). Of one proportion it is Wilson's. At least one.
[[nodiscard]] Interval mean_proportion_interval(const std::vector<Proportion>& proportions, double confidence = 0.95);

/// Exact two-sided McNemar test from the discordant counts (binomial with p = 1/2).
[[nodiscard]] double mcnemar_exact_p(std::int64_t only_first, std::int64_t only_second);

struct PairedTest {
  double difference = 0;        ///< mean over questions of (first - second)
  double p = 1;                 ///< two-sided
  double detectable = 0;        ///< smallest true difference found with power 0.8 at level 0.05, from the users' spread
};
/// Sign-flip permutation test by user: each user's sum of differences keeps or changes its sign as a whole, since a user's
/// questions are correlated. `difference_sums[u]` is the sum over user u's questions of (first - second); `num_questions` over all
/// users. p counts |permuted| >= |observed|, with the observed one included: (1 + hits) / (1 + num_permutations).
[[nodiscard]] PairedTest sign_flip_test(const std::vector<double>& difference_sums, std::int64_t num_questions,
                                        std::int64_t num_permutations, std::uint64_t seed);

/// Holm's step-down adjustment; order kept.
[[nodiscard]] std::vector<double> holm_adjust(const std::vector<double>& p_values);

/// Quantile function of the standard normal, |error| < 1e-9.
[[nodiscard]] double normal_quantile(double p);

}  // namespace uqa
