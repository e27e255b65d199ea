// models/parallel/sliced.h - parameters of which a rank holds some rows or columns, and modules that have such parameters.
//
//   in_proj = add_sliced("in_proj_weight", {3 * H, H}, 0, same_range_of_each(3, H, heads), tp);   // of a SlicedModule
//   at::linear(copy_to(x_TH, tp.comm), in_proj.local());
//
// A range that several ranks hold (key/value heads where there are more ranks than heads) gets the same gradient on all of them: its uses
// are summed over the ranks that share it in backward.
#pragma once

#include <functional>
#include <map>
#include <string>
#include <vector>

#include "comm/communicator.h"
#include "models/parallel/collectives.h"
#include "models/parallel/layout.h"

namespace uqa::models {

/// The group over which layers are split. The mesh's tp axis may be a multiple of it: then `replicas` such groups compute the same.
struct TensorParallel {
  comm::Communicator comm;
  int replicas = 1;
  [[nodiscard]] int size() const { return comm.size(); }
  [[nodiscard]] int rank() const { return comm.rank(); }
};

/// Groups of `degree` consecutive ranks of the mesh's tp axis. Error(kConfig) naming `option` and both numbers where the degree does not divide the
/// axis. Collective over `axis`.
[[nodiscard]] TensorParallel tensor_parallel(const comm::Communicator& axis, std::int64_t degree, const std::string& option);

/// A range of one dimension that this rank holds, and the ranks of the group that hold it, too.
struct Stretch {
  SliceRange range;
  comm::Communicator sharers;  ///< a group of one: this rank alone
};

/// One parameter, or this rank's ranges of it laid end to end in one tensor. A handle; cheap to copy.
class SlicedParameter {
 public:
  SlicedParameter() = default;
  /// Registers `name` with `module`, float32 zeros. `stretches` in ascending order; at most one group of sharers.
  SlicedParameter(torch::nn::Module& module, const std::string& name, std::vector<std::int64_t> full_shape, std::int64_t dim,
                  const std::vector<Stretch>& stretches, const TensorParallel& tp);
  /// What this rank computes with. Differentiable: gradients of shared ranges are summed over their sharers.
  [[nodiscard]] Tensor local() const;
  /// Copies this rank's ranges out of the full tensor.
  void set_full(const Tensor& full) const;
  /// Lets `init` fill the full tensor (float32, contiguous) and keeps this rank's ranges; takes no extra memory where it is whole.
  void init(const std::function<void(const Tensor& full)>& init) const;
  [[nodiscard]] const std::string& name() const { return name_; }
  [[nodiscard]] const Tensor& tensor() const { return tensor_; }
  [[nodiscard]] const ParameterLayout& layout() const { return layout_; }
  [[nodiscard]] const std::vector<std::int64_t>& full_shape() const { return full_shape_; }

 private:
  friend std::vector<Tensor> local_tensors(const std::vector<const SlicedParameter*>& parameters);
  std::string name_;
  std::vector<std::int64_t> full_shape_;
  Tensor tensor_;
  ParameterLayout layout_;
  std::vector<char> is_shared_;   ///< by range
  comm::Communicator sharers_;    ///< of the ranges that are shared
};

/// local() of several parameters with the same sharers: one collective in backward.
[[nodiscard]] std::vector<Tensor> local_tensors(const std::vector<const SlicedParameter*>& parameters);

/// A module with slices; layouts_of() finds them.
class SlicedModule : public torch::nn::Module, public HasLayouts {
 public:
  [[nodiscard]] std::map<std::string, ParameterLayout> own_layouts() const override;

 protected:
  SlicedParameter add_sliced(const std::string& name, std::vector<std::int64_t> full_shape, std::int64_t dim, const std::vector<Stretch>& stretches,
                             const TensorParallel& tp);

 private:
  std::vector<SlicedParameter> sliced_;
};

/// This rank's part of a full tensor: a view, or a copy where it has several ranges; `full` itself where the layout is not sharded.
[[nodiscard]] Tensor part_of(const Tensor& full, const ParameterLayout& layout);
/// The full tensor of this rank's parts; new storage, the same on all ranks. Collective over `axis`, the axis of the layout or, where that is
/// larger than the group that holds the slices, the group. A tensor that is not sharded is copied without communication.
[[nodiscard]] Tensor whole_of(const Tensor& part, const ParameterLayout& layout, const comm::Communicator& axis);

/// Copies full tensors, named as on one rank, into a module tree: each layer keeps its slice. Every parameter must be there with its full
/// shape and none may be left over: Error(kData) naming the tensor and `what`.
void load_full_state(torch::nn::Module& root, const std::map<std::string, Tensor>& full, const std::string& what);
/// All parameters of a module tree as full tensors, by name; new storage. Collective over `tp`.
[[nodiscard]] std::map<std::string, Tensor> full_state(const torch::nn::Module& root, const comm::Communicator& tp);

}  // namespace uqa::models
