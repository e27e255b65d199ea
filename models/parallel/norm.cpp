#include "models/parallel/norm.h"

#include "core/error.h"
#include "models/layers/no_autocast.h"
#include "models/parallel/collectives.h"

// T packed rows, F features of this rank, R ranks.

namespace uqa::models {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

Tensor row_sums(const Tensor& x_TF) { return x_TF.sum(1, /*keepdim=*/true); }

struct LayerNormAcross : torch::autograd::Function<LayerNormAcross> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x_TF, double eps, const CommPtr& comm) {
    const NoAutocast no_autocast;
    const auto width = static_cast<double>(x_TF.size(1)), num_ranks = static_cast<double>(comm->comm.size());
    // Each rank's mean and sum of squares about it, joined as Chan et al. do: no difference of large sums.
    const auto own_mean_T1 = x_TF.mean(1, /*keepdim=*/true);
    const auto own_squares_T1 = row_sums((x_TF - own_mean_T1).square());
    const auto all_RT2 = comm::all_gather(at::cat({own_mean_T1, own_squares_T1}, 1), comm->comm).view({comm->comm.size(), x_TF.size(0), 2});
    const auto means_RT = all_RT2.select(2, 0);
    const auto mean_T = means_RT.mean(0);
    const auto squares_T = all_RT2.select(2, 1).sum(0) + width * (means_RT - mean_T).square().sum(0);
    const auto inverse_T1 = (squares_T / (width * num_ranks) + eps).rsqrt().unsqueeze(1);
    const auto y_TF = (x_TF - mean_T.unsqueeze(1)) * inverse_T1;
    save_comm(ctx, comm);
    ctx->save_for_backward({y_TF, inverse_T1});
    return y_TF;
  }
  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const NoAutocast no_autocast;
    const auto saved = ctx->get_saved_variables();
    const Tensor &y_TF = saved[0], &inverse_T1 = saved[1], &dy_TF = grads[0];
    const auto comm = saved_comm(ctx);
    auto sums_T2 = at::cat({row_sums(dy_TF), row_sums(dy_TF * y_TF)}, 1);
    comm::all_reduce_(sums_T2, comm::ReduceOp::kSum, comm);
    sums_T2 = sums_T2 / static_cast<double>(y_TF.size(1) * comm.size());
    return {inverse_T1 * (dy_TF - sums_T2.narrow(1, 0, 1) - y_TF * sums_T2.narrow(1, 1, 1)), Tensor(), Tensor()};
  }
};

struct RmsNormAcross : torch::autograd::Function<RmsNormAcross> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x_TF, double eps, const CommPtr& comm) {
    const NoAutocast no_autocast;
    auto squares_T1 = row_sums(x_TF.square());
    comm::all_reduce_(squares_T1, comm::ReduceOp::kSum, comm->comm);
    const auto inverse_T1 = (squares_T1 / static_cast<double>(x_TF.size(1) * comm->comm.size()) + eps).rsqrt();
    const auto y_TF = x_TF * inverse_T1;
    save_comm(ctx, comm);
    ctx->save_for_backward({y_TF, inverse_T1});
    return y_TF;
  }
  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const NoAutocast no_autocast;
    const auto saved = ctx->get_saved_variables();
    const Tensor &y_TF = saved[0], &inverse_T1 = saved[1], &dy_TF = grads[0];
    const auto comm = saved_comm(ctx);
    auto dot_T1 = row_sums(dy_TF * y_TF);
    comm::all_reduce_(dot_T1, comm::ReduceOp::kSum, comm);
    return {inverse_T1 * (dy_TF - y_TF * (dot_T1 / static_cast<double>(y_TF.size(1) * comm.size()))), Tensor(), Tensor()};
  }
};

void check_input(const Tensor& x_TF, const char* what) {
  UQA_CHECK(x_TF.dim() == 2 && x_TF.scalar_type() == at::kFloat, ErrorCode::kInternal, "{}: must be float32 [T, F], is {} of {} dimensions", what,
            c10::toString(x_TF.scalar_type()), x_TF.dim());
}

}  // namespace

Tensor parallel_layer_norm(const Tensor& x_TF, double eps, const comm::Communicator& comm) {
  if (comm.size() == 1) return at::layer_norm(x_TF, {x_TF.size(1)}, {}, {}, eps);
  check_input(x_TF, "parallel_layer_norm");
  return LayerNormAcross::apply(x_TF, eps, hold(comm));
}

Tensor parallel_rms_norm(const Tensor& x_TF, double eps, const comm::Communicator& comm) {
  check_input(x_TF, "parallel_rms_norm");
  return RmsNormAcross::apply(x_TF, eps, hold(comm));
}

}  // namespace uqa::models
