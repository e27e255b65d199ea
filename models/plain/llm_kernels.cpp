#include "models/plain/llm_kernels.h"

#include <limits>

#include "models/plain/row_layers.h"

namespace uqa::models::llm::plain {

using models::plain::turned_halves;

void add_rms_norm(const Tensor& h_TH, const Tensor& delta_TH, const Tensor& weight_H, double eps, Tensor& h_out_TH, Tensor& out_TL, Tensor& rstd_T) {
  auto sum_TH = h_TH;
  if (delta_TH.defined()) {
    h_out_TH.copy_(h_TH + delta_TH.to(at::kFloat));
    sum_TH = h_out_TH;
  }
  rstd_T.copy_(at::rsqrt(sum_TH.square().mean(-1) + eps));
  out_TL.narrow(1, 0, h_TH.size(1)).copy_(sum_TH * rstd_T.unsqueeze(1) * weight_H);
}

void add_rms_norm_backward(const Tensor& h_TH, const Tensor& rstd_T, const Tensor& weight_H, const Tensor& dout_TL, const Tensor& dh_out_TH, Tensor& dh_TH,
                           Tensor& ddelta_TH) {
  const auto rstd = rstd_T.unsqueeze(1);
  const auto dnormed = dout_TL.narrow(1, 0, h_TH.size(1)).to(at::kFloat) * weight_H;
  const auto normed = h_TH * rstd;
  auto dh = rstd * (dnormed - normed * (dnormed * normed).mean(-1, /*keepdim=*/true));
  if (dh_out_TH.defined()) dh = dh + dh_out_TH;
  dh_TH.copy_(dh);
  if (ddelta_TH.defined()) ddelta_TH.copy_(dh);
}

void swiglu(const Tensor& gate_up_TI2, Tensor& out_TL) {
  const auto parts = gate_up_TI2.to(at::kFloat).chunk(2, 1);
  out_TL.narrow(1, 0, parts[0].size(1)).copy_(at::silu(parts[0]) * parts[1]);
}

void swiglu_backward(const Tensor& gate_up_TI2, const Tensor& dout_TL, Tensor& dgate_up_TI2) {
  const auto parts = gate_up_TI2.to(at::kFloat).chunk(2, 1);
  const auto width = parts[0].size(1);
  const auto dout = dout_TL.narrow(1, 0, width).to(at::kFloat);
  const auto sigmoid = at::sigmoid(parts[0]);
  dgate_up_TI2.narrow(1, 0, width).copy_(dout * parts[1] * sigmoid * (1 + parts[0] * (1 - sigmoid)));
  dgate_up_TI2.narrow(1, width, width).copy_(dout * parts[0] * sigmoid);
}

void rope_split(const Tensor& qkv_TC, const Tensor& bias_C, const Tensor& cos_TR, const Tensor& sin_TR, Tensor& q_TND, Tensor& k_TKD, Tensor& v_TKD) {
  const auto rows = qkv_TC.size(0), heads = q_TND.size(1), kv = k_TKD.size(1), width = q_TND.size(2);
  auto x = qkv_TC.to(at::kFloat);
  if (bias_C.defined()) x = x + bias_C;
  x = x.view({rows, heads + 2 * kv, width});
  q_TND.copy_(turned_halves(x.narrow(1, 0, heads), cos_TR, sin_TR));
  k_TKD.copy_(turned_halves(x.narrow(1, heads, kv), cos_TR, sin_TR));
  v_TKD.copy_(x.narrow(1, heads + kv, kv));
}

void rope_split_backward(const Tensor& dq_TND, const Tensor& dk_TKD, const Tensor& dv_TKD, const Tensor& cos_TR, const Tensor& sin_TR, Tensor& dqkv_TC) {
  // Turned back by the same angle.
  const auto dx = at::cat({turned_halves(dq_TND, cos_TR, -sin_TR), turned_halves(dk_TKD, cos_TR, -sin_TR), dv_TKD.to(at::kFloat)}, 1);
  dqkv_TC.copy_(dx.view(dqkv_TC.sizes()));
}

Tensor cross_entropy_rows_(Tensor& logits_MV, const Tensor& labels_M, bool to_gradient) {
  const auto log_sum_M = log_sum_exp_rows(logits_MV);
  const auto column_M1 = labels_M.unsqueeze(1);
  const auto losses_M = log_sum_M - logits_MV.gather(1, column_M1).squeeze(1).to(at::kFloat);
  if (to_gradient) {
    scaled_softmax_rows_(logits_MV, log_sum_M, at::ones_like(log_sum_M));
    // p - 1 keeps its digits where p is about 1.
    logits_MV.scatter_(1, column_M1, at::expm1(-losses_M).unsqueeze(1).to(logits_MV.scalar_type()));
  }
  return losses_M;
}

Tensor log_sum_exp_rows(const Tensor& logits_MV) {
  const auto log_sum_M = at::logsumexp(logits_MV.to(at::kFloat), 1);
  // The sum forgets a logit of -inf, which is an error as NaN and +inf are.
  const auto finite_M = at::isfinite(logits_MV).all(1);
  return at::where(finite_M, log_sum_M, at::full_like(log_sum_M, std::numeric_limits<float>::quiet_NaN()));
}

void scaled_softmax_rows_(Tensor& logits_MV, const Tensor& log_sum_M, const Tensor& scale_M) {
  logits_MV.copy_(scale_M.unsqueeze(1) * at::exp(logits_MV.to(at::kFloat) - log_sum_M.unsqueeze(1)));
}

}  // namespace uqa::models::llm::plain
