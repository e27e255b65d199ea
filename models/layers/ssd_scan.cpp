#include "models/layers/ssd_scan.h"

#include <algorithm>
#include <atomic>

#include "core/error.h"
#include "models/layers/no_autocast.h"
#include "models/layers/ssd_rows.h"
#include "models/plain/recurrent.h"

#include <ATen/Parallel.h>

// T packed rows, C channels (x, B and C), M heads, P head width, N state size; inside a task: Q rows of a tile, m heads of a block, F = m P
// features of a block. A state is [F, N], so that all heads of a block read and write it in one matrix product: they share B and C.

namespace uqa::models {
namespace {

constexpr std::int64_t kBlockFeatures = 512;  // about; fixed, so that sums over heads do not depend on the number of threads

/// Rows [begin, end) whose tiles follow one another: one sequence, or several short ones that share a tile.
struct Run {
  std::int64_t begin = 0, end = 0;
};

/// Heads [first_head, first_head + num_heads) of a group; `slice` counts the blocks of one group.
struct HeadBlock {
  std::int64_t group = 0, slice = 0;
  std::int64_t first_head = 0, num_heads = 0;
};

struct SsdPlan : torch::CustomClassHolder {
  SsdSizes sizes;
  std::vector<Run> runs;              ///< the longest first
  std::vector<HeadBlock> blocks;
  std::int64_t num_slices = 0;        ///< blocks of one group
  std::vector<std::uint8_t> begins;   ///< [T] 1 where a sequence begins
};

/// Sequences of more rows than a tile are runs of their own, so their results do not depend on their neighbours; shorter ones share tiles.
std::vector<Run> runs_of(const std::vector<std::int64_t>& cu_seqlens, std::int64_t chunk) {
  std::vector<Run> runs;
  Run shared;
  const auto flush = [&] {
    if (shared.end > shared.begin) runs.push_back(shared);
  };
  for (std::size_t b = 0; b + 1 < cu_seqlens.size(); ++b) {
    const auto begin = cu_seqlens[b], end = cu_seqlens[b + 1];
    if (end - shared.begin > chunk) {
      flush();
      shared.begin = begin;
    }
    shared.end = end;
    if (end - begin > chunk) {
      flush();
      shared = {.begin = end, .end = end};
    }
  }
  flush();
  std::stable_sort(runs.begin(), runs.end(), [](const Run& a, const Run& b) { return a.end - a.begin > b.end - b.begin; });
  return runs;
}

c10::intrusive_ptr<SsdPlan> make_plan(const PackedLayout& layout, const SsdSizes& sizes) {
  auto plan = c10::make_intrusive<SsdPlan>();
  plan->sizes = sizes;
  plan->runs = runs_of(layout.cu_seqlens, sizes.chunk);
  plan->begins.resize(static_cast<std::size_t>(layout.num_rows()));
  for (std::size_t b = 0; b + 1 < layout.cu_seqlens.size(); ++b) {
    if (layout.cu_seqlens[b] < layout.cu_seqlens[b + 1]) plan->begins[static_cast<std::size_t>(layout.cu_seqlens[b])] = 1;
  }
  const auto group_heads = sizes.num_heads / sizes.num_groups;
  const auto block_heads = std::clamp<std::int64_t>(kBlockFeatures / sizes.head_dim, 1, group_heads);
  plan->num_slices = (group_heads + block_heads - 1) / block_heads;
  for (std::int64_t group = 0; group < sizes.num_groups; ++group) {
    for (std::int64_t slice = 0; slice < plan->num_slices; ++slice) {
      const auto first = slice * block_heads;
      plan->blocks.push_back(
          {.group = group, .slice = slice, .first_head = group * group_heads + first, .num_heads = std::min(block_heads, group_heads - first)});
    }
  }
  return plan;
}

/// Calls body(run index, block) for runs x blocks, the longest runs first, each on one thread (GEMMs inside are then serial).
template <typename Body>
void for_each_task(const SsdPlan& plan, const Body& body) {
  const auto num_tasks = plan.runs.size() * plan.blocks.size();
  if (num_tasks == 0) return;
  std::atomic<std::size_t> next{0};
  at::parallel_for(0, std::min<std::int64_t>(at::get_num_threads(), static_cast<std::int64_t>(num_tasks)), 1, [&](std::int64_t, std::int64_t) {
    const at::NoGradGuard no_grad;  // thread-local: worker threads do not inherit it
    for (auto i = next++; i < num_tasks; i = next++) body(i / plan.blocks.size(), plan.blocks[i % plan.blocks.size()]);
  });
}

/// What the scan reads; rows of xbc have unit stride, the others are contiguous.
struct ScanInputs {
  Tensor xbc_TC, dt_TM, a_M, skip_M;
};

/// A view of rows [row, row + num_rows) and columns [column, column + num_columns).
Tensor part(const Tensor& x, std::int64_t row, std::int64_t num_rows, std::int64_t column, std::int64_t num_columns) {
  return x.as_strided({num_rows, num_columns}, {x.stride(0), 1}, x.storage_offset() + row * x.stride(0) + column);
}

/// What forward and backward of one tile begin with.
template <typename T>
struct Tile {
  Tile(const SsdPlan& plan, const ScanInputs& in, const HeadBlock& block, std::int64_t begin, std::int64_t end)
      : shape{.rows = end - begin, .heads = block.num_heads, .width = plan.sizes.head_dim},
        num_features(shape.heads * shape.width),
        x{.data = in.xbc_TC.const_data_ptr<T>() + begin * in.xbc_TC.stride(0) + block.first_head * shape.width, .stride = in.xbc_TC.stride(0)},
        dt{.data = in.dt_TM.const_data_ptr<T>() + begin * in.dt_TM.stride(0) + block.first_head, .stride = in.dt_TM.stride(0)},
        skip(in.skip_M.const_data_ptr<T>() + block.first_head),
        b_QN(part(in.xbc_TC, begin, shape.rows, plan.sizes.inner() + block.group * plan.sizes.state_size, plan.sizes.state_size)),
        c_QN(part(in.xbc_TC, begin, shape.rows, plan.sizes.inner() + (plan.sizes.num_groups + block.group) * plan.sizes.state_size,
                  plan.sizes.state_size)),
        xdt_QF(at::empty({shape.rows, num_features}, in.xbc_TC.options())) {
    ssd_decays(dt, in.a_M.const_data_ptr<T>() + block.first_head, plan.begins.data() + begin, shape, decays);
    ssd_scale(x, dt, shape, xdt_QF.template mutable_data_ptr<T>());
  }

