// models/loss/item_softmax.h - exact softmax over every item without ever holding [T, V] logits, on one rank or over row shards.
//
//   const auto loss = item_softmax_loss(h_TD, model->item_table(), targets_T, {.bf16 = true}, model->item_shards());
#pragma once

#include "comm/communicator.h"
#include "models/packed.h"

namespace uqa::models {

struct ItemSoftmaxOptions {
  std::int64_t block_bytes = 8 << 20;          ///< float32 bytes of one logit block [T, block]; > 0
  bool bf16 = false;                           ///< GEMMs in bfloat16 with float32 accumulation, maxima and sums in float32
  std::int64_t gather_rows = 16384;            ///< row shards: most hiddens of all ranks together that are gathered at a time; > 0
  std::int64_t keep_bytes = std::int64_t{256} << 20;  ///< row shards: gathered hiddens are kept for backward up to this size, beyond it gathered again; >= 0
  bool plain = false;                          ///< tiles by LibTorch's operators on the CPU too, as on other devices: slower, for comparing
};

/// Where the rows of the item table are. The default: the table is whole.
struct ItemShards {
  comm::Communicator table = {};   ///< the ranks that hold the table together, rank r the rows even_range(num_rows, r, size)
  comm::Communicator tp = {};      ///< the ranks of `table` that hold the same hiddens and targets
  std::int64_t num_rows = 0;       ///< of the whole table; 0: w is all of it
};

/// Sum over the rows of -log softmax(h W^T)[target], in float32; differentiable in h and W. Streams blocks of W's rows,
/// keeping a running maximum and sum, and recomputes the blocks in backward.
/// Shapes: h [T, D], W [V, D], targets int64 [T] (on any device) with -1 for rows without a label -> scalar. T may be 0.
/// Scale the result by 1 / global label count (mean over labels, not mean of means). Memory O(T D + V D).
///
/// With row shards W holds this rank's rows (which may be none) and targets count in the whole table. The hiddens of all ranks are gathered in
/// chunks, each rank scores its own rows, maxima and sums are combined, and gradients of hiddens are summed back to their ranks; tp
/// peers contribute a part of their common rows each. The loss is that of this rank's h; W's gradient that of all ranks' losses.
/// Collective over shards.table and shards.tp, in backward too: every rank must run it, with T = 0 if it has no rows.
[[nodiscard]] Tensor item_softmax_loss(const Tensor& h_TD, const Tensor& w_VD, const Tensor& targets_T, const ItemSoftmaxOptions& options = {},
                                       const ItemShards& shards = {});

/// Rank of each row's target over the whole catalogue, scores in float32: (number of larger scores) + (number of other
/// equal ones) / 2, from 0. Streams blocks of W. Error(kNumeric) if a score is not finite (on every rank of the table group alike).
/// -> float64 [T], on the CPU. No gradient. Row shards as above: collective.
[[nodiscard]] Tensor item_ranks(const Tensor& h_TD, const Tensor& w_VD, const Tensor& targets_T, const ItemSoftmaxOptions& options = {},
                                const ItemShards& shards = {});

}  // namespace uqa::models
