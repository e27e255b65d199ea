#include "models/layers/packed_attention.h"

#include <algorithm>
#include <atomic>
#include <limits>
#include <numeric>

#include "core/error.h"
#include "models/layers/attention_rows.h"
#include "models/layers/dropout.h"
#include "models/layers/no_autocast.h"
#include "models/plain/attention.h"

#include <ATen/Parallel.h>

// T packed rows, N query heads, K key/value heads, G = N / K, D head width; inside a task: h heads, i query rows, s key rows.

namespace uqa::models {
namespace {

constexpr std::int64_t kQueryTile = 256;  // queries of one tile: bounds the probabilities held, skips keys after the tile
constexpr float kHiddenScore = -1e30F;    // its exponential is 0 beside any real score

/// A root block and its descendants, as one span of rows: [begin, end).
struct Tree {
  std::int64_t begin = 0, end = 0;
  std::size_t first_block = 0, last_block = 0;  ///< blocks [first, last)
  [[nodiscard]] std::int64_t num_rows() const { return end - begin; }
};

struct Interval {
  std::int64_t begin = 0, end = 0;
};

/// A tree is one task, so that gradients of shared rows are summed in a fixed order without locks.
struct AttentionPlan : torch::CustomClassHolder {
  std::vector<AttentionBlock> blocks;
  std::vector<Tree> trees;
  std::vector<std::vector<Interval>> hidden;  ///< per block: rows before it in its tree that it does not see, from the tree's begin
  PackedDropout dropout;
  double scale = 1;
};

void check_blocks(const std::vector<AttentionBlock>& blocks, std::int64_t num_rows) {
  std::int64_t last_end = 0, root = 0;
  for (std::size_t b = 0; b < blocks.size(); ++b) {
    const auto& block = blocks[b];
    UQA_CHECK(last_end <= block.begin && block.begin <= block.end && block.end <= num_rows, ErrorCode::kInternal,
              "attention block [{}, {}) must follow row {} and end within {} rows", block.begin, block.end, last_end, num_rows);
    if (block.parent < 0) root = static_cast<std::int64_t>(b);
    UQA_CHECK(block.parent == -1 || (block.parent >= root && block.parent < static_cast<std::int64_t>(b)), ErrorCode::kInternal,
              "attention block {} has parent {}, must be -1 or an earlier block of its tree, which begins with block {}", b, block.parent, root);
    last_end = block.end;
  }
}

std::vector<Tree> trees_of(const std::vector<AttentionBlock>& blocks) {
  std::vector<Tree> trees;
  for (std::size_t b = 0; b < blocks.size(); ++b) {
    if (blocks[b].parent < 0) trees.push_back({.begin = blocks[b].begin, .end = blocks[b].begin, .first_block = b, .last_block = b});
    trees.back().end = blocks[b].end;
    trees.back().last_block = b + 1;
  }
  return trees;
}

/// What lies between a block's ancestors.
std::vector<Interval> hidden_rows(const std::vector<AttentionBlock>& blocks, const Tree& tree, std::size_t block) {
  std::vector<Interval> hidden;
  std::int64_t end = blocks[block].begin;
  for (auto ancestor = blocks[block].parent; ancestor >= 0; ancestor = blocks[static_cast<std::size_t>(ancestor)].parent) {
    const auto& above = blocks[static_cast<std::size_t>(ancestor)];
    if (above.end < end) hidden.push_back({above.end - tree.begin, end - tree.begin});
    end = above.begin;
  }
  return hidden;
}

c10::intrusive_ptr<AttentionPlan> make_plan(const std::vector<AttentionBlock>& blocks, double scale, const PackedDropout& dropout) {
  auto plan = c10::make_intrusive<AttentionPlan>();
  plan->blocks = blocks;
  plan->trees = trees_of(blocks);
  plan->hidden.resize(blocks.size());
  for (const auto& tree : plan->trees) {
    for (auto b = tree.first_block; b < tree.last_block; ++b) plan->hidden[b] = hidden_rows(blocks, tree, b);
  }
  plan->dropout = dropout;
  plan->scale = scale;
  return plan;
}

/// A range of key/value heads of one tree.
struct Task {
  std::size_t tree;
  std::int64_t first_head, num_heads;
};

/// Runs `body(task)` over trees x head ranges, the costly ones first, each on one thread (GEMMs inside are then serial).
template <typename Body>
void for_each_task(const AttentionPlan& plan, std::int64_t num_kv_heads, const Body& body) {
  const auto num_trees = static_cast<std::int64_t>(plan.trees.size());
  if (num_trees == 0) return;
  const std::int64_t num_threads = at::get_num_threads();
  const std::int64_t splits = std::clamp<std::int64_t>((2 * num_threads + num_trees - 1) / num_trees, 1, num_threads == 1 ? 1 : num_kv_heads);
  std::vector<std::size_t> order(plan.trees.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) { return plan.trees[a].num_rows() > plan.trees[b].num_rows(); });
  std::vector<Task> tasks;
  for (const auto tree : order) {
    for (std::int64_t s = 0; s < splits; ++s) {
      const auto first = num_kv_heads * s / splits, last = num_kv_heads * (s + 1) / splits;
      tasks.push_back({.tree = tree, .first_head = first, .num_heads = last - first});
    }
  }
  std::atomic<std::size_t> next{0};
  const auto num_workers = std::min<std::int64_t>(num_threads, static_cast<std::int64_t>(tasks.size()));
  at::parallel_for(0, num_workers, 1, [&](std::int64_t, std::int64_t) {
    const at::NoGradGuard no_grad;  // thread-local: worker threads do not inherit it
    for (auto i = next++; i < tasks.size(); i = next++) body(tasks[i]);
  });
}

/// Rows [row, row + num_rows) of heads first, first + step, ... of x [T, *, D] as [num_heads, num_rows, D]; no copy.
Tensor head_rows(const Tensor& x, std::int64_t row, std::int64_t num_rows, std::int64_t first, std::int64_t step, std::int64_t num_heads) {
  return x.as_strided({num_heads, num_rows, x.size(2)}, {x.stride(1) * step, x.stride(0), 1},
                      x.storage_offset() + row * x.stride(0) + first * x.stride(1));
}

/// Queries [first, first + num_queries) of a tree's rows, which read the keys [0, num_keys()) of the tree.
struct Tile {
  const Tree& tree;
  std::int64_t first, num_queries;
  [[nodiscard]] std::int64_t num_keys() const { return first + num_queries; }
  [[nodiscard]] std::int64_t row() const { return tree.begin + first; }
  /// Keys (or values, or their gradients): [h, s, D], no copy.
  [[nodiscard]] Tensor keys(const Tensor& x, const Task& task) const {
    return head_rows(x, tree.begin, num_keys(), task.first_head, 1, task.num_heads);
  }
};

template <typename Body>
void for_each_tile(const AttentionPlan& plan, const Task& task, const Body& body) {
  const auto& tree = plan.trees[task.tree];
  for (std::int64_t first = 0; first < tree.num_rows(); first += kQueryTile) {
    body(Tile{.tree = tree, .first = first, .num_queries = std::min(kQueryTile, tree.num_rows() - first)});
  }
}

/// Calls with_row(i, block) for the tile's query rows in blocks, and without(i) for rows of no block.
template <typename WithRow, typename Without>
void for_each_query(const AttentionPlan& plan, const Tile& tile, const WithRow& with_row, const Without& without) {
  auto block = tile.tree.first_block;
  for (std::int64_t i = 0; i < tile.num_queries; ++i) {
    const auto row = tile.row() + i;
    while (block < tile.tree.last_block && plan.blocks[block].end <= row) ++block;
    if (plan.blocks[block].begin <= row) {
      with_row(i, block);
    } else {
      without(i);
    }
  }
}

template <typename T>
void fill_hidden(T* row, const std::vector<Interval>& hidden, float value) {
  for (const auto& rows : hidden) std::fill(row + rows.begin, row + rows.end, static_cast<T>(value));
}

/// Draws the factors of one row if there is dropout; nullptr otherwise.
const float* draw_factors(const AttentionPlan& plan, std::size_t block, std::int64_t row, std::int64_t head, std::int64_t n,
                          std::vector<float>& buffer) {
  if (plan.dropout.p == 0) return nullptr;
  buffer.resize(static_cast<std::size_t>(n));
  dropout_factors(plan.dropout.key, {.sample_id = plan.dropout.sample_ids[block], .position = row - plan.blocks[block].begin, .lane = plan.dropout.first_head + head},
                  plan.dropout.p, buffer.data(), n);
  return buffer.data();
}

template <typename T>
void attend(const AttentionPlan& plan, const Tensor& q_TND, const Tensor& k_TKD, const Tensor& v_TKD, const Tensor& out_TND,
            const Tensor& log_sum_TN) {
  using Compute = ComputeType<T>;
  const auto num_heads = q_TND.size(1), num_kv_heads = k_TKD.size(1), group_size = num_heads / num_kv_heads;
  auto* log_sum = log_sum_TN.mutable_data_ptr<Compute>();
  for_each_task(plan, num_kv_heads, [&](const Task& task) {
    std::vector<float> factors;
    std::vector<Compute> scratch;
    for_each_tile(plan, task, [&](const Tile& tile) {
      const auto k_hsD = tile.keys(k_TKD, task), v_hsD = tile.keys(v_TKD, task);
      const auto num_keys = tile.num_keys();
      for (std::int64_t g = 0; g < group_size; ++g) {
        const auto first_head = task.first_head * group_size + g;
        const auto q_hiD = head_rows(q_TND, tile.row(), tile.num_queries, first_head, group_size, task.num_heads);
        auto p_his = at::bmm(q_hiD, k_hsD.transpose(1, 2));
        auto* p = p_his.template mutable_data_ptr<T>();
        for (std::int64_t h = 0; h < task.num_heads; ++h) {
          const auto head = first_head + h * group_size;
          T* const rows = p + h * tile.num_queries * num_keys;
          for_each_query(
              plan, tile,
              [&](std::int64_t i, std::size_t block) {
                T* row = rows + i * num_keys;
                const auto visible = tile.first + i + 1;
                const auto* keep = draw_factors(plan, block, tile.row() + i, head, visible, factors);
                fill_hidden(row, plan.hidden[block], kHiddenScore);
                log_sum[(tile.row() + i) * num_heads + head] = softmax_row(row, visible, num_keys, static_cast<Compute>(plan.scale), keep, scratch);
                fill_hidden(row, plan.hidden[block], 0);
              },
              [&](std::int64_t i) { std::fill(rows + i * num_keys, rows + (i + 1) * num_keys, static_cast<T>(0)); });
        }
        head_rows(out_TND, tile.row(), tile.num_queries, first_head, group_size, task.num_heads).copy_(at::bmm(p_his, v_hsD));
      }
    });
  });
}

struct AttentionGrads {
  Tensor dq_TND;
  Tensor dk_TKD, dv_TKD;  ///< in the compute type: shared rows are summed in it
};

template <typename T>
void attend_backward(const AttentionPlan& plan, const Tensor& q_TND, const Tensor& k_TKD, const Tensor& v_TKD, const Tensor& out_TND,
                     const Tensor& log_sum_TN, const Tensor& dout_TND, const AttentionGrads& grads) {
  using Compute = ComputeType<T>;
  const auto num_heads = q_TND.size(1), num_kv_heads = k_TKD.size(1), group_size = num_heads / num_kv_heads, width = q_TND.size(2);
  const auto* log_sum = log_sum_TN.const_data_ptr<Compute>();
  const auto* out = out_TND.const_data_ptr<T>();
  const auto* dout = dout_TND.const_data_ptr<T>();
  for_each_task(plan, num_kv_heads, [&](const Task& task) {
    std::vector<float> factors;
    std::vector<Compute> scratch;
    for_each_tile(plan, task, [&](const Tile& tile) {
      const auto k_hsD = tile.keys(k_TKD, task), v_hsD = tile.keys(v_TKD, task);
      const auto num_keys = tile.num_keys();
      for (std::int64_t g = 0; g < group_size; ++g) {
        const auto first_head = task.first_head * group_size + g;
        const auto q_hiD = head_rows(q_TND, tile.row(), tile.num_queries, first_head, group_size, task.num_heads);
        const auto dout_hiD = head_rows(dout_TND, tile.row(), tile.num_queries, first_head, group_size, task.num_heads);
        auto p_his = at::bmm(q_hiD, k_hsD.transpose(1, 2));      // scores, then (dropped) probabilities
        auto dp_his = at::bmm(dout_hiD, v_hsD.transpose(1, 2));  // their gradient, then that of the scores
        auto* p = p_his.template mutable_data_ptr<T>();
        auto* dp = dp_his.template mutable_data_ptr<T>();
        for (std::int64_t h = 0; h < task.num_heads; ++h) {
          const auto head = first_head + h * group_size;
          const auto rows = h * tile.num_queries * num_keys;
          for_each_query(
              plan, tile,
              [&](std::int64_t i, std::size_t block) {
                T *p_row = p + rows + i * num_keys, *dp_row = dp + rows + i * num_keys;
                const auto row = (tile.row() + i) * num_heads + head;
                Compute delta = 0;  // sum over keys of p dp, which equals that over features of out dout
                for (std::int64_t d = 0; d < width; ++d) {
                  delta += static_cast<Compute>(out[row * width + d]) * static_cast<Compute>(dout[row * width + d]);
                }
                const auto visible = tile.first + i + 1;
                const auto* keep = draw_factors(plan, block, tile.row() + i, head, visible, factors);
                softmax_row_backward(p_row, dp_row, visible, num_keys, static_cast<Compute>(plan.scale), log_sum[row], delta, keep, scratch);
                fill_hidden(p_row, plan.hidden[block], 0);
                fill_hidden(dp_row, plan.hidden[block], 0);
              },
              [&](std::int64_t i) {
                for (auto* x : {p, dp}) std::fill(x + rows + i * num_keys, x + rows + (i + 1) * num_keys, static_cast<T>(0));
              });
        }
        tile.keys(grads.dv_TKD, task).add_(at::bmm(p_his.transpose(1, 2), dout_hiD));
        tile.keys(grads.dk_TKD, task).add_(at::bmm(dp_his.transpose(1, 2), q_hiD));
        head_rows(grads.dq_TND, tile.row(), tile.num_queries, first_head, group_size, task.num_heads).copy_(at::bmm(dp_his, k_hsD));
      }
    });
  });
}

at::ScalarType compute_type(at::ScalarType type) { return type == at::kDouble ? at::kDouble : at::kFloat; }

/// Head features must lie side by side; rows and heads may have any stride (views into one projection).
Tensor with_unit_stride(const Tensor& x) { return x.stride(2) == 1 ? x : x.contiguous(); }

struct PackedAttention : torch::autograd::Function<PackedAttention> {
  static Tensor forward(torch::autograd::AutogradContext* ctx, const Tensor& q, const Tensor& k, const Tensor& v,
                        const c10::intrusive_ptr<AttentionPlan>& plan) {
    const NoAutocast no_autocast;
    const auto q_TND = with_unit_stride(q), k_TKD = with_unit_stride(k), v_TKD = with_unit_stride(v);
    auto out_TND = at::zeros(q_TND.sizes(), q_TND.options());
    auto log_sum_TN = at::zeros({q_TND.size(0), q_TND.size(1)}, q_TND.options().dtype(compute_type(q_TND.scalar_type())));
    AT_DISPATCH_FLOATING_TYPES_AND(at::kBFloat16, q_TND.scalar_type(), "packed_attention",
                                   [&] { attend<scalar_t>(*plan, q_TND, k_TKD, v_TKD, out_TND, log_sum_TN); });
    ctx->save_for_backward({q_TND, k_TKD, v_TKD, out_TND, log_sum_TN});
    ctx->saved_data["plan"] = c10::IValue::make_capsule(plan);
    return out_TND;
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx, const torch::autograd::variable_list& grad) {
    const NoAutocast no_autocast;
    const auto saved = ctx->get_saved_variables();
    const auto &q_TND = saved[0], &k_TKD = saved[1], &v_TKD = saved[2];
    const auto plan = c10::static_intrusive_pointer_cast<AttentionPlan>(ctx->saved_data["plan"].toCapsule());
    const auto type = q_TND.scalar_type();
    const auto sums = k_TKD.options().dtype(compute_type(type));
    const AttentionGrads grads{.dq_TND = at::zeros(q_TND.sizes(), q_TND.options()),
                               .dk_TKD = at::zeros(k_TKD.sizes(), sums),
                               .dv_TKD = at::zeros(v_TKD.sizes(), sums)};
    const auto dout_TND = grad[0].contiguous();
    AT_DISPATCH_FLOATING_TYPES_AND(at::kBFloat16, type, "packed_attention_backward", [&] {
      attend_backward<scalar_t>(*plan, q_TND, k_TKD, v_TKD, saved[3], saved[4], dout_TND, grads);
    });
    return {grads.dq_TND, grads.dk_TKD.to(type), grads.dv_TKD.to(type), {}};
  }
};

}  // namespace

