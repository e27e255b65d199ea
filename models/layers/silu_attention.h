// models/layers/silu_attention.h - HSTU's attention over packed rows: SiLU weights in place of a softmax, with an optional relative bias of the
// scores. Zhai et al., arXiv 2402.17152, equations 2 and 3.
//
//   const auto out_TNL = silu_attention(q_TNA, k_TNA, v_TNL, layout, std::vector<double>(num_sequences, 1.0 / max_len));
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "models/packed.h"

namespace uqa::models {

inline constexpr std::int64_t kLastTimeBucket = 128;

/// For every query row its visible keys' buckets, of all sequences in turn: those of the query at position t of a sequence begin t (t + 1) / 2
/// behind the sequence's first.
using TimeBuckets = std::vector<std::uint8_t>;

/// Bucket of query t and key s: floor(log(max(1, |dt|)) / 0.301), at most kLastTimeBucket, where dt is the time from interaction s to the one that
/// follows t (to t itself, if t is its sequence's last), as generative-recommenders has it: what is to be predicted happens at that time.
/// A user's buckets depend on the user's timestamps alone. Error(kInternal) unless the layout has one timestamp a row.
[[nodiscard]] std::shared_ptr<const TimeBuckets> time_buckets(const PackedLayout& layout);

/// What is added to the scores of query t and key s in every head, before SiLU.
struct AttentionBias {
  Tensor position_w;                           ///< [2 M - 1], M at least the longest sequence: adds element M - 1 - (t - s); undefined: nothing
  Tensor time_w;                               ///< [kLastTimeBucket + 1]: adds the bucket's element; undefined: nothing
  std::shared_ptr<const TimeBuckets> buckets;  ///< of the layout; required with time_w
};

/// out_t = scale * sum over s <= t of SiLU(q_t k_s + bias) v_s, in every sequence and head; `scales` has one scale a sequence.
/// A sequence's rows, and its share in the gradients, depend on its own rows alone and not on the number of threads.
/// Shapes: q, k [T, N, A], v [T, N, L] -> [T, N, L].  Dtype: float32 or float64, the same for all (the weights of the bias, too).
/// Memory: one tile of scores a thread; backward computes them again. Error(kInternal) for shapes or dtypes that do not fit.
[[nodiscard]] Tensor silu_attention(const Tensor& q_TNA, const Tensor& k_TNA, const Tensor& v_TNL, const PackedLayout& layout,
                                    const std::vector<double>& scales, const AttentionBias& bias = {});

}  // namespace uqa::models
