// Recall and NDCG of the fixtures' score matrix, ranked through item_ranks with the scores themselves as hiddens.
#include <gtest/gtest.h>

#include "core/json.h"
#include "fixtures.h"
#include "models/loss/item_softmax.h"
#include "models/tensor_io.h"
#include "trainer/ranking_metrics.h"

namespace uqa::trainer {
namespace {

using models::testing::fixtures;

RankingMetrics metrics_of(const at::Tensor& ranks) {
  RankingMetrics metrics;
  for (std::int64_t i = 0; i < ranks.size(0); ++i) metrics.add(ranks[i].item<double>());
  return metrics;
}

TEST(GoldenRanking, EqualsTheReferenceMetrics) {
  const auto tensors = models::load_tensors(fixtures() / "metrics" / "ranking.safetensors");
  const auto expected = read_json(fixtures() / "metrics" / "ranking.json");
  const auto& scores = tensors.at("scores");
  const auto ranks = models::item_ranks(scores, at::eye(scores.size(1)), tensors.at("labels"), {.block_bytes = 5000});
  const auto metrics = metrics_of(ranks);
  for (std::size_t i = 0; i < RankingMetrics::kCutoffs.size(); ++i) {
    const auto k = std::to_string(RankingMetrics::kCutoffs[i]);
    EXPECT_NEAR(metrics.recall(i), get<double>(expected, "Recall@" + k, "ranking.json"), 1e-6) << k;
    EXPECT_NEAR(metrics.ndcg(i), get<double>(expected, "NDCG@" + k, "ranking.json"), 1e-6) << k;
  }
  EXPECT_EQ(metrics.num_queries, scores.size(0));
  EXPECT_GT(metrics.recall(5), 0);
}

TEST(GoldenRanking, PartsOfTheQueriesAddUp) {
  const auto tensors = models::load_tensors(fixtures() / "metrics" / "ranking.safetensors");
  const auto& scores = tensors.at("scores");
  const auto ranks = models::item_ranks(scores, at::eye(scores.size(1)), tensors.at("labels"));
  const auto half = ranks.size(0) / 2;
  auto parts = metrics_of(ranks.narrow(0, 0, half));
  parts.merge(metrics_of(ranks.narrow(0, half, ranks.size(0) - half)));
  const auto whole = metrics_of(ranks);
  EXPECT_EQ(parts.hits, whole.hits);
  EXPECT_EQ(parts.num_queries, whole.num_queries);
  for (std::size_t i = 0; i < RankingMetrics::kCutoffs.size(); ++i) EXPECT_DOUBLE_EQ(parts.ndcg(i), whole.ndcg(i));
}

}  // namespace
}  // namespace uqa::trainer
