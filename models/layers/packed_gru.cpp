#include "models/layers/packed_gru.h"

#include <algorithm>
#include <functional>
#include <numeric>

#include "core/error.h"
#include "models/layers/gru_step.h"
#include "models/layers/no_autocast.h"
#include "models/plain/recurrent.h"

#include <ATen/Parallel.h>

// T packed rows, F width of the state, G = 3 F gates, S = 4 F values saved for backward.

namespace uqa::models {
namespace {

constexpr std::int64_t kFullTile = 8;                 // users that make one pass over the weights worth its memory traffic
constexpr std::int64_t kStridePad = 16;               // users a power of two apart would fall into the same sets of a cache
constexpr std::int64_t kWeightsOfOneCore = 1 << 19;   // more recurrent weights than a core's own cache keeps

/// Users that one thread takes through time, longest first, so that those alive at a step are the first ones.
struct Group {
  std::vector<std::int64_t> first_rows;
  std::vector<std::int64_t> lengths;
  [[nodiscard]] std::int64_t num_users() const { return static_cast<std::int64_t>(lengths.size()); }
  [[nodiscard]] std::int64_t num_steps() const { return lengths.empty() ? 0 : lengths.front(); }
  [[nodiscard]] std::int64_t num_alive(std::int64_t step) const {
    return std::lower_bound(lengths.begin(), lengths.end(), step, std::greater<>()) - lengths.begin();
  }
};

/// Through steps [0, apart) threads take one group each and do not wait for each other. From there on, large weights would be fetched for too few
/// users: threads share the panels of every step instead.
struct GruPlan : torch::CustomClassHolder {
  std::vector<Group> groups;
  std::int64_t apart = 0;
  std::int64_t num_steps = 0;
};

c10::intrusive_ptr<GruPlan> make_plan(const std::vector<std::int64_t>& cu_seqlens, std::int64_t width) {
  std::vector<std::size_t> order(cu_seqlens.size() - 1);
  std::iota(order.begin(), order.end(), std::size_t{0});
  const auto length = [&](std::size_t b) { return cu_seqlens[b + 1] - cu_seqlens[b]; };
  std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) { return length(a) > length(b); });
  const auto num_users = static_cast<std::int64_t>(order.size());
  const std::int64_t num_threads = at::get_num_threads();
  const bool large = 3 * width * width > kWeightsOfOneCore && num_threads > 1;
  const bool fills_tiles = num_users >= kFullTile * num_threads;
  auto plan = c10::make_intrusive<GruPlan>();
  plan->num_steps = num_users == 0 ? 0 : length(order.front());
  plan->apart = plan->num_steps;
  if (large) plan->apart = fills_tiles ? length(order[static_cast<std::size_t>(kFullTile * num_threads - 1)]) : 0;
  const auto num_groups = large && !fills_tiles ? 1 : std::clamp<std::int64_t>(num_users, 1, num_threads);
  plan->groups.resize(static_cast<std::size_t>(num_groups));
  for (std::size_t i = 0; i < order.size(); ++i) {
    auto& group = plan->groups[i % plan->groups.size()];
    group.first_rows.push_back(cu_seqlens[order[i]]);
    group.lengths.push_back(length(order[i]));
  }
  return plan;
}

enum class Time { kForward, kBack };

/// Calls panel(g, step, p) for every group g, step it has and panel p in [0, num_panels), a step's panels after all of the step it builds on.
template <typename Panel>
void go_through_time(const GruPlan& plan, Time direction, std::int64_t num_panels, const Panel& panel) {
  const auto num_groups = static_cast<std::int64_t>(plan.groups.size());
  const auto steps_of = [&](std::int64_t g) { return plan.groups[static_cast<std::size_t>(g)].num_steps(); };
  const auto go_apart = [&] {
    at::parallel_for(0, num_groups, 1, [&](std::int64_t begin, std::int64_t end) {
      for (auto g = begin; g < end; ++g) {
        const auto num_steps = std::min(plan.apart, steps_of(g));
        for (std::int64_t i = 0; i < num_steps; ++i) {
          for (std::int64_t p = 0; p < num_panels; ++p) panel(g, direction == Time::kForward ? i : num_steps - 1 - i, p);
        }
      }
    });
  };
  const auto share = [&](std::int64_t step) {
    at::parallel_for(0, num_panels, 1, [&](std::int64_t begin, std::int64_t end) {
      for (auto p = begin; p < end; ++p) {
        for (std::int64_t g = 0; g < num_groups; ++g) {
          if (step < steps_of(g)) panel(g, step, p);
        }
      }
    });
  };
  if (direction == Time::kForward) {
    go_apart();
    for (auto step = plan.apart; step < plan.num_steps; ++step) share(step);
  } else {
    for (auto step = plan.num_steps - 1; step >= plan.apart; --step) share(step);
    go_apart();
  }
}

