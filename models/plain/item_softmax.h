// models/plain/item_softmax.h - what the item softmax does with tiles of logits, from LibTorch's own operators: for tensors that are not on the CPU.
// Same arguments and results as the row kernels of models/loss, to rounding.
#pragma once

#include "models/loss/logit_tiles.h"

namespace uqa::models::plain {

/// Maximum (-inf at first) and sum of exp(logit - maximum) (0 at first) of each row over the items of the tiles, and the logit of its target where
/// that is among them. `targets` int64 [R], counted as the items are; results [R] of the compute type.
void item_sums(LogitTiles& tiles, const Tiling& tiling, const Tensor& targets_R, const Tensor& top_R, const Tensor& sum_R, const Tensor& gold_R);

/// dh += P w and dw += P^T h with P = factor * (softmax - onehot). `log_sum`, `factor` [R] of the compute type. Undefined results are not computed.
void add_item_gradients(LogitTiles& tiles, const Tiling& tiling, const Tensor& targets_R, const Tensor& log_sum_R, const Tensor& factor_R, const Tensor& dh_RD,
                        const Tensor& dw_VD);

/// Writes the targets' scores into `score` [R]; rows whose target is not among the items stay as they are.
void target_scores(LogitTiles& tiles, const Tiling& tiling, const Tensor& targets_R, const Tensor& score_R);

/// How many items of each row score higher than `score`, how many the same, and how many tiles have a score that is not finite. -> int64 [R, 3]
[[nodiscard]] Tensor count_items(LogitTiles& tiles, const Tiling& tiling, const Tensor& score_R);

}  // namespace uqa::models::plain
