// trainer/layer_shards.h - parameters of which each data-parallel rank keeps a part only (parallel.shard=full): a layer's are gathered while the layer before it
// runs and given up after, gathered again for its backward, and their gradients are summed into the parts.
//
//   LayerShards shards(parameters, {&encoder, &llm}, mesh.dp());    // parameters: whole tensors; their memory is given up
//   shards.begin_step();
//   for (micro-steps) { shards.begin_micro_step(); loss.backward(); shards.end_micro_step(); }
//   shards.finish(1.0 / num_global_labels);                         // gradients of shards.parts()
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "comm/communicator.h"
#include "models/layered.h"
#include "models/parallel/dp_parts.h"
#include "trainer/parameter.h"

namespace uqa::trainer {

/// Modules keep their parameters: the same tensors, whose storage is empty while they are given up. Reading one then is an error (c10::Error).
///
/// Parameters outside of all layers are gathered once a step. Inside a micro-step the collectives are a fixed list (schedule() in the source): before layer i runs,
/// forward or backward, its gather is waited for and that of the layer that runs next is started. A rank that reaches one of them first does those before
/// it, and end_micro_step() does the rest, with zeros where this rank has no gradient: so ranks without samples, or whose loss does not reach every layer, take part in
/// all, in the same order. Each gather that the list starts it also ends, so none is on its way outside of a micro-step.
///
/// Memory: whole values of two layers at most beside what is outside of layers, of the one that runs and, as one message, of the one on its way (with this rank's part of it a second time while it
/// is). Gradients: those of the layer in backward, and their message while they are summed.
class LayerShards final : public models::LayerWatch {
 public:
  /// `parameters`: float32 contiguous leaves with storage of their own that can_cut_over_dp(); `models` in the order in which they run. A layer of theirs
  /// without any of the parameters (a frozen one) is left alone. Local.
  LayerShards(const std::vector<NamedParameter>& parameters, const std::vector<models::Layered*>& models, const comm::Communicator& dp);
  /// Leaves the tensors as they are: make_whole() first. Inside a micro-step (an error on its way out) it waits for the gather that was started as comm::Work does.
  ~LayerShards() override;
  LayerShards(const LayerShards&) = delete;
  LayerShards& operator=(const LayerShards&) = delete;

  /// This rank's parts, in the order of the parameters: leaves with a gradient each, laid out over dp.
  [[nodiscard]] const std::vector<NamedParameter>& parts() const { return parts_; }

  /// Zeroes the parts' gradients and gathers what is outside of layers. Collective.
  void begin_step();
  /// Starts the first layer's gather. Collective, as all that follows up to end_micro_step(): forward and backward passes of this rank's choice.
  void begin_micro_step();
  /// Collective: what of the micro-step's list is left.
  void end_micro_step();
  /// Sums what is outside of layers, gives it up, and multiplies the parts' gradients by `scale`. Collective.
  void finish(double scale);

  /// Gathers everything, for passes that are no training steps and whose number may differ by rank. Collective.
  void make_whole();
  /// Gives everything up again. Local.
  void release();
  /// Seconds in collectives since the last call, of started ones those in starting, waiting and helping them on.
  [[nodiscard]] double take_seconds();

  void enter(std::int64_t layer) override;
  [[nodiscard]] std::vector<Tensor> leave(std::int64_t layer, std::vector<Tensor> outputs) override;

 private:
  struct BeforeBackward;
  class Helper;
  /// What is gathered together: a layer, or all that is outside of layers.
  struct Unit {
    std::vector<Tensor> wholes, parts;
    std::vector<models::DpItem> items;
    bool resident = true;
  };
  enum class Action { kStart, kForward, kBackward, kReduce };
  struct Event {
    Action action;
    std::size_t unit;
  };
  [[nodiscard]] static std::vector<Event> schedule(std::size_t num_units);
  void gather(Unit& unit);
  void start(Unit& unit);
  /// Waits for the gather on its way, which is this unit's.
  void arrive(Unit& unit);
  /// Lets the transport move the gather on its way: MPI moves inside its calls only.
  void help();
  void give_up(Unit& unit);
  /// Adds the sums of the gradients to the parts' and drops the whole ones.
  void reduce(Unit& unit);
  void run(const Event& event);
  /// Runs the list up to and including this event, and the start that follows it. Error(kInternal) if it is behind us.
  void run_until(Action action, std::size_t unit);
  void run_start();
  void check_between_micro_steps(const char* what) const;

  comm::Communicator dp_;
  std::vector<models::Layered*> models_;
  std::vector<NamedParameter> parts_;
  Unit outside_;
  std::vector<Unit> units_;               ///< layers that have parameters, in their order
  std::vector<std::int64_t> unit_of_layer_;  ///< -1: a layer without any
  std::vector<Event> events_;             ///< of a micro-step
  std::size_t next_ = 0;                  ///< first event that has not happened
  std::optional<models::DpExchange::Gathering> ahead_;  ///< the gather on its way: one at most
  bool in_micro_step_ = false;
  double seconds_ = 0;
};

}  // namespace uqa::trainer
