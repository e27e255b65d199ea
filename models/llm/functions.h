// models/llm/functions.h - differentiable steps of a decoder layer, each one sweep over memory forward and one backward.
//
//   auto [h_TH, x_TL] = add_norm(h_TH, delta_TH, weight_H, eps, at::kBFloat16, /*spare=*/linear.lora_columns());
//
// "Spare" columns: a linear layer with LoRA multiplies [x | x A^T] by [W | scale B]^T in one GEMM (lora.h), so whoever writes x
// leaves room for x A^T behind each row. Their values and gradients mean nothing to these functions.
#pragma once

#include <optional>
#include <utility>

#include "models/llm/decoder.h"
#include "models/torch_pch.h"

namespace uqa::models::llm {

using at::Tensor;

/// h' = h + delta and RMSNorm(h') * weight. h float32 [T, H]; delta [T, H] of the compute type, or undefined (h' is h).
/// -> (h' float32 [T, H], normed [T, H + spare] of type `dtype`).
[[nodiscard]] std::pair<Tensor, Tensor> add_norm(const Tensor& h_TH, const Tensor& delta_TH, const Tensor& weight_H, double eps,
                                                 at::ScalarType dtype, std::int64_t spare);

/// silu(gate) * up for [T, 2 I] = [gate | up] -> [T, I + spare].
[[nodiscard]] Tensor swiglu_activation(const Tensor& gate_up_TI2, std::int64_t spare);

struct RopeTables {
  Tensor cos_TR, sin_TR;  ///< float32 [T, D / 2]
};
/// Angles position * theta^(-2 i / D), in float32 as Hugging Face computes them, the frequencies scaled if so configured. positions int64 [T].
[[nodiscard]] RopeTables rope_tables(const Tensor& positions_T, std::int64_t head_dim, double theta, const std::optional<RopeScaling>& scaling = std::nullopt);

struct QkvHeads {
  Tensor q_TND, k_TKD, v_TKD;
};
/// Splits [T, (N + 2 K) D], adds `bias` (float32, may be undefined) and rotates q and k.
[[nodiscard]] QkvHeads rope_heads(const Tensor& qkv_TC, const Tensor& bias_C, const RopeTables& rope, std::int64_t num_heads,
                                  std::int64_t num_kv_heads, std::int64_t head_dim);

}  // namespace uqa::models::llm
