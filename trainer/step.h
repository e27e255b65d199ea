// trainer/step.h - what all ranks agree on before and after each optimizer step, in one small all-reduce each.
#pragma once

#include <cstdint>

#include "comm/communicator.h"

namespace uqa::trainer {

/// One rank's contribution before a step.
struct StepFacts {
  std::int64_t num_labels = 0;
  std::int64_t num_interactions = 0;
  std::int64_t num_tokens = 0;
  std::int64_t num_micro_batches = 0;
  bool stop = false;                ///< a signal or the time limit
  bool checkpoint_written = false;  ///< this rank's part of the checkpoint in flight
  bool failed = false;              ///< this rank holds an error that all must learn of before anyone goes on
};

/// The same on every rank.
struct AgreedStep {
  std::int64_t num_labels = 0, num_interactions = 0, num_tokens = 0;  ///< sums over dp
  std::int64_t num_micro_batches = 0;                                 ///< maximum
  bool stop = false;                                                  ///< any rank
  bool checkpoint_written = false;                                    ///< every rank
  bool failed = false;                                                ///< any rank
};

/// Collective over mesh.world(). tp peers hold the same samples, which are counted once.
[[nodiscard]] AgreedStep agree_on_step(const StepFacts& mine, const comm::Mesh& mesh);

/// Sum over dp of the ranks' loss sums, on a grid of 2^-20 nats so that the result depends neither on the order of ranks nor on
/// rounding of partial sums. Collective. Throws Error(kNumeric) on every rank when any rank's loss or gradient norm is not finite.
[[nodiscard]] double agree_on_loss(double loss_sum, double gradient_norm, std::int64_t step, const comm::Mesh& mesh);

}  // namespace uqa::trainer
