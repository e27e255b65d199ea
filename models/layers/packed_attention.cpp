#include "models/layers/packed_attention.h"

#include <algorithm>
#include <atomic>
#include <limits>
#include <numeric>

#include "core/error.h"
#include "models/layers/attention_rows.h"
#include "models/layers/dropout.h"
#include "models/layers/no_autocast.h"

#include <ATen/Parallel.h>

// T packed rows, N query heads, K key/value heads, G = N / K, D head width; inside a task: h heads, i query rows, s key rows.

namespace uqa::models {
namespace {

constexpr std::int64_t kQueryTile = 256;  // queries of one tile: bounds the probabilities held, skips keys after the tile

/// Blocks that touch common key rows run one after the other in one task, so that gradients of shared rows are summed in a
/// fixed order without locks.
struct AttentionPlan : torch::CustomClassHolder {
  std::vector<AttentionBlock> blocks;
  std::vector<std::vector<std::size_t>> groups;  ///< indices into blocks, in order
  PackedDropout dropout;
  double scale = 1;
};

std::size_t root_of(std::vector<std::size_t>& parent, std::size_t i) {
  while (parent[i] != i) i = parent[i] = parent[parent[i]];
  return i;
}

std::vector<std::vector<std::size_t>> connected_groups(const std::vector<AttentionBlock>& blocks, std::int64_t num_rows) {
  std::vector<std::size_t> parent(blocks.size());
  std::iota(parent.begin(), parent.end(), std::size_t{0});
  std::vector<std::size_t> owner(static_cast<std::size_t>(num_rows), blocks.size());
  const auto touch = [&](std::size_t block, std::int64_t begin, std::int64_t end) {
    for (auto row = static_cast<std::size_t>(begin); row < static_cast<std::size_t>(end); ++row) {
      if (owner[row] == blocks.size()) {
        owner[row] = block;
      } else {
        parent[root_of(parent, block)] = root_of(parent, owner[row]);
      }
    }
  };
  for (std::size_t b = 0; b < blocks.size(); ++b) {
    touch(b, blocks[b].prefix_begin, blocks[b].prefix_end);
    touch(b, blocks[b].begin, blocks[b].end);
  }
  std::vector<std::vector<std::size_t>> by_root(blocks.size()), groups;
  for (std::size_t b = 0; b < blocks.size(); ++b) by_root[root_of(parent, b)].push_back(b);
  for (auto& group : by_root) {
    if (!group.empty()) groups.push_back(std::move(group));
  }
  return groups;
}

void check_blocks(const std::vector<AttentionBlock>& blocks, std::int64_t num_rows) {
  std::int64_t last_end = 0;
  for (const auto& block : blocks) {
    UQA_CHECK(last_end <= block.begin && block.begin <= block.end && block.end <= num_rows, ErrorCode::kInternal,
              "attention block [{}, {}) must follow row {} and end within {} rows", block.begin, block.end, last_end, num_rows);
    UQA_CHECK(0 <= block.prefix_begin && block.prefix_begin <= block.prefix_end &&
                  (block.prefix_begin == block.prefix_end || block.prefix_end <= block.begin),
              ErrorCode::kInternal, "attention prefix [{}, {}) must end before its block begins at {}", block.prefix_begin, block.prefix_end,
              block.begin);
    last_end = block.end;
  }
}

/// A range of key/value heads of one group of blocks.
struct Task {
  std::size_t group;
  std::int64_t first_head, num_heads;
};

/// Runs `body(task)` over groups x head ranges, the costly ones first, each on one thread (GEMMs inside are then serial).
template <typename Body>
void for_each_task(const AttentionPlan& plan, std::int64_t num_kv_heads, const Body& body) {
  const auto num_groups = static_cast<std::int64_t>(plan.groups.size());
  if (num_groups == 0) return;
  const std::int64_t num_threads = at::get_num_threads();
  const std::int64_t splits = std::clamp<std::int64_t>((2 * num_threads + num_groups - 1) / num_groups, 1, num_threads == 1 ? 1 : num_kv_heads);
  std::vector<std::int64_t> cost(plan.groups.size(), 0);
  for (std::size_t g = 0; g < plan.groups.size(); ++g) {
    for (const auto b : plan.groups[g]) {
      const auto& block = plan.blocks[b];
      cost[g] += (block.end - block.begin) * (block.end - block.begin + block.prefix_end - block.prefix_begin);
    }
  }
  std::vector<std::size_t> order(plan.groups.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) { return cost[a] > cost[b]; });
  std::vector<Task> tasks;
  for (const auto g : order) {
    for (std::int64_t s = 0; s < splits; ++s) {
      const auto first = num_kv_heads * s / splits, last = num_kv_heads * (s + 1) / splits;
      tasks.push_back({.group = g, .first_head = first, .num_heads = last - first});
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

/// One tile of queries of one block: which rows it reads.
struct Tile {
  const AttentionBlock& block;
  std::int64_t first_query, num_queries;  ///< within the block
  [[nodiscard]] std::int64_t prefix() const { return block.prefix_end - block.prefix_begin; }
  [[nodiscard]] std::int64_t num_keys() const { return prefix() + first_query + num_queries; }
  [[nodiscard]] std::int64_t num_visible(std::int64_t query) const { return prefix() + first_query + query + 1; }
  [[nodiscard]] std::int64_t row() const { return block.begin + first_query; }

  /// Keys (or values) that the tile sees, prefix first: [h, s, D].
  [[nodiscard]] Tensor keys(const Tensor& x, const Task& task) const {
    const auto own = num_keys() - prefix();
    if (prefix() == 0 || block.prefix_end == block.begin) {
      return head_rows(x, prefix() == 0 ? block.begin : block.prefix_begin, num_keys(), task.first_head, 1, task.num_heads);
    }
    return at::cat({head_rows(x, block.prefix_begin, prefix(), task.first_head, 1, task.num_heads),
                    head_rows(x, block.begin, own, task.first_head, 1, task.num_heads)},
                   1);
  }
  /// Adds [h, s, D] to the rows that keys() read.
  void add_to_keys(const Tensor& sum, const Tensor& grad_hsD, const Task& task) const {
    if (prefix() > 0) {
      head_rows(sum, block.prefix_begin, prefix(), task.first_head, 1, task.num_heads).add_(grad_hsD.narrow(1, 0, prefix()));
    }
    head_rows(sum, block.begin, num_keys() - prefix(), task.first_head, 1, task.num_heads)
        .add_(grad_hsD.narrow(1, prefix(), num_keys() - prefix()));
  }
};

template <typename Body>
void for_each_tile(const AttentionPlan& plan, const Task& task, const Body& body) {
  for (const auto b : plan.groups[task.group]) {
    const auto& block = plan.blocks[b];
    const auto length = block.end - block.begin;
    for (std::int64_t first = 0; first < length; first += kQueryTile) {
      body(b, Tile{.block = block, .first_query = first, .num_queries = std::min(kQueryTile, length - first)});
    }
  }
}

/// Draws the factors of one row if there is dropout; nullptr otherwise.
const float* draw_factors(const AttentionPlan& plan, std::size_t block, std::int64_t position, std::int64_t head, std::int64_t n,
                          std::vector<float>& buffer) {
  if (plan.dropout.p == 0) return nullptr;
  buffer.resize(static_cast<std::size_t>(n));
  dropout_factors(plan.dropout.key, {.sample_id = plan.dropout.sample_ids[block], .position = position, .lane = head}, plan.dropout.p,
                  buffer.data(), n);
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
    for_each_tile(plan, task, [&](std::size_t block, const Tile& tile) {
      const auto k_hsD = tile.keys(k_TKD, task), v_hsD = tile.keys(v_TKD, task);
      for (std::int64_t g = 0; g < group_size; ++g) {
        const auto first_head = task.first_head * group_size + g;
        const auto q_hiD = head_rows(q_TND, tile.row(), tile.num_queries, first_head, group_size, task.num_heads);
        auto p_his = at::bmm(q_hiD, k_hsD.transpose(1, 2));
        auto* p = p_his.template mutable_data_ptr<T>();
        for (std::int64_t h = 0; h < task.num_heads; ++h) {
          const auto head = first_head + h * group_size;
          for (std::int64_t i = 0; i < tile.num_queries; ++i) {
            T* row = p + (h * tile.num_queries + i) * tile.num_keys();
            const auto visible = tile.num_visible(i);
            const auto* keep = draw_factors(plan, block, tile.first_query + i, head, visible, factors);
            log_sum[(tile.row() + i) * num_heads + head] =
                softmax_row(row, visible, tile.num_keys(), static_cast<Compute>(plan.scale), keep, scratch);
          }
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
    for_each_tile(plan, task, [&](std::size_t block, const Tile& tile) {
      const auto k_hsD = tile.keys(k_TKD, task), v_hsD = tile.keys(v_TKD, task);
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
          for (std::int64_t i = 0; i < tile.num_queries; ++i) {
            const auto offset = (h * tile.num_queries + i) * tile.num_keys();
            const auto row = (tile.row() + i) * num_heads + head;
            Compute delta = 0;  // sum over keys of p dp, which equals that over features of out dout
            for (std::int64_t d = 0; d < width; ++d) {
              delta += static_cast<Compute>(out[row * width + d]) * static_cast<Compute>(dout[row * width + d]);
            }
            const auto visible = tile.num_visible(i);
            const auto* keep = draw_factors(plan, block, tile.first_query + i, head, visible, factors);
            softmax_row_backward(p + offset, dp + offset, visible, tile.num_keys(), static_cast<Compute>(plan.scale), log_sum[row], delta, keep,
                                 scratch);
          }
        }
        tile.add_to_keys(grads.dv_TKD, at::bmm(p_his.transpose(1, 2), dout_hiD), task);
        tile.add_to_keys(grads.dk_TKD, at::bmm(dp_his.transpose(1, 2), q_hiD), task);
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
  auto plan = c10::make_intrusive<AttentionPlan>();
  plan->blocks = blocks;
  plan->groups = connected_groups(blocks, q_TND.size(0));
  plan->dropout = dropout;
  plan->scale = scale;
  return PackedAttention::apply(q_TND, k_TKD, v_TKD, plan);
}

}  // namespace uqa::models
