// models/layers/ssd_scan.h - the selective state-space scan of Mamba-2 over packed rows by state-space duality: as masked attention
// inside a tile of rows, as a recurrence from tile to tile. Dao and Gu, arXiv 2405.21060.
#pragma once

#include "models/packed.h"

namespace uqa::models {

struct SsdSizes {
  std::int64_t num_heads = 0;
  std::int64_t head_dim = 0;
  std::int64_t num_groups = 1;  ///< divides num_heads; the heads of a group share B and C
  std::int64_t state_size = 0;
  std::int64_t chunk = 64;      ///< most rows of a tile; changes speed and rounding only
  [[nodiscard]] std::int64_t inner() const { return num_heads * head_dim; }
  [[nodiscard]] std::int64_t channels() const { return inner() + 2 * num_groups * state_size; }
};

/// Every head has a state h [P, N] that is zero before the first row of a sequence:
///   h_t = exp(dt_t a) h_{t-1} + dt_t x_t B_t^T,   y_t = h_t C_t + skip x_t.
/// Shapes: xbc [T, channels()], whose columns are x [heads, P], B [groups, N], C [groups, N] (rows may have any stride); dt [T, heads] >= 0;
/// a [heads] <= 0; skip [heads] -> y [T, inner()].  Dtype: float32 or float64, the same for all four.
/// Cost per row: 2 chunk (groups N + inner) + 4 N inner multiply-adds; the second term only for sequences longer than a chunk.
/// Memory: a few tiles a thread; backward computes states and scores again.
[[nodiscard]] Tensor ssd_scan(const Tensor& xbc_TC, const Tensor& dt_TM, const Tensor& a_M, const Tensor& skip_M, const PackedLayout& layout,
                              const SsdSizes& sizes);

}  // namespace uqa::models
