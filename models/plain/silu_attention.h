// models/plain/silu_attention.h - silu_attention from LibTorch's own operators, for tensors that are not on the CPU. Differentiable through autograd.
#pragma once

#include "models/layers/silu_attention.h"

namespace uqa::models::plain {

/// As models::silu_attention, which has checked its arguments, to rounding. Sequences of similar lengths are computed together. Memory: a few copies
/// of 2^26 scores (more for a sequence that has more by itself) while a batch is computed, forward or backward; between them the inputs, and a byte
/// a pair of rows with a time bias.
[[nodiscard]] Tensor silu_attention(const Tensor& q_TNA, const Tensor& k_TNA, const Tensor& v_TNL, const PackedLayout& layout,
                                    const std::vector<double>& scales, const AttentionBias& bias = {});

}  // namespace uqa::models::plain
