// models/plain/attention.h - packed_attention from LibTorch's own operators, for tensors that are not on the CPU. Differentiable through autograd.
#pragma once

#include "models/layers/packed_attention.h"

namespace uqa::models::plain {

/// As models::packed_attention, to rounding, with the same dropout masks. Memory: a few copies of one tree's R^2 N probabilities at a time,
/// forward or backward; between them the inputs.
[[nodiscard]] Tensor packed_attention(const Tensor& q_TND, const Tensor& k_TKD, const Tensor& v_TKD, const std::vector<AttentionBlock>& blocks, double scale,
                                      const PackedDropout& dropout = {});

}  // namespace uqa::models::plain
