// models/loss/logit_tiles.h - the [rows, items] logits of the item softmax, tile by tile; for models/loss and models/plain.
// L rows, V items of this rank, D item width; a tile is r rows x c columns.
#pragma once

#include <algorithm>
#include <cstdint>

#include "models/packed.h"

namespace uqa::models {

inline constexpr std::int64_t kRowTile = 1024;    // rows of one tile: enough for a GEMM at full speed
inline constexpr std::int64_t kColumnStep = 64;   // tile widths are multiples of it where they can be
inline constexpr std::int64_t kRowGrain = 16;

struct Tiling {
  std::int64_t num_rows, num_items, tile_rows, tile_columns;
};

[[nodiscard]] inline Tiling make_tiling(std::int64_t num_rows, std::int64_t num_items, std::int64_t block_bytes) {
  const auto tile_rows = std::clamp<std::int64_t>(num_rows, 1, kRowTile);
  auto columns = block_bytes / static_cast<std::int64_t>(sizeof(float)) / tile_rows;
  if (columns > kColumnStep) columns -= columns % kColumnStep;
  return {.num_rows = num_rows, .num_items = num_items, .tile_rows = tile_rows, .tile_columns = std::clamp<std::int64_t>(columns, 1, std::max<std::int64_t>(1, num_items))};
}

struct Tile {
  std::int64_t first_row, num_rows, first_item, num_items;
};

/// Calls start_items(first, count) for every block of items, then body(tile) for its row tiles.
template <typename StartItems, typename Body>
void for_each_tile(const Tiling& tiling, const StartItems& start_items, const Body& body) {
  for (std::int64_t v = 0; v < tiling.num_items; v += tiling.tile_columns) {
    const auto num_items = std::min(tiling.tile_columns, tiling.num_items - v);
    start_items(v, num_items);
    for (std::int64_t t = 0; t < tiling.num_rows; t += tiling.tile_rows) {
      body(Tile{.first_row = t, .num_rows = std::min(tiling.tile_rows, tiling.num_rows - t), .first_item = v, .num_items = num_items});
    }
  }
}

/// Logits tile by tile in one buffer, which stays in cache.
class LogitTiles {
 public:
  LogitTiles(const Tensor& h_LD, const Tensor& w_VD, at::ScalarType gemm_type, const Tiling& tiling)
      : h_LD_(h_LD.to(gemm_type)),
        w_VD_(w_VD),
        buffer_(at::empty({tiling.tile_rows * tiling.tile_columns}, h_LD_.options())),
        scratch_(at::empty({tiling.tile_columns * h_LD.size(1)}, h_LD_.options())) {}

  /// Takes rows [first, first + count) of the item table as the block to multiply with.
  void start_items(std::int64_t first, std::int64_t count) {
    const auto rows = w_VD_.narrow(0, first, count);
    if (rows.scalar_type() == h_LD_.scalar_type()) {
      items_cD_ = rows;
    } else {
      items_cD_ = scratch_.narrow(0, 0, rows.numel()).view(rows.sizes());
      items_cD_.copy_(rows);
    }
  }
  /// [r, c], overwritten by the next call.
  [[nodiscard]] Tensor logits(const Tile& tile) {
    auto logits_rc = buffer_.narrow(0, 0, tile.num_rows * tile.num_items).view({tile.num_rows, tile.num_items});
    at::mm_out(logits_rc, hiddens(tile), items_cD_.t());
    return logits_rc;
  }
  [[nodiscard]] Tensor hiddens(const Tile& tile) const { return h_LD_.narrow(0, tile.first_row, tile.num_rows); }
  [[nodiscard]] const Tensor& items() const { return items_cD_; }

 private:
  Tensor h_LD_, w_VD_, buffer_, scratch_, items_cD_;
};

/// Adds a b to `sum`; a and b may be bfloat16 and sum float32.
inline void add_product(Tensor sum, const Tensor& a, const Tensor& b) {
  if (a.scalar_type() == sum.scalar_type()) {
    sum.addmm_(a, b);
  } else {
    sum.add_(at::mm(a, b));
  }
}

/// Column of a row's target inside a tile, or -1. Items of tiles and targets are counted alike.
[[nodiscard]] inline std::int64_t target_column(const std::int64_t* targets, const Tile& tile, std::int64_t row) {
  const auto column = targets[tile.first_row + row] - tile.first_item;
  return column >= 0 && column < tile.num_items ? column : -1;
}

}  // namespace uqa::models
