// models/loss/softmax_rows.h - passes over one row of logits, vectorized; bfloat16 rows are computed in float32.
#pragma once

#include <cstdint>
#include <limits>

#include <c10/util/BFloat16.h>

#include "models/layers/attention_rows.h"

namespace uqa::models {

/// Maximum so far and sum of exp(logit - maximum) so far. A row that has seen nothing has maximum -inf and sum 0.
template <typename Compute>
struct RunningSum {
  Compute top = -std::numeric_limits<Compute>::infinity();
  Compute sum = 0;
};

/// Adds n logits to the running sum.
void add_logits(const float* row, std::int64_t n, RunningSum<float>& running);
void add_logits(const c10::BFloat16* row, std::int64_t n, RunningSum<float>& running);
void add_logits(const double* row, std::int64_t n, RunningSum<double>& running);

/// row[j] becomes factor * exp(row[j] - log_sum).
void scaled_softmax_row(float* row, std::int64_t n, float log_sum, float factor);
void scaled_softmax_row(c10::BFloat16* row, std::int64_t n, float log_sum, float factor);
void scaled_softmax_row(double* row, std::int64_t n, double log_sum, double factor);

struct RowCounts {
  std::int64_t larger = 0, equal = 0;
  bool finite = true;
};
/// How many of n scores are larger than, and equal to, `score`; whether all are finite.
[[nodiscard]] RowCounts count_against(const float* row, std::int64_t n, float score);

}  // namespace uqa::models
