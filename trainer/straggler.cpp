#include "trainer/straggler.h"

#include <algorithm>
#include <vector>

#include "core/error.h"

namespace uqa::trainer {
namespace {

/// Of an even number the lower one: with two ranks a slow one is held against the other, not against itself.
template <typename Value>
double lower_median(std::span<const RankTimes> ranks, Value value) {
  std::vector<double> values;
  for (const auto& rank : ranks) values.push_back(value(rank));
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>((values.size() - 1) / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

}  // namespace

Json StragglerReport::to_json() const {
  return {{"rank", slowest_rank},
          {"where", where},
          {"excess_fraction", excess},
          {"data_wait_s", slowest.data_wait_s},
          {"compute_s", slowest.compute_s()},
          {"comm_wait_s", slowest.comm_wait_s}};
}

StragglerReport StragglerWatch::add(std::span<const RankTimes> ranks) {
  UQA_CHECK(!ranks.empty(), ErrorCode::kInternal, "ranks = 0, must be at least 1");
  const auto slowest = std::max_element(ranks.begin(), ranks.end(), [](const auto& a, const auto& b) { return a.busy_s() < b.busy_s(); });
  StragglerReport report{.slowest_rank = static_cast<int>(slowest - ranks.begin()), .slowest = *slowest};
  const double median_busy = lower_median(ranks, [](const auto& rank) { return rank.busy_s(); });
  report.excess = median_busy > 0 ? slowest->busy_s() / median_busy - 1 : 0;
  const double data = slowest->data_wait_s - lower_median(ranks, [](const auto& rank) { return rank.data_wait_s; });
  const double compute = slowest->compute_s() - lower_median(ranks, [](const auto& rank) { return rank.compute_s(); });
  const bool behind = report.excess > kExcess && slowest->busy_s() - median_busy > kLeastExcess_s;
  if (behind || ranks.size() == 1) {
    report.where = ranks.size() == 1 ? (slowest->data_wait_s > slowest->compute_s() ? "data" : "compute") : data > compute ? "data" : "compute";
  } else {
    // Nobody is behind: where the slowest rank itself spends most.
    report.where = slowest->comm_wait_s > std::max(slowest->data_wait_s, slowest->compute_s()) ? "comm"
                   : slowest->data_wait_s > slowest->compute_s()                               ? "data"
                                                                                               : "compute";
  }

  if (!behind || report.slowest_rank != last_rank_) {
    in_a_row_ = 0;
    next_warning_ = kIntervals;
  }
  last_rank_ = behind ? report.slowest_rank : -1;
  if (!behind || ++in_a_row_ < next_warning_) return report;
  next_warning_ *= 2;
  report.warning = fmt::format("rank {} was busy {:.0f} % longer than the median rank in {} log intervals in a row, mostly with {} ({:.2f} s data, {:.2f} s compute, "
                               "{:.2f} s comm in the last one): the others wait for it; see what else runs on its host, and uqa doctor",
                               report.slowest_rank, 100 * report.excess, in_a_row_, report.where, slowest->data_wait_s, slowest->compute_s(), slowest->comm_wait_s);
  return report;
}

}  // namespace uqa::trainer
