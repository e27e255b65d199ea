// models/init.h - initial weights from counter-based numbers: element i of the parameter `name` is the same for a seed at any
// world size, layout and thread count.
//
//   init_normal_(weight, seed, "backbone.layers.0.attn.q_proj.weight", 0.02);
#pragma once

#include <string>

#include "models/parallel/layout.h"

namespace uqa::models {

// `x` is a contiguous float32 parameter, or this rank's slices of one as `layout` says; on any device it gets the numbers of the CPU. Elements are numbered row-major in the
// whole parameter, so a slice gets what the whole would have there; bounds are those of the whole shape.

/// Normal with mean 0 (Box-Muller).
void init_normal_(const Tensor& x, std::uint64_t seed, const std::string& name, double std_dev, const ParameterLayout& layout = {});
/// Normal with mean 0, drawn again while it lies beyond two standard deviations.
void init_truncated_normal_(const Tensor& x, std::uint64_t seed, const std::string& name, double std_dev, const ParameterLayout& layout = {});
/// Uniform in [-bound, bound).
void init_uniform_(const Tensor& x, std::uint64_t seed, const std::string& name, double bound, const ParameterLayout& layout = {});
/// Uniform with Xavier's bound sqrt(6 / (rows + columns)) of a matrix.
void init_xavier_uniform_(const Tensor& x, std::uint64_t seed, const std::string& name, const ParameterLayout& layout = {});
/// torch.nn.Linear's default: weight and bias uniform within 1 / sqrt(inputs). `name` is the layer's; `bias` may be undefined.
void init_linear_default_(const Tensor& weight, const Tensor& bias, std::uint64_t seed, const std::string& name, const ParameterLayout& weight_layout = {},
                          const ParameterLayout& bias_layout = {});

}  // namespace uqa::models
