#include "models/layers/ssd_rows.h"

#include <algorithm>

#include "models/layers/simd.h"

namespace uqa::models {
namespace {

template <typename T>
UQA_INLINE T product(T decay, T step) {
  const T shorter = decay * step;
  return shorter < static_cast<T>(1e-20) ? 0 : shorter;
}

template <typename T>
UQA_INLINE void decays_body(SsdRows<const T> dt, const T* a, const std::uint8_t* begins, const SsdTileShape& shape, T* step, T* from_start, T* to_end) {
  const auto heads = shape.heads;
  for (std::int64_t i = 0; i < shape.rows; ++i) {
    const T keep = begins[i] != 0 ? 0 : 1;
    for (std::int64_t h = 0; h < heads; ++h) step[i * heads + h] = keep * vector_exp(dt.data[i * dt.stride + h] * a[h]);
  }
  for (std::int64_t h = 0; h < heads; ++h) {
    T decay = 1;
    for (std::int64_t i = 0; i < shape.rows; ++i) from_start[i * heads + h] = decay = product(decay, step[i * heads + h]);
    decay = 1;
    for (std::int64_t i = shape.rows - 1; i >= 0; --i) {
      to_end[i * heads + h] = decay;
      decay = product(decay, step[i * heads + h]);
    }
  }
}

template <typename T>
UQA_INLINE void scale_body(SsdRows<const T> x, SsdRows<const T> factors, const SsdTileShape& shape, T* out) {
  for (std::int64_t i = 0; i < shape.rows; ++i) {
    for (std::int64_t h = 0; h < shape.heads; ++h) {
      const T factor = factors.data[i * factors.stride + h];
      const T* const in = x.data + i * x.stride + h * shape.width;
      T* const scaled = out + (i * shape.heads + h) * shape.width;
#pragma omp simd
      for (std::int64_t p = 0; p < shape.width; ++p) scaled[p] = factor * in[p];
    }
  }
}

template <typename T>
UQA_INLINE void dot_body(SsdRows<const T> x, SsdRows<const T> y, const SsdTileShape& shape, T* out) {
  for (std::int64_t i = 0; i < shape.rows; ++i) {
    for (std::int64_t h = 0; h < shape.heads; ++h) {
      const T* const a = x.data + i * x.stride + h * shape.width;
      const T* const b = y.data + i * y.stride + h * shape.width;
      T sum = 0;
#pragma omp simd reduction(+ : sum)
      for (std::int64_t p = 0; p < shape.width; ++p) sum += a[p] * b[p];
      out[i * shape.heads + h] = sum;
    }
  }
}

template <typename T>
UQA_INLINE void mix_body(const T* scores, const T* step, const SsdTileShape& shape, T* mixed, T* decay) {
  const auto rows = shape.rows;
  for (std::int64_t h = 0; h < shape.heads; ++h) {
    for (std::int64_t i = 0; i < rows; ++i) {
      const T factor = step[i * shape.heads + h];
      const T* const score = scores + i * rows;
      T* const out = mixed + (h * rows + i) * rows;
#pragma omp simd
      for (std::int64_t j = 0; j < i; ++j) {
        decay[j] = product(decay[j], factor);
        out[j] = decay[j] * score[j];
      }
      decay[i] = 1;
      out[i] = score[i];
      for (std::int64_t j = i + 1; j < rows; ++j) out[j] = 0;
    }
  }
}

template <typename T>
UQA_INLINE void mix_backward_body(const T* scores, const T* step, const T* dmixed, const SsdTileShape& shape, T* mixed, T* dscores, T* dlog_step,
                                  T* below) {
  const auto rows = shape.rows;
  for (std::int64_t h = 0; h < shape.heads; ++h) {
    T* const decays = mixed + h * rows * rows;  // until the loop from the last row turns them into mixed scores
    const T* const grads = dmixed + h * rows * rows;
    for (std::int64_t i = 0; i < rows; ++i) {
      const T factor = step[i * shape.heads + h];
      T* const decay = decays + i * rows;
#pragma omp simd
      for (std::int64_t j = 0; j < i; ++j) decay[j] = product(decay[j - rows], factor);
      decay[i] = 1;
      for (std::int64_t j = i + 1; j < rows; ++j) decay[j] = 0;
    }
    for (std::int64_t j = 0; j < rows; ++j) below[j] = 0;  // over the rows from i on: the gradient of the logarithm of the decay from j
    for (std::int64_t i = rows - 1; i >= 0; --i) {
      const T* const score = scores + i * rows;
      const T* const grad = grads + i * rows;
      T* const decay = decays + i * rows;
      T* const dscore = dscores + i * rows;
      T sum = 0;
#pragma omp simd reduction(+ : sum)
      for (std::int64_t j = 0; j < i; ++j) {
        const T factor = decay[j];
        const T value = factor * score[j];
        dscore[j] += factor * grad[j];
        below[j] += value * grad[j];
        sum += below[j];
        decay[j] = value;
      }
      dscore[i] += grad[i];
      decay[i] = score[i];
      dlog_step[i * shape.heads + h] = sum;
    }
  }
}

template <typename T>
UQA_INLINE void output_body(const T* within, const T* carried, const T* from_start, const T* skip, SsdRows<const T> x, const SsdTileShape& shape,
                            SsdRows<T> y) {
  const auto [rows, heads, width] = shape;
  for (std::int64_t i = 0; i < rows; ++i) {
    for (std::int64_t h = 0; h < heads; ++h) {
      const T* const in = x.data + i * x.stride + h * width;
      const T* const near = within + (h * rows + i) * width;
      T* const out = y.data + i * y.stride + h * width;
      if (carried == nullptr) {
#pragma omp simd
        for (std::int64_t p = 0; p < width; ++p) out[p] = near[p] + skip[h] * in[p];
      } else {
        const T* const far = carried + (i * heads + h) * width;
        const T decay = from_start[i * heads + h];
#pragma omp simd
        for (std::int64_t p = 0; p < width; ++p) out[p] = near[p] + skip[h] * in[p] + decay * far[p];
      }
    }
  }
}

template <typename T>
UQA_INLINE void input_gradient_body(const SsdInputGradient<T>& arrays, const SsdTileShape& shape) {
  const auto [rows, heads, width] = shape;
  for (std::int64_t i = 0; i < rows; ++i) {
    for (std::int64_t h = 0; h < heads; ++h) {
      const T* const x = arrays.x.data + i * arrays.x.stride + h * width;
      const T* const dy = arrays.dy.data + i * arrays.dy.stride + h * width;
      const T* const within = arrays.within + (h * rows + i) * width;
      const T* const passed = arrays.passed == nullptr ? within : arrays.passed + (i * heads + h) * width;
      const T num_passed = arrays.passed == nullptr ? 0 : 1;
      const T dt = arrays.dt.data[i * arrays.dt.stride + h], skip = arrays.skip[h];
      T* const dx = arrays.dx.data + i * arrays.dx.stride + h * width;
      T ddt = 0, dskip = 0;
#pragma omp simd reduction(+ : ddt, dskip)
      for (std::int64_t p = 0; p < width; ++p) {
        const T v = within[p] + num_passed * passed[p];
        dx[p] = dt * v + skip * dy[p];
        ddt += x[p] * v;
        dskip += x[p] * dy[p];
      }
      arrays.ddt[i * heads + h] = ddt;
      arrays.dskip[i * heads + h] = dskip;
    }
  }
}

UQA_SIMD_CLONES void decays_clones(SsdRows<const float> dt, const float* a, const std::uint8_t* begins, const SsdTileShape& shape, float* step,
                                   float* from_start, float* to_end) {
  decays_body(dt, a, begins, shape, step, from_start, to_end);
}
UQA_SIMD_CLONES void mix_clones(const float* scores, const float* step, const SsdTileShape& shape, float* mixed, float* decay) {
  mix_body(scores, step, shape, mixed, decay);
}
UQA_SIMD_CLONES void mix_backward_clones(const float* scores, const float* step, const float* dmixed, const SsdTileShape& shape, float* mixed,
                                         float* dscores, float* dlog_step, float* below) {
  mix_backward_body(scores, step, dmixed, shape, mixed, dscores, dlog_step, below);
}

template <typename T>
void resize(const SsdTileShape& shape, SsdDecays<T>& decays) {
  for (auto* values : {&decays.step, &decays.from_start, &decays.to_end}) values->resize(static_cast<std::size_t>(shape.rows * shape.heads));
}

template <typename T>
std::vector<T> one_row(const SsdTileShape& shape) {
  return std::vector<T>(static_cast<std::size_t>(shape.rows));
}

}  // namespace

void ssd_decays(SsdRows<const float> dt, const float* a, const std::uint8_t* begins, const SsdTileShape& shape, SsdDecays<float>& decays) {
  resize(shape, decays);
  decays_clones(dt, a, begins, shape, decays.step.data(), decays.from_start.data(), decays.to_end.data());
}
void ssd_decays(SsdRows<const double> dt, const double* a, const std::uint8_t* begins, const SsdTileShape& shape, SsdDecays<double>& decays) {
  resize(shape, decays);
  decays_body(dt, a, begins, shape, decays.step.data(), decays.from_start.data(), decays.to_end.data());
}

UQA_SIMD_CLONES void ssd_scale(SsdRows<const float> x, SsdRows<const float> factors, const SsdTileShape& shape, float* out) {
  scale_body(x, factors, shape, out);
}
void ssd_scale(SsdRows<const double> x, SsdRows<const double> factors, const SsdTileShape& shape, double* out) { scale_body(x, factors, shape, out); }

UQA_SIMD_CLONES void ssd_dot(SsdRows<const float> x, SsdRows<const float> y, const SsdTileShape& shape, float* out) { dot_body(x, y, shape, out); }
void ssd_dot(SsdRows<const double> x, SsdRows<const double> y, const SsdTileShape& shape, double* out) { dot_body(x, y, shape, out); }

void ssd_mix(const float* scores, const float* step, const SsdTileShape& shape, float* mixed) {
  auto decay = one_row<float>(shape);
  mix_clones(scores, step, shape, mixed, decay.data());
}
void ssd_mix(const double* scores, const double* step, const SsdTileShape& shape, double* mixed) {
  auto decay = one_row<double>(shape);
  mix_body(scores, step, shape, mixed, decay.data());
}

void ssd_mix_backward(const float* scores, const float* step, const float* dmixed, const SsdTileShape& shape, float* mixed, float* dscores,
                      float* dlog_step) {
  auto below = one_row<float>(shape);
  mix_backward_clones(scores, step, dmixed, shape, mixed, dscores, dlog_step, below.data());
}
void ssd_mix_backward(const double* scores, const double* step, const double* dmixed, const SsdTileShape& shape, double* mixed, double* dscores,
                      double* dlog_step) {
  auto below = one_row<double>(shape);
  mix_backward_body(scores, step, dmixed, shape, mixed, dscores, dlog_step, below.data());
}

UQA_SIMD_CLONES void ssd_output(const float* within, const float* carried, const float* from_start, const float* skip, SsdRows<const float> x,
                                const SsdTileShape& shape, SsdRows<float> y) {
  output_body(within, carried, from_start, skip, x, shape, y);
}
void ssd_output(const double* within, const double* carried, const double* from_start, const double* skip, SsdRows<const double> x,
                const SsdTileShape& shape, SsdRows<double> y) {
  output_body(within, carried, from_start, skip, x, shape, y);
}

UQA_SIMD_CLONES void ssd_input_gradient(const SsdInputGradient<float>& arrays, const SsdTileShape& shape) { input_gradient_body(arrays, shape); }
void ssd_input_gradient(const SsdInputGradient<double>& arrays, const SsdTileShape& shape) { input_gradient_body(arrays, shape); }

}  // namespace uqa::models
