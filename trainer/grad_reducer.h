// trainer/grad_reducer.h - gradients of parallel ranks: flat float32 buckets, summed over ranks while backward still runs.
//
//   GradReducer reducer(task.parameters(), mesh, 25'000'000);
//   reducer.begin_step();
//   for (micro-steps) { if (last) reducer.arm(); loss.backward(); }
//   const double waited_s = reducer.finish(1.0 / num_global_labels);
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "comm/communicator.h"
#include "trainer/parameter.h"

namespace uqa::trainer {

using at::Tensor;

/// Owns the gradients of its parameters: each `grad()` is a view of a bucket, accumulated in place. Nobody may set a gradient to
/// undefined or to another tensor. Buckets hold the parameters in reverse order (backward reaches the last ones first) and are
/// all-reduced in one fixed order, bucket 0, 1, 2, ..., the same on all ranks, whatever the order in which gradients become
/// ready. A parameter without a gradient contributes zeros. On a group of one nothing is hooked, copied or sent.
///
/// What is summed depends on the parameter's layout: replicated and tp-sharded ones over dp (tp peers hold equal gradients of a replicated
/// parameter: the tp layers see to it), table-sharded ones over the table groups (inside its group such a gradient is complete).
/// Each bucket belongs to one of these axes.
class GradReducer {
 public:
  /// `parameters`: float32, contiguous leaves on one device that require a gradient, each once; the same list on all ranks. A bucket
  /// takes parameters until it holds `bucket_bytes`; a larger parameter has a bucket of its own.
  GradReducer(const std::vector<NamedParameter>& parameters, const comm::Mesh& mesh, std::int64_t bucket_bytes);
  /// Replicated parameters only, summed over `dp`.
  GradReducer(const std::vector<Tensor>& parameters, const comm::Communicator& dp, std::int64_t bucket_bytes);
  ~GradReducer();
  GradReducer(const GradReducer&) = delete;
  GradReducer& operator=(const GradReducer&) = delete;

  /// Zeroes all gradients. Gradients accumulate from here to finish(). Local.
  void begin_step();
  /// Says that the next backward is the step's last: buckets are sent as soon as they and all before them are ready. Each
  /// parameter may receive its gradient once in that backward (so no re-entrant segments that share a parameter): a second time is
  /// Error(kInternal). Without arm(), finish() sends everything. Local.
  void arm();
  /// Sends what is left, waits, and multiplies by `scale`. Returns the seconds that this step spent on communication which
  /// backward did not hide (in finish() and inside the hooks); on a device, whose collectives do not block the host, that is the time to issue
  /// them. Collective over the axes above. Throws Error(kComm).
  double finish(double scale = 1.0);

  /// Views of the buckets, in the order of the parameters.
  [[nodiscard]] std::vector<Tensor> gradients() const;
  /// Euclidean norm of the whole gradient, every slice and every replica counted once, accumulated in double; the same bits on all ranks
  /// after finish(). Collective over the axes of sliced parameters, local without any.
  [[nodiscard]] double global_norm() const;
  [[nodiscard]] std::int64_t num_buckets() const;

 private:
  class Hook;
  struct Bucket;
  struct State;
  struct Axes;
  GradReducer(const std::vector<NamedParameter>& parameters, const Axes& axes, std::int64_t bucket_bytes);
  std::unique_ptr<State> state_;
};

/// GradReducer::global_norm() of any gradients, also of parameters that are cut over dp: `gradients[i]` belongs to `parameters[i]` and is laid out alike.
[[nodiscard]] double gradient_norm(const std::vector<NamedParameter>& parameters, const std::vector<Tensor>& gradients, const comm::Mesh& mesh);

}  // namespace uqa::trainer
