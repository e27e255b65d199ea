#include "models/loss/softmax_rows.h"

#include <algorithm>

#include "models/layers/simd.h"

namespace uqa::models {
namespace {

constexpr std::int64_t kChunk = 1024;  // bfloat16 logits widened at a time: they stay in the first-level cache

template <typename Compute>
UQA_INLINE void add_body(const Compute* row, std::int64_t n, RunningSum<Compute>& running) {
  Compute top = running.top;
#pragma omp simd reduction(max : top)
  for (std::int64_t j = 0; j < n; ++j) top = row[j] > top ? row[j] : top;
  Compute sum = 0;
#pragma omp simd reduction(+ : sum)
  for (std::int64_t j = 0; j < n; ++j) sum += vector_exp(row[j] - top);
  // Before the first block the maximum is -inf and the sum 0; exp(-inf) is 0 then.
  running.sum = running.sum * std::exp(running.top - top) + sum;
  running.top = top;
}

template <typename Compute>
UQA_INLINE void scaled_body(Compute* row, std::int64_t n, Compute log_sum, Compute factor) {
#pragma omp simd
  for (std::int64_t j = 0; j < n; ++j) row[j] = factor * vector_exp(row[j] - log_sum);
}

}  // namespace

UQA_SIMD_CLONES void add_logits(const float* row, std::int64_t n, RunningSum<float>& running) { add_body(row, n, running); }
UQA_SIMD_CLONES void add_logits(const c10::BFloat16* row, std::int64_t n, RunningSum<float>& running) {
  float wide[kChunk];
  for (std::int64_t first = 0; first < n; first += kChunk) {
    const auto count = std::min(kChunk, n - first);
    widen(row + first, wide, count);
    add_body(wide, count, running);
  }
}
void add_logits(const double* row, std::int64_t n, RunningSum<double>& running) { add_body(row, n, running); }

UQA_SIMD_CLONES void scaled_softmax_row(float* row, std::int64_t n, float log_sum, float factor) { scaled_body(row, n, log_sum, factor); }
UQA_SIMD_CLONES void scaled_softmax_row(c10::BFloat16* row, std::int64_t n, float log_sum, float factor) {
  float wide[kChunk];
  for (std::int64_t first = 0; first < n; first += kChunk) {
    const auto count = std::min(kChunk, n - first);
    widen(row + first, wide, count);
    scaled_body(wide, count, log_sum, factor);
    narrow(wide, row + first, count);
  }
}
void scaled_softmax_row(double* row, std::int64_t n, double log_sum, double factor) { scaled_body(row, n, log_sum, factor); }

UQA_SIMD_CLONES RowCounts count_against(const float* row, std::int64_t n, float score) {
  std::int32_t larger = 0, equal = 0, broken = 0;  // blocks are far shorter than 2^31
#pragma omp simd reduction(+ : larger, equal, broken)
  for (std::int64_t j = 0; j < n; ++j) {
    larger += row[j] > score ? 1 : 0;
    equal += row[j] == score ? 1 : 0;
    broken += (std::bit_cast<std::uint32_t>(row[j]) & 0x7F800000u) == 0x7F800000u ? 1 : 0;
  }
  return {.larger = larger, .equal = equal, .finite = broken == 0};
}

}  // namespace uqa::models
