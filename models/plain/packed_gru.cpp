#include <limits>

#include "models/layers/no_autocast.h"
#include "models/plain/padded.h"
#include "models/plain/recurrent.h"

// B sequences, padded to S rows; F width of the state, G = 3 F gates.

namespace uqa::models::plain {

Tensor packed_gru(const Tensor& x_TG, const Tensor& weight_hh, const std::vector<std::int64_t>& cu_seqlens) {
  const NoAutocast no_autocast;
  const auto width = weight_hh.size(1);
  // One batch: steps are what costs, however many sequences take them.
  const auto padded = padded_batches(cu_seqlens, std::numeric_limits<std::int64_t>::max(), [](std::int64_t length) { return length; }, x_TG.device());
  if (padded.batches.empty()) return empty_of(x_TG.narrow(1, 0, width), {weight_hh});
  const auto& batch = padded.batches.front();
  auto state_BF = at::zeros({static_cast<std::int64_t>(batch.sequences.size()), width}, x_TG.options());
  std::vector<Tensor> states;
  for (const auto& x_BG : batch.pad(x_TG).unbind(1)) {
    const auto x = x_BG.chunk(3, 1), from_state = at::mm(state_BF, weight_hh.t()).chunk(3, 1);
    const auto reset = at::sigmoid(x[0] + from_state[0]), keep = at::sigmoid(x[1] + from_state[1]);
    const auto candidate = at::tanh(x[2] + reset * from_state[2]);
    state_BF = candidate + keep * (state_BF - candidate);
    states.push_back(state_BF);
  }
  return padded.packed({batch.unpad(at::stack(states, 1))});
}

}  // namespace uqa::models::plain
