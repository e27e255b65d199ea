// models/parallel/layout.h - how a parameter lives on the ranks: whole on each of them, or as slices of one dimension over a mesh axis.
//
//   const auto range = even_range(rows, mesh.table().rank(), mesh.table().size());
//   const auto layout = sliced(ShardAxis::kTable, {rows, dim}, 0, range);
//   init_truncated_normal_(weight, seed, "ebc.bags.item.weight", 0.02, layout);   // what the whole tensor would have there
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "models/packed.h"

namespace uqa::models {

/// The axis of comm::Mesh whose ranks hold the slices. Ranks that differ in other axes hold copies.
enum class ShardAxis {
  kReplicated,  ///< every rank holds all of it; equal gradients on tp peers (the tp layers see to it), summed over dp
  kTp,          ///< slices over tp; gradients are summed over dp
  kTable,       ///< slices over a table group; gradients are complete inside the group and summed over the groups (Mesh::table_replica)
  kDp,          ///< slices over dp of what tp peers hold alike (models/parallel/dp_parts.h)
  kDpTp,        ///< slices over dp of what is cut over tp: over both axes, so the world holds it
};

/// What data-parallel ranks share out instead of each holding all of it. What is cut over a table group stays as it is in every mode.
enum class Shard {
  kNone,       ///< nothing: each holds and updates every parameter
  kOptimizer,  ///< each updates a part of every parameter, has the optimizer's state of that part only, and sends it to the others after each step
  kFull,       ///< each also keeps that part of the parameters and gradients only: a layer's are gathered while it runs
};

/// Positions [begin, begin + length) of a dimension.
struct SliceRange {
  std::int64_t begin = 0, length = 0;
  int copies = 1;  ///< ranks of the axis that hold it (KV heads, where tp exceeds their number); each has its whole gradient
  friend bool operator==(const SliceRange& a, const SliceRange& b) { return a.begin == b.begin && a.length == b.length; }
};

/// Of one parameter on one rank. Equal on all ranks but for `ranges`.
struct ParameterLayout {
  ShardAxis axis = ShardAxis::kReplicated;
  std::vector<std::int64_t> global_shape = {};  ///< of the whole parameter; empty: replicated, the tensor's own
  std::int64_t dim = 0;                         ///< the dimension that is cut: 0 or 1
  /// Parts of `dim` that this rank's tensor holds one after the other. One as a rule; three for a stacked q, k, v matrix cut by heads; an
  /// empty one (length 0) on a rank without any. Distinct ranges of different ranks do not overlap and together cover the dimension.
  std::vector<SliceRange> ranges = {};
  [[nodiscard]] bool sharded() const { return axis != ShardAxis::kReplicated; }
};

/// The layout of parameter `name` among those that have slices; that of a replicated one where it is not there.
[[nodiscard]] ParameterLayout layout_in(const std::map<std::string, ParameterLayout>& layouts, const std::string& name);
/// The layout of a tensor that holds one range of dimension `dim`.
[[nodiscard]] ParameterLayout sliced(ShardAxis axis, std::vector<std::int64_t> global_shape, std::int64_t dim, SliceRange range);
/// Part `rank` of `num_ranks` of [0, size), as even as can be; empty ones where there are fewer positions than ranks.
[[nodiscard]] SliceRange even_range(std::int64_t size, int rank, int num_ranks);
/// Which part of even_range() holds `position`.
[[nodiscard]] int even_owner(std::int64_t size, std::int64_t position, int num_ranks);
/// Shape of the whole parameter of which `tensor` is this rank's part.
[[nodiscard]] std::vector<std::int64_t> global_shape_of(const Tensor& tensor, const ParameterLayout& layout);
/// Error(kInternal) naming the parameter unless `layout` fits `tensor`.
void check_layout(const std::string& name, const Tensor& tensor, const ParameterLayout& layout);

/// Row-major index in the whole parameter of element i of this rank's tensor.
class GlobalIndex {
 public:
  GlobalIndex(const Tensor& tensor, const ParameterLayout& layout);
  [[nodiscard]] std::int64_t operator()(std::int64_t i) const {
    if (whole_) return i;
    const std::int64_t in = i % inner_, k = i / inner_ % local_size_, out = i / inner_ / local_size_;
    return (out * global_size_ + position(k)) * inner_ + in;
  }

 private:
  [[nodiscard]] std::int64_t position(std::int64_t k) const {
    for (const auto& range : ranges_) {
      if (k < range.length) return range.begin + k;
      k -= range.length;
    }
    return 0;  // not reached: check_layout() has added the lengths up
  }
  bool whole_;
  std::int64_t inner_ = 1, local_size_ = 1, global_size_ = 1;
  std::vector<SliceRange> ranges_;
};

/// A module some of whose own parameters are slices.
class HasLayouts {
 public:
  virtual ~HasLayouts() = default;
  /// By the parameter's name inside the module; those that are absent are replicated.
  [[nodiscard]] virtual std::map<std::string, ParameterLayout> own_layouts() const = 0;
};
/// Layouts of all parameters of `module` and its submodules that are slices, by full name.
[[nodiscard]] std::map<std::string, ParameterLayout> layouts_of(const torch::nn::Module& module);

}  // namespace uqa::models
