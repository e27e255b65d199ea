#include "models/layers/silu_attention.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <functional>
#include <optional>

#include "core/error.h"
#include "models/layers/no_autocast.h"
#include "models/layers/simd.h"
#include "models/plain/silu_attention.h"

#include <ATen/Parallel.h>

// T packed rows, N heads, A width of q and k, L width of v; inside a task: h heads, i query rows, s key rows.

namespace uqa::models {
namespace {

constexpr std::int64_t kQueryTile = 128;         // queries of one tile: keys behind the tile are skipped
constexpr std::int64_t kTaskScores = 64 * 1024;  // most scores of a tile in all heads of a task: they stay in a core's cache

struct AttentionPlan : torch::CustomClassHolder {
  std::vector<std::int64_t> cu_seqlens;
  std::vector<std::int64_t> first_bucket;  ///< per sequence: where its buckets begin
  std::vector<double> scales;
  std::shared_ptr<const TimeBuckets> buckets;
};

/// Where each sequence's buckets begin; [B + 1].
std::vector<std::int64_t> bucket_begins(const std::vector<std::int64_t>& cu_seqlens) {
  std::vector<std::int64_t> begins{0};
  for (std::size_t b = 0; b + 1 < cu_seqlens.size(); ++b) {
    const auto length = cu_seqlens[b + 1] - cu_seqlens[b];
    begins.push_back(begins.back() + length * (length + 1) / 2);
  }
  return begins;
}

/// Smallest |dt| of each bucket. Equal neighbours: the first of them is never reached.
std::array<std::uint64_t, kLastTimeBucket + 1> first_seconds() {
  std::array<std::uint64_t, kLastTimeBucket + 1> first{};
  for (std::size_t b = 1; b < first.size(); ++b) first[b] = static_cast<std::uint64_t>(std::ceil(std::exp(0.301 * static_cast<double>(b))));
  return first;
}

/// A range of heads of one sequence.
struct Task {
  std::size_t sequence = 0;
  std::int64_t begin = 0, num_rows = 0;
  std::int64_t first_head = 0, num_heads = 0;
  [[nodiscard]] std::int64_t num_scores() const { return num_heads * std::min(kQueryTile, num_rows) * num_rows; }
  [[nodiscard]] std::int64_t cost() const { return num_heads * num_rows * num_rows; }
};

/// The costly ones first. They are cut by the sequence's length alone: its results depend neither on threads nor on neighbours.
std::vector<Task> make_tasks(const AttentionPlan& plan, std::int64_t num_heads) {
  std::vector<Task> tasks;
  for (std::size_t b = 0; b + 1 < plan.cu_seqlens.size(); ++b) {
    const auto num_rows = plan.cu_seqlens[b + 1] - plan.cu_seqlens[b];
    if (num_rows == 0) continue;
    const auto most_heads = std::clamp<std::int64_t>(kTaskScores / (std::min(kQueryTile, num_rows) * num_rows), 1, num_heads);
    for (std::int64_t head = 0; head < num_heads; head += most_heads) {
      tasks.push_back({.sequence = b,
                       .begin = plan.cu_seqlens[b],
                       .num_rows = num_rows,
                       .first_head = head,
                       .num_heads = std::min(most_heads, num_heads - head)});
    }
  }
  std::ranges::stable_sort(tasks, std::greater{}, &Task::cost);
  return tasks;
}

/// Runs body(index, scratch_BS) over the tasks, each on one thread (GEMMs inside are then serial). `scratch_BS`: a thread's own `num_buffers` rows,
/// each large enough for the scores of any task's tile.
template <typename Body>
void for_each_task(const std::vector<Task>& tasks, const at::TensorOptions& options, std::int64_t num_buffers, const Body& body) {
  if (tasks.empty()) return;
  const auto largest = std::ranges::max(tasks, {}, &Task::num_scores).num_scores();
  std::atomic<std::size_t> next{0};
  const auto num_workers = std::min<std::int64_t>(at::get_num_threads(), static_cast<std::int64_t>(tasks.size()));
  at::parallel_for(0, num_workers, 1, [&](std::int64_t, std::int64_t) {
    const at::NoGradGuard no_grad;  // thread-local: worker threads do not inherit it
    const auto scratch_BS = at::empty({num_buffers, largest}, options);
    for (auto i = next++; i < tasks.size(); i = next++) body(i, scratch_BS);
  });
}

/// Queries [first, first + num_queries) of a task's sequence, which read its keys [0, num_keys()).
struct Tile {
  const Task& task;
  std::int64_t first, num_queries;
  [[nodiscard]] std::int64_t num_keys() const { return first + num_queries; }
  /// x [T, N, *] -> the task's heads of the tile's queries [h, i, *] or keys [h, s, *]; no copy.
  [[nodiscard]] Tensor queries(const Tensor& x) const { return rows(x, first, num_queries); }
  [[nodiscard]] Tensor keys(const Tensor& x) const { return rows(x, 0, num_keys()); }
  /// A place for the scores [h, i, s] in one row of a thread's scratch.
  [[nodiscard]] Tensor scores(const Tensor& scratch_S) const {
    return scratch_S.as_strided({task.num_heads, num_queries, num_keys()}, {num_queries * num_keys(), num_keys(), 1});
  }

