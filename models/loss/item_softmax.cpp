#include "models/loss/item_softmax.h"

#include <algorithm>
#include <cmath>
#include <tuple>
#include <vector>

#include "core/error.h"
#include "models/layers/no_autocast.h"
#include "models/loss/hidden_chunks.h"
#include "models/loss/logit_tiles.h"
#include "models/loss/softmax_rows.h"
#include "models/plain/item_softmax.h"

#include <ATen/Parallel.h>

// T packed rows, L labelled rows among them, l of those contributed by this rank; R rows of a chunk (all ranks' l, a part at a time);
// V items of this rank, D item width.

namespace uqa::models {
namespace {

/// What one rank's items say about the rows of a chunk. Compute type of the GEMM.
struct PartialSums {
  Tensor top_R, sum_R;  ///< maximum, sum of exp(logit - maximum): -inf and 0 without items
  Tensor gold_R;        ///< logit of the target, 0 if it is another rank's
};

/// The chunk's targets relative to this rank's first item; those of other ranks fall outside [0, V).
Tensor local_targets(const Tensor& targets_R, std::int64_t first_item) { return first_item == 0 ? targets_R : targets_R - first_item; }

template <typename T>
void forward_tiles(LogitTiles& tiles, const Tiling& tiling, const std::int64_t* targets, const PartialSums& sums) {
  using Compute = ComputeType<T>;
  std::vector<RunningSum<Compute>> running(static_cast<std::size_t>(tiling.num_rows));
  auto* gold = sums.gold_R.mutable_data_ptr<Compute>();
  for_each_tile(
      tiling, [&](std::int64_t first, std::int64_t count) { tiles.start_items(first, count); },
      [&](const Tile& tile) {
        const auto logits_rc = tiles.logits(tile);
        const auto* logits = logits_rc.template const_data_ptr<T>();
        at::parallel_for(0, tile.num_rows, kRowGrain, [&](std::int64_t begin, std::int64_t end) {
          for (auto r = begin; r < end; ++r) {
            const T* row = logits + r * tile.num_items;
            add_logits(row, tile.num_items, running[static_cast<std::size_t>(tile.first_row + r)]);
            if (const auto column = target_column(targets, tile, r); column >= 0) gold[tile.first_row + r] = static_cast<Compute>(row[column]);
          }
        });
      });
  auto *top = sums.top_R.mutable_data_ptr<Compute>(), *sum = sums.sum_R.mutable_data_ptr<Compute>();
  for (std::size_t i = 0; i < running.size(); ++i) {
    top[i] = running[i].top;
    sum[i] = running[i].sum;
  }
}

/// dh += P w and dw += P^T h with P = factor of the row * (softmax - onehot), block by block. Undefined results are not computed.
template <typename T>
void backward_tiles(LogitTiles& tiles, const Tiling& tiling, const std::int64_t* targets, const Tensor& log_sum_R, const double* factor_of_row,
                    const Tensor& dh_RD, const Tensor& dw_VD) {
  using Compute = ComputeType<T>;
  const auto* log_sum = log_sum_R.const_data_ptr<Compute>();
  for_each_tile(
      tiling, [&](std::int64_t first, std::int64_t count) { tiles.start_items(first, count); },
      [&](const Tile& tile) {
        auto p_rc = tiles.logits(tile);
        auto* p = p_rc.template mutable_data_ptr<T>();
        at::parallel_for(0, tile.num_rows, kRowGrain, [&](std::int64_t begin, std::int64_t end) {
          for (auto r = begin; r < end; ++r) {
            T* row = p + r * tile.num_items;
            const auto log_sum_of_row = log_sum[tile.first_row + r];
            const auto factor = static_cast<Compute>(factor_of_row[tile.first_row + r]);
            const auto column = target_column(targets, tile, r);
            const Compute target_logit = column >= 0 ? static_cast<Compute>(row[column]) : 0;
            scaled_softmax_row(row, tile.num_items, log_sum_of_row, factor);
            if (column >= 0) row[column] = static_cast<T>(factor * std::expm1(target_logit - log_sum_of_row));
          }
        });
        if (dh_RD.defined()) add_product(dh_RD.narrow(0, tile.first_row, tile.num_rows), p_rc, tiles.items());
        if (dw_VD.defined()) add_product(dw_VD.narrow(0, tile.first_item, tile.num_items), p_rc.t(), tiles.hiddens(tile));
      });
}

/// Log-sum-exp over all ranks' items, and the target's logit from its owner. Collective.
std::pair<Tensor, Tensor> combine(const PartialSums& sums, const comm::Communicator& table) {
  if (table.size() == 1) return {sums.top_R + sums.sum_R.log(), sums.gold_R};
  const auto top_R = comm::all_reduce(sums.top_R, comm::ReduceOp::kMax, table);
  // A rank without items has maximum -inf and sum 0: it adds nothing, and (-inf) - (-inf) must not make a NaN of it.
  const auto scaled_R = at::where(sums.sum_R == 0, at::zeros_like(sums.sum_R), sums.sum_R * (sums.top_R - top_R).exp());
  const auto both_2R = comm::all_reduce(at::stack({scaled_R, sums.gold_R}), comm::ReduceOp::kSum, table);
  return {top_R + both_2R[0].log(), both_2R[1]};
}

struct SavedChunk {
  HiddenChunk chunk;
  Tensor h_RD;       ///< in the GEMM's type; undefined: gathered again
  Tensor targets_R;  ///< relative to this rank's first item
  Tensor log_sum_R;
};

/// What backward needs; nothing in it is part of the graph.
struct SoftmaxPlan : torch::CustomClassHolder {
  ItemShards shards;
  OwnRows own;
  Tensor h_lD;  ///< this rank's contribution, in the GEMM's type
  std::vector<SavedChunk> chunks;
  std::int64_t num_rows = 0, block_bytes = 0;
  bool plain = false;  ///< LibTorch's operators on the tiles
  at::ScalarType h_type = at::kFloat, gemm_type = at::kFloat;
};

struct ItemSoftmax : torch::autograd::Function<ItemSoftmax> {
  static Tensor forward(torch::autograd::AutogradContext* ctx, const Tensor& h_TD, const Tensor& w_VD, const OwnRows& own, const ItemSoftmaxOptions& options,
                        const ItemShards& shards) {
    const NoAutocast no_autocast;
    const auto plan = c10::make_intrusive<SoftmaxPlan>();
    plan->shards = shards;
    plan->own = own;
    plan->num_rows = h_TD.size(0);
    plan->block_bytes = options.block_bytes;
    plan->plain = options.plain || !w_VD.is_cpu();
    plan->h_type = h_TD.scalar_type();
    plan->gemm_type = options.bf16 ? at::kBFloat16 : w_VD.scalar_type();
    plan->h_lD = h_TD.index_select(0, own.rows_l).to(plan->gemm_type);
    const auto first_item = even_range(shards.num_rows, shards.table.rank(), shards.table.size()).begin;
    const HiddenChunks chunks(own.rows_l.size(0), shards, options.gather_rows);
    const bool keep = shards.table.size() == 1 || chunks.total_rows() * plan->h_lD.size(1) * plan->h_lD.element_size() <= options.keep_bytes;
    double loss = 0;
    for (std::int64_t c = 0; c < chunks.size(); ++c) {
      SavedChunk saved{.chunk = chunks[c], .h_RD = chunks.gather(plan->h_lD, chunks[c]), .targets_R = {}, .log_sum_R = {}};
      saved.targets_R = local_targets(chunks.gather(own.targets_l, saved.chunk), first_item);
      const auto rows = saved.chunk.num_rows;
      const auto compute = w_VD.options().requires_grad(false);
      const PartialSums sums{.top_R = at::full({rows}, -INFINITY, compute), .sum_R = at::zeros({rows}, compute), .gold_R = at::zeros({rows}, compute)};
      if (rows > 0 && w_VD.size(0) > 0) {
        const auto tiling = make_tiling(rows, w_VD.size(0), options.block_bytes);
        LogitTiles tiles(saved.h_RD, w_VD, plan->gemm_type, tiling);
        if (plan->plain) {
          plain::item_sums(tiles, tiling, saved.targets_R, sums.top_R, sums.sum_R, sums.gold_R);
        } else {
          AT_DISPATCH_FLOATING_TYPES_AND(at::kBFloat16, plan->gemm_type, "item_softmax",
                                         [&] { forward_tiles<scalar_t>(tiles, tiling, saved.targets_R.const_data_ptr<std::int64_t>(), sums); });
        }
      }
      Tensor gold_R;
      std::tie(saved.log_sum_R, gold_R) = combine(sums, shards.table);
      const auto of_own = [&](const Tensor& x_R) { return x_R.narrow(0, saved.chunk.own_position, saved.chunk.own.length); };
      loss += (of_own(saved.log_sum_R) - of_own(gold_R)).sum(at::kDouble).item<double>();
      if (!keep) saved.h_RD.reset();
      plan->chunks.push_back(std::move(saved));
    }
    ctx->save_for_backward({w_VD});
    ctx->saved_data["plan"] = c10::IValue::make_capsule(plan);
    return at::scalar_tensor(comm::sum_in_order(loss, shards.tp), w_VD.options().requires_grad(false));
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx, const torch::autograd::variable_list& grad) {
    const NoAutocast no_autocast;
    const auto w_VD = ctx->get_saved_variables()[0];
    const auto plan = c10::static_intrusive_pointer_cast<SoftmaxPlan>(ctx->saved_data["plan"].toCapsule());
    const auto& table = plan->shards.table;
    const auto options = w_VD.options().requires_grad(false);
    const auto dw_VD = ctx->needs_input_grad(1) ? at::zeros(w_VD.sizes(), options) : Tensor();
    // With row shards the others need this rank's part of their dh, whatever it needs itself.
    const bool wants_dh = table.size() > 1 || ctx->needs_input_grad(0);
    auto dh_lD = wants_dh ? at::zeros(plan->h_lD.sizes(), options) : Tensor();
    const auto factors = table.size() == 1 ? grad[0].to(at::kDouble).view({1}) : comm::all_gather(grad[0].to(at::kFloat).view({1}), table).to(at::kDouble);
    for (const auto& saved : plan->chunks) {
      const auto& chunk = saved.chunk;
      Tensor h_RD = saved.h_RD;
      if (!h_RD.defined()) h_RD = comm::all_gather(plan->h_lD.narrow(0, chunk.own.begin, chunk.own.length), table);
      auto dh_RD = wants_dh ? at::zeros({chunk.num_rows, h_RD.size(1)}, options) : Tensor();
      if (chunk.num_rows > 0 && w_VD.size(0) > 0) {
        const auto tiling = make_tiling(chunk.num_rows, w_VD.size(0), plan->block_bytes);
        LogitTiles tiles(h_RD, w_VD, plan->gemm_type, tiling);
        const auto factor_R = factors.repeat_interleave(at::tensor(chunk.rows, factors.options().dtype(at::kLong)));
        if (plan->plain) {
          plain::add_item_gradients(tiles, tiling, saved.targets_R, saved.log_sum_R, factor_R.to(w_VD.scalar_type()), dh_RD, dw_VD);
        } else {
          AT_DISPATCH_FLOATING_TYPES_AND(at::kBFloat16, plan->gemm_type, "item_softmax_backward", [&] {
            backward_tiles<scalar_t>(tiles, tiling, saved.targets_R.const_data_ptr<std::int64_t>(), saved.log_sum_R, factor_R.const_data_ptr<double>(), dh_RD, dw_VD);
          });
        }
      }
      if (!wants_dh) continue;
      if (table.size() > 1) dh_RD = comm::reduce_scatter(dh_RD, chunk.rows, table);
      dh_lD.narrow(0, chunk.own.begin, chunk.own.length).copy_(dh_RD);
    }
    Tensor dh_TD;
    if (wants_dh) {
      // Peers have contributed consecutive parts of the same labelled rows.
      const auto dh_LD = plan->shards.tp.size() == 1 ? dh_lD : comm::all_gather(dh_lD, plan->shards.tp);
      if (ctx->needs_input_grad(0)) {
        dh_TD = at::zeros({plan->num_rows, dh_LD.size(1)}, options);
        dh_TD = dh_TD.index_copy_(0, plan->own.labelled_L, dh_LD).to(plan->h_type);
      }
    }
    return {dh_TD, dw_VD, {}, {}, {}};
  }
};

}  // namespace

Tensor item_softmax_loss(const Tensor& h_TD, const Tensor& w_VD, const Tensor& targets_T, const ItemSoftmaxOptions& options, const ItemShards& shards) {
  UQA_CHECK(w_VD.scalar_type() == at::kFloat || (w_VD.scalar_type() == at::kDouble && !options.bf16 && shards.table.size() == 1), ErrorCode::kInternal,
            "item softmax: the item table must be float32 (float64 without bf16 and row shards)");
  return ItemSoftmax::apply(h_TD, w_VD.contiguous(), own_rows(h_TD, w_VD, targets_T, options, shards), options, shards);
}

}  // namespace uqa::models
