#include "trainer/next_item_eval.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <exception>

#include "models/loss/item_softmax.h"
#include "trainer/device.h"
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

struct EvalBatch {
  models::UserBatch users;
  std::vector<std::int64_t> rows, targets;  ///< the last row of each user, and what comes next
};

/// Spans [begin, end).
EvalBatch make_batch(const data::Dataset& dataset, const std::vector<data::Span>& spans, std::int64_t begin, std::int64_t end) {
  EvalBatch made;
  std::vector<data::Span> histories;
  std::vector<std::int64_t> ids;
  for (std::int64_t i = begin; i < end; ++i) {
    const auto& span = spans[static_cast<std::size_t>(i)];
    histories.push_back({.user = span.user, .begin = span.begin, .end = span.end - 1});
    ids.push_back(i);
    made.targets.push_back(dataset.item(span.user, span.end - 1));
  }
  const auto batch = std::make_shared<const data::PackedBatch>(data::pack(dataset, histories, ids, data::Targets::kNone));
  for (std::size_t b = 1; b < batch->cu_seqlens.size(); ++b) made.rows.push_back(batch->cu_seqlens[b] - 1);
  made.users = wrap_user_batch(batch);
  return made;
}

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
  const auto device = device_of(model);
  const auto total = static_cast<std::int64_t>(spans.size());
  const std::int64_t first = total * comm.rank() / comm.size(), last = total * (comm.rank() + 1) / comm.size();
  ExactSums sums;
  // With tables that are cut, all ranks run as many batches as the one with the most users.
  const auto own_batches = (last - first + options.batch_users - 1) / options.batch_users;
  const auto num_batches = model.shards_tables() ? comm::all_reduce(own_batches, comm::ReduceOp::kMax, comm) : own_batches;
  comm::run_agreed(comm, [&] {
    std::exception_ptr error;  // of this rank's data: the others are still waiting for it in the model
    for (std::int64_t index = 0; index < num_batches; ++index) {
      EvalBatch batch{.users = model.empty_batch(), .rows = {}, .targets = {}};
      try {
        const std::int64_t begin = std::min(first + index * options.batch_users, last);
        if (begin < last) batch = make_batch(dataset, spans, begin, std::min(begin + options.batch_users, last));
      } catch (...) {
        error = std::current_exception();
      }
      if (error && !model.shards_tables()) break;
      const Tensor states_TH = model.forward(to_device(batch.users, device), {});
      const Tensor h_BD = model.item_hiddens(states_TH.index_select(0, indices_on(batch.rows, device)));
      const Tensor ranks_B = models::item_ranks(h_BD, model.item_table(), indices_on(batch.targets, device), {}, model.item_shards()).cpu().contiguous();
      const auto* const ranks = ranks_B.const_data_ptr<double>();
      for (std::int64_t b = 0; b < ranks_B.numel(); ++b) sums.add(ranks[b]);
    }
    if (error) std::rethrow_exception(error);
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
