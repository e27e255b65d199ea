#include <algorithm>
#include <limits>

#include "models/layers/no_autocast.h"
#include "models/plain/padded.h"
#include "models/plain/recurrent.h"
#include "models/recompute.h"

// B sequences of a batch, padded to S rows; Q rows of a tile; G groups of H heads each, P head width, N state size.

namespace uqa::models::plain {
namespace {

constexpr std::int64_t kBatchDecays = std::int64_t{1} << 25;

/// One tile of all sequences: log decays [B, G, H, Q] and dt x [B, G, H, Q, P] of its heads, B and C [B, G, 1, Q, N] of its groups.
struct TileInputs {
  Tensor log_decay, xdt, b, c;
};

/// Logarithm of what is left at row i of what row j adds, [..., Q, Q] for i >= j and -inf above. Sums over the rows between, not differences of
/// sums from the first row: nothing cancels.
Tensor log_decays_between(const Tensor& log_decay) {
  const auto rows = log_decay.size(-1);
  const auto below = at::ones({rows, rows}, log_decay.options().dtype(at::kBool)).tril(-1);
  const auto steps = log_decay.unsqueeze(-1).masked_fill(below.logical_not(), 0);  // row k, column j: step k if it lies behind j
  return steps.cumsum(-2).masked_fill(below.t(), -std::numeric_limits<double>::infinity());
}

/// The tile's outputs without the skip, [B, G, H, Q, P]; `state` [B, G, H, P, N] (undefined: zero) becomes that after the tile.
Tensor scan_tile(const TileInputs& in, Tensor& state) {
  const auto between = log_decays_between(in.log_decay).exp();
  auto out = at::matmul(between * at::matmul(in.c, in.b.transpose(-1, -2)), in.xdt);
  const auto from_start = in.log_decay.cumsum(-1).exp().unsqueeze(-1);
  if (state.defined()) out = out + from_start * at::matmul(in.c, state.transpose(-1, -2));
  const auto last = in.log_decay.size(-1) - 1;
  const auto to_end = between.select(-2, last).unsqueeze(-1);
  const auto added = at::matmul((to_end * in.xdt).transpose(-1, -2), in.b);
  state = state.defined() ? added + from_start.narrow(-2, last, 1) * state : added;
  return out;
}

/// xbc, dt, a, skip of all rows -> the batch's rows of the result, sequence after sequence.
Tensor scan_batch(const std::vector<Tensor>& inputs, const PaddedBatch& batch, const SsdSizes& sizes) {
  const NoAutocast no_autocast;
  const auto groups = sizes.num_groups, heads = sizes.num_heads / groups, bc_width = groups * sizes.state_size;
  const auto parts = batch.pad(inputs[0]).split_with_sizes({sizes.inner(), bc_width, bc_width}, -1);
  const auto x = parts[0].unflatten(-1, {groups, heads, sizes.head_dim}).permute({0, 2, 3, 1, 4});  // [B, G, H, S, P]
  const auto dt = batch.pad(inputs[1]).unflatten(-1, {groups, heads}).permute({0, 2, 3, 1});        // [B, G, H, S]
  const auto of_group = [&](const Tensor& bc) { return bc.unflatten(-1, {groups, sizes.state_size}).transpose(1, 2).unsqueeze(2); };
  const auto b = of_group(parts[1]), c = of_group(parts[2]);
  const auto log_decay = dt * inputs[2].reshape({groups, heads, 1});
  const auto xdt = x * dt.unsqueeze(-1);
  Tensor state;
  std::vector<Tensor> outputs;
  for (std::int64_t begin = 0; begin < batch.length; begin += sizes.chunk) {
    const auto rows = std::min(sizes.chunk, batch.length - begin);
    outputs.push_back(scan_tile({.log_decay = log_decay.narrow(3, begin, rows),
                                 .xdt = xdt.narrow(3, begin, rows),
                                 .b = b.narrow(3, begin, rows),
                                 .c = c.narrow(3, begin, rows)},
                                state));
  }
  const auto y = at::cat(outputs, 3) + inputs[3].reshape({groups, heads, 1, 1}) * x;
  return batch.unpad(y.permute({0, 3, 1, 2, 4}).flatten(2));
}

}  // namespace

Tensor ssd_scan(const Tensor& xbc_TC, const Tensor& dt_TM, const Tensor& a_M, const Tensor& skip_M, const PackedLayout& layout, const SsdSizes& sizes) {
  const auto cost = [&](std::int64_t length) { return sizes.num_heads * length * std::min(length, sizes.chunk); };
  const auto padded = padded_batches(layout.cu_seqlens, kBatchDecays, cost, xbc_TC.device());
  if (padded.batches.empty()) return empty_of(xbc_TC.narrow(1, 0, sizes.inner()), {dt_TM, a_M, skip_M});
  std::vector<Tensor> parts;
  for (const auto& batch : padded.batches) {
    const auto scan = [batch, sizes](const std::vector<Tensor>& in) -> std::vector<Tensor> { return {scan_batch(in, batch, sizes)}; };
    parts.push_back(recomputed(LayerFunction(scan), {xbc_TC, dt_TM, a_M, skip_M}, {}).front());
  }
  return padded.packed(parts);
}

}  // namespace uqa::models::plain
