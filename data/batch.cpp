#include "data/batch.h"

namespace uqa::data {

PackedBatch pack(const Dataset& data, const std::vector<Span>& spans, const std::vector<std::int64_t>& sample_ids, Targets targets) {
  UQA_CHECK(spans.size() == sample_ids.size(), ErrorCode::kInternal, "{} spans have {} sample ids, one each is needed", spans.size(),
            sample_ids.size());
  const bool next = targets == Targets::kNext;
  const auto& features = data.schema().features;
  PackedBatch batch;
  batch.features.resize(features.size());
  batch.sample_ids = sample_ids;
  for (const auto& span : spans) {
    const std::int64_t min_length = next ? 2 : 1;
    UQA_CHECK(span.user >= 0 && span.user < data.num_users() && span.begin >= 0 && span.end - span.begin >= min_length &&
                  span.end <= data.length(span.user),
              ErrorCode::kInternal, "span [{}, {}) of user {} is too short or outside the user's history", span.begin, span.end, span.user);
    batch.users.push_back(span.user);
    batch.cu_seqlens.push_back(batch.cu_seqlens.back() + span.end - span.begin - (next ? 1 : 0));
  }
  const auto num_rows = static_cast<std::size_t>(batch.num_interactions());

  for (std::size_t f = 0; f < features.size(); ++f) {
    auto& column = batch.features[f];
    if (features[f].multi_valued) {
      column.offsets.reserve(num_rows + 1);
      column.offsets.push_back(0);
    } else {
      column.values.reserve(num_rows);
    }
    for (const auto& span : spans) {
      const std::int64_t end = span.end - (next ? 1 : 0);
      const auto ids = data.values(f, span.user, span.begin, end);
      column.values.insert(column.values.end(), ids.begin(), ids.end());
      if (!features[f].multi_valued) continue;
      const auto source = data.offsets(f, span.user, span.begin, end);
      const std::int64_t shift = column.offsets.back() - source.front();
      for (const std::int64_t offset : source.subspan(1)) column.offsets.push_back(offset + shift);
    }
  }
  for (const auto& span : spans) {
    const auto seconds = data.timestamps(span.user, span.begin, span.end - (next ? 1 : 0));
    batch.timestamps.insert(batch.timestamps.end(), seconds.begin(), seconds.end());
  }
  if (next) {
    batch.targets.reserve(num_rows);
    for (const auto& span : spans) {
      const auto ids = data.values(0, span.user, span.begin + 1, span.end);
      batch.targets.insert(batch.targets.end(), ids.begin(), ids.end());
    }
  }
  return batch;
}

}  // namespace uqa::data
