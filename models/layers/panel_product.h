// models/layers/panel_product.h - a few rows times a narrow matrix that was laid out for it, in registers: what a recurrence needs at every
// step, where a library's GEMM would lay the same weights out again each time.
//
//   T out[8 * 48];
//   multiply_rows<float, 16, 3, 8>(a, stride, num_rows, panel, depth, 48, out);   // inside a function compiled for AVX-512
#pragma once

#include <cstdint>
#include <cstring>

#include "models/layers/simd.h"

namespace uqa::models {

template <typename T, int kLanes>
struct VectorOf {
  using type __attribute__((vector_size(kLanes * sizeof(T)))) = T;
};

/// out[r, c] = sum over k of a[r, k] panel[k, c] for kRows rows and kVectors * kLanes columns. Every sum runs over k in order, so a row's result does
/// not depend on the rows beside it.
template <typename T, int kLanes, int kVectors, int kRows>
UQA_INLINE void multiply_tile(const T* a, std::int64_t a_stride, const T* panel, std::int64_t depth, std::int64_t width, T* out) {
  using Vector = typename VectorOf<T, kLanes>::type;
  Vector sums[kRows * kVectors] = {};
  for (std::int64_t k = 0; k < depth; ++k) {
    Vector weights[kVectors];
#pragma GCC unroll 3
    for (int v = 0; v < kVectors; ++v) std::memcpy(&weights[v], panel + k * width + v * kLanes, sizeof weights[v]);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const T factor = a[r * a_stride + k];
#pragma GCC unroll 3
      for (int v = 0; v < kVectors; ++v) sums[r * kVectors + v] += factor * weights[v];
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 3
    for (int v = 0; v < kVectors; ++v) std::memcpy(out + r * width + v * kLanes, &sums[r * kVectors + v], sizeof sums[r * kVectors + v]);
  }
}

/// As many tiles of kRows rows as fit from row `first` on. Returns the row behind them.
template <typename T, int kLanes, int kVectors, int kRows>
UQA_INLINE std::int64_t multiply_tiles(const T* a, std::int64_t a_stride, std::int64_t first, std::int64_t num_rows, const T* panel, std::int64_t depth,
                                       std::int64_t width, T* out) {
  for (; first + kRows <= num_rows; first += kRows) {
    for (std::int64_t c = 0; c < width; c += kVectors * kLanes) {
      multiply_tile<T, kLanes, kVectors, kRows>(a + first * a_stride, a_stride, panel + c, depth, width, out + first * width + c);
    }
  }
  return first;
}

/// out [num_rows, width] = a [num_rows, depth] panel [depth, width]; width is a multiple of kVectors * kLanes, depth 0 gives zeros.
template <typename T, int kLanes, int kVectors, int kMostRows>
UQA_INLINE void multiply_panel(const T* a, std::int64_t a_stride, std::int64_t num_rows, const T* panel, std::int64_t depth, std::int64_t width, T* out) {
  std::int64_t done = 0;
  if constexpr (kMostRows >= 8) done = multiply_tiles<T, kLanes, kVectors, 8>(a, a_stride, done, num_rows, panel, depth, width, out);
  done = multiply_tiles<T, kLanes, kVectors, 4>(a, a_stride, done, num_rows, panel, depth, width, out);
  done = multiply_tiles<T, kLanes, kVectors, 2>(a, a_stride, done, num_rows, panel, depth, width, out);
  multiply_tiles<T, kLanes, kVectors, 1>(a, a_stride, done, num_rows, panel, depth, width, out);
}

}  // namespace uqa::models
