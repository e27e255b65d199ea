// models/layers/rope.h - rotary position embedding of packed rows (half-split form, as Hugging Face's Llama and the
// reference's Trm++): feature d turns with feature d + D/2. Su et al., RoFormer, arXiv 2104.09864.
#pragma once

#include "models/packed.h"

namespace uqa::models {

/// Cosines and sines, float32 [T, D/2].
struct RopeAngles {
  Tensor cos_TE, sin_TE;
};
/// positions int64 [T], whose device the angles get; head_dim even. Angles position / base^(2 d / head_dim) in float32, as the reference computes them.
[[nodiscard]] RopeAngles rope_angles(const Tensor& positions_T, std::int64_t head_dim, double base);

/// Turns every head of every row by its angles. x [T, N, D], float32, bfloat16 or float64, heads with unit stride -> new [T, N, D].
[[nodiscard]] Tensor apply_rope(const Tensor& x_TND, const RopeAngles& angles);

}  // namespace uqa::models
