#include "models/parallel/dp_parts.h"

#include <algorithm>

#include "core/error.h"

namespace uqa::models {

bool can_cut_over_dp(const Tensor& tensor, const ParameterLayout& layout) {
  return tensor.dim() > 0 && (layout.axis == ShardAxis::kReplicated || layout.axis == ShardAxis::kTp);
}

SliceRange dp_range(const Tensor& tensor, const ParameterLayout& layout, int rank, int num_ranks) {
  return even_range(tensor.size(dp_dim(layout)), rank, num_ranks);
}

ParameterLayout dp_part_layout(const Tensor& tensor, const ParameterLayout& layout, int rank, int num_ranks) {
  UQA_CHECK(can_cut_over_dp(tensor, layout), ErrorCode::kInternal, "a tensor of {} dimensions whose ranks hold different parts cannot be cut over dp", tensor.dim());
  const auto mine = dp_range(tensor, layout, rank, num_ranks);
  if (!layout.sharded()) return sliced(ShardAxis::kDp, tensor.sizes().vec(), 0, mine);
  ParameterLayout part{.axis = ShardAxis::kDpTp, .global_shape = layout.global_shape, .dim = layout.dim, .ranges = {}};
  std::int64_t position = 0;  // in this rank's tensor
  for (const auto& range : layout.ranges) {
    const auto begin = std::max(mine.begin, position), end = std::min(mine.begin + mine.length, position + range.length);
    if (begin < end) part.ranges.push_back({.begin = range.begin + begin - position, .length = end - begin, .copies = range.copies});
    position += range.length;
  }
  return part;
}

DpExchange::DpExchange(std::vector<DpItem> items, comm::Communicator dp) : items_(std::move(items)), dp_(std::move(dp)) {}

SliceRange DpExchange::range_of(const DpItem& item, int rank) const { return even_range(item.shape[static_cast<std::size_t>(item.dim)], rank, dp_.size()); }

std::int64_t DpExchange::num_elements() const {
  std::int64_t elements = 0;
  for (const auto& item : items_) elements += c10::multiply_integers(item.shape);
  return elements;
}

std::vector<std::int64_t> DpExchange::counts() const {
  std::vector<std::int64_t> counts(static_cast<std::size_t>(dp_.size()), 0);
  for (int rank = 0; rank < dp_.size(); ++rank) {
    for (const auto& item : items_) {
      auto shape = item.shape;
      shape[static_cast<std::size_t>(item.dim)] = range_of(item, rank).length;
      counts[static_cast<std::size_t>(rank)] += c10::multiply_integers(shape);
    }
  }
  return counts;
}

Tensor DpExchange::joined(const std::vector<Tensor>& parts) const {
  UQA_CHECK(parts.size() == items_.size(), ErrorCode::kInternal, "{} parts, must be {}", parts.size(), items_.size());
  const at::NoGradGuard no_grad;
  std::vector<Tensor> flat;
  for (const auto& part : parts) flat.push_back(part.detach().reshape({-1}));
  return flat.size() == 1 ? flat.front() : at::cat(flat);
}

void DpExchange::gather(const std::vector<Tensor>& parts, const std::vector<Tensor>& wholes) const { spread(comm::all_gather(joined(parts), dp_), wholes); }

DpExchange::Gathering DpExchange::start_gather(const std::vector<Tensor>& parts) const {
  auto [all_n, work] = comm::all_gather_async(joined(parts), counts(), dp_);
  return {.all_n = std::move(all_n), .work = std::move(work)};
}

void DpExchange::finish_gather(Gathering gathering, const std::vector<Tensor>& wholes) const {
  gathering.work.wait();
  spread(gathering.all_n, wholes);
}

void DpExchange::spread(const Tensor& all_n, const std::vector<Tensor>& wholes) const {
  UQA_CHECK(wholes.size() == items_.size(), ErrorCode::kInternal, "{} tensors, must be {}", wholes.size(), items_.size());
  const at::NoGradGuard no_grad;
  std::int64_t from = 0;
  for (int rank = 0; rank < dp_.size(); ++rank) {
    for (std::size_t i = 0; i < items_.size(); ++i) {
      const auto range = range_of(items_[i], rank);
      const auto target = wholes[i].detach().narrow(items_[i].dim, range.begin, range.length);
      target.copy_(all_n.narrow(0, from, target.numel()).view(target.sizes()));
      from += target.numel();
    }
  }
}

std::vector<Tensor> DpExchange::reduce_scatter(const std::vector<Tensor>& wholes) const {
  UQA_CHECK(wholes.size() == items_.size(), ErrorCode::kInternal, "{} tensors, must be {}", wholes.size(), items_.size());
  const at::NoGradGuard no_grad;
  auto flat = at::zeros({num_elements()}, at::TensorOptions(at::kFloat).device(items_.empty() ? at::Device(at::kCPU) : items_.front().device));
  std::int64_t to = 0;
  for (int rank = 0; rank < dp_.size(); ++rank) {
    for (std::size_t i = 0; i < items_.size(); ++i) {
      const auto range = range_of(items_[i], rank);
      auto shape = items_[i].shape;
      shape[static_cast<std::size_t>(items_[i].dim)] = range.length;
      const auto numel = c10::multiply_integers(shape);
      if (wholes[i].defined()) flat.narrow(0, to, numel).view(shape).copy_(wholes[i].detach().narrow(items_[i].dim, range.begin, range.length));
      to += numel;
    }
  }
  const auto sums = comm::reduce_scatter(flat, counts(), dp_);
  std::vector<Tensor> parts;
  std::int64_t from = 0;
  for (const auto& item : items_) {
    auto shape = item.shape;
    shape[static_cast<std::size_t>(item.dim)] = range_of(item, dp_.rank()).length;
    const auto numel = c10::multiply_integers(shape);
    parts.push_back(sums.narrow(0, from, numel).view(shape));
    from += numel;
  }
  return parts;
}

}  // namespace uqa::models
