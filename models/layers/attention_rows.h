// models/layers/attention_rows.h - one row of scores at a time: softmax, its gradient, dropout; vectorized, softmax in float32
// (float64 for float64).
#pragma once

#include <cstdint>
#include <vector>

#include <c10/util/BFloat16.h>

namespace uqa::models {

template <typename T>
struct ComputeTypeOf {
  using type = float;
};
template <>
struct ComputeTypeOf<double> {
  using type = double;
};
/// What sums over rows of T are computed in.
template <typename T>
using ComputeType = typename ComputeTypeOf<T>::type;

/// row[0, visible) becomes softmax(scale * row) times `factors` (nullptr: 1), row[visible, total) zero. Returns the log of the sum of
/// exponentials. `scratch` is reused between calls.
float softmax_row(float* row, std::int64_t visible, std::int64_t total, float scale, const float* factors, std::vector<float>& scratch);
float softmax_row(c10::BFloat16* row, std::int64_t visible, std::int64_t total, float scale, const float* factors, std::vector<float>& scratch);
double softmax_row(double* row, std::int64_t visible, std::int64_t total, double scale, const float* factors, std::vector<double>& scratch);

/// From scores in `row` and the gradient of the (dropped) probabilities in `grad`: `row` becomes the dropped probabilities, `grad` the
/// gradient of the unscaled scores. `delta` is the row's sum of probability x gradient.
void softmax_row_backward(float* row, float* grad, std::int64_t visible, std::int64_t total, float scale, float log_sum, float delta,
                          const float* factors, std::vector<float>& scratch);
void softmax_row_backward(c10::BFloat16* row, c10::BFloat16* grad, std::int64_t visible, std::int64_t total, float scale, float log_sum, float delta,
                          const float* factors, std::vector<float>& scratch);
void softmax_row_backward(double* row, double* grad, std::int64_t visible, std::int64_t total, double scale, double log_sum, double delta,
                          const float* factors, std::vector<double>& scratch);

}  // namespace uqa::models
