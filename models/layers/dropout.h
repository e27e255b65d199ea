// models/layers/dropout.h - dropout whose mask depends only on (seed, step, micro-step, layer, site, sample, position,
// element): not on the batch a sample is in, the rank, the thread or the world size.
//
//   x_TH = dropout(x_TH, p, dropout_key(context, layer, DropoutSite::kFfnOutput), layout);
#pragma once

#include "models/packed.h"

namespace uqa::models {

/// Where in a layer a mask is drawn.
enum class DropoutSite : std::uint64_t { kEmbedding, kAttention, kAttentionOutput, kFfnInner, kFfnOutput };

/// Key of all masks of one site in one forward pass.
[[nodiscard]] std::uint64_t dropout_key(const DropoutContext& context, std::int64_t layer, DropoutSite site);

/// One row's place in the counter space; sample ids below 2^40, positions and lanes (attention heads) below 2^24 and 2^32.
struct DropoutRow {
  std::int64_t sample_id = 0;
  std::int64_t position = 0;
  std::int64_t lane = 0;
};

/// Largest rate that can be drawn.
inline constexpr double kMostDropped = 0.999;

/// A rate as it is drawn: an element is dropped if its 16 bits are below the threshold.
struct DrawnRate {
  std::uint32_t threshold = 0;
  float keep_factor = 1;  ///< of the rate as drawn: the mean stays exact
};
[[nodiscard]] DrawnRate drawn_rate(double p);

/// Writes the factors of elements [first, first + n) of a row: 0 with probability p (to the nearest 2^-16), else 1 / (1 - p). 0 <= p <= kMostDropped.
void dropout_factors(std::uint64_t key, const DropoutRow& row, double p, float* factors, std::int64_t n, std::int64_t first = 0);

/// Zeroes elements of x with probability p and scales the others by 1 / (1 - p); p = 0 returns x itself. Call it in
/// training only. Shapes: x [T, F] float32, bfloat16 or float64, T = layout.num_rows() -> same. `first_feature`: what x's first column is in
/// the whole layer, where x is a tensor-parallel rank's part.
[[nodiscard]] Tensor dropout(const Tensor& x_TF, double p, std::uint64_t key, const PackedLayout& layout, std::int64_t first_feature = 0);

}  // namespace uqa::models
