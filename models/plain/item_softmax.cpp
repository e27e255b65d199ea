#include "models/plain/item_softmax.h"

#include <utility>

// R rows of a chunk, D item width; a tile is r rows x c items.

namespace uqa::models::plain {
namespace {

/// Calls body(tile, logits [r, c] in the GEMM's type) for every tile.
template <typename Body>
void for_each_tile_of(LogitTiles& tiles, const Tiling& tiling, const Body& body) {
  for_each_tile(
      tiling, [&](std::int64_t first, std::int64_t count) { tiles.start_items(first, count); }, [&](const Tile& tile) { body(tile, tiles.logits(tile)); });
}

Tensor rows_of(const Tensor& x_R, const Tile& tile) { return x_R.narrow(0, tile.first_row, tile.num_rows); }

/// True for rows whose target is in the tile, and its column there (0 elsewhere), [r, 1] both.
std::pair<Tensor, Tensor> columns_of(const Tensor& targets_R, const Tile& tile) {
  const auto column_r1 = (rows_of(targets_R, tile) - tile.first_item).unsqueeze(1);
  const auto inside_r1 = (column_r1 >= 0).logical_and(column_r1 < tile.num_items);
  return {inside_r1, column_r1.masked_fill(inside_r1.logical_not(), 0)};
}

/// Puts the logits of targets that are in the tile into their rows of `gold`.
void take_targets(const Tensor& logits_rc, const Tile& tile, const Tensor& targets_R, const Tensor& gold_R) {
  const auto [inside_r1, column_r1] = columns_of(targets_R, tile);
  auto gold_r = rows_of(gold_R, tile);
  gold_r.copy_(at::where(inside_r1.squeeze(1), logits_rc.gather(1, column_r1).squeeze(1).to(gold_r.scalar_type()), gold_r));
}

}  // namespace

void item_sums(LogitTiles& tiles, const Tiling& tiling, const Tensor& targets_R, const Tensor& top_R, const Tensor& sum_R, const Tensor& gold_R) {
  for_each_tile_of(tiles, tiling, [&](const Tile& tile, const Tensor& logits_rc) {
    const auto wide_rc = logits_rc.to(top_R.scalar_type());
    auto top_r = rows_of(top_R, tile), sum_r = rows_of(sum_R, tile);
    const auto new_top_r = at::maximum(top_r, wide_rc.amax(1));
    sum_r.mul_((top_r - new_top_r).exp()).add_((wide_rc - new_top_r.unsqueeze(1)).exp().sum(1));
    top_r.copy_(new_top_r);
    take_targets(wide_rc, tile, targets_R, gold_R);
  });
}

void add_item_gradients(LogitTiles& tiles, const Tiling& tiling, const Tensor& targets_R, const Tensor& log_sum_R, const Tensor& factor_R, const Tensor& dh_RD,
                        const Tensor& dw_VD) {
  for_each_tile_of(tiles, tiling, [&](const Tile& tile, const Tensor& logits_rc) {
    const auto log_p_rc = logits_rc.to(log_sum_R.scalar_type()) - rows_of(log_sum_R, tile).unsqueeze(1);
    const auto p_rc = log_p_rc.exp();
    const auto [inside_r1, column_r1] = columns_of(targets_R, tile);
    // p - 1 keeps its digits where p is about 1.
    p_rc.scatter_(1, column_r1, at::where(inside_r1, log_p_rc.gather(1, column_r1).expm1(), p_rc.gather(1, column_r1)));
    const auto scaled_rc = p_rc.mul_(rows_of(factor_R, tile).unsqueeze(1)).to(logits_rc.scalar_type());
    if (dh_RD.defined()) add_product(rows_of(dh_RD, tile), scaled_rc, tiles.items());
    if (dw_VD.defined()) add_product(dw_VD.narrow(0, tile.first_item, tile.num_items), scaled_rc.t(), tiles.hiddens(tile));
  });
}

void target_scores(LogitTiles& tiles, const Tiling& tiling, const Tensor& targets_R, const Tensor& score_R) {
  for_each_tile_of(tiles, tiling, [&](const Tile& tile, const Tensor& scores_rc) { take_targets(scores_rc, tile, targets_R, score_R); });
}

Tensor count_items(LogitTiles& tiles, const Tiling& tiling, const Tensor& score_R) {
  const auto counts_R3 = at::zeros({tiling.num_rows, 3}, score_R.options().dtype(at::kLong));
  for_each_tile_of(tiles, tiling, [&](const Tile& tile, const Tensor& scores_rc) {
    const auto score_r1 = rows_of(score_R, tile).unsqueeze(1);
    const auto broken_r = at::isfinite(scores_rc).all(1).logical_not().to(at::kLong);
    rows_of(counts_R3, tile).add_(at::stack({(scores_rc > score_r1).sum(1), (scores_rc == score_r1).sum(1), broken_r}, 1));
  });
  return counts_R3;
}

}  // namespace uqa::models::plain
