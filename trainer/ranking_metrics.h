// trainer/ranking_metrics.h - Recall@k and NDCG@k of next-item ranks, as sums that add up over batches and ranks.
//
//   RankingMetrics metrics;
//   for (const double rank : ranks) metrics.add(rank);   // models::item_ranks
//   use(metrics.ndcg(RankingMetrics::index_of(10)));
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

namespace uqa::trainer {

/// One relevant item a query, so Recall@k = hit / min(k, 1) and NDCG@k = hit / log2(rank + 2), averaged over queries (RecBole's and the
/// reference's definitions). Ranks count from 0 and may be half-integers (ties).
struct RankingMetrics {
  static constexpr std::array<std::int64_t, 6> kCutoffs{1, 5, 10, 20, 50, 100};

  std::int64_t num_queries = 0;
  std::array<std::int64_t, kCutoffs.size()> hits{};
  std::array<double, kCutoffs.size()> gains{};

  /// Error(kNumeric) unless rank >= 0.
  void add(double rank);
  void merge(const RankingMetrics& other);
  /// Means over the queries; 0 without any.
  [[nodiscard]] double recall(std::size_t cutoff_index) const;
  [[nodiscard]] double ndcg(std::size_t cutoff_index) const;
  /// Place of k in kCutoffs; Error(kConfig) if it is not there.
  [[nodiscard]] static std::size_t index_of(std::int64_t k);
};

}  // namespace uqa::trainer
