#include "models/layers/attention_rows.h"

#include <algorithm>
#include <limits>

#include "models/layers/simd.h"

namespace uqa::models {
namespace {

template <typename T>
UQA_INLINE T softmax_body(T* row, std::int64_t visible, T scale, const float* factors) {
  T top = -std::numeric_limits<T>::infinity();
#pragma omp simd reduction(max : top)
  for (std::int64_t j = 0; j < visible; ++j) top = row[j] > top ? row[j] : top;
  top *= scale;
  T sum = 0;
#pragma omp simd reduction(+ : sum)
  for (std::int64_t j = 0; j < visible; ++j) {
    const T e = vector_exp(row[j] * scale - top);
    row[j] = e;
    sum += e;
  }
  const T inverse = 1 / sum;
  if (factors == nullptr) {
    for (std::int64_t j = 0; j < visible; ++j) row[j] *= inverse;
  } else {
    for (std::int64_t j = 0; j < visible; ++j) row[j] *= inverse * static_cast<T>(factors[j]);
  }
  return top + std::log(sum);
}

template <typename T>
UQA_INLINE void backward_body(T* row, T* grad, std::int64_t visible, T scale, T log_sum, T delta, const float* factors) {
  if (factors == nullptr) {
#pragma omp simd
    for (std::int64_t j = 0; j < visible; ++j) {
      const T p = vector_exp(row[j] * scale - log_sum);
      row[j] = p;
      grad[j] = p * (grad[j] - delta) * scale;
    }
  } else {
#pragma omp simd
    for (std::int64_t j = 0; j < visible; ++j) {
      const T p = vector_exp(row[j] * scale - log_sum);
      const T factor = static_cast<T>(factors[j]);
      row[j] = p * factor;
      grad[j] = p * (grad[j] * factor - delta) * scale;
    }
  }
}

UQA_SIMD_CLONES float softmax_visible(float* row, std::int64_t visible, float scale, const float* factors) {
  return softmax_body(row, visible, scale, factors);
}
UQA_SIMD_CLONES void backward_visible(float* row, float* grad, std::int64_t visible, float scale, float log_sum, float delta,
                                      const float* factors) {
  backward_body(row, grad, visible, scale, log_sum, delta, factors);
}

UQA_SIMD_CLONES void widen_row(const c10::BFloat16* in, float* out, std::int64_t n) { widen(in, out, n); }
UQA_SIMD_CLONES void narrow_row(const float* in, c10::BFloat16* out, std::int64_t n) { narrow(in, out, n); }

}  // namespace

float softmax_row(float* row, std::int64_t visible, std::int64_t total, float scale, const float* factors, std::vector<float>&) {
  std::fill(row + visible, row + total, 0.0f);
  return softmax_visible(row, visible, scale, factors);
}

float softmax_row(c10::BFloat16* row, std::int64_t visible, std::int64_t total, float scale, const float* factors, std::vector<float>& scratch) {
  scratch.resize(static_cast<std::size_t>(visible));
  widen_row(row, scratch.data(), visible);
  const float log_sum = softmax_visible(scratch.data(), visible, scale, factors);
  narrow_row(scratch.data(), row, visible);
  std::fill(row + visible, row + total, c10::BFloat16(0.0f));
  return log_sum;
}

double softmax_row(double* row, std::int64_t visible, std::int64_t total, double scale, const float* factors, std::vector<double>&) {
  std::fill(row + visible, row + total, 0.0);
  return softmax_body(row, visible, scale, factors);
}

void softmax_row_backward(float* row, float* grad, std::int64_t visible, std::int64_t total, float scale, float log_sum, float delta,
                          const float* factors, std::vector<float>&) {
  backward_visible(row, grad, visible, scale, log_sum, delta, factors);
  std::fill(row + visible, row + total, 0.0f);
  std::fill(grad + visible, grad + total, 0.0f);
}

void softmax_row_backward(c10::BFloat16* row, c10::BFloat16* grad, std::int64_t visible, std::int64_t total, float scale, float log_sum, float delta,
                          const float* factors, std::vector<float>& scratch) {
  scratch.resize(static_cast<std::size_t>(2 * visible));
  float* wide_row = scratch.data();
  float* wide_grad = wide_row + visible;
  widen_row(row, wide_row, visible);
  widen_row(grad, wide_grad, visible);
  backward_visible(wide_row, wide_grad, visible, scale, log_sum, delta, factors);
  narrow_row(wide_row, row, visible);
  narrow_row(wide_grad, grad, visible);
  std::fill(row + visible, row + total, c10::BFloat16(0.0f));
  std::fill(grad + visible, grad + total, c10::BFloat16(0.0f));
}

void softmax_row_backward(double* row, double* grad, std::int64_t visible, std::int64_t total, double scale, double log_sum, double delta,
                          const float* factors, std::vector<double>&) {
  backward_body(row, grad, visible, scale, log_sum, delta, factors);
  std::fill(row + visible, row + total, 0.0);
  std::fill(grad + visible, grad + total, 0.0);
}

}  // namespace uqa::models
