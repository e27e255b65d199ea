#include "trainer/step.h"

#include <algorithm>
#include <cmath>

namespace uqa::trainer {

using at::Tensor;

namespace {

constexpr double kLossGrid = 1 << 20;

Tensor to_tensor(const std::vector<std::int64_t>& values) {
  return at::tensor(at::ArrayRef<std::int64_t>(values), at::kLong);
}

}  // namespace

AgreedStep agree_on_step(const StepFacts& mine, const comm::Mesh& mesh) {
  const auto& world = mesh.world();
  // Maxima ride on the same sum: every rank has a slot of its own for its micro-step count.
  enum Field : std::size_t { kLabels, kInteractions, kTokens, kStop, kWritten, kFailed, kMicro };
  std::vector<std::int64_t> fields(kMicro + static_cast<std::size_t>(world.size()), 0);
  fields[kLabels] = mine.num_labels;
  fields[kInteractions] = mine.num_interactions;
  fields[kTokens] = mine.num_tokens;
  fields[kStop] = mine.stop ? 1 : 0;
  fields[kWritten] = mine.checkpoint_written ? 1 : 0;
  fields[kFailed] = mine.failed ? 1 : 0;
  fields[kMicro + static_cast<std::size_t>(world.rank())] = mine.num_micro_batches;
  Tensor all = to_tensor(fields);
  comm::all_reduce_(all, comm::ReduceOp::kSum, world);
  const auto* const sum = all.const_data_ptr<std::int64_t>();
  const std::int64_t tp = mesh.tp().size();
  return {.num_labels = sum[kLabels] / tp,
          .num_interactions = sum[kInteractions] / tp,
          .num_tokens = sum[kTokens] / tp,
          .num_micro_batches = *std::max_element(sum + kMicro, sum + fields.size()),
          .stop = sum[kStop] > 0,
          .checkpoint_written = sum[kWritten] == world.size(),
          .failed = sum[kFailed] > 0};
}

double agree_on_loss(double loss_sum, double gradient_norm, std::int64_t step, const comm::Mesh& mesh) {
  // Beyond 2^42 nats the grid would overflow; no finite loss of a batch comes near it.
  const bool usable = std::isfinite(loss_sum) && std::abs(loss_sum) < 0x1p42;
  const bool finite = usable && std::isfinite(gradient_norm);
  Tensor all = to_tensor({usable ? std::int64_t{std::llround(loss_sum * kLossGrid)} : 0, finite ? std::int64_t{0} : 1});
  comm::all_reduce_(all, comm::ReduceOp::kSum, mesh.world());
  const auto* const sum = all.const_data_ptr<std::int64_t>();
  if (sum[1] > 0) {
    comm::agree_or_throw(mesh.world(), finite, ErrorCode::kNumeric,
                         fmt::format("step {}: loss sum = {}, gradient norm = {}, both must be finite; lower optim.peak_lr, add warm-up or "
                                     "set optim.clip_norm", step, loss_sum, gradient_norm));
  }
  return static_cast<double>(sum[0]) / kLossGrid / mesh.tp().size();
}

}  // namespace uqa::trainer