 private:
  [[nodiscard]] Tensor rows(const Tensor& x, std::int64_t row, std::int64_t num_rows) const {
    return x.as_strided({task.num_heads, num_rows, x.size(2)}, {x.stride(1), x.stride(0), 1},
                        x.storage_offset() + (task.begin + row) * x.stride(0) + task.first_head * x.stride(1));
  }
};

/// The last tile comes first: it reads every key, so it writes the gradients of keys that the other tiles add to.
template <typename Body>
void for_each_tile(const Task& task, const Body& body) {
  for (auto first = (task.num_rows - 1) / kQueryTile * kQueryTile; first >= 0; first -= kQueryTile) {
    body(Tile{.task = task, .first = first, .num_queries = std::min(kQueryTile, task.num_rows - first)});
  }
}

template <typename T>
UQA_INLINE T sigmoid(T x) {
  return 1 / (1 + vector_exp(-x));
}

template <typename T>
UQA_INLINE void weights_body(T* row, const T* bias, std::int64_t visible, T scale) {
#pragma omp simd
  for (std::int64_t s = 0; s < visible; ++s) {
    const T x = row[s] + bias[s];
    row[s] = scale * x * sigmoid(x);
  }
}

template <typename T>
UQA_INLINE void backward_body(T* row, T* grad, const T* bias, std::int64_t visible, T scale) {
#pragma omp simd
  for (std::int64_t s = 0; s < visible; ++s) {
    const T x = row[s] + bias[s], gate = sigmoid(x), silu = x * gate;
    row[s] = scale * silu;
    grad[s] *= scale * (gate + silu * (1 - gate));
  }
}

/// row[0, visible) becomes scale * SiLU(row + bias).
UQA_SIMD_CLONES void weights_row(float* row, const float* bias, std::int64_t visible, float scale) { weights_body(row, bias, visible, scale); }
void weights_row(double* row, const double* bias, std::int64_t visible, double scale) { weights_body(row, bias, visible, scale); }

/// From scores in `row` and the gradient of the weights in `grad`: `row` becomes the weights, `grad` the gradient of the scores.
UQA_SIMD_CLONES void backward_row(float* row, float* grad, const float* bias, std::int64_t visible, float scale) {
  backward_body(row, grad, bias, visible, scale);
}
void backward_row(double* row, double* grad, const double* bias, std::int64_t visible, double scale) { backward_body(row, grad, bias, visible, scale); }

/// Bias of one query's visible keys at a time.
template <typename T>
class BiasRows {
 public:
  BiasRows(const AttentionPlan& plan, const Task& task, const AttentionBias& bias) : row_(static_cast<std::size_t>(task.num_rows)) {
    if (bias.position_w.defined()) {
      same_row_ = bias.position_w.size(0) / 2;
      position_w_ = bias.position_w.const_data_ptr<T>() + same_row_;
    }
    if (bias.time_w.defined()) {
      time_w_ = bias.time_w.const_data_ptr<T>();
      buckets_ = plan.buckets->data() + plan.first_bucket[task.sequence];
    }
  }

  /// Bias of query t and keys 0 ... t; until the next call.
  [[nodiscard]] const T* of_query(std::int64_t t) {
    if (time_w_ == nullptr) return position_w_ == nullptr ? row_.data() : position_w_ - t;
    const auto* bucket = buckets_ + t * (t + 1) / 2;
    for (std::int64_t s = 0; s <= t; ++s) row_[static_cast<std::size_t>(s)] = time_w_[bucket[s]] + (position_w_ == nullptr ? 0 : position_w_[s - t]);
    return row_.data();
  }

  /// Adds the gradient of query t's visible scores to sums laid out as the weights are (of undefined weights: nullptr).
  void add_gradient(std::int64_t t, const T* dscores, T* dposition_w, T* dtime_w) const {
    if (dposition_w != nullptr) {
      T* sums = dposition_w + same_row_ - t;
      for (std::int64_t s = 0; s <= t; ++s) sums[s] += dscores[s];
    }
    if (dtime_w != nullptr) {
      const auto* bucket = buckets_ + t * (t + 1) / 2;
      for (std::int64_t s = 0; s <= t; ++s) dtime_w[bucket[s]] += dscores[s];
    }
  }

