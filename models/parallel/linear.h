// models/parallel/linear.h - linear layers split over a tensor-parallel group, and how dimensions are cut.
//
//   const auto inner = cut(F, tp, "model.inner");
//   auto up = ColumnParallelLinear(H, F, Bias::kYes, inner, tp);   // y_r = x W_r^T + b_r: this rank's features
//   auto down = RowParallelLinear(F, H, Bias::kYes, inner, tp);    // y = sum over r of x_r W_r^T, + b
//   y_TH = down->forward(up->forward(copy_to(x_TH, tp.comm)).relu());
//
// Parameters are named `weight` and `bias` as torch.nn.Linear's.
#pragma once

#include <string>
#include <vector>

#include "models/layers/linear.h"
#include "models/parallel/sliced.h"

namespace uqa::models {

/// Error(kConfig) naming both numbers where the degree does not divide `size`, which is called `what`.
void require_divisible(std::int64_t size, int tp, const std::string& what);
/// This rank's equal part of `size`; require_divisible().
[[nodiscard]] SliceRange cut(std::int64_t size, const TensorParallel& tp, const std::string& what);
/// Whole ones of `count` heads (or groups) on each rank, or one that several ranks share, where there are fewer than ranks; `sharers` are those ranks then, and a
/// group of one else. Collective over tp where ranks share. `label` names the group of sharers. Error(kConfig) with both numbers where neither divides the other.
[[nodiscard]] Stretch cut_or_share(std::int64_t count, const TensorParallel& tp, const std::string& what, const std::string& label);
/// `range` counted in units of `width` elements: heads to features.
[[nodiscard]] SliceRange widened(const SliceRange& range, std::int64_t width);
/// Stretches of this rank where `count` blocks of `size` rows lie end to end and it holds the same range of each.
[[nodiscard]] std::vector<Stretch> same_range_of_each(std::int64_t count, std::int64_t size, const SliceRange& range);

class ColumnParallelLinearImpl : public SlicedModule {
 public:
  /// `rows`: this rank's output features.
  ColumnParallelLinearImpl(std::int64_t in, std::int64_t out, Bias with_bias, const SliceRange& rows, const TensorParallel& tp);
  /// x [T, in], the result of copy_to() -> this rank's features [T, out_r].
  [[nodiscard]] Tensor forward(const Tensor& x_TF) const { return at::linear(x_TF, weight.tensor(), bias.tensor()); }
  /// Takes this rank's slice of a full layer.
  void from_full(const LinearImpl& full);

  SlicedParameter weight, bias;  ///< bias.tensor() is undefined without bias
};
TORCH_MODULE(ColumnParallelLinear);

class RowParallelLinearImpl : public SlicedModule {
 public:
  /// `columns`: this rank's input features. The bias is whole on every rank and added once.
  RowParallelLinearImpl(std::int64_t in, std::int64_t out, Bias with_bias, const SliceRange& columns, const TensorParallel& tp);
  /// x [T, in_r], this rank's features -> [T, out], equal on all ranks. Collective.
  [[nodiscard]] Tensor forward(const Tensor& x_TF) const;
  void from_full(const LinearImpl& full);

  SlicedParameter weight;
  Tensor bias;  ///< undefined without bias

 private:
  comm::Communicator comm_;
};
TORCH_MODULE(RowParallelLinear);

}  // namespace uqa::models
