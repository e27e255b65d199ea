// trainer/parameter.h - a trained tensor with its name and its place among the ranks.
#pragma once

#include <string>
#include <vector>

#include "comm/communicator.h"
#include "models/parallel/sliced.h"

namespace uqa::trainer {

using at::Tensor;

struct NamedParameter {
  std::string name;
  Tensor tensor;                        ///< float32, contiguous, requires_grad; this rank's part
  double lr_scale = 1;                  ///< factor of the learning rate
  models::ParameterLayout layout = {};  ///< replicated unless said otherwise
};

/// Parameters of a module that require a gradient, in the module's order, with their layouts. `prefix` goes before each name.
[[nodiscard]] std::vector<NamedParameter> trained_of(const torch::nn::Module& module, const std::string& prefix = "");
/// Parameters as checkpoints name them.
[[nodiscard]] std::vector<NamedParameter> as_stored(std::vector<NamedParameter> parameters);
/// The ranges of every parameter on every rank, by rank and position in `tensors`; empty for replicated ones. Collective where some parameter
/// is cut.
[[nodiscard]] std::vector<std::vector<std::vector<models::SliceRange>>> exchange_ranges(const std::vector<NamedParameter>& tensors, const comm::Communicator& world);
/// The ranks whose slices make up the whole of a tensor that is cut over `axis`. Error(kInternal) for a replicated one.
[[nodiscard]] const comm::Communicator& ranks_of(models::ShardAxis axis, const comm::Mesh& mesh);
/// The whole parameter, gathered over the axis that it is cut over; new storage, the same on all ranks. Collective over that axis.
[[nodiscard]] Tensor whole_of(const NamedParameter& parameter, const comm::Mesh& mesh);

}  // namespace uqa::trainer
