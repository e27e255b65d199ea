// trainer/trained_parameters.h - how trained parameters, their gradients and what the optimizer updates lie over data-parallel ranks (parallel.shard).
//
//   TrainedParameters trained(task.parameters(), task.layered_models(), mesh, config.parallel);
//   Optimizer optimizer(trained.updated(), config.optim);
//   trained.begin_step();
//   for (micro-steps) { if (last) trained.arm(); trained.begin_micro_step(); loss.backward(); trained.end_micro_step(); }
//   waited_s = trained.finish(1.0 / num_global_labels);
//   trained.before_update(clip_factor);
//   optimizer.step(lr);
//   waited_s += trained.after_update();
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "comm/communicator.h"
#include "models/parallel/dp_parts.h"
#include "trainer/config.h"
#include "trainer/grad_reducer.h"
#include "trainer/layer_shards.h"
#include "trainer/parameter.h"

namespace uqa::trainer {

/// Of parallel.shard. Error(kConfig) for a name that is none.
[[nodiscard]] models::Shard parse_shard(const std::string& name);

/// Owns the gradients of the parameters it is given and, with Shard::kFull, their values: they are in the given tensors only inside of a micro-step and after
/// make_whole(). All members are called by all ranks of the mesh at the same steps.
class TrainedParameters {
 public:
  /// `parameters` as GradReducer takes them; `models`: see TrainingTask::layered_models().
  TrainedParameters(const std::vector<NamedParameter>& parameters, const std::vector<models::Layered*>& models, const comm::Mesh& mesh, const ParallelConfig& parallel);

  /// What the optimizer of this rank updates, each with its gradient and layout. Parts have the names of their parameters.
  [[nodiscard]] const std::vector<NamedParameter>& updated() const { return updated_; }
  /// Where the values of the parameters are: what checkpoints hold and load. They are loaded outside of steps, with Shard::kFull not while whole.
  [[nodiscard]] const std::vector<NamedParameter>& stored() const { return shards_ ? updated_ : parameters_; }

  /// GradReducer's begin_step(), arm(), finish() and global_norm(); collective in all of them with Shard::kFull, where arm() does nothing.
  void begin_step();
  void arm();
  void begin_micro_step();
  void end_micro_step();
  [[nodiscard]] double finish(double scale);
  [[nodiscard]] double global_norm() const;

  /// Multiplies the gradients by `factor` (1 leaves them) and gives updated() theirs. Once before each update. Local.
  void before_update(double factor);
  /// Brings every parameter up to date from the parts that ranks have updated. Returns the seconds that it took. Collective over dp where parameters
  /// are cut.
  [[nodiscard]] double after_update();

  /// Puts the values of all parameters into the given tensors, until release(): for passes that are no training steps. Collective over dp.
  void make_whole();
  void release();

 private:
  /// A parameter of which this rank updates a part.
  struct Cut {
    NamedParameter whole;
    Tensor part;
    models::SliceRange range;  ///< of dp_dim(whole.layout)
    bool is_view = false;      ///< part and its gradient share the whole's memory
  };
  /// Parameters whose parts travel together.
  struct Message {
    models::DpExchange exchange;
    std::vector<Tensor> parts, wholes;
  };
  void cut_for_updates(const comm::Communicator& dp, std::int64_t message_bytes);

  comm::Mesh mesh_;
  models::Shard mode_;
  std::vector<NamedParameter> parameters_, updated_;
  std::unique_ptr<LayerShards> shards_;  ///< Shard::kFull
  GradReducer reducer_;                  ///< of all parameters, or of those that shards_ has not
  std::vector<Cut> cuts_;
  std::vector<Message> messages_;
};

}  // namespace uqa::trainer
