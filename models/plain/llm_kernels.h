// models/plain/llm_kernels.h - models/llm/kernels.h from LibTorch's own operators, for tensors that are not on the CPU. Same arguments, same
// results to rounding; on the CPU it is the slower twin that tests compare the fused kernels with.
#pragma once

#include "models/torch_pch.h"

namespace uqa::models::llm::plain {

using at::Tensor;

void add_rms_norm(const Tensor& h_TH, const Tensor& delta_TH, const Tensor& weight_H, double eps, Tensor& h_out_TH, Tensor& out_TL, Tensor& rstd_T);
void add_rms_norm_backward(const Tensor& h_TH, const Tensor& rstd_T, const Tensor& weight_H, const Tensor& dout_TL, const Tensor& dh_out_TH, Tensor& dh_TH,
                           Tensor& ddelta_TH);
void swiglu(const Tensor& gate_up_TI2, Tensor& out_TL);
void swiglu_backward(const Tensor& gate_up_TI2, const Tensor& dout_TL, Tensor& dgate_up_TI2);
void rope_split(const Tensor& qkv_TC, const Tensor& bias_C, const Tensor& cos_TR, const Tensor& sin_TR, Tensor& q_TND, Tensor& k_TKD, Tensor& v_TKD);
void rope_split_backward(const Tensor& dq_TND, const Tensor& dk_TKD, const Tensor& dv_TKD, const Tensor& cos_TR, const Tensor& sin_TR, Tensor& dqkv_TC);
[[nodiscard]] Tensor cross_entropy_rows_(Tensor& logits_MV, const Tensor& labels_M, bool to_gradient);
[[nodiscard]] Tensor log_sum_exp_rows(const Tensor& logits_MV);
void scaled_softmax_rows_(Tensor& logits_MV, const Tensor& log_sum_M, const Tensor& scale_M);

}  // namespace uqa::models::llm::plain
