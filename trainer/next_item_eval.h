// trainer/next_item_eval.h - full-catalogue next-item Recall and NDCG of a user encoder, over spans split among ranks.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "comm/communicator.h"
#include "data/dataset.h"
#include "data/split.h"
#include "models/user_model.h"

namespace uqa::trainer {

/// "Recall@1", "NDCG@1", ... at 1, 5, 10, 20, 50, 100.
[[nodiscard]] std::vector<std::string> next_item_metric_names();

struct NextItemResult {
  std::int64_t num_users = 0;
  std::map<std::string, double> values;  ///< by next_item_metric_names(); means over users
};

struct NextItemOptions {
  std::int64_t batch_users = 256;  ///< spans of one forward pass on one rank; > 0
};

/// The target of a span is its last interaction, the input everything before it. The whole catalogue competes, seen items included; scores
/// in float32, rank = larger scores + ties / 2. Each rank evaluates a contiguous part of `spans`; the sums are integers, so the
/// result does not depend on how users are divided. `model` must be in eval mode; where its tables are cut, all ranks of the table groups
/// take part (a rank without users left runs with none). Collective over `comm`; throws on every rank when one fails
/// (Error(kNumeric): a score is not finite).
[[nodiscard]] NextItemResult evaluate_next_item(models::UserModelImpl& model, const data::Dataset& dataset, const std::vector<data::Span>& spans,
                                                const comm::Communicator& comm, const NextItemOptions& options);

}  // namespace uqa::trainer