  /// x [Q, F], one factor a row and head.
  [[nodiscard]] Tensor scaled(SsdRows<const T> values, const std::vector<T>& factors) const {
    auto out_QF = at::empty({shape.rows, num_features}, xdt_QF.options());
    ssd_scale(values, {.data = factors.data(), .stride = shape.heads}, shape, out_QF.template mutable_data_ptr<T>());
    return out_QF;
  }
  [[nodiscard]] SsdRows<const T> rows_of(const Tensor& x_QF) const { return {.data = x_QF.const_data_ptr<T>(), .stride = num_features}; }
  /// [Q, F] as [m, Q, P], no copy.
  [[nodiscard]] Tensor heads_of(const Tensor& x_QF) const {
    return x_QF.as_strided({shape.heads, shape.rows, shape.width}, {shape.width, x_QF.stride(0), 1}, x_QF.storage_offset());
  }
  /// What is left after the tile of a state [F, N] from before it.
  [[nodiscard]] Tensor left_of(const Tensor& state_FN) const {
    auto left_FN = at::empty(state_FN.sizes(), state_FN.options());
    const SsdTileShape all{.rows = 1, .heads = shape.heads, .width = shape.width * state_FN.size(1)};
    const T* const decay = decays.from_start.data() + (shape.rows - 1) * shape.heads;
    ssd_scale({.data = state_FN.const_data_ptr<T>(), .stride = state_FN.numel()}, {.data = decay, .stride = shape.heads}, all,
              left_FN.template mutable_data_ptr<T>());
    return left_FN;
  }
  /// The state [F, N] after the tile; `state_FN` is that before it, undefined for zeros.
  [[nodiscard]] Tensor next_state(const Tensor& state_FN) const {
    const auto kept_QF = scaled(rows_of(xdt_QF), decays.to_end);
    return state_FN.defined() ? left_of(state_FN).addmm_(kept_QF.t(), b_QN) : at::mm(kept_QF.t(), b_QN);
  }

