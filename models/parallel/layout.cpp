#include "models/parallel/layout.h"

#include <algorithm>

#include "core/error.h"

namespace uqa::models {

ParameterLayout layout_in(const std::map<std::string, ParameterLayout>& layouts, const std::string& name) {
  const auto layout = layouts.find(name);
  return layout == layouts.end() ? ParameterLayout{} : layout->second;
}

ParameterLayout sliced(ShardAxis axis, std::vector<std::int64_t> global_shape, std::int64_t dim, SliceRange range) {
  return {.axis = axis, .global_shape = std::move(global_shape), .dim = dim, .ranges = {range}};
}

SliceRange even_range(std::int64_t size, int rank, int num_ranks) {
  const std::int64_t begin = size * rank / num_ranks, end = size * (rank + 1) / num_ranks;
  return {.begin = begin, .length = end - begin};
}

int even_owner(std::int64_t size, std::int64_t position, int num_ranks) {
  // The largest rank whose range begins at or before the position: size * rank / n <= position.
  return static_cast<int>(((position + 1) * num_ranks - 1) / size);
}

std::vector<std::int64_t> global_shape_of(const Tensor& tensor, const ParameterLayout& layout) {
  return layout.sharded() ? layout.global_shape : tensor.sizes().vec();
}

void check_layout(const std::string& name, const Tensor& tensor, const ParameterLayout& layout) {
  if (!layout.sharded()) return;
  const auto& shape = layout.global_shape;
  bool fits = (layout.dim == 0 || layout.dim == 1) && static_cast<std::int64_t>(shape.size()) == tensor.dim() && layout.dim < tensor.dim();
  std::int64_t length = 0;
  for (const auto& range : layout.ranges) {
    fits = fits && range.copies >= 1 && range.length >= 0 && range.begin >= 0 && range.begin <= shape[static_cast<std::size_t>(layout.dim)] - range.length;
    length += range.length;
  }
  for (std::int64_t d = 0; fits && d < tensor.dim(); ++d) fits = tensor.size(d) == (d == layout.dim ? length : shape[static_cast<std::size_t>(d)]);
  UQA_CHECK(fits, ErrorCode::kInternal, "parameter {}: shape [{}] with {} positions of dimension {} is no slice of [{}]", name, fmt::join(tensor.sizes(), ", "),
            length, layout.dim, fmt::join(shape, ", "));
}

GlobalIndex::GlobalIndex(const Tensor& tensor, const ParameterLayout& layout) : whole_(!layout.sharded()) {
  if (whole_) return;
  check_layout("of a slice", tensor, layout);
  for (std::int64_t d = layout.dim + 1; d < tensor.dim(); ++d) inner_ *= tensor.size(d);
  local_size_ = std::max<std::int64_t>(1, tensor.size(layout.dim));
  global_size_ = layout.global_shape[static_cast<std::size_t>(layout.dim)];
  ranges_ = layout.ranges;
}

std::map<std::string, ParameterLayout> layouts_of(const torch::nn::Module& module) {
  std::map<std::string, ParameterLayout> layouts;
  const auto add = [&](const std::string& prefix, const torch::nn::Module& part) {
    const auto* const sliced_module = dynamic_cast<const HasLayouts*>(&part);
    if (sliced_module == nullptr) return;
    for (auto& [name, layout] : sliced_module->own_layouts()) layouts.emplace(prefix + name, layout);
  };
  add("", module);
  for (const auto& item : module.named_modules("", /*include_self=*/false)) add(item.key() + ".", *item.value());
  return layouts;
}

}  // namespace uqa::models
