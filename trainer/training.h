// trainer/training.h - the training loop that pre-training and alignment share: global batches split over data-parallel ranks,
// micro-steps, overlapped gradient sums, AdamW, schedule, checkpoints with bit-exact resume, validation, metrics.
//
//   PretrainTask task(...);
//   const auto result = run_training(task, loop_config, mesh, run);
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "comm/communicator.h"
#include "models/layered.h"
#include "trainer/config.h"
#include "trainer/parameter.h"
#include "trainer/run_directory.h"

namespace uqa::trainer {

using at::Tensor;

/// What one rank holds of one global batch. Made on a loader thread.
class TaskBatch {
 public:
  virtual ~TaskBatch() = default;
  std::int64_t num_labels = 0;         ///< targets that carry loss, on this rank
  std::int64_t num_micro_batches = 0;  ///< 0 when this rank has no sample; other ranks may still need micro-steps
  std::int64_t num_interactions = 0;   ///< packed history rows, for throughput
  std::int64_t num_tokens = 0;         ///< packed LLM rows, 0 in pre-training
};

/// One validation: `metric` decides which checkpoint is best.
struct Validation {
  double metric = 0;                    ///< larger is better
  std::map<std::string, double> values; ///< everything to log, key carries the unit
};

/// A stage's part in the loop.
class TrainingTask {
 public:
  virtual ~TrainingTask() = default;
  [[nodiscard]] virtual std::string stage() const = 0;                   ///< "pretrain", "align": names progress and records
  /// Trained parameters in one fixed order; names, order and layouts (but for the ranges) are equal on all ranks.
  [[nodiscard]] virtual std::vector<NamedParameter> parameters() const = 0;
  /// Models whose layers run one after the other in loss_sum(), each layer once at most, first to last; their weights may be elsewhere until then
  /// (parallel.shard=full).
  [[nodiscard]] virtual std::vector<models::Layered*> layered_models() const { return {}; }
  [[nodiscard]] virtual std::int64_t num_samples() const = 0;            ///< samples of one epoch, over all ranks; > 0
  [[nodiscard]] virtual std::int64_t cost(std::int64_t sample) const = 0;///< relative work of a sample: balances ranks
  /// Builds this rank's part of a global batch. Runs on a loader thread: no MPI, no autograd, thread-safe; `samples` may be empty.
  [[nodiscard]] virtual std::unique_ptr<TaskBatch> load(const std::vector<std::int64_t>& samples) const = 0;
  /// Sum (not mean) of the losses of micro-batch `micro`; differentiable. For micro >= batch.num_micro_batches it must run the same
  /// collectives (if any) with zero rows and return a zero connected to no parameter.
  [[nodiscard]] virtual Tensor loss_sum(const TaskBatch& batch, std::int64_t micro, const models::DropoutContext& context) = 0;
  /// Called at each epoch's end, on every rank (may use collectives of `mesh`). nullopt: no validation data.
  [[nodiscard]] virtual std::optional<Validation> validate(const comm::Mesh& mesh) = 0;
  /// Steps between two calls of evaluate(), which is called after the last step too; 0: never.
  [[nodiscard]] virtual std::int64_t evaluate_every() const { return 0; }
  /// Figures for a record of kind "evaluation": they decide nothing. On every rank (may use collectives of `mesh`), in eval mode.
  [[nodiscard]] virtual std::map<std::string, double> evaluate(const comm::Mesh& /*mesh*/) { return {}; }
  /// FLOPs of one training step over all ranks for given totals, by the convention stored in run.json; 0 if not known.
  [[nodiscard]] virtual double flops(std::int64_t num_interactions, std::int64_t num_tokens, std::int64_t num_labels) const = 0;
  /// Figures of the stage's own for a metrics record, since the last call on this rank; keys carry units.
  [[nodiscard]] virtual std::map<std::string, double> take_figures() { return {}; }
  /// Train or eval mode of all modules.
  virtual void set_training(bool on) = 0;
  /// Writes what later stages read (whole weights and how to rebuild the model) into the run directory, after training, with the
  /// best weights loaded; files are written atomically, by rank 0. Called again when a finished run is started once more. Collective over
  /// mesh.world(); errors are agreed.
  virtual void save_model(const fs::path& directory, const comm::Mesh& mesh) const = 0;
};

struct TrainingResult {
  std::int64_t steps = 0;
  std::int64_t epochs = 0;
  double last_loss_nats = 0;
  double interactions = 0, labels = 0, flops = 0;  ///< of all steps and ranks; FLOPs by the task's convention
  std::optional<double> best_metric;
  std::int64_t best_step = 0;
  bool stopped_early = false;
};

/// Runs (or resumes, when `run` holds a checkpoint) until done. Every rank of mesh.world() must call it. Leaves the best
/// checkpoint's weights (the last ones' without validation) in the task's parameters. Throws Error(kRequeue) after a stop request
/// has been saved, Error(kNumeric) when a loss or gradient is not finite.
[[nodiscard]] TrainingResult run_training(TrainingTask& task, const LoopConfig& config, const comm::Mesh& mesh, RunDirectory& run);

}  // namespace uqa::trainer
