// models/layers/packed_attention.h - exact softmax attention over packed rows, forward and backward written by hand.
//
//   const auto out_TND = packed_attention(q_TND, k_TKD, v_TKD, layout.causal_blocks(), 1 / std::sqrt(head_dim));
#pragma once

#include "models/packed.h"

namespace uqa::models {

/// Dropout of attention probabilities; p = 0 draws nothing. A mask row is keyed by (key, sample id, position in the block, head)
/// and its element is the key's row within the tree.
struct PackedDropout {
  double p = 0;                           ///< in [0, 1)
  std::uint64_t key = 0;                  ///< dropout_key(...)
  std::vector<std::int64_t> sample_ids;   ///< one a block
  std::int64_t first_head = 0;            ///< what query head 0 is in the whole layer, on a tensor-parallel rank
};

/// softmax(scale q k^T) v in every block, where a query row sees the rows of its block's ancestors and, causally, the block's own.
/// Heads: N query heads share K key/value heads in groups of N / K. Rows of no block give zeros. Scores are computed for whole trees
/// and the hidden ones masked, so a tree of R rows costs as much as a sequence of R rows.
/// Shapes: q [T, N, D], k [T, K, D], v [T, K, D] -> [T, N, D].  Dtype: float32, bfloat16 (softmax and sums over shared rows in
/// float32) or float64, the same for all three. Memory: one tile of probabilities a thread; backward computes them again.
/// Error(kInternal) for blocks out of order or a parent that is not an earlier block of the same tree.
[[nodiscard]] Tensor packed_attention(const Tensor& q_TND, const Tensor& k_TKD, const Tensor& v_TKD, const std::vector<AttentionBlock>& blocks,
                                      double scale, const PackedDropout& dropout = {});

}  // namespace uqa::models
