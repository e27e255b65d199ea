// Full-catalogue ranks of next-item targets: counts of larger and equal scores, over row shards too.
#include <vector>

#include "core/error.h"
#include "models/layers/no_autocast.h"
#include "models/loss/hidden_chunks.h"
#include "models/loss/item_softmax.h"
#include "models/loss/logit_tiles.h"
#include "models/loss/softmax_rows.h"
#include "models/plain/item_softmax.h"

#include <ATen/Parallel.h>

namespace uqa::models {
namespace {

enum Count : std::int64_t { kLarger, kEqual, kBroken, kNumCounts };  // columns of plain::count_items, too

/// Scores of the targets that are among this rank's items, into their rows of `score` [R].
void target_scores(LogitTiles& tiles, const Tiling& tiling, const std::int64_t* targets, const Tensor& score_R) {
  auto* const score = score_R.mutable_data_ptr<float>();
  for_each_tile(
      tiling, [&](std::int64_t first, std::int64_t count) { tiles.start_items(first, count); },
      [&](const Tile& tile) {
        std::vector<std::int64_t> rows;
        for (std::int64_t r = 0; r < tile.num_rows; ++r) {
          if (target_column(targets, tile, r) >= 0) rows.push_back(r);
        }
        if (rows.empty()) return;
        const auto scores_rc = tiles.logits(tile);
        const auto* scores = scores_rc.const_data_ptr<float>();
        for (const auto r : rows) score[tile.first_row + r] = scores[r * tile.num_items + target_column(targets, tile, r)];
      });
}

/// How this rank's items compare with the scores. int64 [R, kNumCounts]
Tensor count_items(LogitTiles& tiles, const Tiling& tiling, const float* score) {
  auto counts_RC = at::zeros({tiling.num_rows, kNumCounts}, at::kLong);
  auto* const counts = counts_RC.mutable_data_ptr<std::int64_t>();
  for_each_tile(
      tiling, [&](std::int64_t first, std::int64_t count) { tiles.start_items(first, count); },
      [&](const Tile& tile) {
        const auto scores_rc = tiles.logits(tile);
        const auto* scores = scores_rc.const_data_ptr<float>();
        at::parallel_for(0, tile.num_rows, kRowGrain, [&](std::int64_t begin, std::int64_t end) {
          for (auto r = begin; r < end; ++r) {
            const auto part = count_against(scores + r * tile.num_items, tile.num_items, score[tile.first_row + r]);
            auto* const row = counts + (tile.first_row + r) * kNumCounts;
            row[kLarger] += part.larger;
            row[kEqual] += part.equal;
            row[kBroken] += part.finite ? 0 : 1;
          }
        });
      });
  return counts_RC;
}

}  // namespace

Tensor item_ranks(const Tensor& h_TD, const Tensor& w_VD, const Tensor& targets_T, const ItemSoftmaxOptions& options, const ItemShards& shards) {
  const at::NoGradGuard no_grad;
  const NoAutocast no_autocast;
  const auto own = own_rows(h_TD, w_VD, targets_T, options, shards);
  const auto num_rows = h_TD.size(0);
  UQA_CHECK(own.labelled_L.size(0) == num_rows, ErrorCode::kInternal, "item ranks: {} of {} rows have no target; leave them out",
            num_rows - own.labelled_L.size(0), num_rows);
  const auto h_lD = h_TD.to(at::kFloat).narrow(0, own.share.begin, own.share.length).contiguous();
  const auto items_VD = w_VD.to(at::kFloat).contiguous();
  const auto first_item = even_range(shards.num_rows, shards.table.rank(), shards.table.size()).begin;
  const bool use_plain = options.plain || !items_VD.is_cpu();
  // Twice the rank, so that ties are whole numbers.
  auto doubled_l = at::zeros({own.share.length}, at::kLong);
  const HiddenChunks chunks(own.share.length, shards, options.gather_rows);
  for (std::int64_t c = 0; c < chunks.size(); ++c) {
    const auto chunk = chunks[c];
    const auto h_RD = chunks.gather(h_lD, chunk);
    const auto targets_R = (chunks.gather(own.targets_l, chunk) - first_item).contiguous();
    const auto tiling = make_tiling(chunk.num_rows, items_VD.size(0), options.block_bytes);
    auto score_R = at::zeros({chunk.num_rows}, h_RD.options());
    auto counts_RC = at::zeros({chunk.num_rows, kNumCounts}, h_RD.options().dtype(at::kLong));
    const bool has_items = items_VD.size(0) > 0;
    // Two passes over equal tiles, so that a target's score is bit for bit the one it is compared with.
    LogitTiles tiles(h_RD, items_VD, at::kFloat, tiling);
    if (has_items && use_plain) {
      plain::target_scores(tiles, tiling, targets_R, score_R);
    } else if (has_items) {
      target_scores(tiles, tiling, targets_R.const_data_ptr<std::int64_t>(), score_R);
    }
    comm::all_reduce_(score_R, comm::ReduceOp::kSum, shards.table);  // the owner's score and zeros
    if (has_items) counts_RC = use_plain ? plain::count_items(tiles, tiling, score_R) : count_items(tiles, tiling, score_R.const_data_ptr<float>());
    comm::all_reduce_(counts_RC, comm::ReduceOp::kSum, shards.table);
    const auto broken = counts_RC.select(1, kBroken).nonzero();
    UQA_CHECK(broken.numel() == 0, ErrorCode::kNumeric, "a score of row {} is not finite; lower optim.peak_lr or use float32", broken[0][0].item<std::int64_t>());
    const auto own_counts = counts_RC.narrow(0, chunk.own_position, chunk.own.length);
    // The target itself is among the equal ones.
    doubled_l.narrow(0, chunk.own.begin, chunk.own.length).copy_(2 * own_counts.select(1, kLarger) + own_counts.select(1, kEqual) - 1);
  }
  const auto doubled_T = shards.tp.size() == 1 ? doubled_l : comm::all_gather(doubled_l, shards.tp);
  return doubled_T.to(at::kDouble) / 2;
}

}  // namespace uqa::models
