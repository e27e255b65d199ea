#include "models/parallel/sliced.h"

#include "core/error.h"

namespace uqa::models {
namespace {

std::string shape_text(at::IntArrayRef shape) { return fmt::format("[{}]", fmt::join(shape, ", ")); }

/// body(where it begins in this rank's tensor, range) for each range that this rank holds.
template <typename Body>
void for_each_range(const ParameterLayout& layout, const Body& body) {
  std::int64_t begin = 0;
  for (const auto& range : layout.ranges) {
    body(begin, range);
    begin += range.length;
  }
}

}  // namespace

TensorParallel tensor_parallel(const comm::Communicator& axis, std::int64_t degree, const std::string& option) {
  UQA_CHECK(degree > 0 && axis.size() % degree == 0, ErrorCode::kConfig, "{} = {}, must divide the tensor-parallel axis of {} ranks; change it or --parallel.tp",
            option, degree, axis.size());
  const auto size = static_cast<int>(degree);
  if (size == axis.size()) return {.comm = axis, .replicas = 1};
  if (size == 1) return {.comm = {}, .replicas = axis.size()};
  return {.comm = axis.split(axis.rank() / size, axis.rank(), "tp"), .replicas = axis.size() / size};
}

SlicedParameter::SlicedParameter(torch::nn::Module& module, const std::string& name, std::vector<std::int64_t> full_shape, std::int64_t dim,
                                 const std::vector<Stretch>& stretches, const TensorParallel& tp)
    : name_(name), full_shape_(std::move(full_shape)) {
  std::vector<SliceRange> ranges;
  std::int64_t length = 0, end = 0;
  for (const auto& [range, sharers] : stretches) {
    UQA_CHECK(range.begin >= end && range.length > 0, ErrorCode::kInternal, "parameter {}: range [{}, +{}) must follow {} and not be empty", name,
              range.begin, range.length, end);
    end = range.begin + range.length;
    length += range.length;
    const bool shared = sharers.size() > 1;
    if (shared) {
      UQA_CHECK(sharers_.size() == 1 || &sharers_.backend() == &sharers.backend(), ErrorCode::kInternal, "parameter {}: ranges have different sharers", name);
      sharers_ = sharers;
    }
    // Neighbours are one range, so that a parameter on one rank is whole.
    if (!ranges.empty() && (is_shared_.back() != 0) == shared && ranges.back().begin + ranges.back().length == range.begin) {
      ranges.back().length += range.length;
      continue;
    }
    ranges.push_back({.begin = range.begin, .length = range.length, .copies = sharers.size() * tp.replicas});
    is_shared_.push_back(shared ? 1 : 0);
  }
  auto shape = full_shape_;
  shape[static_cast<std::size_t>(dim)] = length;
  if (shape != full_shape_) layout_ = {.axis = ShardAxis::kTp, .global_shape = full_shape_, .dim = dim, .ranges = std::move(ranges)};
  tensor_ = module.register_parameter(name, at::zeros(shape));
  check_layout(name, tensor_, layout_);
}

Tensor SlicedParameter::local() const { return local_tensors({this}).front(); }

void SlicedParameter::set_full(const Tensor& full) const {
  UQA_CHECK(full.sizes() == at::IntArrayRef(full_shape_), ErrorCode::kInternal, "parameter {}: {} given, must be {}", name_, shape_text(full.sizes()),
            shape_text(full_shape_));
  const at::NoGradGuard no_grad;
  tensor_.copy_(part_of(full, layout_));
}

void SlicedParameter::init(const std::function<void(const Tensor& full)>& init) const {
  const at::NoGradGuard no_grad;
  if (!layout_.sharded()) return init(tensor_);
  const auto full = at::zeros(full_shape_);
  init(full);
  set_full(full);
}

std::vector<Tensor> local_tensors(const std::vector<const SlicedParameter*>& parameters) {
  std::vector<Tensor> shared;
  const comm::Communicator* sharers = nullptr;
  for (const auto* p : parameters) {
    if (p->sharers_.size() == 1) continue;
    UQA_CHECK(sharers == nullptr || &sharers->backend() == &p->sharers_.backend(), ErrorCode::kInternal, "parameter {}: has other sharers than its neighbours",
              p->name());
    sharers = &p->sharers_;
    std::size_t i = 0;
    for_each_range(p->layout_, [&](std::int64_t begin, const SliceRange& range) {
      if (p->is_shared_[i++] != 0) shared.push_back(p->tensor_.narrow(p->layout_.dim, begin, range.length));
    });
  }
  if (sharers != nullptr) shared = copy_all_to(shared, *sharers);
  std::size_t next = 0;
  std::vector<Tensor> locals;
  for (const auto* p : parameters) {
    if (p->sharers_.size() == 1) {
      locals.push_back(p->tensor_);
      continue;
    }
    std::vector<Tensor> pieces;
    std::size_t i = 0;
    for_each_range(p->layout_, [&](std::int64_t begin, const SliceRange& range) {
      pieces.push_back(p->is_shared_[i++] != 0 ? shared[next++] : p->tensor_.narrow(p->layout_.dim, begin, range.length));
    });
    locals.push_back(pieces.size() == 1 ? pieces.front() : at::cat(pieces, p->layout_.dim));
  }
  return locals;
}

std::map<std::string, ParameterLayout> SlicedModule::own_layouts() const {
  std::map<std::string, ParameterLayout> layouts;
  for (const auto& p : sliced_) {
    if (p.layout().sharded()) layouts.emplace(p.name(), p.layout());
  }
  return layouts;
}

SlicedParameter SlicedModule::add_sliced(const std::string& name, std::vector<std::int64_t> full_shape, std::int64_t dim, const std::vector<Stretch>& stretches,
                                         const TensorParallel& tp) {
  return sliced_.emplace_back(*this, name, std::move(full_shape), dim, stretches, tp);
}

Tensor part_of(const Tensor& full, const ParameterLayout& layout) {
  if (!layout.sharded()) return full;
  std::vector<Tensor> pieces;
  for (const auto& range : layout.ranges) pieces.push_back(full.narrow(layout.dim, range.begin, range.length));
  return pieces.size() == 1 ? pieces.front() : at::cat(pieces, layout.dim);
}

Tensor whole_of(const Tensor& part, const ParameterLayout& layout, const comm::Communicator& axis) {
  const at::NoGradGuard no_grad;
  if (!layout.sharded()) return part.detach().clone();
  // Rows of (begin, length) and the parts themselves, cut dimension first, from every rank; copies overwrite each other with equal values.
  std::vector<std::int64_t> table;
  for (const auto& range : layout.ranges) table.insert(table.end(), {range.begin, range.length});
  const auto ranges_R2 = comm::all_gather(at::tensor(table, at::kLong).view({-1, 2}), axis);
  const auto parts = comm::all_gather(part.detach().movedim(layout.dim, 0).contiguous(), axis);
  auto full = at::zeros(layout.global_shape, part.options().requires_grad(false));
  std::int64_t from = 0;
  for (std::int64_t r = 0; r < ranges_R2.size(0); ++r) {
    const auto begin = ranges_R2[r][0].item<std::int64_t>(), length = ranges_R2[r][1].item<std::int64_t>();
    full.narrow(layout.dim, begin, length).copy_(parts.narrow(0, from, length).movedim(0, layout.dim));
    from += length;
  }
  return full;
}

void load_full_state(torch::nn::Module& root, const std::map<std::string, Tensor>& full, const std::string& what) {
  const auto layouts = layouts_of(root);
  const at::NoGradGuard no_grad;
  std::size_t used = 0;
  for (const auto& item : root.named_parameters()) {
    const auto found = full.find(item.key());
    UQA_CHECK(found != full.end(), ErrorCode::kData, "{}: tensor {} is missing; give the weights of this model or its settings", what, item.key());
    const auto layout = layout_in(layouts, item.key());
    const auto shape = global_shape_of(item.value(), layout);
    UQA_CHECK(found->second.sizes() == at::IntArrayRef(shape), ErrorCode::kData, "{}: tensor {} is {}, the model's is {}; give the weights of this model or its settings",
              what, item.key(), shape_text(found->second.sizes()), shape_text(shape));
    item.value().copy_(part_of(found->second, layout));
    ++used;
  }
  UQA_CHECK(used == full.size(), ErrorCode::kData, "{}: {} tensors, the model has {}; give the weights of this model or its settings", what, full.size(), used);
}

std::map<std::string, Tensor> full_state(const torch::nn::Module& root, const comm::Communicator& tp) {
  const auto layouts = layouts_of(root);
  std::map<std::string, Tensor> full;
  for (const auto& item : root.named_parameters()) {
    full[item.key()] = whole_of(item.value(), layout_in(layouts, item.key()), tp);
  }
  return full;
}

}  // namespace uqa::models
