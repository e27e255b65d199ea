#include "models/layers/gru_step.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <type_traits>

#include "models/layers/panel_product.h"

namespace uqa::models {
namespace {

constexpr std::int64_t kTileRows = 8;                     // users that share one pass over a panel
constexpr int kForwardVectors = 3, kBackwardVectors = 2;  // of a tile: 8 x 3 sums and 3 weights fill the registers of AVX-512

// Selections between computed floats would become branches, which do not vectorize below AVX-512: clamp first, and choose by bits.
UQA_INLINE float clamped_exp(float x) {
  const float from_below = x < -87.0f ? -87.0f : x;
  return exp_in_range(from_below > 87.0f ? 87.0f : from_below);
}

UQA_INLINE float sigmoid(float x) { return 1.0f / (1.0f + clamped_exp(-x)); }
UQA_INLINE double sigmoid(double x) { return 1.0 / (1.0 + std::exp(-x)); }

/// Cephes' tanhf: a polynomial where the quotient would cancel.
UQA_INLINE float vector_tanh(float x) {
  const float square = x * x;
  float p = -5.70498872745e-3f;
  p = p * square + 2.06390887954e-2f;
  p = p * square - 5.37397155531e-2f;
  p = p * square + 1.33314422036e-1f;
  p = p * square - 3.33332819422e-1f;
  const float near = p * square * x + x;
  const float e = clamped_exp(-2.0f * std::abs(x));
  const float far = std::copysign((1.0f - e) / (1.0f + e), x);
  const std::uint32_t is_near = std::abs(x) < 0.625f ? ~0u : 0u;
  return std::bit_cast<float>((std::bit_cast<std::uint32_t>(near) & is_near) | (std::bit_cast<std::uint32_t>(far) & ~is_near));
}
UQA_INLINE double vector_tanh(double x) { return std::tanh(x); }

template <typename T>
UQA_INLINE void forward_row(const GruForwardStep<T>& s, std::int64_t user, const T* sums, std::int64_t n) {
  const auto width = s.width, row = s.first_rows[user] + s.step, place = user * s.stride + s.feature;
  const T *x = s.x_TG + row * 3 * width + s.feature, *before = s.before + place;
  T *after = s.after + place, *saved = s.saved_TS + row * 4 * width + s.feature, *out = s.out_TF + row * width + s.feature;
#pragma omp simd
  for (std::int64_t j = 0; j < n; ++j) {
    const T r = sigmoid(x[j] + sums[j]);
    const T z = sigmoid(x[width + j] + sums[kGruFeatures + j]);
    const T candidate = sums[2 * kGruFeatures + j];
    const T c = vector_tanh(x[2 * width + j] + r * candidate);
    const T h = (1 - z) * c + z * before[j];
    saved[j] = r;
    saved[width + j] = z;
    saved[2 * width + j] = c;
    saved[3 * width + j] = candidate;
    after[j] = h;
    out[j] = h;
  }
}

template <typename T, int kLanes, int kMostRows>
UQA_INLINE void forward_panel(const GruForwardStep<T>& s) {
  alignas(64) T sums[kTileRows * kGruForwardColumns];
  const auto num_features = std::min(kGruFeatures, s.width - s.feature);
  for (std::int64_t first = 0; first < s.num_users; first += kTileRows) {
    const auto num_rows = std::min(kTileRows, s.num_users - first);
    multiply_panel<T, kLanes, kForwardVectors, kMostRows>(s.before + first * s.stride, s.stride, num_rows, s.weights, s.step == 0 ? 0 : s.width,
                                                          kGruForwardColumns, sums);
    for (std::int64_t i = 0; i < num_rows; ++i) {
      const T* row_sums = sums + i * kGruForwardColumns;
      if (num_features == kGruFeatures) {
        forward_row(s, first + i, row_sums, kGruFeatures);  // a constant count needs no remainder loops
      } else {
        forward_row(s, first + i, row_sums, num_features);
      }
    }
  }
}

template <typename T>
UQA_INLINE void backward_row(const GruBackwardStep<T>& s, std::int64_t user, const T* sums, std::int64_t n) {
  const auto width = s.width, row = s.first_rows[user] + s.step;
  const T *dout = s.dout_TF + row * width + s.feature, *saved = s.saved_TS + row * 4 * width + s.feature;
  const T* before = (s.step == 0 ? s.zeros_F : s.out_TF + (row - 1) * width) + s.feature;
  T *direct = s.direct + user * s.direct_stride + s.feature, *gates = s.gates + user * s.gates_stride + s.feature;
  T *dx = s.dx_TG + row * 3 * width + s.feature, *dcandidate = s.dcandidate_TF + row * width + s.feature;
#pragma omp simd
  for (std::int64_t j = 0; j < n; ++j) {
    const T r = saved[j], z = saved[width + j], c = saved[2 * width + j], candidate = saved[3 * width + j];
    const T dh = dout[j] + sums[j] + direct[j];
    const T dn = dh * (1 - z) * (1 - c * c);
    const T dz = dh * (before[j] - c) * z * (1 - z);
    const T dr = dn * candidate * r * (1 - r);
    direct[j] = dh * z;
    gates[j] = dr;
    gates[width + j] = dz;
    gates[2 * width + j] = dn * r;
    dx[j] = dr;
    dx[width + j] = dz;
    dx[2 * width + j] = dn;
    dcandidate[j] = dn * r;
  }
}

template <typename T, int kLanes, int kMostRows>
UQA_INLINE void backward_panel(const GruBackwardStep<T>& s) {
  alignas(64) T sums[kTileRows * kGruBackwardColumns];
  const auto num_features = std::min(kGruBackwardColumns, s.width - s.feature);
  for (std::int64_t first = 0; first < s.num_users; first += kTileRows) {
    const auto num_rows = std::min(kTileRows, s.num_users - first), num_carried = std::clamp<std::int64_t>(s.num_carried - first, 0, num_rows);
    multiply_panel<T, kLanes, kBackwardVectors, kMostRows>(s.gates_behind + first * s.gates_stride, s.gates_stride, num_carried, s.weights, 3 * s.width,
                                                           kGruBackwardColumns, sums);
    std::fill(sums + num_carried * kGruBackwardColumns, sums + num_rows * kGruBackwardColumns, T{0});
    for (std::int64_t i = 0; i < num_rows; ++i) {
      const T* row_sums = sums + i * kGruBackwardColumns;
      if (num_features == kGruBackwardColumns) {
        backward_row(s, first + i, row_sums, kGruBackwardColumns);
      } else {
        backward_row(s, first + i, row_sums, num_features);
      }
    }
  }
}

// Tiles differ with the registers there are, so each instruction set has a function of its own instead of a clone.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
__attribute__((target("avx512f"))) void forward_avx512(const GruForwardStep<float>& step) { forward_panel<float, 16, 8>(step); }
__attribute__((target("avx512f"))) void backward_avx512(const GruBackwardStep<float>& step) { backward_panel<float, 16, 8>(step); }
__attribute__((target("avx2,fma"))) void forward_avx2(const GruForwardStep<float>& step) { forward_panel<float, 8, 4>(step); }
__attribute__((target("avx2,fma"))) void backward_avx2(const GruBackwardStep<float>& step) { backward_panel<float, 8, 4>(step); }
#endif
template <typename T>
void forward_base(const GruForwardStep<T>& step) {
  forward_panel<T, 16 / sizeof(T), 4>(step);
}
template <typename T>
void backward_base(const GruBackwardStep<T>& step) {
  backward_panel<T, 16 / sizeof(T), 4>(step);
}

}  // namespace

template <typename T>
GruStepFunctions<T> gru_step_functions() {
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
  if constexpr (std::is_same_v<T, float>) {
    if (__builtin_cpu_supports("avx512f")) return {.forward = forward_avx512, .backward = backward_avx512};
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return {.forward = forward_avx2, .backward = backward_avx2};
  }
#endif
  return {.forward = forward_base<T>, .backward = backward_base<T>};
}
template GruStepFunctions<float> gru_step_functions();
template GruStepFunctions<double> gru_step_functions();

}  // namespace uqa::models
