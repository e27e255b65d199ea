// models/plain/row_layers.h - layers that treat each row by itself, from LibTorch's own operators. Differentiable through autograd; checked by their
// callers in models/layers, whose shapes, dtypes and results (to rounding) they share.
#pragma once

#include "models/packed.h"

namespace uqa::models::plain {

/// As models::rms_norm: x [T, F], weight [F] of the compute type -> [T, F] in x's dtype.
[[nodiscard]] Tensor rms_norm(const Tensor& x_TF, const Tensor& weight_F, double eps);

/// As models::gated_rms_norm: y, z [T, I], weight [I] -> [T, I].
[[nodiscard]] Tensor gated_rms_norm(const Tensor& y_TI, const Tensor& z_TI, const Tensor& weight_I, std::int64_t num_groups, double eps);

/// (x1, x2) -> (x1 cos - x2 sin, x2 cos + x1 sin) for the halves of the last dimension, in float32 (float64 for float64).
/// Shapes: x [T, N, D], cos and sin [T, D / 2] -> [T, N, D] in x's dtype.
[[nodiscard]] Tensor turned_halves(const Tensor& x_TND, const Tensor& cos_TE, const Tensor& sin_TE);

}  // namespace uqa::models::plain