/// What a group hands from step to step: a row of values a user, in two buffers that take turns.
template <typename T>
class Handed {
 public:
  Handed(const Group& group, std::int64_t width) : size_(group.num_users() * stride_of(width)), values_(static_cast<std::size_t>(2 * size_)) {}
  static std::int64_t stride_of(std::int64_t width) { return width + kStridePad; }
  [[nodiscard]] T* at_step(std::int64_t step) { return values_.data() + step % 2 * size_; }

 private:
  std::int64_t size_;
  std::vector<T> values_;
};

/// x [..., n] with zeros behind it, as [..., panels, columns].
Tensor in_panels(const Tensor& x, std::int64_t columns) {
  const auto missing = (columns - x.size(-1) % columns) % columns;
  return at::constant_pad_nd(x, {0, missing}).unflatten(-1, {-1, columns});
}

template <typename T>
void forward_through_time(const GruPlan& plan, const Tensor& x_TG, const Tensor& weight_hh, const Tensor& saved_TS, const Tensor& out_TF) {
  const auto width = weight_hh.size(1);
  const auto panels = in_panels(weight_hh.view({3, width, width}).transpose(1, 2), kGruFeatures).permute({2, 1, 0, 3}).contiguous();
  const auto* weights = panels.const_data_ptr<T>();
  const auto run = gru_step_functions<T>().forward;
  std::vector<Handed<T>> states;
  for (const auto& group : plan.groups) states.emplace_back(group, width);
  const GruForwardStep<T> all{.width = width,
                              .stride = Handed<T>::stride_of(width),
                              .x_TG = x_TG.const_data_ptr<T>(),
                              .saved_TS = saved_TS.mutable_data_ptr<T>(),
                              .out_TF = out_TF.mutable_data_ptr<T>()};
  go_through_time(plan, Time::kForward, panels.size(0), [&](std::int64_t g, std::int64_t step, std::int64_t p) {
    const auto& group = plan.groups[static_cast<std::size_t>(g)];
    auto& state = states[static_cast<std::size_t>(g)];
    auto s = all;
    s.first_rows = group.first_rows.data();
    s.num_users = group.num_alive(step);
    s.step = step;
    s.before = state.at_step(step + 1);
    s.after = state.at_step(step);
    s.weights = weights + p * width * kGruForwardColumns;
    s.feature = p * kGruFeatures;
    run(s);
  });
}

struct GateGrads {
  Tensor dx_TG;
  Tensor dcandidate_TF;
};

template <typename T>
void backward_through_time(const GruPlan& plan, const Tensor& weight_hh, const Tensor& saved_TS, const Tensor& out_TF, const Tensor& dout_TF,
                           const GateGrads& grads) {
  const auto width = weight_hh.size(1);
  const auto panels = in_panels(weight_hh, kGruBackwardColumns).transpose(0, 1).contiguous();
  const auto* weights = panels.const_data_ptr<T>();
  const auto run = gru_step_functions<T>().backward;
  const std::vector<T> zeros_F(static_cast<std::size_t>(width));
  std::vector<Handed<T>> gates, direct;
  for (const auto& group : plan.groups) {
    gates.emplace_back(group, 3 * width);
    direct.emplace_back(group, width);
  }
  const GruBackwardStep<T> all{.width = width,
                               .gates_stride = Handed<T>::stride_of(3 * width),
                               .direct_stride = Handed<T>::stride_of(width),
                               .saved_TS = saved_TS.const_data_ptr<T>(),
                               .out_TF = out_TF.const_data_ptr<T>(),
                               .dout_TF = dout_TF.const_data_ptr<T>(),
                               .zeros_F = zeros_F.data(),
                               .dx_TG = grads.dx_TG.mutable_data_ptr<T>(),
                               .dcandidate_TF = grads.dcandidate_TF.mutable_data_ptr<T>()};
  go_through_time(plan, Time::kBack, panels.size(0), [&](std::int64_t g, std::int64_t step, std::int64_t p) {
    const auto& group = plan.groups[static_cast<std::size_t>(g)];
    auto s = all;
    s.first_rows = group.first_rows.data();
    s.num_users = group.num_alive(step);
    s.num_carried = group.num_alive(step + 1);
    s.step = step;
    s.gates_behind = gates[static_cast<std::size_t>(g)].at_step(step + 1);
    s.gates = gates[static_cast<std::size_t>(g)].at_step(step);
    s.direct = direct[static_cast<std::size_t>(g)].at_step(0);
    s.weights = weights + p * 3 * width * kGruBackwardColumns;
    s.feature = p * kGruBackwardColumns;
    run(s);
  });
}

