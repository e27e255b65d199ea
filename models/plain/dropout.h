// models/plain/dropout.h - the factors of models/layers/dropout.h from LibTorch's own integer operators: on any device, bit for bit the same.
#pragma once

#include "models/layers/dropout.h"

namespace uqa::models::plain {

/// Row r holds what models::dropout_factors() writes for rows[r] and elements [first, first + width). -> [R, width] of `options`' dtype and device.
/// Memory: about eight bytes an element while they are drawn.
[[nodiscard]] Tensor dropout_factors(std::uint64_t key, const std::vector<DropoutRow>& rows, double p, std::int64_t width, std::int64_t first,
                                     const at::TensorOptions& options);

}  // namespace uqa::models::plain
