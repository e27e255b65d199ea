#include "models/loss/item_softmax.h"

#include <algorithm>
#include <cmath>

#include "core/error.h"
#include "models/layers/no_autocast.h"
#include "models/loss/softmax_rows.h"

#include <ATen/Parallel.h>

// T packed rows, L labelled rows among them, V items, D item width; a tile is r rows x c columns of the [L, V] logits.

namespace uqa::models {
namespace {

constexpr std::int64_t kRowTile = 1024;    // rows of one tile: enough for a GEMM at full speed
constexpr std::int64_t kColumnStep = 64;   // tile widths are multiples of it where they can be
constexpr std::int64_t kRowGrain = 16;

struct Tiling {
  std::int64_t num_rows, num_items, tile_rows, tile_columns;
};

Tiling make_tiling(std::int64_t num_rows, std::int64_t num_items, std::int64_t block_bytes) {
  const auto tile_rows = std::clamp<std::int64_t>(num_rows, 1, kRowTile);
  auto columns = block_bytes / static_cast<std::int64_t>(sizeof(float)) / tile_rows;
  if (columns > kColumnStep) columns -= columns % kColumnStep;
  return {.num_rows = num_rows, .num_items = num_items, .tile_rows = tile_rows, .tile_columns = std::clamp<std::int64_t>(columns, 1, num_items)};
}

struct Tile {
  std::int64_t first_row, num_rows, first_item, num_items;
};

/// Calls start_items(first, count) for every block of items, then body(tile) for its row tiles.
template <typename StartItems, typename Body>
void for_each_tile(const Tiling& tiling, const StartItems& start_items, const Body& body) {
  for (std::int64_t v = 0; v < tiling.num_items; v += tiling.tile_columns) {
    const auto num_items = std::min(tiling.tile_columns, tiling.num_items - v);
    start_items(v, num_items);
    for (std::int64_t t = 0; t < tiling.num_rows; t += tiling.tile_rows) {
      body(Tile{.first_row = t, .num_rows = std::min(tiling.tile_rows, tiling.num_rows - t), .first_item = v, .num_items = num_items});
    }
  }
}

/// Logits tile by tile in one buffer, which stays in cache.
class LogitTiles {
 public:
  LogitTiles(const Tensor& h_LD, const Tensor& w_VD, at::ScalarType gemm_type, const Tiling& tiling)
      : h_LD_(h_LD.to(gemm_type)),
        w_VD_(w_VD),
        buffer_(at::empty({tiling.tile_rows * tiling.tile_columns}, h_LD_.options())),
        scratch_(at::empty({tiling.tile_columns * h_LD.size(1)}, h_LD_.options())) {}

  /// Takes rows [first, first + count) of the item table as the block to multiply with.
  void start_items(std::int64_t first, std::int64_t count) {
    const auto rows = w_VD_.narrow(0, first, count);
    if (rows.scalar_type() == h_LD_.scalar_type()) {
      items_cD_ = rows;
    } else {
      items_cD_ = scratch_.narrow(0, 0, rows.numel()).view(rows.sizes());
      items_cD_.copy_(rows);
    }
  }
  /// [r, c], overwritten by the next call.
  [[nodiscard]] Tensor logits(const Tile& tile) {
    auto logits_rc = buffer_.narrow(0, 0, tile.num_rows * tile.num_items).view({tile.num_rows, tile.num_items});
    at::mm_out(logits_rc, hiddens(tile), items_cD_.t());
    return logits_rc;
  }
  [[nodiscard]] Tensor hiddens(const Tile& tile) const { return h_LD_.narrow(0, tile.first_row, tile.num_rows); }
  [[nodiscard]] const Tensor& items() const { return items_cD_; }

