#include "models/parallel/collectives.h"

#include "core/error.h"
#include "models/parallel/layout.h"

namespace uqa::models {
namespace {

using comm::Communicator;
using comm::ReduceOp;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

/// all_gather is along dim 0, so the last dimension goes first.
Tensor gather_last(const Tensor& x, const Communicator& comm) {
  const auto first = x.movedim(-1, 0).contiguous();
  return comm::all_gather(first, comm).movedim(0, -1).contiguous();
}

struct CopyTo : torch::autograd::Function<CopyTo> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const CommPtr& comm) {
    save_comm(ctx, comm);
    return x.detach();  // not a view to autograd: a linear layer with LoRA writes into its input's spare columns
  }
  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    return {comm::all_reduce(grads[0].contiguous(), ReduceOp::kSum, saved_comm(ctx)), Tensor()};
  }
};

struct CopyAllTo : torch::autograd::Function<CopyAllTo> {
  static variable_list forward(AutogradContext* ctx, at::TensorList tensors, const CommPtr& comm) {
    save_comm(ctx, comm);
    variable_list out;
    for (const auto& x : tensors) out.push_back(x.view_as(x));
    return out;
  }
  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    variable_list flat;
    for (const auto& grad : grads) flat.push_back(grad.reshape({-1}));
    auto sum = at::cat(flat, 0);
    comm::all_reduce_(sum, ReduceOp::kSum, saved_comm(ctx));
    variable_list out;
    std::int64_t begin = 0;
    for (const auto& grad : grads) {
      out.push_back(sum.narrow(0, begin, grad.numel()).view(grad.sizes()));
      begin += grad.numel();
    }
    out.emplace_back();
    return out;
  }
};

struct ReduceFrom : torch::autograd::Function<ReduceFrom> {
  static Tensor forward(AutogradContext*, const Tensor& x, const CommPtr& comm) {
    return comm::all_reduce(x.contiguous(), ReduceOp::kSum, comm->comm);
  }
  static variable_list backward(AutogradContext*, const variable_list& grads) { return {grads[0], Tensor()}; }
};

struct ScatterTo : torch::autograd::Function<ScatterTo> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const CommPtr& comm) {
    save_comm(ctx, comm);
    const auto mine = even_range(x.size(-1), comm->comm.rank(), comm->comm.size());
    return x.narrow(-1, mine.begin, mine.length).clone();
  }
  static variable_list backward(AutogradContext* ctx, const variable_list& grads) { return {gather_last(grads[0], saved_comm(ctx)), Tensor()}; }
};

struct GatherFrom : torch::autograd::Function<GatherFrom> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const CommPtr& comm) {
    auto out = gather_last(x, comm->comm);
    const auto before = comm::all_gather(at::full({1}, x.size(-1), at::kLong), comm->comm).narrow(0, 0, comm->comm.rank());
    ctx->saved_data["begin"] = before.sum().item<std::int64_t>();
    ctx->saved_data["size"] = x.size(-1);
    return out;
  }
  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    return {grads[0].narrow(-1, ctx->saved_data["begin"].toInt(), ctx->saved_data["size"].toInt()).contiguous(), Tensor()};
  }
};

}  // namespace

Tensor copy_to(const Tensor& x, const Communicator& comm) { return comm.size() == 1 ? x : CopyTo::apply(x, hold(comm)); }

std::vector<Tensor> copy_all_to(const std::vector<Tensor>& tensors, const Communicator& comm) {
  if (comm.size() == 1 || tensors.empty()) return tensors;
  for (const auto& x : tensors) {
    UQA_CHECK(x.scalar_type() == at::kFloat, ErrorCode::kInternal, "copy_all_to: dtype = {}, must be float32", c10::toString(x.scalar_type()));
  }
  return CopyAllTo::apply(at::TensorList(tensors), hold(comm));  // a vector would not count as tensors
}

Tensor reduce_from(const Tensor& x, const Communicator& comm) { return comm.size() == 1 ? x : ReduceFrom::apply(x, hold(comm)); }
Tensor scatter_to(const Tensor& x, const Communicator& comm) { return comm.size() == 1 ? x : ScatterTo::apply(x, hold(comm)); }
Tensor gather_from(const Tensor& x, const Communicator& comm) { return comm.size() == 1 ? x : GatherFrom::apply(x, hold(comm)); }

}  // namespace uqa::models
