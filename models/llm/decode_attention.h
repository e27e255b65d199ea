// models/llm/decode_attention.h - attention of one new row a sequence against the rows that it continues, wherever they lie; private to models/llm.
#pragma once

#include "models/llm/generate.h"

namespace uqa::models::llm {

/// softmax(scale q k^T) v for row a of q [A, N, D], which belongs to sequence active[a]: over its rows seen in the context's k, v [T, K, D], then over
/// the first `sequences.length` rows of its own k, v [B, S, K, D]. Softmax and sums in float32, in the order of the rows: the result does not depend on
/// what else is in the batch. float32 or bfloat16, the same for all; contiguous. -> [A, N, D]. No gradient.
[[nodiscard]] Tensor decode_attention(const Tensor& q_AND, const Tensor& k_TKD, const Tensor& v_TKD, const Tensor& own_k_BSKD, const Tensor& own_v_BSKD,
                                      const GrowingSequences& sequences, double scale);

}  // namespace uqa::models::llm
