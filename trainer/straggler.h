// trainer/straggler.h - which rank holds the others up, and where its time goes. Plain arithmetic on what the ranks have measured.
//
//   StragglerWatch watch;
//   const auto report = watch.add(times_of_all_ranks);    // once per log interval, the same on every rank
//   if (!report.warning.empty()) log::warn("metrics", "{}", report.warning);
#pragma once

#include <cstdint>
#include <span>
#include <string>

#include "core/json.h"

namespace uqa::trainer {

/// One rank's wall time of an interval, in seconds.
struct RankTimes {
  double total_s = 0;
  double data_wait_s = 0;
  double comm_wait_s = 0;
  /// Neither waiting for data nor in a collective.
  [[nodiscard]] double compute_s() const { return total_s - data_wait_s - comm_wait_s; }
  /// What the other ranks wait for in the next collective.
  [[nodiscard]] double busy_s() const { return total_s - comm_wait_s; }
};

struct StragglerReport {
  int slowest_rank = 0;    ///< with the largest busy time; the lowest of equal ones
  std::string where;       ///< "data" or "compute": where it loses against the median rank; "comm": it is not behind, all wait for the transport
  double excess = 0;       ///< its busy time / the median rank's, minus 1
  RankTimes slowest;
  std::string warning;     ///< one line when a rank is persistently slower; else empty
  [[nodiscard]] Json to_json() const;
};

/// Steps end together, so a slow rank shows not in its step time but in the others waiting for it.
class StragglerWatch {
 public:
  static constexpr double kExcess = 0.15;       ///< a rank is slow when it is busy this much longer than the median,
  static constexpr double kLeastExcess_s = 0.1; ///< and at least so much of an interval: steps of milliseconds vary by more than their length
  static constexpr std::int64_t kIntervals = 3; ///< in a row, the same rank: persistent; told again when twice as many
  [[nodiscard]] StragglerReport add(std::span<const RankTimes> ranks);

 private:
  int last_rank_ = -1;
  std::int64_t in_a_row_ = 0;
  std::int64_t next_warning_ = kIntervals;
};

}  // namespace uqa::trainer
