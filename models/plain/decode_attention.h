// models/plain/decode_attention.h - decode_attention from LibTorch's own operators, for tensors that are not on the CPU.
#pragma once

#include "models/llm/generate.h"

namespace uqa::models::llm::plain {

/// As llm::decode_attention, which has checked its arguments, to rounding: matrix products over several sequences may round one's result by what is
/// beside it. Memory: a few float32 copies of the keys and values that 2^25 / (K D) rows have, or one sequence where it has more.
[[nodiscard]] Tensor decode_attention(const Tensor& q_AND, const Tensor& k_TKD, const Tensor& v_TKD, const Tensor& own_k_BSKD, const Tensor& own_v_BSKD,
                                      const GrowingSequences& sequences, double scale);

}  // namespace uqa::models::llm::plain
