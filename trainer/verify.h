// trainer/verify.h - does a run give the same losses however its model lies on the ranks?
//
//   const auto results = trainer::losses_on(layouts, {.loop = config.loop, .make_task = make, .checkpoints = run / "checkpoints", .scratch = dir}, world);
//   const double worst = trainer::worst_difference(results);
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "comm/communicator.h"
#include "core/file.h"
#include "trainer/config.h"
#include "trainer/training.h"

namespace uqa::trainer {

/// One way to lay a model on the ranks.
struct VerifyLayout {
  std::string name;                    ///< directory name under the scratch directory, unique
  bool one_rank = false;               ///< rank 0 alone; the others wait
  std::int64_t tp = 1;                 ///< of encoder and LLM; dp is world / tp
  std::string tables = "replicated";   ///< ParallelConfig::tables
};

struct VerifyRequest {
  LoopConfig loop;  ///< the run's; tp, tables, length and logging are set for each layout
  /// Local or collective over mesh.world(), errors agreed as PretrainTask and AlignTask do.
  std::function<std::unique_ptr<TrainingTask>(const LoopConfig&, const comm::Mesh&)> make_task;
  fs::path checkpoints;     ///< the run's: training starts from the newest one's weights; without any from the initial ones
  fs::path scratch;         ///< seen by all ranks; a run directory a layout is made in it
  std::int64_t steps = 3;   ///< optimizer steps on each layout; > 0
};

/// What one layout gave; equal on all ranks.
struct LayoutLosses {
  VerifyLayout layout;
  std::string refused;            ///< why the layout cannot be ("" where it can): the rule that forbids it
  std::vector<double> losses;     ///< nats, one a step: the first before any update
  std::vector<double> grad_norms; ///< one a step, before clipping
};

/// Trains `steps` steps on each layout: same weights, batches and dropout, a fresh optimizer. Every rank of world must call it. Error(kConfig) when steps <= 0.
[[nodiscard]] std::vector<LayoutLosses> losses_on(const std::vector<VerifyLayout>& layouts, const VerifyRequest& request, const comm::Communicator& world);
/// Largest |loss - loss of the first layout that ran| / |the latter| over layouts and steps; 0 if fewer than two ran.
[[nodiscard]] double worst_difference(const std::vector<LayoutLosses>& results);

}  // namespace uqa::trainer
