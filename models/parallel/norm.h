// models/parallel/norm.h - normalisation over features that are spread over ranks: only sums of a row travel, two numbers at most.
#pragma once

#include "comm/communicator.h"
#include "models/packed.h"

namespace uqa::models {

/// Layer norm without weight and bias over all ranks' features of a row; every rank has equally many.
/// Shapes: x [T, F_r] float32, this rank's features -> [T, F_r]. Collective forward and backward; plain at::layer_norm on a group of one.
[[nodiscard]] Tensor parallel_layer_norm(const Tensor& x_TF, double eps, const comm::Communicator& comm);

/// x / sqrt(mean of the squares of all ranks' features of a row + eps); every rank has equally many.
/// Shapes: x [T, F_r] float32 -> [T, F_r]. Collective forward and backward.
[[nodiscard]] Tensor parallel_rms_norm(const Tensor& x_TF, double eps, const comm::Communicator& comm);

}  // namespace uqa::models
