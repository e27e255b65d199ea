// models/loss/item_softmax.h - exact softmax over every item without ever holding [T, V] logits.
#pragma once

#include "models/packed.h"

namespace uqa::models {

struct ItemSoftmaxOptions {
  std::int64_t block_bytes = 8 << 20;  ///< float32 bytes of one logit block [T, block]; > 0
  bool bf16 = false;                   ///< GEMMs in bfloat16 with float32 accumulation, maxima and sums in float32
};

/// Sum over the rows of -log softmax(h W^T)[target], in float32; differentiable in h and W. Streams blocks of W's rows,
/// keeping a running maximum and sum, and recomputes the blocks in backward.
/// Shapes: h [T, D], W [V, D], targets int64 [T] with -1 for rows without a label -> scalar. T may be 0.
/// Scale the result by 1 / global label count (mean over labels, not mean of means). Memory O(T D + V D).
[[nodiscard]] Tensor item_softmax_loss(const Tensor& h_TD, const Tensor& w_VD, const Tensor& targets_T, const ItemSoftmaxOptions& options = {});

/// Rank of each row's target over the whole catalogue, scores in float32: (number of larger scores) + (number of other
/// equal ones) / 2, from 0. Streams blocks of W. Error(kNumeric) if a score is not finite. -> float64 [T]. No gradient.
[[nodiscard]] Tensor item_ranks(const Tensor& h_TD, const Tensor& w_VD, const Tensor& targets_T, const ItemSoftmaxOptions& options = {});

}  // namespace uqa::models
