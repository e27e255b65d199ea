#include <algorithm>

#include "models/layers/no_autocast.h"
#include "models/plain/recurrent.h"
#include "models/recompute.h"

// T packed rows, C channels, K taps.

namespace uqa::models::plain {
namespace {

/// Not conv1d: by default that rounds float32 to TF32 on GPUs.
Tensor convolved(const Tensor& x_TC, const Tensor& weight_C1K, const Tensor& bias_C, const Tensor& positions_T1) {
  const NoAutocast no_autocast;
  const auto num_rows = x_TC.size(0), num_taps = weight_C1K.size(2);
  const auto taps = weight_C1K.squeeze(1).unbind(1);
  auto sum_TC = bias_C + x_TC * taps.back();
  for (std::int64_t back = 1; back < std::min(num_taps, num_rows); ++back) {
    // The row `back` rows before each row, zero where that is another sequence's.
    const auto before_TC = at::constant_pad_nd(x_TC.narrow(0, 0, num_rows - back), {0, 0, back, 0}).masked_fill(positions_T1 < back, 0);
    sum_TC = sum_TC + before_TC * taps[static_cast<std::size_t>(num_taps - 1 - back)];
  }
  return at::silu(sum_TC);
}

}  // namespace

Tensor causal_conv_silu(const Tensor& x_TC, const Tensor& weight_C1K, const Tensor& bias_C, const PackedLayout& layout) {
  const auto positions_T1 = layout.positions(x_TC.device()).unsqueeze(1);
  const auto convolve = [positions_T1](const std::vector<Tensor>& in) -> std::vector<Tensor> { return {convolved(in[0], in[1], in[2], positions_T1)}; };
  return recomputed(LayerFunction(convolve), {x_TC, weight_C1K, bias_C}, {}).front();
}

}  // namespace uqa::models::plain
