// models/plain/padded.h - packed sequences as batches of equal length, for operators that work on those. Only for causal computations: the places
// behind a sequence's end hold rows of its own, and what comes out there is dropped.
//
// B sequences of a batch, S places each, R packed rows in it.
#pragma once

#include <functional>

#include "models/packed.h"

namespace uqa::models::plain {

struct PaddedBatch {
  std::vector<std::size_t> sequences;  ///< of the layout, the longest first; none empty
  std::int64_t length = 0;             ///< S: of the longest
  Tensor rows_N;                       ///< int64 [B S]: the packed row in each place
  Tensor places_R;                     ///< int64 [R]: the place of each packed row, sequence after sequence
  /// x [T, ...] -> [B, S, ...]
  [[nodiscard]] Tensor pad(const Tensor& x_T) const;
  /// y [B, S, ...] -> [R, ...]
  [[nodiscard]] Tensor unpad(const Tensor& y_BS) const;
};

struct PaddedBatches {
  std::vector<PaddedBatch> batches;
  Tensor order_T;  ///< int64: where each packed row lies in the unpadded batches
  /// The batches' unpadded results as packed rows; `parts` is not empty.
  [[nodiscard]] Tensor packed(const std::vector<Tensor>& parts) const { return at::cat(parts).index_select(0, order_T); }
};

/// Where there are no rows: `rows` [0, ...], connected to `inputs` (undefined ones are passed over), which get gradients of zero as from a fused kernel.
[[nodiscard]] Tensor empty_of(const Tensor& rows, const std::vector<Tensor>& inputs);

/// Sequences of similar lengths together, empty ones nowhere. `cost` is that of one sequence padded to a length; those of a batch add up to at most
/// `most`, unless it has one sequence only. Indices are on `device`.
[[nodiscard]] PaddedBatches padded_batches(const std::vector<std::int64_t>& cu_seqlens, std::int64_t most,
                                           const std::function<std::int64_t(std::int64_t length)>& cost, at::Device device);

}  // namespace uqa::models::plain
