#include "trainer/next_item_eval.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "models/loss/item_softmax.h"
#include "trainer/pretrain.h"
#include "trainer/ranking_metrics.h"

namespace uqa::trainer {
namespace {

constexpr auto kCutoffs = RankingMetrics::kCutoffs;
/// NDCG gains are summed as multiples of 2^-36: exact sums in any order, for up to 2^27 users.
constexpr double kGainGrid = 0x1p36;

std::string recall_name(std::int64_t k) { return fmt::format("Recall@{}", k); }
std::string ndcg_name(std::int64_t k) { return fmt::format("NDCG@{}", k); }

/// Whole numbers, so that they do not depend on how users are divided among batches and ranks.
struct ExactSums {
  std::array<std::int64_t, kCutoffs.size()> hits{};
  std::array<std::int64_t, kCutoffs.size()> gains{};  ///< in units of 1 / kGainGrid

  void add(double rank) {
    RankingMetrics one;
    one.add(rank);
    for (std::size_t i = 0; i < kCutoffs.size(); ++i) {
      hits[i] += one.hits[i];
      gains[i] += std::llround(one.gains[i] * kGainGrid);
    }
  }
};

}  // namespace

std::vector<std::string> next_item_metric_names() {
  std::vector<std::string> names;
  for (const auto k : kCutoffs) names.push_back(recall_name(k));
  for (const auto k : kCutoffs) names.push_back(ndcg_name(k));
  return names;
}

NextItemResult evaluate_next_item(models::UserModelImpl& model, const data::Dataset& dataset, const std::vector<data::Span>& spans,
                                  const comm::Communicator& comm, const NextItemOptions& options) {
  const at::NoGradGuard no_grad;
  const auto total = static_cast<std::int64_t>(spans.size());
  const std::int64_t first = total * comm.rank() / comm.size(), last = total * (comm.rank() + 1) / comm.size();
  ExactSums sums;
  comm::run_agreed(comm, [&] {
    for (std::int64_t begin = first; begin < last; begin += options.batch_users) {
      const std::int64_t end = std::min(begin + options.batch_users, last);
      std::vector<data::Span> histories;
      std::vector<std::int64_t> ids, targets, rows;
      for (std::int64_t i = begin; i < end; ++i) {
        const auto& span = spans[static_cast<std::size_t>(i)];
        histories.push_back({.user = span.user, .begin = span.begin, .end = span.end - 1});
        ids.push_back(i);
        targets.push_back(dataset.item(span.user, span.end - 1));
      }
      const auto batch = std::make_shared<const data::PackedBatch>(data::pack(dataset, histories, ids, data::Targets::kNone));
      for (std::size_t b = 1; b < batch->cu_seqlens.size(); ++b) rows.push_back(batch->cu_seqlens[b] - 1);
      const Tensor states_TH = model.forward(wrap_user_batch(batch), {});
      const Tensor h_BD = model.item_hiddens(states_TH.index_select(0, at::tensor(rows, at::kLong)));
      const Tensor ranks_B = models::item_ranks(h_BD, model.item_table(), at::tensor(targets, at::kLong)).contiguous();
      const auto* const ranks = ranks_B.const_data_ptr<double>();
      for (std::int64_t b = 0; b < ranks_B.numel(); ++b) sums.add(ranks[b]);
    }
  });
  std::vector<std::int64_t> flat(sums.hits.begin(), sums.hits.end());
  flat.insert(flat.end(), sums.gains.begin(), sums.gains.end());
  Tensor all = at::tensor(flat, at::kLong);
  comm::all_reduce_(all, comm::ReduceOp::kSum, comm);
  const auto* const sum = all.const_data_ptr<std::int64_t>();
  RankingMetrics metrics{.num_queries = total, .hits = {}, .gains = {}};
  for (std::size_t i = 0; i < kCutoffs.size(); ++i) {
    metrics.hits[i] = sum[i];
    metrics.gains[i] = static_cast<double>(sum[kCutoffs.size() + i]) / kGainGrid;
  }
  NextItemResult result{.num_users = total, .values = {}};
  for (std::size_t i = 0; i < kCutoffs.size(); ++i) {
    result.values[recall_name(kCutoffs[i])] = metrics.recall(i);
    result.values[ndcg_name(kCutoffs[i])] = metrics.ndcg(i);
  }
  return result;
}

}  // namespace uqa::trainer
