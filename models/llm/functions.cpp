#include "models/llm/functions.h"

#include <optional>

#include "models/llm/kernels.h"

namespace uqa::models::llm {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// T rows, H residual width, L row length with spare columns.

/// Autograd functions take an absent tensor as nullopt only.
std::optional<Tensor> optional(const Tensor& x) { return x.defined() ? std::optional<Tensor>(x) : std::nullopt; }

/// Rows of the kernels are adjacent elements at any distance; gradients of sums and the like come expanded.
Tensor with_adjacent_elements(const Tensor& x_TL) { return x_TL.stride(1) == 1 ? x_TL : x_TL.contiguous(); }

struct AddNorm : torch::autograd::Function<AddNorm> {
  static variable_list forward(AutogradContext* ctx, const Tensor& h_TH, const std::optional<Tensor>& delta, const Tensor& weight_H, double eps,
                               at::ScalarType dtype, std::int64_t spare) {
    const std::int64_t rows = h_TH.size(0), width = h_TH.size(1);
    const Tensor delta_TH = delta.value_or(Tensor());
    auto sum_TH = delta_TH.defined() ? at::empty_like(h_TH) : h_TH;
    auto out_TL = at::empty({rows, width + spare}, h_TH.options().dtype(dtype));
    auto rstd_T = at::empty({rows}, h_TH.options());
    add_rms_norm(h_TH, delta_TH, weight_H, eps, sum_TH, out_TL, rstd_T);
    ctx->set_materialize_grads(false);
    ctx->saved_data["delta_type"] = static_cast<std::int64_t>(delta_TH.defined() ? delta_TH.scalar_type() : at::kFloat);
    ctx->save_for_backward({sum_TH, rstd_T, weight_H});
    if (!delta_TH.defined()) return {out_TL};
    return {out_TL, sum_TH};
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto saved = ctx->get_saved_variables();
    const Tensor &h_TH = saved[0], &rstd_T = saved[1], &weight_H = saved[2];
    const bool has_delta = grads.size() > 1;
    const auto dsum_TH = has_delta && grads[1].defined() ? grads[1].contiguous() : Tensor();
    const auto delta_type = static_cast<at::ScalarType>(ctx->saved_data["delta_type"].toInt());
    if (!grads[0].defined()) {
      const auto ddelta = has_delta && dsum_TH.defined() ? dsum_TH.to(delta_type) : Tensor();
      return {dsum_TH, ddelta, Tensor(), Tensor(), Tensor(), Tensor()};
    }
    const auto dout_TL = with_adjacent_elements(grads[0]);
    auto dh_TH = at::empty_like(h_TH);
    Tensor ddelta_TH;
    if (has_delta && delta_type != at::kFloat) ddelta_TH = at::empty_like(h_TH, h_TH.options().dtype(delta_type));
    add_rms_norm_backward(h_TH, rstd_T, weight_H, dout_TL, dsum_TH, dh_TH, ddelta_TH);
    if (has_delta && delta_type == at::kFloat) ddelta_TH = dh_TH;
    Tensor dweight_H;
    if (ctx->needs_input_grad(has_delta ? 2 : 1)) {  // counts tensors that are there
      dweight_H = (dout_TL.narrow(1, 0, h_TH.size(1)).to(at::kFloat) * h_TH * rstd_T.unsqueeze(1)).sum(0);
    }
    return {dh_TH, ddelta_TH, dweight_H, Tensor(), Tensor(), Tensor()};
  }
};

struct SwiGlu : torch::autograd::Function<SwiGlu> {
  static Tensor forward(AutogradContext* ctx, const Tensor& gate_up_TI2, std::int64_t spare) {
    auto out_TL = at::empty({gate_up_TI2.size(0), gate_up_TI2.size(1) / 2 + spare}, gate_up_TI2.options());
    swiglu(gate_up_TI2, out_TL);
    ctx->save_for_backward({gate_up_TI2});
    return out_TL;
  }
  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto gate_up_TI2 = ctx->get_saved_variables()[0];
    auto dgate_up_TI2 = at::empty(gate_up_TI2.sizes(), gate_up_TI2.options());
    swiglu_backward(gate_up_TI2, with_adjacent_elements(grads[0]), dgate_up_TI2);
    return {dgate_up_TI2, Tensor()};
  }
};

