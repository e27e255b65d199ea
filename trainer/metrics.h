// trainer/metrics.h - what metrics.jsonl says about training steps: sums since the last record.
#pragma once

#include <cstdint>

#include "comm/communicator.h"
#include "core/json.h"
#include "trainer/step.h"
#include "trainer/straggler.h"

namespace uqa::trainer {

/// Where one step's wall time went, on this rank.
struct StepTimes {
  double total_s = 0;
  double data_wait_s = 0;     ///< the loader was not ready
  double comm_exposed_s = 0;  ///< in collectives while nothing else ran, waiting for slower ranks included
};

/// Not thread-safe; the same calls on every rank.
class StepMeter {
 public:
  explicit StepMeter(const comm::Mesh& mesh);
  void add(const AgreedStep& step, double loss_sum_nats, double flops, const StepTimes& times);
  /// One record over the steps since the last one, and a fresh start. Rates are over all ranks; times, bytes and memory are this
  /// rank's (rank 0 writes them); `slowest_rank` says which rank the others waited for and why. Warns when that is always the same one.
  /// Collective over the world.
  [[nodiscard]] Json record(std::int64_t step, double epoch, double lr, double grad_norm);
  /// Mean loss over the labels since the last record; 0 before the first.
  [[nodiscard]] double loss_nats() const;
  /// The part that a bit-exact resume needs: loss and label sums.
  [[nodiscard]] Json state() const;
  void restore(const Json& state, const std::string& what);

 private:
  [[nodiscard]] std::int64_t table_bytes_sent() const;
  [[nodiscard]] Json straggler();
  comm::Mesh mesh_;
  double loss_sum_nats_ = 0, flops_ = 0;
  std::int64_t labels_ = 0, interactions_ = 0, tokens_ = 0, bytes_before_ = 0, table_bytes_before_ = 0;
  StepTimes times_;
  StragglerWatch stragglers_;
};

/// Largest resident set of this process so far.
[[nodiscard]] std::int64_t peak_rss_bytes();

}  // namespace uqa::trainer