  SsdTileShape shape;
  std::int64_t num_features;
  SsdRows<const T> x, dt;
  const T* skip;
  Tensor b_QN, c_QN;
  Tensor xdt_QF;  ///< dt x
  SsdDecays<T> decays;
};

template <typename T>
void scan(const SsdPlan& plan, const ScanInputs& in, const Tensor& y_TI) {
  for_each_task(plan, [&](std::size_t run_index, const HeadBlock& block) {
    const auto& run = plan.runs[run_index];
    Tensor state_FN;
    for (auto begin = run.begin; begin < run.end; begin += plan.sizes.chunk) {
      const auto end = std::min(run.end, begin + plan.sizes.chunk);
      const Tile<T> tile(plan, in, block, begin, end);
      const Tensor scores_QQ = at::mm(tile.c_QN, tile.b_QN.t());
      const Tensor mixed_mQQ = at::empty({tile.shape.heads, tile.shape.rows, tile.shape.rows}, y_TI.options());
      ssd_mix(scores_QQ.const_data_ptr<T>(), tile.decays.step.data(), tile.shape, mixed_mQQ.mutable_data_ptr<T>());
      const Tensor within_mQP = at::bmm(mixed_mQQ, tile.heads_of(tile.xdt_QF));
      Tensor carried_QF;
      if (state_FN.defined()) carried_QF = at::mm(tile.c_QN, state_FN.t());
      ssd_output(within_mQP.const_data_ptr<T>(), carried_QF.defined() ? carried_QF.const_data_ptr<T>() : nullptr, tile.decays.from_start.data(),
                 tile.skip, tile.x, tile.shape,
                 {.data = y_TI.mutable_data_ptr<T>() + begin * y_TI.stride(0) + block.first_head * plan.sizes.head_dim, .stride = y_TI.stride(0)});
      if (end < run.end) state_FN = tile.next_state(state_FN);
    }
  });
}

struct ScanGradients {
  Tensor dxbc_TC;
  Tensor dbc_STE;          ///< gradients of B and C, E = 2 groups N columns; one of every slice of heads
  Tensor ddt_TM;
  Tensor da_RM, dskip_RM;  ///< float64, one of every run
};

/// Gradient of log step [Q, m] through the states: rows at and after a step read the state that came in (`read`), rows before it wrote to
/// the state that goes out (`written`), and the one became the other (`passed` [m]).
template <typename T>
void add_through_states(const SsdTileShape& shape, const std::vector<T>& read, const std::vector<T>& written, const std::vector<T>& passed,
                        std::vector<T>& dlog_step) {
  const auto heads = static_cast<std::size_t>(shape.heads), rows = static_cast<std::size_t>(shape.rows);
  for (std::size_t h = 0; h < heads; ++h) {
    T sum = 0;
    for (auto i = rows; i-- > 0;) dlog_step[i * heads + h] += sum += read[i * heads + h];
    sum = passed[h];
    for (std::size_t i = 0; i < rows; ++i) {
      dlog_step[i * heads + h] += sum;
      sum += written[i * heads + h];
    }
  }
}

/// Where gradients of one tile go.
template <typename T>
struct TileGradients {
  Tensor db_QN, dc_QN;
  SsdRows<T> dx, ddt;
  const T* a = nullptr;
  double *da = nullptr, *dskip = nullptr;  ///< [m], added to
};

/// From the state before the tile and the gradient of the state after it, both [F, N] or undefined (no tile before, none after). Returns
/// the gradient of the state before.
template <typename T>
Tensor tile_backward(const Tile<T>& tile, const Tensor& state_FN, const Tensor& dnext_FN, const Tensor& dy_QF, const TileGradients<T>& out) {
  const auto& shape = tile.shape;
  const auto num_steps = static_cast<std::size_t>(shape.rows * shape.heads);
  const SsdRows<const T> dy{.data = dy_QF.const_data_ptr<T>(), .stride = dy_QF.stride(0)};
  std::vector<T> dlog_step(num_steps), read(num_steps), written(num_steps), passed(static_cast<std::size_t>(shape.heads));

  const Tensor dy_mQP = tile.heads_of(dy_QF);
  const Tensor scores_QQ = at::mm(tile.c_QN, tile.b_QN.t()), dmixed_mQQ = at::bmm(dy_mQP, tile.heads_of(tile.xdt_QF).transpose(1, 2));
  const Tensor mixed_mQQ = at::empty_like(dmixed_mQQ), dscores_QQ = at::zeros_like(scores_QQ);
  ssd_mix_backward(scores_QQ.const_data_ptr<T>(), tile.decays.step.data(), dmixed_mQQ.const_data_ptr<T>(), shape, mixed_mQQ.mutable_data_ptr<T>(),
                   dscores_QQ.mutable_data_ptr<T>(), dlog_step.data());
  const Tensor within_mQP = at::bmm(mixed_mQQ.transpose(1, 2), dy_mQP);
  out.dc_QN.copy_(at::mm(dscores_QQ, tile.b_QN));
  out.db_QN.copy_(at::mm(dscores_QQ.t(), tile.c_QN));

  Tensor dstate_FN, passed_QF;
  if (state_FN.defined()) {
    const Tensor read_QF = tile.scaled(dy, tile.decays.from_start), carried_QF = at::mm(tile.c_QN, state_FN.t());
    ssd_dot(tile.rows_of(read_QF), tile.rows_of(carried_QF), shape, read.data());
    out.dc_QN.addmm_(read_QF, state_FN);
    dstate_FN = at::mm(read_QF.t(), tile.c_QN);
  }
  if (dnext_FN.defined()) {
    const Tensor kept_QF = tile.scaled(tile.rows_of(tile.xdt_QF), tile.decays.to_end), grads_QF = at::mm(tile.b_QN, dnext_FN.t());
    passed_QF = tile.scaled(tile.rows_of(grads_QF), tile.decays.to_end);
    ssd_dot(tile.rows_of(tile.xdt_QF), tile.rows_of(passed_QF), shape, written.data());
    out.db_QN.addmm_(kept_QF, dnext_FN);
  }
  if (state_FN.defined() && dnext_FN.defined()) {
    const Tensor left_FN = tile.left_of(dnext_FN);
    const SsdTileShape all{.rows = 1, .heads = shape.heads, .width = shape.width * state_FN.size(1)};
    ssd_dot({.data = left_FN.const_data_ptr<T>(), .stride = 0}, {.data = state_FN.const_data_ptr<T>(), .stride = 0}, all, passed.data());
    dstate_FN.add_(left_FN);
  }
  add_through_states(shape, read, written, passed, dlog_step);

  std::vector<T> ddt(num_steps), dskip(num_steps);
  ssd_input_gradient({.within = within_mQP.const_data_ptr<T>(),
                      .passed = passed_QF.defined() ? passed_QF.const_data_ptr<T>() : nullptr,
                      .skip = tile.skip,
                      .dt = tile.dt,
                      .x = tile.x,
                      .dy = dy,
                      .dx = out.dx,
                      .ddt = ddt.data(),
                      .dskip = dskip.data()},
                     shape);
  for (std::int64_t i = 0; i < shape.rows; ++i) {
    for (std::int64_t h = 0; h < shape.heads; ++h) {
      const auto k = static_cast<std::size_t>(i * shape.heads + h);
      out.ddt.data[i * out.ddt.stride + h] = ddt[k] + out.a[h] * dlog_step[k];
      out.da[h] += static_cast<double>(tile.dt.data[i * tile.dt.stride + h]) * static_cast<double>(dlog_step[k]);
      out.dskip[h] += static_cast<double>(dskip[k]);
    }
  }
  return dstate_FN;
}

template <typename T>
void scan_backward(const SsdPlan& plan, const ScanInputs& in, const Tensor& dy_TI, const ScanGradients& grads) {
  const auto& sizes = plan.sizes;
  for_each_task(plan, [&](std::size_t run_index, const HeadBlock& block) {
    const auto& run = plan.runs[run_index];
    const auto first_column = block.first_head * sizes.head_dim;
    std::vector<Tile<T>> tiles;
    std::vector<Tensor> states;  // before each tile
    for (auto begin = run.begin; begin < run.end; begin += sizes.chunk) {
      states.push_back(tiles.empty() ? Tensor() : tiles.back().next_state(states.back()));
      tiles.emplace_back(plan, in, block, begin, std::min(run.end, begin + sizes.chunk));
    }
    const auto dbc_TE = grads.dbc_STE.select(0, block.slice);
    Tensor dnext_FN;
    for (auto i = tiles.size(); i-- > 0;) {
      const auto begin = run.begin + static_cast<std::int64_t>(i) * sizes.chunk, num_rows = tiles[i].shape.rows;
      const auto of_run = static_cast<std::int64_t>(run_index) * sizes.num_heads + block.first_head;
      const TileGradients<T> out{.db_QN = part(dbc_TE, begin, num_rows, block.group * sizes.state_size, sizes.state_size),
                                 .dc_QN = part(dbc_TE, begin, num_rows, (sizes.num_groups + block.group) * sizes.state_size, sizes.state_size),
                                 .dx = {.data = grads.dxbc_TC.mutable_data_ptr<T>() + begin * sizes.channels() + first_column, .stride = sizes.channels()},
                                 .ddt = {.data = grads.ddt_TM.mutable_data_ptr<T>() + begin * sizes.num_heads + block.first_head, .stride = sizes.num_heads},
                                 .a = in.a_M.const_data_ptr<T>() + block.first_head,
                                 .da = grads.da_RM.mutable_data_ptr<double>() + of_run,
                                 .dskip = grads.dskip_RM.mutable_data_ptr<double>() + of_run};
      dnext_FN = tile_backward(tiles[i], states[i], dnext_FN, part(dy_TI, begin, num_rows, first_column, tiles[i].num_features), out);
    }
  });
}

struct SsdScan : torch::autograd::Function<SsdScan> {
  static Tensor forward(torch::autograd::AutogradContext* ctx, const Tensor& xbc, const Tensor& dt, const Tensor& a, const Tensor& skip,
                        const c10::intrusive_ptr<SsdPlan>& plan) {
    const NoAutocast no_autocast;
    const ScanInputs in{
        .xbc_TC = xbc.stride(1) == 1 ? xbc : xbc.contiguous(), .dt_TM = dt.contiguous(), .a_M = a.contiguous(), .skip_M = skip.contiguous()};
    auto y_TI = at::empty({xbc.size(0), plan->sizes.inner()}, xbc.options());
    AT_DISPATCH_FLOATING_TYPES(xbc.scalar_type(), "ssd_scan", [&] { scan<scalar_t>(*plan, in, y_TI); });
    ctx->save_for_backward({in.xbc_TC, in.dt_TM, in.a_M, in.skip_M});
    ctx->saved_data["plan"] = c10::IValue::make_capsule(plan);
    return y_TI;
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx, const torch::autograd::variable_list& grad) {
    const NoAutocast no_autocast;
    const auto saved = ctx->get_saved_variables();
    const ScanInputs in{.xbc_TC = saved[0], .dt_TM = saved[1], .a_M = saved[2], .skip_M = saved[3]};
    const auto plan = c10::static_intrusive_pointer_cast<SsdPlan>(ctx->saved_data["plan"].toCapsule());
    const auto& sizes = plan->sizes;
    const auto options = in.xbc_TC.options();
    const auto num_rows = in.xbc_TC.size(0), num_runs = static_cast<std::int64_t>(plan->runs.size());
    ScanGradients grads{.dxbc_TC = at::empty({num_rows, sizes.channels()}, options),
                        .ddt_TM = at::empty(in.dt_TM.sizes(), options),
                        .da_RM = at::zeros({num_runs, sizes.num_heads}, options.dtype(at::kDouble)),
                        .dskip_RM = at::zeros({num_runs, sizes.num_heads}, options.dtype(at::kDouble))};
    const auto dbc_TE = grads.dxbc_TC.narrow(1, sizes.inner(), 2 * sizes.num_groups * sizes.state_size);
    grads.dbc_STE = plan->num_slices == 1 ? dbc_TE.unsqueeze(0) : at::empty({plan->num_slices, num_rows, dbc_TE.size(1)}, options);
    const auto dy_TI = grad[0].contiguous();
    AT_DISPATCH_FLOATING_TYPES(in.xbc_TC.scalar_type(), "ssd_scan_backward", [&] { scan_backward<scalar_t>(*plan, in, dy_TI, grads); });
    if (plan->num_slices > 1) dbc_TE.copy_(grads.dbc_STE.sum(0));
    const auto over_runs = [&](const Tensor& x_RM) { return x_RM.sum(0).to(in.a_M.scalar_type()); };
    return {grads.dxbc_TC, grads.ddt_TM, over_runs(grads.da_RM), over_runs(grads.dskip_RM), {}};
  }
};

}  // namespace

Tensor ssd_scan(const Tensor& xbc_TC, const Tensor& dt_TM, const Tensor& a_M, const Tensor& skip_M, const PackedLayout& layout,
                const SsdSizes& sizes) {
  UQA_CHECK(sizes.num_heads > 0 && sizes.head_dim > 0 && sizes.state_size > 0 && sizes.chunk > 0 && sizes.num_groups > 0 &&
                sizes.num_heads % sizes.num_groups == 0,
            ErrorCode::kInternal, "scan: {} heads of {} features, {} groups, state size {}, chunk {}; all must be > 0 and groups divide heads",
            sizes.num_heads, sizes.head_dim, sizes.num_groups, sizes.state_size, sizes.chunk);
  const auto num_rows = layout.num_rows();
  UQA_CHECK(xbc_TC.sizes() == at::IntArrayRef({num_rows, sizes.channels()}) && dt_TM.sizes() == at::IntArrayRef({num_rows, sizes.num_heads}) &&
                a_M.sizes() == at::IntArrayRef({sizes.num_heads}) && skip_M.sizes() == a_M.sizes(),
            ErrorCode::kInternal, "scan: x, B and C [{}], dt [{}], a [{}], skip [{}] do not fit {} rows of {} channels and {} heads",
            fmt::join(xbc_TC.sizes(), ", "), fmt::join(dt_TM.sizes(), ", "), fmt::join(a_M.sizes(), ", "), fmt::join(skip_M.sizes(), ", "), num_rows,
            sizes.channels(), sizes.num_heads);
  const auto type = xbc_TC.scalar_type();
  UQA_CHECK(dt_TM.scalar_type() == type && a_M.scalar_type() == type && skip_M.scalar_type() == type, ErrorCode::kInternal,
            "scan: all inputs must have one dtype");
  if (!xbc_TC.is_cpu()) return plain::ssd_scan(xbc_TC, dt_TM, a_M, skip_M, layout, sizes);
  return SsdScan::apply(xbc_TC, dt_TM, a_M, skip_M, make_plan(layout, sizes));
}

}  // namespace uqa::models
