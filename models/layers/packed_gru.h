// models/layers/packed_gru.h - the recurrence of a gated recurrent unit over packed sequences, forward and backward through time by hand. Cho et al.,
// arXiv 1406.1078, in the form of torch.nn.GRU without biases.
//
//   const auto h_TF = packed_gru(at::linear(x_TH, weight_ih), weight_hh, layout.cu_seqlens);
#pragma once

#include "models/packed.h"

namespace uqa::models {

/// States of one layer that starts every sequence from zero: with gates r, z, n stacked in this order,
///   r = sigmoid(x_r + W_r h), z = sigmoid(x_z + W_z h), n = tanh(x_n + r * (W_n h)), h' = (1 - z) * n + z * h.
/// A sequence's states are computed from its own rows alone, bit for bit the same in every batch and with every number of threads.
/// Shapes: projected inputs x [T, 3F], weight_hh [3F, F], T = cu_seqlens.back() -> [T, F].  Dtype: that of weight_hh, float32 or float64; x (bfloat16
/// under autocast, say) is converted.  Memory: [T, 5F] until backward.  Error(kInternal) for shapes that do not fit.
[[nodiscard]] Tensor packed_gru(const Tensor& x_TG, const Tensor& weight_hh, const std::vector<std::int64_t>& cu_seqlens);

}  // namespace uqa::models