/// Gradient of weight_hh over all rows: gate gradients times the states before them.
Tensor weight_gradient(const GruPlan& plan, const GateGrads& grads, const Tensor& out_TF) {
  const auto num_rows = out_TF.size(0), width = out_TF.size(1);
  auto before_TF = at::zeros_like(out_TF);
  if (num_rows > 1) before_TF.narrow(0, 1, num_rows - 1).copy_(out_TF.narrow(0, 0, num_rows - 1));
  for (const auto& group : plan.groups) {
    for (std::size_t i = 0; i < group.lengths.size(); ++i) {
      if (group.lengths[i] > 0) before_TF.select(0, group.first_rows[i]).zero_();
    }
  }
  auto dweight = at::empty({3 * width, width}, out_TF.options());
  auto of_r_and_z = dweight.narrow(0, 0, 2 * width), of_n = dweight.narrow(0, 2 * width, width);
  at::mm_out(of_r_and_z, grads.dx_TG.narrow(1, 0, 2 * width).t(), before_TF);
  at::mm_out(of_n, grads.dcandidate_TF.t(), before_TF);
  return dweight;
}

struct PackedGru : torch::autograd::Function<PackedGru> {
  static Tensor forward(torch::autograd::AutogradContext* ctx, const Tensor& x, const Tensor& weight, const c10::intrusive_ptr<GruPlan>& plan) {
    const NoAutocast no_autocast;
    const auto x_TG = x.contiguous(), weight_hh = weight.contiguous();
    const auto width = weight_hh.size(1);
    auto saved_TS = at::empty({x_TG.size(0), 4 * width}, x_TG.options());
    auto out_TF = at::empty({x_TG.size(0), width}, x_TG.options());
    AT_DISPATCH_FLOATING_TYPES(x_TG.scalar_type(), "packed_gru", [&] { forward_through_time<scalar_t>(*plan, x_TG, weight_hh, saved_TS, out_TF); });
    ctx->save_for_backward({weight_hh, saved_TS, out_TF});
    ctx->saved_data["plan"] = c10::IValue::make_capsule(plan);
    return out_TF;
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx, const torch::autograd::variable_list& grad) {
    const NoAutocast no_autocast;
    const auto saved = ctx->get_saved_variables();
    const auto &weight_hh = saved[0], &saved_TS = saved[1], &out_TF = saved[2];
    const auto plan = c10::static_intrusive_pointer_cast<GruPlan>(ctx->saved_data["plan"].toCapsule());
    const auto dout_TF = grad[0].contiguous();
    const GateGrads grads{.dx_TG = at::empty({out_TF.size(0), weight_hh.size(0)}, out_TF.options()), .dcandidate_TF = at::empty_like(out_TF)};
    AT_DISPATCH_FLOATING_TYPES(out_TF.scalar_type(), "packed_gru_backward",
                               [&] { backward_through_time<scalar_t>(*plan, weight_hh, saved_TS, out_TF, dout_TF, grads); });
    return {grads.dx_TG, ctx->needs_input_grad(1) ? weight_gradient(*plan, grads, out_TF) : Tensor(), {}};
  }
};

}  // namespace

Tensor packed_gru(const Tensor& x_TG, const Tensor& weight_hh, const std::vector<std::int64_t>& cu_seqlens) {
  UQA_CHECK(x_TG.dim() == 2 && weight_hh.dim() == 2 && weight_hh.size(0) == 3 * weight_hh.size(1) && x_TG.size(1) == weight_hh.size(0),
            ErrorCode::kInternal, "gru: x [{}], weight_hh [{}] do not fit", fmt::join(x_TG.sizes(), ", "), fmt::join(weight_hh.sizes(), ", "));
  UQA_CHECK(!cu_seqlens.empty() && cu_seqlens.front() == 0 && cu_seqlens.back() == x_TG.size(0) && std::ranges::is_sorted(cu_seqlens),
            ErrorCode::kInternal, "gru: {} rows do not fit sequences that start at [{}]", x_TG.size(0), fmt::join(cu_seqlens, ", "));
  if (!x_TG.is_cpu()) return plain::packed_gru(x_TG.to(weight_hh.scalar_type()), weight_hh, cu_seqlens);
  return PackedGru::apply(x_TG.to(weight_hh.scalar_type()), weight_hh, make_plan(cu_seqlens, weight_hh.size(1)));
}

}  // namespace uqa::models
