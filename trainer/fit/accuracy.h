// trainer/fit/accuracy.h - accuracy of the questions against pre-training loss, and against sizes.
//
//   Acc(L) = floor + (ceiling - floor) / (1 + exp(k (L - L0)))       floor: chance, 1/4 for four options
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "trainer/fit/bootstrap.h"

namespace uqa::fit {

/// One evaluated run. `users_effect` >= 1: how much more the accuracy varies than independent questions would, since a user's questions are
/// correlated (design effect); 1 where it is not known.
struct AccuracyRun {
  double loss = 0;
  double accuracy = 0;          ///< in [0, 1]
  double num_questions = 0;     ///< > 0
  double users_effect = 1;
  std::vector<double> log10_sizes;  ///< for fit_accuracy_trend
};

/// Design effect of users: how much more the accuracy varies, when users are drawn, than that of independent questions would. One entry a question: its user, and whether the answer was
/// right. At least 1; 1 with fewer than two users or when all answers are the same.
[[nodiscard]] double users_effect(const std::vector<std::pair<std::int64_t, bool>>& answers);

struct SigmoidFit {
  bool fitted = false;
  std::string reason;               ///< why not
  bool free_ceiling = false;        ///< false: the ceiling is 1
  double chance = 0.25;             ///< the floor
  Estimate ceiling, k, midpoint;    ///< midpoint: L0, nats
  double overdispersion = 1;        ///< variance over that of independent questions, at least the users' effect
  std::vector<std::array<double, 4>> curve;  ///< loss, accuracy, low, high
};

/// Maximum likelihood (binomial); intervals from refits to counts drawn anew for each run with the overdispersion found, as percentiles widened by
/// Student's quantile for the degrees of freedom. Refuses (fitted = false) with fewer runs than parameters plus one, losses that hardly differ, or accuracies
/// that do not differ from one another more than chance allows.
[[nodiscard]] SigmoidFit fit_sigmoid(const std::vector<AccuracyRun>& runs, double chance, const BootstrapOptions& options);

/// Accuracy per decade of each size, all sizes in one weighted regression (so that axes that grow together are not counted twice).
struct AccuracyTrend {
  std::vector<std::string> axes;      ///< names of the sizes that vary
  std::vector<Estimate> per_decade;   ///< change of accuracy for 10 times the size
  std::string reason;                 ///< why there is none
};
[[nodiscard]] AccuracyTrend fit_accuracy_trend(const std::vector<AccuracyRun>& runs, const std::vector<std::string>& axes, double confidence);

}  // namespace uqa::fit