struct RopeHeads : torch::autograd::Function<RopeHeads> {
  static variable_list forward(AutogradContext* ctx, const Tensor& qkv_TC, const std::optional<Tensor>& bias_C, const Tensor& cos_TR, const Tensor& sin_TR,
                               std::int64_t num_heads, std::int64_t num_kv_heads, std::int64_t head_dim) {
    const auto rows = qkv_TC.size(0);
    auto q_TND = at::empty({rows, num_heads, head_dim}, qkv_TC.options());
    auto k_TKD = at::empty({rows, num_kv_heads, head_dim}, qkv_TC.options());
    auto v_TKD = at::empty_like(k_TKD);
    rope_split(qkv_TC, bias_C.value_or(Tensor()), cos_TR, sin_TR, q_TND, k_TKD, v_TKD);
    ctx->save_for_backward({cos_TR, sin_TR});
    ctx->saved_data["bias"] = bias_C.has_value();
    return {q_TND, k_TKD, v_TKD};
  }
  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto saved = ctx->get_saved_variables();
    const auto dq_TND = grads[0].contiguous(), dk_TKD = grads[1].contiguous(), dv_TKD = grads[2].contiguous();
    auto dqkv_TC = at::empty({dq_TND.size(0), (dq_TND.size(1) + 2 * dk_TKD.size(1)) * dq_TND.size(2)}, dq_TND.options());
    rope_split_backward(dq_TND, dk_TKD, dv_TKD, saved[0], saved[1], dqkv_TC);
    Tensor dbias_C;
    if (ctx->saved_data["bias"].toBool() && ctx->needs_input_grad(1)) dbias_C = at::sum(dqkv_TC, {0}, false, at::kFloat);
    return {dqkv_TC, dbias_C, Tensor(), Tensor(), Tensor(), Tensor(), Tensor()};
  }
};

}  // namespace

std::pair<Tensor, Tensor> add_norm(const Tensor& h_TH, const Tensor& delta_TH, const Tensor& weight_H, double eps, at::ScalarType dtype,
                                   std::int64_t spare) {
  const auto outputs = AddNorm::apply(h_TH, optional(delta_TH), weight_H, eps, dtype, spare);
  return {outputs.size() > 1 ? outputs[1] : h_TH, outputs[0]};
}

Tensor swiglu_activation(const Tensor& gate_up_TI2, std::int64_t spare) { return SwiGlu::apply(gate_up_TI2, spare); }

namespace {

Tensor scaled_frequencies(const Tensor& frequencies_R, const RopeScaling& scaling) {
  const auto original = static_cast<double>(scaling.original_positions);
  const auto wavelengths_R = 2 * M_PI / frequencies_R;
  const auto stretched_R = frequencies_R / scaling.factor;
  const auto kept_R = (original / wavelengths_R - scaling.low_factor) / (scaling.high_factor - scaling.low_factor);  // share of the plain frequency
  const auto mixed_R = (1 - kept_R) * stretched_R + kept_R * frequencies_R;
  return at::where(wavelengths_R > original / scaling.low_factor, stretched_R,
                   at::where(wavelengths_R < original / scaling.high_factor, frequencies_R, mixed_R));
}

}  // namespace

RopeTables rope_tables(const Tensor& positions_T, std::int64_t head_dim, double theta, const std::optional<RopeScaling>& scaling) {
  const auto float_options = positions_T.options().dtype(at::kFloat);
  const auto exponents_R = at::arange(0, head_dim, 2, float_options) / static_cast<double>(head_dim);
  auto frequencies_R = at::reciprocal(at::pow(theta, exponents_R));
  if (scaling) frequencies_R = scaled_frequencies(frequencies_R, *scaling);
  const auto angles_TR = positions_T.to(at::kFloat).unsqueeze(1) * frequencies_R.unsqueeze(0);
  return {angles_TR.cos(), angles_TR.sin()};
}

QkvHeads rope_heads(const Tensor& qkv_TC, const Tensor& bias_C, const RopeTables& rope, std::int64_t num_heads, std::int64_t num_kv_heads,
                    std::int64_t head_dim) {
  const auto outputs = RopeHeads::apply(qkv_TC, optional(bias_C), rope.cos_TR, rope.sin_TR, num_heads, num_kv_heads, head_dim);
  return {outputs[0], outputs[1], outputs[2]};
}

}  // namespace uqa::models::llm
