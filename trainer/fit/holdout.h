// trainer/fit/holdout.h - does the law predict runs larger than those it was fitted to?
#pragma once

#include <vector>

#include "trainer/fit/bootstrap.h"

namespace uqa::fit {

/// One run that was left out, and what was said about it.
struct HeldRun {
  std::size_t run = 0;        ///< index in the data
  double loss = 0;            ///< observed
  double law = 0;             ///< predicted by the law
  std::optional<Interval> interval;  ///< of one new run's loss
  double next_largest = 0;    ///< mean loss of the largest runs that were fitted
  double log_line = 0;        ///< a straight line (plane) of log loss over log sizes
};

struct Holdout {
  std::vector<HeldRun> runs;  ///< empty: not done, see reason
  std::string reason;
  double drop = 0;            ///< mean loss of the smallest runs less that of the largest
  double law_error = 0, next_largest_error = 0, log_line_error = 0;  ///< mean absolute, nats
  std::int64_t covered = 0, with_interval = 0;
};

/// Leaves out the largest runs (sum of log sizes; runs of equal sizes stay together) until at least `num_held` are out, and predicts them from the others.
/// num_held < 0: a tenth of the runs, at least one; 0: not done.
[[nodiscard]] Holdout hold_out_largest(const LawData& data, std::int64_t num_held, const LawOptions& law, const BootstrapOptions& bootstrap);

/// Ordinary least squares of log loss on log sizes: intercept, then a slope per term.
[[nodiscard]] std::vector<double> fit_log_line(const LawData& data);

}  // namespace uqa::fit
