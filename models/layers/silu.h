// models/layers/silu.h - SiLU inside hand-written CPU loops.
#pragma once

#include "models/layers/simd.h"

namespace uqa::models {

/// 1 / (1 + exp(-x)), float or double; in range for every x.
template <typename T>
UQA_INLINE T sigmoid(T x) {
  return 1 / (1 + vector_exp(-x));
}

/// d/dx of x sigmoid(x), given s = sigmoid(x).
template <typename T>
UQA_INLINE T silu_slope(T x, T s) {
  return s * (1 + x * (1 - s));
}

}  // namespace uqa::models
