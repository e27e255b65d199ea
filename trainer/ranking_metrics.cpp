#include "trainer/ranking_metrics.h"

#include <algorithm>
#include <cmath>

#include "core/error.h"

namespace uqa::trainer {

void RankingMetrics::add(double rank) {
  UQA_CHECK(rank >= 0, ErrorCode::kNumeric, "rank = {}, must be >= 0; a score was not finite", rank);
  ++num_queries;
  for (std::size_t i = 0; i < kCutoffs.size(); ++i) {
    if (rank >= static_cast<double>(kCutoffs[i])) continue;
    ++hits[i];
    gains[i] += 1 / std::log2(rank + 2);
  }
}

void RankingMetrics::merge(const RankingMetrics& other) {
  num_queries += other.num_queries;
  for (std::size_t i = 0; i < kCutoffs.size(); ++i) {
    hits[i] += other.hits[i];
    gains[i] += other.gains[i];
  }
}

double RankingMetrics::recall(std::size_t cutoff_index) const {
  return num_queries == 0 ? 0 : static_cast<double>(hits.at(cutoff_index)) / static_cast<double>(num_queries);
}

double RankingMetrics::ndcg(std::size_t cutoff_index) const {
  return num_queries == 0 ? 0 : gains.at(cutoff_index) / static_cast<double>(num_queries);
}

std::size_t RankingMetrics::index_of(std::int64_t k) {
  const auto found = std::ranges::find(kCutoffs, k);
  UQA_CHECK(found != kCutoffs.end(), ErrorCode::kConfig, "cut-off k = {}, must be 1, 5, 10, 20, 50 or 100", k);
  return static_cast<std::size_t>(found - kCutoffs.begin());
}

}  // namespace uqa::trainer
