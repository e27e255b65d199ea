// models/llm/kernels.h - fused element-wise passes of a decoder layer, one sweep over memory each: float32 arithmetic on
// float32 or bfloat16 rows. No autograd here (functions.h has it).
//
// T rows, H residual width, I inner MLP width, N query heads, K key/value heads, D head width, ld row stride in elements.
#pragma once

#include "models/torch_pch.h"

namespace uqa::models::llm {

using at::Tensor;

/// h' = h + delta, then out[:, :H] = h' / rms(h') * weight; columns of out beyond H are left alone.
/// h float32 [T, H], delta [T, H] float32 or bfloat16 or undefined (then h' = h and h_out is not touched), weight float32 [H],
/// h_out float32 [T, H], out [T, ld] float32 or bfloat16, rstd float32 [T] (1 / rms).
void add_rms_norm(const Tensor& h_TH, const Tensor& delta_TH, const Tensor& weight_H, double eps, Tensor& h_out_TH, Tensor& out_TL,
                  Tensor& rstd_T);

/// Gradient of add_rms_norm in h (and delta, which has the same): dh = dh_out + d(norm). `h` is h', dh_out float32 or undefined,
/// dout [T, ld]; ddelta receives dh in its own type, unless undefined.
void add_rms_norm_backward(const Tensor& h_TH, const Tensor& rstd_T, const Tensor& weight_H, const Tensor& dout_TL, const Tensor& dh_out_TH,
                           Tensor& dh_TH, Tensor& ddelta_TH);

/// out[:, :I] = silu(gate) * up for gate_up [T, 2 I] = [gate | up]; columns of out beyond I are left alone.
void swiglu(const Tensor& gate_up_TI2, Tensor& out_TL);
/// Gradient of swiglu: dout [T, ld] -> dgate_up [T, 2 I].
void swiglu_backward(const Tensor& gate_up_TI2, const Tensor& dout_TL, Tensor& dgate_up_TI2);

/// qkv [T, (N + 2 K) D] + bias (float32, may be undefined) -> q [T, N, D] and k [T, K, D] rotated, v [T, K, D].
/// cos, sin float32 [T, D / 2]; element i turns with element i + D / 2 (Hugging Face's order).
void rope_split(const Tensor& qkv_TC, const Tensor& bias_C, const Tensor& cos_TR, const Tensor& sin_TR, Tensor& q_TND, Tensor& k_TKD,
                Tensor& v_TKD);
/// Gradient of rope_split: -> dqkv [T, (N + 2 K) D]. All contiguous, one type.
void rope_split_backward(const Tensor& dq_TND, const Tensor& dk_TKD, const Tensor& dv_TKD, const Tensor& cos_TR, const Tensor& sin_TR,
                         Tensor& dqkv_TC);

/// Cross-entropy of each row of logits [M, V] (float32 or bfloat16) against labels int64 [M]; -> float32 losses [M]. With
/// `to_gradient` the logits are overwritten by their gradient, softmax - onehot.
[[nodiscard]] Tensor cross_entropy_rows_(Tensor& logits_MV, const Tensor& labels_M, bool to_gradient);

/// Log of the sum of exponentials of each row of logits [M, V] (float32 or bfloat16); -> float32 [M]. NaN where a logit is not finite.
[[nodiscard]] Tensor log_sum_exp_rows(const Tensor& logits_MV);
/// Overwrites row m of logits [M, V] by scale[m] * exp(logits[m] - log_sum[m]); log_sum, scale float32 [M].
void scaled_softmax_rows_(Tensor& logits_MV, const Tensor& log_sum_M, const Tensor& scale_M);

}  // namespace uqa::models::llm
