#include "trainer/parameter.h"

namespace uqa::trainer {

std::vector<std::vector<std::vector<models::SliceRange>>> exchange_ranges(const std::vector<NamedParameter>& tensors, const comm::Communicator& world) {
  std::vector<std::vector<std::vector<models::SliceRange>>> held(static_cast<std::size_t>(world.size()), std::vector<std::vector<models::SliceRange>>(tensors.size()));
  std::vector<std::int64_t> mine;  // of each cut tensor: number of ranges, then begin and length of each
  for (const auto& parameter : tensors) {
    if (!parameter.layout.sharded()) continue;
    mine.push_back(static_cast<std::int64_t>(parameter.layout.ranges.size()));
    for (const auto& range : parameter.layout.ranges) mine.insert(mine.end(), {range.begin, range.length});
  }
  if (mine.empty()) return held;
  const Tensor all = comm::all_gather(at::tensor(mine, at::kLong), world).contiguous();
  const auto* next = all.const_data_ptr<std::int64_t>();
  for (auto& rank : held) {
    for (std::size_t i = 0; i < tensors.size(); ++i) {
      if (!tensors[i].layout.sharded()) continue;
      rank[i].resize(static_cast<std::size_t>(*next++));
      for (auto& range : rank[i]) {
        range.begin = *next++;
        range.length = *next++;
      }
    }
  }
  return held;
}

std::vector<NamedParameter> trained_of(const torch::nn::Module& module, const std::string& prefix) {
  const auto layouts = models::layouts_of(module);
  std::vector<NamedParameter> parameters;
  for (const auto& parameter : module.named_parameters()) {
    if (!parameter.value().requires_grad()) continue;
    parameters.push_back({.name = prefix + parameter.key(), .tensor = parameter.value(), .layout = models::layout_in(layouts, parameter.key())});
  }
  return parameters;
}

std::vector<NamedParameter> as_stored(std::vector<NamedParameter> parameters) {
  for (auto& parameter : parameters) parameter.name.insert(0, "model.");
  return parameters;
}

const comm::Communicator& ranks_of(models::ShardAxis axis, const comm::Mesh& mesh) {
  switch (axis) {
    case models::ShardAxis::kTp: return mesh.tp();
    case models::ShardAxis::kTable: return mesh.table();
    case models::ShardAxis::kDp: return mesh.dp();
    case models::ShardAxis::kDpTp: return mesh.world();
    case models::ShardAxis::kReplicated: break;
  }
  UQA_FAIL(ErrorCode::kInternal, "a replicated tensor is not gathered");
}

Tensor whole_of(const NamedParameter& parameter, const comm::Mesh& mesh) {
  const auto& [name, tensor, lr_scale, layout] = parameter;
  return models::whole_of(tensor, layout, layout.sharded() ? ranks_of(layout.axis, mesh) : comm::Communicator());
}

}  // namespace uqa::trainer
