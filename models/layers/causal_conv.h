// models/layers/causal_conv.h - short causal convolution of every channel over packed rows, followed by SiLU; forward and backward
// written by hand.
#pragma once

#include "models/packed.h"

namespace uqa::models {

/// silu(bias + sum over taps k of weight[:, 0, k] x[t - (K - 1) + k]); rows before the first one of a sequence count as zero. Parameters
/// have the shapes of torch.nn.Conv1d with groups = channels.
/// Shapes: x [T, C] (rows may have any stride), weight [C, 1, K], bias [C] -> [T, C].  Dtype: float32 or float64, the same for all
/// three.  Memory: backward computes the convolution again.
[[nodiscard]] Tensor causal_conv_silu(const Tensor& x_TC, const Tensor& weight_C1K, const Tensor& bias_C, const PackedLayout& layout);

}  // namespace uqa::models
