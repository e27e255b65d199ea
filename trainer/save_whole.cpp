#include "trainer/save_whole.h"

#include <algorithm>
#include <exception>
#include <optional>

#include "models/format/safetensors.h"
#include "trainer/checkpoint_manifest.h"

namespace uqa::trainer {
namespace {

void append_values(format::SafetensorsWriter& writer, const Tensor& tensor) {
  const Tensor host = tensor.detach().cpu().contiguous();
  writer.append({static_cast<const std::byte*>(host.const_data_ptr()), static_cast<std::size_t>(host.nbytes())});
}

/// Whether rank 0 is in this rank's group of the axis: the others have nothing to add.
bool with_root(const comm::Communicator& axis, const comm::Mesh& mesh) {
  const bool mine = mesh.world().rank() == 0;
  return comm::all_reduce(std::int64_t{mine ? 1 : 0}, comm::ReduceOp::kMax, axis) == 1;
}

/// Positions [begin, end) of dimension 0 of the whole tensor, in one piece on rank 0 of the axis (undefined elsewhere). Collective over the axis.
Tensor gather_rows(const NamedParameter& parameter, const std::vector<std::vector<models::SliceRange>>& ranges_of_rank, const comm::Communicator& axis,
                   std::int64_t begin, std::int64_t end) {
  const auto& layout = parameter.layout;
  // What a rank sends: the parts of its ranges that fall into the piece, one after the other, flat.
  struct Part {
    std::int64_t position, begin, length;  ///< in the local tensor, in the whole
  };
  const auto parts_of = [&](const std::vector<models::SliceRange>& ranges) {
    std::vector<Part> parts;
    std::int64_t position = 0;
    for (const auto& range : ranges) {
      const auto from = layout.dim == 0 ? std::max(range.begin, begin) : range.begin;
      const auto to = layout.dim == 0 ? std::min(range.begin + range.length, end) : range.begin + range.length;
      if (from < to) parts.push_back({.position = position + from - range.begin, .begin = from, .length = to - from});
      position += range.length;
    }
    return parts;
  };
  const Tensor local = layout.dim == 0 ? parameter.tensor.detach() : parameter.tensor.detach().narrow(0, begin, end - begin);
  std::vector<Tensor> mine{at::empty({0}, local.options())};
  for (const auto& part : parts_of(layout.ranges)) mine.push_back(local.narrow(layout.dim, part.position, part.length).reshape({-1}));
  const Tensor flat = comm::all_gather(at::cat(mine), axis);
  if (axis.rank() != 0) return {};
  auto shape = layout.global_shape;
  shape[0] = end - begin;
  Tensor piece = at::empty(shape, local.options());
  std::int64_t next = 0;
  for (const auto& ranges : ranges_of_rank) {
    for (const auto& part : parts_of(ranges)) {
      Tensor target = piece.narrow(layout.dim, layout.dim == 0 ? part.begin - begin : part.begin, part.length);
      target.copy_(flat.narrow(0, next, target.numel()).view(target.sizes()));
      next += target.numel();
    }
  }
  return piece;
}

}  // namespace

void save_whole_tensors(const fs::path& path, const std::vector<NamedParameter>& tensors, const comm::Mesh& mesh, std::int64_t piece_bytes) {
  const at::NoGradGuard no_grad;
  const bool root = mesh.world().rank() == 0;
  std::optional<format::SafetensorsWriter> writer;
  std::exception_ptr error;  // of rank 0; the others go on until all can be told
  const auto guarded = [&](const auto& body) {
    if (!root || error) return;
    try {
      body();
    } catch (...) {
      error = std::current_exception();
    }
  };
  std::vector<format::TensorPlan> plans;
  for (const auto& [name, tensor, lr_scale, layout] : tensors) plans.push_back({.name = name, .dtype = dtype_name(tensor), .shape = models::global_shape_of(tensor, layout)});
  guarded([&] { writer.emplace(path, plans); });
  const auto ranges = exchange_ranges(tensors, mesh.world());
  for (const std::size_t i : format::SafetensorsWriter::order_of(plans)) {
    const auto& parameter = tensors[i];
    if (!parameter.layout.sharded()) {
      guarded([&] { append_values(*writer, parameter.tensor); });
      continue;
    }
    const auto& axis = ranks_of(parameter.layout.axis, mesh);
    if (!with_root(axis, mesh)) continue;
    const Tensor members = comm::all_gather(at::full({1}, std::int64_t{mesh.world().rank()}, at::kLong), axis).contiguous();
    std::vector<std::vector<models::SliceRange>> held;
    for (std::int64_t r = 0; r < members.numel(); ++r) held.push_back(ranges[static_cast<std::size_t>(members.const_data_ptr<std::int64_t>()[r])][i]);
    const auto& shape = parameter.layout.global_shape;
    std::int64_t row_bytes = static_cast<std::int64_t>(parameter.tensor.element_size());
    for (std::size_t d = 1; d < shape.size(); ++d) row_bytes *= shape[d];
    const auto rows = std::max<std::int64_t>(1, piece_bytes / std::max<std::int64_t>(1, row_bytes));
    for (std::int64_t begin = 0; begin < shape[0]; begin += rows) {
      const Tensor piece = gather_rows(parameter, held, axis, begin, std::min(begin + rows, shape[0]));
      guarded([&] { append_values(*writer, piece); });
    }
  }
  guarded([&] { writer->finish(); });
  comm::run_agreed(mesh.world(), [&] {
    if (error) std::rethrow_exception(error);
  });
}

}  // namespace uqa::trainer
