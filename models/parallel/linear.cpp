#include "models/parallel/linear.h"

#include "core/error.h"

namespace uqa::models {

void require_divisible(std::int64_t size, int tp, const std::string& what) {
  UQA_CHECK(size % tp == 0, ErrorCode::kConfig, "{} = {}, must be divisible by the tensor-parallel degree {}; change it or --parallel.tp", what, size, tp);
}

SliceRange cut(std::int64_t size, const TensorParallel& tp, const std::string& what) {
  require_divisible(size, tp.size(), what);
  return even_range(size, tp.rank(), tp.size());
}

Stretch cut_or_share(std::int64_t count, const TensorParallel& tp, const std::string& what, const std::string& label) {
  const int size = tp.size(), rank = tp.rank();
  UQA_CHECK(count % size == 0 || size % count == 0, ErrorCode::kConfig,
            "{} = {}, must be a multiple or a divisor of the tensor-parallel degree {}; change it or the degree", what, count, size);
  if (count % size == 0) return {.range = even_range(count, rank, size), .sharers = {}};
  const int owner = rank / (size / static_cast<int>(count));
  return {.range = {.begin = owner, .length = 1}, .sharers = tp.comm.split(owner, rank, label)};
}

SliceRange widened(const SliceRange& range, std::int64_t width) { return {.begin = range.begin * width, .length = range.length * width}; }

std::vector<Stretch> same_range_of_each(std::int64_t count, std::int64_t size, const SliceRange& range) {
  std::vector<Stretch> stretches;
  for (std::int64_t i = 0; i < count; ++i) stretches.push_back({.range = {.begin = i * size + range.begin, .length = range.length}, .sharers = {}});
  return stretches;
}

ColumnParallelLinearImpl::ColumnParallelLinearImpl(std::int64_t in, std::int64_t out, Bias with_bias, const SliceRange& rows, const TensorParallel& tp)
    : weight(add_sliced("weight", {out, in}, 0, {{.range = rows, .sharers = {}}}, tp)) {
  if (with_bias == Bias::kYes) bias = add_sliced("bias", {out}, 0, {{.range = rows, .sharers = {}}}, tp);
}

void ColumnParallelLinearImpl::from_full(const LinearImpl& full) {
  weight.set_full(full.weight);
  if (bias.tensor().defined()) bias.set_full(full.bias);
}

RowParallelLinearImpl::RowParallelLinearImpl(std::int64_t in, std::int64_t out, Bias with_bias, const SliceRange& columns, const TensorParallel& tp)
    : weight(add_sliced("weight", {out, in}, 1, {{.range = columns, .sharers = {}}}, tp)), comm_(tp.comm) {
  if (with_bias == Bias::kYes) bias = register_parameter("bias", at::zeros({out}));
}

Tensor RowParallelLinearImpl::forward(const Tensor& x_TF) const {
  if (comm_.size() == 1) return at::linear(x_TF, weight.tensor(), bias);
  const auto y = reduce_from(at::linear(x_TF, weight.tensor()), comm_);
  return bias.defined() ? y + bias : y;
}

void RowParallelLinearImpl::from_full(const LinearImpl& full) {
  weight.set_full(full.weight);
  const at::NoGradGuard no_grad;
  if (bias.defined()) bias.copy_(full.bias);
}

}  // namespace uqa::models