 private:
  Tensor h_LD_, w_VD_, buffer_, scratch_, items_cD_;
};

/// Adds a b to `sum`; a and b may be bfloat16 and sum float32.
void add_product(Tensor sum, const Tensor& a, const Tensor& b) {
  if (a.scalar_type() == sum.scalar_type()) {
    sum.addmm_(a, b);
  } else {
    sum.add_(at::mm(a, b));
  }
}

/// Column of a row's target inside a tile, or -1.
std::int64_t target_column(const std::int64_t* targets, const Tile& tile, std::int64_t row) {
  const auto column = targets[tile.first_row + row] - tile.first_item;
  return column >= 0 && column < tile.num_items ? column : -1;
}

struct ItemSoftmaxInput {
  Tensor labelled_L;  ///< rows that carry a label
  Tensor targets_L;
};

ItemSoftmaxInput labelled(const Tensor& h_TD, const Tensor& w_VD, const Tensor& targets_T, const ItemSoftmaxOptions& options) {
  UQA_CHECK(h_TD.dim() == 2 && w_VD.dim() == 2 && h_TD.size(1) == w_VD.size(1) && targets_T.dim() == 1 && targets_T.size(0) == h_TD.size(0) &&
                w_VD.size(0) > 0,
            ErrorCode::kInternal, "item softmax: hiddens [{}], items [{}], targets [{}] do not fit", fmt::join(h_TD.sizes(), ", "),
            fmt::join(w_VD.sizes(), ", "), fmt::join(targets_T.sizes(), ", "));
  UQA_CHECK(targets_T.scalar_type() == at::kLong, ErrorCode::kInternal, "item softmax: targets must be int64");
  UQA_CHECK(options.block_bytes > 0, ErrorCode::kConfig, "block_bytes = {}, must be > 0", options.block_bytes);
  const auto labelled_L = at::nonzero(targets_T >= 0).squeeze(1);
  const auto targets_L = targets_T.index_select(0, labelled_L);
  if (targets_L.size(0) > 0) {
    const auto largest = targets_L.max().item<std::int64_t>();
    UQA_CHECK(largest < w_VD.size(0), ErrorCode::kData, "target item = {}, must be below the {} items of the table", largest, w_VD.size(0));
  }
  return {.labelled_L = labelled_L, .targets_L = targets_L};
}

/// Sums -log p(target) and keeps log-sum-exp of every labelled row.
template <typename T>
double forward_tiles(LogitTiles& tiles, const Tiling& tiling, const std::int64_t* targets, const Tensor& log_sum_L) {
  using Compute = ComputeType<T>;
  std::vector<RunningSum<Compute>> running(static_cast<std::size_t>(tiling.num_rows));
  std::vector<Compute> target_logit(static_cast<std::size_t>(tiling.num_rows));
  for_each_tile(
      tiling, [&](std::int64_t first, std::int64_t count) { tiles.start_items(first, count); },
      [&](const Tile& tile) {
        const auto logits_rc = tiles.logits(tile);
        const auto* logits = logits_rc.template const_data_ptr<T>();
        at::parallel_for(0, tile.num_rows, kRowGrain, [&](std::int64_t begin, std::int64_t end) {
          for (auto r = begin; r < end; ++r) {
            const T* row = logits + r * tile.num_items;
            const auto place = static_cast<std::size_t>(tile.first_row + r);
            add_logits(row, tile.num_items, running[place]);
            if (const auto column = target_column(targets, tile, r); column >= 0) target_logit[place] = static_cast<Compute>(row[column]);
          }
        });
      });
  double loss = 0;
  auto* log_sum = log_sum_L.mutable_data_ptr<Compute>();
  for (std::size_t i = 0; i < running.size(); ++i) {
    log_sum[i] = running[i].top + std::log(running[i].sum);
    loss += static_cast<double>(log_sum[i] - target_logit[i]);
  }
  return loss;
}

/// dh += P w and dw += P^T h with P = factor * (softmax - onehot), block by block. Undefined results are not computed.
template <typename T>
void backward_tiles(LogitTiles& tiles, const Tiling& tiling, const std::int64_t* targets, const Tensor& log_sum_L, ComputeType<T> factor,
                    const Tensor& dh_LD, const Tensor& dw_VD) {
  using Compute = ComputeType<T>;
  const auto* log_sum = log_sum_L.const_data_ptr<Compute>();
  for_each_tile(
      tiling, [&](std::int64_t first, std::int64_t count) { tiles.start_items(first, count); },
      [&](const Tile& tile) {
        auto p_rc = tiles.logits(tile);
        auto* p = p_rc.template mutable_data_ptr<T>();
        at::parallel_for(0, tile.num_rows, kRowGrain, [&](std::int64_t begin, std::int64_t end) {
          for (auto r = begin; r < end; ++r) {
            T* row = p + r * tile.num_items;
            const auto log_sum_of_row = log_sum[tile.first_row + r];
            const auto column = target_column(targets, tile, r);
            const Compute target_logit = column >= 0 ? static_cast<Compute>(row[column]) : 0;
            scaled_softmax_row(row, tile.num_items, log_sum_of_row, factor);
            if (column >= 0) row[column] = static_cast<T>(factor * std::expm1(target_logit - log_sum_of_row));
          }
        });
        if (dh_LD.defined()) add_product(dh_LD.narrow(0, tile.first_row, tile.num_rows), p_rc, tiles.items());
        if (dw_VD.defined()) add_product(dw_VD.narrow(0, tile.first_item, tile.num_items), p_rc.t(), tiles.hiddens(tile));
      });
}

struct ItemSoftmax : torch::autograd::Function<ItemSoftmax> {
  static Tensor forward(torch::autograd::AutogradContext* ctx, const Tensor& h_TD, const Tensor& w_VD, const Tensor& labelled_L, const Tensor& targets_L,
                        std::int64_t block_bytes, bool bf16) {
    const NoAutocast no_autocast;
    const auto type = w_VD.scalar_type();
    const auto h_LD = h_TD.index_select(0, labelled_L).to(type);
    auto log_sum_L = at::empty({h_LD.size(0)}, h_LD.options());
    const auto tiling = make_tiling(h_LD.size(0), w_VD.size(0), block_bytes);
    const auto gemm_type = bf16 ? at::kBFloat16 : type;
    double loss = 0;
    if (h_LD.size(0) > 0) {
      LogitTiles tiles(h_LD, w_VD, gemm_type, tiling);
      AT_DISPATCH_FLOATING_TYPES_AND(at::kBFloat16, gemm_type, "item_softmax", [&] {
        loss = forward_tiles<scalar_t>(tiles, tiling, targets_L.const_data_ptr<std::int64_t>(), log_sum_L);
      });
    }
    ctx->save_for_backward({h_LD, w_VD, labelled_L, targets_L, log_sum_L});
    ctx->saved_data["num_rows"] = h_TD.size(0);
    ctx->saved_data["h_type"] = static_cast<std::int64_t>(h_TD.scalar_type());
    ctx->saved_data["block_bytes"] = block_bytes;
    ctx->saved_data["gemm_type"] = static_cast<std::int64_t>(gemm_type);
    return at::scalar_tensor(loss, h_LD.options());
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx, const torch::autograd::variable_list& grad) {
    const NoAutocast no_autocast;
    const auto saved = ctx->get_saved_variables();
    const auto &h_LD = saved[0], &w_VD = saved[1], &labelled_L = saved[2], &targets_L = saved[3], &log_sum_L = saved[4];
    const auto gemm_type = static_cast<at::ScalarType>(ctx->saved_data["gemm_type"].toInt());
    const auto h_type = static_cast<at::ScalarType>(ctx->saved_data["h_type"].toInt());
    const auto dh_LD = ctx->needs_input_grad(0) ? at::zeros(h_LD.sizes(), h_LD.options()) : Tensor();
    const auto dw_VD = ctx->needs_input_grad(1) ? at::zeros(w_VD.sizes(), w_VD.options()) : Tensor();
    const auto tiling = make_tiling(h_LD.size(0), w_VD.size(0), ctx->saved_data["block_bytes"].toInt());
    if (h_LD.size(0) > 0) {
      LogitTiles tiles(h_LD, w_VD, gemm_type, tiling);
      AT_DISPATCH_FLOATING_TYPES_AND(at::kBFloat16, gemm_type, "item_softmax_backward", [&] {
        const auto factor = static_cast<ComputeType<scalar_t>>(grad[0].item<double>());
        backward_tiles<scalar_t>(tiles, tiling, targets_L.const_data_ptr<std::int64_t>(), log_sum_L, factor, dh_LD, dw_VD);
      });
    }
    Tensor dh_TD;
    if (dh_LD.defined()) {
      dh_TD = at::zeros({ctx->saved_data["num_rows"].toInt(), h_LD.size(1)}, h_LD.options());
      dh_TD = dh_TD.index_copy_(0, labelled_L, dh_LD).to(h_type);
    }
    return {dh_TD, dw_VD, {}, {}, {}, {}};
  }
};

}  // namespace

Tensor item_softmax_loss(const Tensor& h_TD, const Tensor& w_VD, const Tensor& targets_T, const ItemSoftmaxOptions& options) {
  const auto input = labelled(h_TD, w_VD, targets_T, options);
  UQA_CHECK(w_VD.scalar_type() == at::kFloat || (w_VD.scalar_type() == at::kDouble && !options.bf16), ErrorCode::kInternal,
            "item softmax: the item table must be float32 (float64 without bf16)");
  return ItemSoftmax::apply(h_TD, w_VD.contiguous(), input.labelled_L, input.targets_L, options.block_bytes, options.bf16);
}

Tensor item_ranks(const Tensor& h_TD, const Tensor& w_VD, const Tensor& targets_T, const ItemSoftmaxOptions& options) {
  const at::NoGradGuard no_grad;
  const NoAutocast no_autocast;
  const auto input = labelled(h_TD, w_VD, targets_T, options);
  const auto num_rows = h_TD.size(0);
  UQA_CHECK(input.targets_L.size(0) == num_rows, ErrorCode::kInternal, "item ranks: {} of {} rows have no target; leave them out",
            num_rows - input.targets_L.size(0), num_rows);
  auto ranks_T = at::empty({num_rows}, at::kDouble);
  if (num_rows == 0) return ranks_T;
  const auto tiling = make_tiling(num_rows, w_VD.size(0), options.block_bytes);
  LogitTiles tiles(h_TD.to(at::kFloat).contiguous(), w_VD.to(at::kFloat).contiguous(), at::kFloat, tiling);
  const auto* targets = input.targets_L.const_data_ptr<std::int64_t>();
  const auto start_items = [&](std::int64_t first, std::int64_t count) { tiles.start_items(first, count); };

  // Two passes over equal tiles, so that a target's score is bit for bit the one it is compared with.
  std::vector<float> target_score(static_cast<std::size_t>(num_rows));
  for_each_tile(tiling, start_items, [&](const Tile& tile) {
    std::vector<std::int64_t> rows;
    for (std::int64_t r = 0; r < tile.num_rows; ++r) {
      if (target_column(targets, tile, r) >= 0) rows.push_back(r);
    }
    if (rows.empty()) return;
    const auto scores_rc = tiles.logits(tile);
    const auto* scores = scores_rc.const_data_ptr<float>();
    for (const auto r : rows) target_score[static_cast<std::size_t>(tile.first_row + r)] = scores[r * tile.num_items + target_column(targets, tile, r)];
  });
  std::vector<RowCounts> counts(static_cast<std::size_t>(num_rows));
  for_each_tile(tiling, start_items, [&](const Tile& tile) {
    const auto scores_rc = tiles.logits(tile);
    const auto* scores = scores_rc.const_data_ptr<float>();
    at::parallel_for(0, tile.num_rows, kRowGrain, [&](std::int64_t begin, std::int64_t end) {
      for (auto r = begin; r < end; ++r) {
        const auto row = static_cast<std::size_t>(tile.first_row + r);
        const auto part = count_against(scores + r * tile.num_items, tile.num_items, target_score[row]);
        counts[row].larger += part.larger;
        counts[row].equal += part.equal;
        counts[row].finite = counts[row].finite && part.finite;
      }
    });
  });
  auto* ranks = ranks_T.mutable_data_ptr<double>();
  for (std::size_t i = 0; i < counts.size(); ++i) {
    UQA_CHECK(counts[i].finite, ErrorCode::kNumeric, "a score of row {} is not finite; lower optim.peak_lr or use float32", i);
    ranks[i] = static_cast<double>(counts[i].larger) + static_cast<double>(counts[i].equal - 1) / 2;  // the target itself is among the equal
  }
  return ranks_T;
}

}  // namespace uqa::models
