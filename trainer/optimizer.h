// trainer/optimizer.h - AdamW (fused) and plain SGD over the trained parameters, with state that checkpoints can name.
//
//   Optimizer optimizer(task.parameters(), config.optim);
//   optimizer.step(learning_rate(config.optim, step, num_steps));   // reads every parameter's grad
#pragma once

#include <cstdint>
#include <map>
#include <vector>

#include "trainer/config.h"
#include "trainer/training.h"

namespace uqa::trainer {

/// Not thread-safe. Holds the parameters by reference (tensor handles); moments are float32, shaped as their parameters and on their device.
class Optimizer {
 public:
  /// Parameters must be float32, contiguous, on one device and require gradients: Error(kInternal), since the fused kernel ignores strides.
  Optimizer(std::vector<NamedParameter> parameters, OptimConfig config);

  /// One update with rate lr * lr_scale from the gradients, with AdamW as torch.optim.AdamW does it (decoupled decay, bias correction). A parameter
  /// without a gradient counts as one with a zero gradient.
  void step(double lr);

  /// Updates done so far.
  [[nodiscard]] std::int64_t updates() const { return updates_; }
  void set_updates(std::int64_t updates);
  /// "optim.exp_avg.<parameter>", "optim.exp_avg_sq.<parameter>", sharing memory, each laid out as its parameter; empty for sgd.
  [[nodiscard]] std::vector<NamedParameter> state() const;

 private:
  [[nodiscard]] Tensor gradient_of(std::size_t i) const;
  std::vector<NamedParameter> parameters_;
  OptimConfig config_;
  std::vector<Tensor> values_, first_, second_;
  Tensor step_count_;  ///< float32 scalar on the parameters' device: the fused kernel reads it there; empty for sgd
  std::map<double, std::vector<std::size_t>> groups_;  ///< parameters by lr_scale
  std::int64_t updates_ = 0;
};

}  // namespace uqa::trainer
