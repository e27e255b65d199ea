// models/layers/ssd_rows.h - what one tile of the state-space scan does row by row; vectorized, float32 or float64.
#pragma once

#include <cstdint>
#include <vector>

namespace uqa::models {

/// A tile: `rows` rows of `heads` heads, each `width` features wide and side by side.
struct SsdTileShape {
  std::int64_t rows = 0, heads = 0, width = 0;
};

/// Rows of a larger matrix, `stride` elements apart.
template <typename T>
struct SsdRows {
  T* data = nullptr;
  std::int64_t stride = 0;
};

/// How much of the state is left, [rows, heads] each: after the row itself, from the tile's first row through this one, from the next
/// row through the tile's last. A row that begins a sequence leaves nothing. Products below 1e-20 are 0: nobody sees them, and they would
/// go on to denormal numbers, which are slow.
template <typename T>
struct SsdDecays {
  std::vector<T> step, from_start, to_end;
};
void ssd_decays(SsdRows<const float> dt, const float* a, const std::uint8_t* begins, const SsdTileShape& shape, SsdDecays<float>& decays);
void ssd_decays(SsdRows<const double> dt, const double* a, const std::uint8_t* begins, const SsdTileShape& shape, SsdDecays<double>& decays);

/// out [rows, heads x width] = x times its row's and head's factor.
void ssd_scale(SsdRows<const float> x, SsdRows<const float> factors, const SsdTileShape& shape, float* out);
void ssd_scale(SsdRows<const double> x, SsdRows<const double> factors, const SsdTileShape& shape, double* out);

/// out [rows, heads] = sum over a head's features of x y.
void ssd_dot(SsdRows<const float> x, SsdRows<const float> y, const SsdTileShape& shape, float* out);
void ssd_dot(SsdRows<const double> x, SsdRows<const double> y, const SsdTileShape& shape, double* out);

/// mixed [heads, rows, rows] = scores [rows, rows] times the decay from column to row; zero above the diagonal.
void ssd_mix(const float* scores, const float* step, const SsdTileShape& shape, float* mixed);
void ssd_mix(const double* scores, const double* step, const SsdTileShape& shape, double* mixed);

/// Computes `mixed` again and from its gradient: adds to dscores [rows, rows], and writes dlog_step [rows, heads], the gradient of the
/// logarithm of `step`. Nothing cancels in it: it is a sum over the pairs of rows that the step lies between.
void ssd_mix_backward(const float* scores, const float* step, const float* dmixed, const SsdTileShape& shape, float* mixed, float* dscores,
                      float* dlog_step);
void ssd_mix_backward(const double* scores, const double* step, const double* dmixed, const SsdTileShape& shape, double* mixed, double* dscores,
                      double* dlog_step);

/// y = within [heads, rows, width] + from_start x carried [rows, heads x width] (nullptr: no state came in) + skip [heads] x.
void ssd_output(const float* within, const float* carried, const float* from_start, const float* skip, SsdRows<const float> x,
                const SsdTileShape& shape, SsdRows<float> y);
void ssd_output(const double* within, const double* carried, const double* from_start, const double* skip, SsdRows<const double> x,
                const SsdTileShape& shape, SsdRows<double> y);

/// Gradients of a tile's inputs, all of them but `within` and `passed` as in ssd_output. dx = dt v + skip dy, ddt [rows, heads] = sum of x v and
/// dskip [rows, heads] = sum of x dy over a head's features, where v = within [heads, rows, width] + passed [rows, heads x width] (nullptr: no
/// state went out) is the gradient of dt x.
template <typename T>
struct SsdInputGradient {
  const T *within = nullptr, *passed = nullptr;
  const T* skip = nullptr;
  SsdRows<const T> dt, x, dy;
  SsdRows<T> dx;
  T *ddt = nullptr, *dskip = nullptr;
};
void ssd_input_gradient(const SsdInputGradient<float>& arrays, const SsdTileShape& shape);
void ssd_input_gradient(const SsdInputGradient<double>& arrays, const SsdTileShape& shape);

}  // namespace uqa::models
