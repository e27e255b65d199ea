// models/parallel/dp_parts.h - tensors that data-parallel ranks hold alike, cut so that each of them owns a part: the positions of one dimension that
// even_range() gives it. The part is a slice like any other (ParameterLayout), so checkpoints, norms and exports need to know nothing else.
//
//   const auto layout = dp_part_layout(weight, {}, dp.rank(), dp.size());       // kDp, rows [r * V / n, (r + 1) * V / n)
//   const DpExchange exchange({dp_item(weight, {})}, dp);
//   exchange.gather({part}, {weight});                                           // weight is whole again
//   const auto sums = exchange.reduce_scatter({gradient});                       // sums[0]: this rank's part of the sum over dp
#pragma once

#include <cstdint>
#include <vector>

#include "comm/communicator.h"
#include "models/parallel/layout.h"

namespace uqa::models {

/// False for a tensor without dimensions, and for tables cut over a table group: data-parallel ranks do not hold those alike.
[[nodiscard]] bool can_cut_over_dp(const Tensor& tensor, const ParameterLayout& layout);
/// The dimension that is cut: the one that tp cuts, too, else the first. Then a part is still ranges of one dimension of the whole parameter.
[[nodiscard]] inline std::int64_t dp_dim(const ParameterLayout& layout) { return layout.sharded() ? layout.dim : 0; }
/// Positions of that dimension of `tensor` (whole, or this tensor-parallel rank's part) that data-parallel rank `rank` of `num_ranks` owns.
[[nodiscard]] SliceRange dp_range(const Tensor& tensor, const ParameterLayout& layout, int rank, int num_ranks);
/// What they are of the whole parameter: kDp, or kDpTp where `layout` is kTp. Ranks that share a range get the same parts of it, since all ranges of such
/// ranks have the same lengths. Error(kInternal) unless can_cut_over_dp().
[[nodiscard]] ParameterLayout dp_part_layout(const Tensor& tensor, const ParameterLayout& layout, int rank, int num_ranks);

/// Shape of a tensor on every rank of dp, the dimension that is cut, and where the tensor is: ranks meet on that device's transport even if one of
/// them has no gradient of it. The items of an exchange share a device.
struct DpItem {
  std::vector<std::int64_t> shape;
  std::int64_t dim = 0;
  at::Device device = at::kCPU;
};
[[nodiscard]] inline DpItem dp_item(const Tensor& tensor, const ParameterLayout& layout) { return {.shape = tensor.sizes().vec(), .dim = dp_dim(layout), .device = tensor.device()}; }

/// Some tensors whose parts travel in one message. float32. Outside autograd.
class DpExchange {
 public:
  DpExchange(std::vector<DpItem> items, comm::Communicator dp);
  /// The parts of all ranks into `wholes`, in place. A part may be a view of its whole. Collective over dp.
  void gather(const std::vector<Tensor>& parts, const std::vector<Tensor>& wholes) const;
  /// A gather on its way: `all_n` [num_elements()] holds the parts of all ranks, rank after rank, once `work` has been waited for.
  struct Gathering {
    Tensor all_n;
    comm::Work work;
  };
  /// gather() in two steps. The parts must not change in between. Collective over dp.
  [[nodiscard]] Gathering start_gather(const std::vector<Tensor>& parts) const;
  /// Waits and fills `wholes`. Each start once, in the order of the starts.
  void finish_gather(Gathering gathering, const std::vector<Tensor>& wholes) const;
  /// This rank's parts of the sums over ranks; contiguous. An undefined tensor counts as zeros. Collective over dp.
  [[nodiscard]] std::vector<Tensor> reduce_scatter(const std::vector<Tensor>& wholes) const;
  /// Of all tensors together.
  [[nodiscard]] std::int64_t num_elements() const;

 private:
  [[nodiscard]] SliceRange range_of(const DpItem& item, int rank) const;
  /// Elements that each rank's parts have together.
  [[nodiscard]] std::vector<std::int64_t> counts() const;
  /// One message of some parts.
  [[nodiscard]] Tensor joined(const std::vector<Tensor>& parts) const;
  void spread(const Tensor& all_n, const std::vector<Tensor>& wholes) const;
  std::vector<DpItem> items_;
  comm::Communicator dp_;
};

}  // namespace uqa::models