Tensor packed_attention(const Tensor& q_TND, const Tensor& k_TKD, const Tensor& v_TKD, const std::vector<AttentionBlock>& blocks, double scale,
                        const PackedDropout& dropout) {
  UQA_CHECK(q_TND.dim() == 3 && k_TKD.dim() == 3 && k_TKD.sizes() == v_TKD.sizes() && q_TND.size(0) == k_TKD.size(0) &&
                q_TND.size(2) == k_TKD.size(2),
            ErrorCode::kInternal, "attention: q [{}], k [{}], v [{}] do not fit", fmt::join(q_TND.sizes(), ", "), fmt::join(k_TKD.sizes(), ", "),
            fmt::join(v_TKD.sizes(), ", "));
  UQA_CHECK(k_TKD.size(1) > 0 && q_TND.size(1) % k_TKD.size(1) == 0, ErrorCode::kInternal,
            "attention: {} query heads must be a multiple of {} key/value heads", q_TND.size(1), k_TKD.size(1));
  UQA_CHECK(q_TND.scalar_type() == k_TKD.scalar_type() && q_TND.scalar_type() == v_TKD.scalar_type(), ErrorCode::kInternal,
            "attention: q, k and v must have one dtype");
  UQA_CHECK(scale > 0, ErrorCode::kInternal, "attention: scale = {}, must be > 0", scale);
  UQA_CHECK(dropout.p >= 0 && dropout.p <= kMostDropped, ErrorCode::kConfig, "attention_dropout = {}, must be in [0, {}]", dropout.p, kMostDropped);
  UQA_CHECK(dropout.p == 0 || dropout.sample_ids.size() == blocks.size(), ErrorCode::kInternal,
            "attention: {} sample ids for {} blocks, one each is required", dropout.sample_ids.size(), blocks.size());
  check_blocks(blocks, q_TND.size(0));
  if (!q_TND.is_cpu()) return plain::packed_attention(q_TND, k_TKD, v_TKD, blocks, scale, dropout);
  return PackedAttention::apply(q_TND, k_TKD, v_TKD, make_plan(blocks, scale, dropout));
}

}  // namespace uqa::models
