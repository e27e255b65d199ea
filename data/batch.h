// data/batch.h - a batch of user histories laid end to end ("packed"), without torch: the trainer wraps it in tensors.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "data/dataset.h"

namespace uqa::data {

/// A contiguous piece [begin, end) of one user's history; `end` exclusive, end > begin.
struct Span {
  std::int64_t user = 0;
  std::int64_t begin = 0;
  std::int64_t end = 0;
};

/// Ids of one feature for T packed interactions.
struct FeatureColumn {
  std::vector<std::int64_t> values;   ///< single-valued: [T]; bags: any number
  std::vector<std::int64_t> offsets;  ///< bags: [T + 1], starts at 0; single-valued: empty
};

/// T interactions of B spans laid end to end, oldest first within a span. B and T may be 0.
struct PackedBatch {
  std::vector<std::int64_t> cu_seqlens{0};  ///< [B + 1]; span b owns rows [cu_seqlens[b], cu_seqlens[b + 1])
  std::vector<std::int64_t> users;          ///< [B]
  std::vector<std::int64_t> sample_ids;     ///< [B] position of the sample in the epoch-independent list: keys dropout
  std::vector<FeatureColumn> features;      ///< one per schema feature, in schema order
  std::vector<std::int64_t> timestamps;     ///< [T] seconds; empty where the data set has none
  std::vector<std::int64_t> targets;        ///< [T] next item id, or -1 where there is none to learn; empty if not asked for
  [[nodiscard]] std::int64_t num_spans() const { return static_cast<std::int64_t>(users.size()); }
  [[nodiscard]] std::int64_t num_interactions() const { return cu_seqlens.back(); }
};

enum class Targets {
  kNone,  ///< inputs are [begin, end)
  kNext,  ///< inputs are [begin, end - 1), targets the items of [begin + 1, end): next-item training
};

/// Packs `spans` in the order given. `sample_ids` has one entry a span.
[[nodiscard]] PackedBatch pack(const Dataset& data, const std::vector<Span>& spans, const std::vector<std::int64_t>& sample_ids,
                               Targets targets);

}  // namespace uqa::data