 private:
  std::int64_t same_row_ = 0;      ///< index of distance 0
  const T* position_w_ = nullptr;  ///< at distance 0; the weight of distance d lies d elements before
  const T* time_w_ = nullptr;
  const std::uint8_t* buckets_ = nullptr;
  std::vector<T> row_;  ///< zeros if there is no bias
};

template <typename T>
void attend(const AttentionPlan& plan, const Tensor& q_TNA, const Tensor& k_TNA, const Tensor& v_TNL, const AttentionBias& bias, const Tensor& out_TNL) {
  const auto tasks = make_tasks(plan, q_TNA.size(1));
  for_each_task(tasks, q_TNA.options(), 1, [&](std::size_t index, const Tensor& scratch_BS) {
    const auto& task = tasks[index];
    const auto scale = static_cast<T>(plan.scales[task.sequence]);
    BiasRows<T> bias_rows(plan, task, bias);
    for_each_tile(task, [&](const Tile& tile) {
      auto p_his = tile.scores(scratch_BS[0]);
      at::bmm_out(p_his, tile.queries(q_TNA), tile.keys(k_TNA).transpose(1, 2));
      auto* const p = p_his.template mutable_data_ptr<T>();
      for (std::int64_t i = 0; i < tile.num_queries; ++i) {
        const auto visible = tile.first + i + 1;
        const T* of_query = bias_rows.of_query(tile.first + i);
        for (std::int64_t h = 0; h < task.num_heads; ++h) {
          T* row = p + (h * tile.num_queries + i) * tile.num_keys();
          weights_row(row, of_query, visible, scale);
          std::fill(row + visible, row + tile.num_keys(), T{0});
        }
      }
      auto out_hiL = tile.queries(out_TNL);
      at::bmm_out(out_hiL, p_his, tile.keys(v_TNL));
    });
  });
}

struct AttentionGrads {
  Tensor dq_TNA, dk_TNA, dv_TNL;
  Tensor dposition_w, dtime_w;  ///< undefined without their weights
};

template <typename T>
AttentionGrads attend_backward(const AttentionPlan& plan, const Tensor& q_TNA, const Tensor& k_TNA, const Tensor& v_TNL, const AttentionBias& bias,
                               const Tensor& dout_TNL) {
  AttentionGrads grads{.dq_TNA = at::empty(q_TNA.sizes(), q_TNA.options()),
                             .dk_TNA = at::empty(k_TNA.sizes(), k_TNA.options()),
                             .dv_TNL = at::empty(v_TNL.sizes(), v_TNL.options())};
  const auto tasks = make_tasks(plan, q_TNA.size(1));
  // The weights' gradients are summed task by task, then over the tasks in their order: the same for any number of threads.
  const auto sums_of_tasks = [&](const Tensor& w) {
    return w.defined() ? at::zeros({static_cast<std::int64_t>(tasks.size()), w.size(0)}, w.options()) : Tensor();
  };
  const auto dposition_KW = sums_of_tasks(bias.position_w), dtime_KW = sums_of_tasks(bias.time_w);
  const auto sums_of_task = [](const Tensor& sums_KW, std::size_t index) {
    return sums_KW.defined() ? sums_KW.mutable_data_ptr<T>() + static_cast<std::int64_t>(index) * sums_KW.size(1) : nullptr;
  };
  for_each_task(tasks, q_TNA.options(), 2, [&](std::size_t index, const Tensor& scratch_BS) {
    const auto& task = tasks[index];
    const auto scale = static_cast<T>(plan.scales[task.sequence]);
    BiasRows<T> bias_rows(plan, task, bias);
    T *const dposition_w = sums_of_task(dposition_KW, index), *const dtime_w = sums_of_task(dtime_KW, index);
    for_each_tile(task, [&](const Tile& tile) {
      const auto q_hiA = tile.queries(q_TNA), k_hsA = tile.keys(k_TNA), dout_hiL = tile.queries(dout_TNL);
      auto p_his = tile.scores(scratch_BS[0]), dp_his = tile.scores(scratch_BS[1]);
      at::bmm_out(p_his, q_hiA, k_hsA.transpose(1, 2));
      at::bmm_out(dp_his, dout_hiL, tile.keys(v_TNL).transpose(1, 2));
      auto* const p = p_his.template mutable_data_ptr<T>();
      auto* const dp = dp_his.template mutable_data_ptr<T>();
      for (std::int64_t i = 0; i < tile.num_queries; ++i) {
        const auto visible = tile.first + i + 1;
        const T* of_query = bias_rows.of_query(tile.first + i);
        for (std::int64_t h = 0; h < task.num_heads; ++h) {
          const auto row = (h * tile.num_queries + i) * tile.num_keys();
          backward_row(p + row, dp + row, of_query, visible, scale);
          bias_rows.add_gradient(tile.first + i, dp + row, dposition_w, dtime_w);
          for (auto* x : {p, dp}) std::fill(x + row + visible, x + row + tile.num_keys(), T{0});
        }
      }
      auto dq_hiA = tile.queries(grads.dq_TNA), dk_hsA = tile.keys(grads.dk_TNA), dv_hsL = tile.keys(grads.dv_TNL);
      const bool first_written = tile.num_keys() == task.num_rows;
      at::bmm_out(dq_hiA, dp_his, k_hsA);
      if (first_written) {
        at::bmm_out(dk_hsA, dp_his.transpose(1, 2), q_hiA);
        at::bmm_out(dv_hsL, p_his.transpose(1, 2), dout_hiL);
      } else {
        dk_hsA.baddbmm_(dp_his.transpose(1, 2), q_hiA);
        dv_hsL.baddbmm_(p_his.transpose(1, 2), dout_hiL);
      }
    });
  });
  if (dposition_KW.defined()) grads.dposition_w = dposition_KW.sum(0);
  if (dtime_KW.defined()) grads.dtime_w = dtime_KW.sum(0);
  return grads;
}

/// Head features must lie side by side; rows and heads may have any stride (views into one projection).
Tensor with_unit_stride(const Tensor& x) { return x.stride(2) == 1 ? x : x.contiguous(); }

struct SiluAttention : torch::autograd::Function<SiluAttention> {
  /// Autograd takes an absent tensor as an optional only.
  static Tensor forward(torch::autograd::AutogradContext* ctx, const Tensor& q, const Tensor& k, const Tensor& v,
                        const std::optional<Tensor>& optional_position_w, const std::optional<Tensor>& optional_time_w,
                        const c10::intrusive_ptr<AttentionPlan>& plan) {
    const NoAutocast no_autocast;
    const auto position_w = optional_position_w.value_or(Tensor()), time_w = optional_time_w.value_or(Tensor());
    const auto q_TNA = with_unit_stride(q), k_TNA = with_unit_stride(k), v_TNL = with_unit_stride(v);
    auto out_TNL = at::empty(v_TNL.sizes(), v_TNL.options());
    AT_DISPATCH_FLOATING_TYPES(q_TNA.scalar_type(), "silu_attention", [&] {
      attend<scalar_t>(*plan, q_TNA, k_TNA, v_TNL, {.position_w = position_w, .time_w = time_w}, out_TNL);
    });
    ctx->save_for_backward({q_TNA, k_TNA, v_TNL, position_w, time_w});
    ctx->saved_data["plan"] = c10::IValue::make_capsule(plan);
    return out_TNL;
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx, const torch::autograd::variable_list& grad) {
    const NoAutocast no_autocast;
    const auto saved = ctx->get_saved_variables();
    const auto plan = c10::static_intrusive_pointer_cast<AttentionPlan>(ctx->saved_data["plan"].toCapsule());
    AttentionGrads grads;
    AT_DISPATCH_FLOATING_TYPES(saved[0].scalar_type(), "silu_attention_backward", [&] {
      grads = attend_backward<scalar_t>(*plan, saved[0], saved[1], saved[2], {.position_w = saved[3], .time_w = saved[4]}, with_unit_stride(grad[0]));
    });
    return {grads.dq_TNA, grads.dk_TNA, grads.dv_TNL, grads.dposition_w, grads.dtime_w, {}};
  }
};

void check_bias(const AttentionBias& bias, const PackedLayout& layout, at::ScalarType type) {
  std::int64_t longest = 0;
  for (std::size_t b = 0; b + 1 < layout.cu_seqlens.size(); ++b) longest = std::max(longest, layout.cu_seqlens[b + 1] - layout.cu_seqlens[b]);
  const auto& position_w = bias.position_w;
  UQA_CHECK(!position_w.defined() || (position_w.dim() == 1 && position_w.scalar_type() == type && position_w.size(0) % 2 == 1 &&
                                      position_w.size(0) >= 2 * longest - 1),
            ErrorCode::kInternal, "attention: position bias [{}] must be an odd number of weights of q's dtype, at least 2 * {} - 1",
            fmt::join(position_w.sizes(), ", "), longest);
  const auto& time_w = bias.time_w;
  UQA_CHECK(!time_w.defined() || (time_w.dim() == 1 && time_w.scalar_type() == type && time_w.size(0) == kLastTimeBucket + 1), ErrorCode::kInternal,
            "attention: time bias [{}] must be {} weights of q's dtype", fmt::join(time_w.sizes(), ", "), kLastTimeBucket + 1);
  const auto num_pairs = bucket_begins(layout.cu_seqlens).back();
  UQA_CHECK(!time_w.defined() || (bias.buckets != nullptr && static_cast<std::int64_t>(bias.buckets->size()) == num_pairs), ErrorCode::kInternal,
            "attention: {} time buckets for {} pairs of rows, one each is required", bias.buckets == nullptr ? 0 : bias.buckets->size(), num_pairs);
}

}  // namespace

std::shared_ptr<const TimeBuckets> time_buckets(const PackedLayout& layout) {
  UQA_CHECK(static_cast<std::int64_t>(layout.timestamps.size()) == layout.num_rows(), ErrorCode::kInternal,
            "time buckets: {} timestamps for {} rows, one each is required", layout.timestamps.size(), layout.num_rows());
  static const auto first = first_seconds();
  const auto begins = bucket_begins(layout.cu_seqlens);
  auto buckets = std::make_shared<TimeBuckets>(static_cast<std::size_t>(begins.back()));
  at::parallel_for(0, layout.num_sequences(), 1, [&](std::int64_t first_sequence, std::int64_t last_sequence) {
    for (auto b = static_cast<std::size_t>(first_sequence); b < static_cast<std::size_t>(last_sequence); ++b) {
      const auto* times = layout.timestamps.data() + layout.cu_seqlens[b];
      const auto length = layout.cu_seqlens[b + 1] - layout.cu_seqlens[b];
      auto* out = buckets->data() + begins[b];
      std::size_t bucket = 0;  // neighbouring pairs lie in the same bucket or near it: walking there beats a logarithm
      for (std::int64_t t = 0; t < length; ++t) {
        const auto now = times[std::min(t + 1, length - 1)];
        for (std::int64_t s = 0; s <= t; ++s) {
          // Unsigned: the difference of any two timestamps fits.
          const auto from = static_cast<std::uint64_t>(std::min(now, times[s])), to = static_cast<std::uint64_t>(std::max(now, times[s]));
          while (bucket + 1 < first.size() && first[bucket + 1] <= to - from) ++bucket;
          while (first[bucket] > to - from) --bucket;
          *out++ = static_cast<std::uint8_t>(bucket);
        }
      }
    }
  });
  return buckets;
}

Tensor silu_attention(const Tensor& q_TNA, const Tensor& k_TNA, const Tensor& v_TNL, const PackedLayout& layout, const std::vector<double>& scales,
                      const AttentionBias& bias) {
  UQA_CHECK(q_TNA.dim() == 3 && v_TNL.dim() == 3 && q_TNA.sizes() == k_TNA.sizes() && q_TNA.size(0) == v_TNL.size(0) &&
                q_TNA.size(1) == v_TNL.size(1) && q_TNA.size(0) == layout.num_rows(),
            ErrorCode::kInternal, "attention: q [{}], k [{}], v [{}] do not fit a layout of {} rows", fmt::join(q_TNA.sizes(), ", "),
            fmt::join(k_TNA.sizes(), ", "), fmt::join(v_TNL.sizes(), ", "), layout.num_rows());
  UQA_CHECK(q_TNA.scalar_type() == k_TNA.scalar_type() && q_TNA.scalar_type() == v_TNL.scalar_type(), ErrorCode::kInternal,
            "attention: q, k and v must have one dtype");
  UQA_CHECK(static_cast<std::int64_t>(scales.size()) == layout.num_sequences(), ErrorCode::kInternal,
            "attention: {} scales for {} sequences, one each is required", scales.size(), layout.num_sequences());
  check_bias(bias, layout, q_TNA.scalar_type());
  if (!q_TNA.is_cpu()) return plain::silu_attention(q_TNA, k_TNA, v_TNL, layout, scales, bias);
  auto plan = c10::make_intrusive<AttentionPlan>();
  plan->cu_seqlens = layout.cu_seqlens;
  plan->first_bucket = bucket_begins(layout.cu_seqlens);
  plan->scales = scales;
  plan->buckets = bias.buckets;
  const auto if_defined = [](const Tensor& w) { return w.defined() ? std::optional(w) : std::nullopt; };
  return SiluAttention::apply(q_TNA, k_TNA, v_TNL, if_defined(bias.position_w), if_defined(bias.time_w), plan);
}

}  // namespace uqa::models
