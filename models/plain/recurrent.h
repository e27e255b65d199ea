// models/plain/recurrent.h - layers that carry a state from row to row, from LibTorch's own operators, for tensors that are not on the CPU: GRU, short
// convolution, state-space scan. Differentiable through autograd; checked by their callers in models/layers, whose shapes, dtypes and results (to
// rounding) they share.
#pragma once

#include "models/layers/ssd_scan.h"

namespace uqa::models::plain {

/// As models::packed_gru, all sequences a position at a time. x [T, 3F] in weight_hh's dtype -> [T, F]. Memory: about 10 F values a padded row.
[[nodiscard]] Tensor packed_gru(const Tensor& x_TG, const Tensor& weight_hh, const std::vector<std::int64_t>& cu_seqlens);

/// As models::causal_conv_silu, tap by tap on all rows. Memory: a copy of x a tap, forward or backward; between them the inputs.
[[nodiscard]] Tensor causal_conv_silu(const Tensor& x_TC, const Tensor& weight_C1K, const Tensor& bias_C, const PackedLayout& layout);

/// As models::ssd_scan: a tile of all sequences of a batch at a time. Memory: about ten copies of 2^25 decays (a pair of rows of a tile and head is
/// one) while a batch is computed, forward or backward; between them the inputs.
[[nodiscard]] Tensor ssd_scan(const Tensor& xbc_TC, const Tensor& dt_TM, const Tensor& a_M, const Tensor& skip_M, const PackedLayout& layout,
                              const SsdSizes& sizes);

}  // namespace uqa::models::plain
