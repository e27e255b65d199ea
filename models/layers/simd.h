// models/layers/simd.h - what hand-written CPU loops share: one clone per instruction set, chosen when the program starts,
// an exp that the compiler can vectorize, and bfloat16 conversions.
//
//   UQA_SIMD_CLONES void scale_(float* x, std::int64_t n, float factor) { for (...) x[i] *= factor; }
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

#include <c10/util/BFloat16.h>

// Release builds target the oldest x86-64, so the loops that cost time are also compiled for newer instruction sets.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define UQA_SIMD_CLONES __attribute__((target_clones("avx512f", "avx2", "default")))
#define UQA_INLINE inline __attribute__((always_inline))
#else
#define UQA_SIMD_CLONES
#define UQA_INLINE inline
#endif

namespace uqa::models {

/// exp(x) for |x| at most 87 within 2 units in the last place: range reduction by ln 2 and the polynomial of Cephes' expf.
UQA_INLINE float exp_in_range(float x) {
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding and subtracting it rounds to the nearest integer
  const float n = (x * 1.44269504f + kRound) - kRound;
  const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  return p * std::bit_cast<float>((static_cast<std::int32_t>(n) + 127) << 23);
}

/// exp(x) for x <= 0 (or moderate x > 0). Results below 2^-126 are 0; NaN stays NaN.
UQA_INLINE float vector_exp(float x) {
  const float clamped = x < -87.33654f ? -87.33654f : (x > 88.0f ? 88.0f : x);
  return x < -87.33654f ? 0.0f : exp_in_range(clamped);
}
UQA_INLINE double vector_exp(double x) { return std::exp(x); }

UQA_INLINE void widen(const c10::BFloat16* in, float* out, std::int64_t n) {
#pragma omp simd
  for (std::int64_t j = 0; j < n; ++j) out[j] = std::bit_cast<float>(static_cast<std::uint32_t>(in[j].x) << 16);
}

/// Rounds to nearest, ties to even; every NaN becomes the canonical one.
UQA_INLINE void narrow(const float* in, c10::BFloat16* out, std::int64_t n) {
#pragma omp simd
  for (std::int64_t j = 0; j < n; ++j) {
    const auto bits = std::bit_cast<std::uint32_t>(in[j]);
    const std::uint32_t rounded = (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16;
    out[j].x = static_cast<std::uint16_t>((bits & 0x7FFFFFFFu) > 0x7F800000u ? 0x7FC0u : rounded);
  }
}

}  // namespace uqa::models
