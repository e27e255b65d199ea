#include "models/layers/gated_norm.h"

#include <algorithm>
#include <cmath>

#include "core/error.h"
#include "models/layers/no_autocast.h"
#include "models/layers/silu.h"
#include "models/plain/row_layers.h"

#include <ATen/Parallel.h>

// T packed rows, I features, G groups, S spans of rows.

namespace uqa::models {
namespace {

constexpr std::int64_t kSpanRows = 64;  // rows whose weight gradients are summed together: fixed, so sums do not depend on threads

/// out = RMSNorm(y silu(z)) weight of one group of n features. Returns the inverse root mean square.
template <typename T>
UQA_INLINE T forward_body(const T* y, const T* z, const T* weight, T* out, std::int64_t n, T eps) {
  T sum = 0;
#pragma omp simd reduction(+ : sum)
  for (std::int64_t j = 0; j < n; ++j) {
    const T gated = y[j] * z[j] * sigmoid(z[j]);
    out[j] = gated;
    sum += gated * gated;
  }
  const T inverse = 1 / std::sqrt(sum / static_cast<T>(n) + eps);
  for (std::int64_t j = 0; j < n; ++j) out[j] *= inverse * weight[j];
  return inverse;
}

/// Gradients of one group; adds to dweight. `dout` and `dy` may not overlap.
template <typename T>
UQA_INLINE void backward_body(const T* y, const T* z, const T* weight, const T* dout, T inverse, T* dy, T* dz, T* dweight, std::int64_t n) {
  T dot = 0;
#pragma omp simd reduction(+ : dot)
  for (std::int64_t j = 0; j < n; ++j) {
    const T s = sigmoid(z[j]);
    dz[j] = s;  // kept for the second pass
    dot += dout[j] * weight[j] * y[j] * z[j] * s;
  }
  const T shift = dot * inverse * inverse * inverse / static_cast<T>(n);
#pragma omp simd
  for (std::int64_t j = 0; j < n; ++j) {
    const T s = dz[j], gate = z[j] * s, gated = y[j] * gate;
    const T dgated = dout[j] * weight[j] * inverse - gated * shift;
    dweight[j] += dout[j] * gated * inverse;
    dy[j] = dgated * gate;
    dz[j] = dgated * y[j] * silu_slope(z[j], s);
  }
}

UQA_SIMD_CLONES float norm_forward(const float* y, const float* z, const float* weight, float* out, std::int64_t n, float eps) {
  return forward_body(y, z, weight, out, n, eps);
}
double norm_forward(const double* y, const double* z, const double* weight, double* out, std::int64_t n, double eps) {
  return forward_body(y, z, weight, out, n, eps);
}
UQA_SIMD_CLONES void norm_backward(const float* y, const float* z, const float* weight, const float* dout, float inverse, float* dy, float* dz,
                                   float* dweight, std::int64_t n) {
  backward_body(y, z, weight, dout, inverse, dy, dz, dweight, n);
}
void norm_backward(const double* y, const double* z, const double* weight, const double* dout, double inverse, double* dy, double* dz, double* dweight,
                   std::int64_t n) {
  backward_body(y, z, weight, dout, inverse, dy, dz, dweight, n);
}

Tensor with_unit_stride(const Tensor& x) { return x.stride(1) == 1 ? x : x.contiguous(); }

struct GatedRmsNormFunction : torch::autograd::Function<GatedRmsNormFunction> {
  static Tensor forward(torch::autograd::AutogradContext* ctx, const Tensor& y, const Tensor& z, const Tensor& weight, std::int64_t num_groups,
                        double eps) {
    const NoAutocast no_autocast;
    const auto y_TI = with_unit_stride(y), z_TI = with_unit_stride(z), weight_I = weight.contiguous();
    const auto num_rows = y_TI.size(0), width = y_TI.size(1), group_width = width / num_groups;
    auto out_TI = at::empty(y_TI.sizes(), y_TI.options()), inverse_TG = at::empty({num_rows, num_groups}, y_TI.options());
    AT_DISPATCH_FLOATING_TYPES(y_TI.scalar_type(), "gated_rms_norm", [&] {
      const auto *in = y_TI.const_data_ptr<scalar_t>(), *gate = z_TI.const_data_ptr<scalar_t>(), *w = weight_I.const_data_ptr<scalar_t>();
      auto *out = out_TI.mutable_data_ptr<scalar_t>(), *inverse = inverse_TG.mutable_data_ptr<scalar_t>();
      at::parallel_for(0, num_rows, kSpanRows, [&](std::int64_t begin, std::int64_t end) {
        for (auto t = begin; t < end; ++t) {
          for (std::int64_t g = 0; g < num_groups; ++g) {
            const auto first = g * group_width;
            inverse[t * num_groups + g] = norm_forward(in + t * y_TI.stride(0) + first, gate + t * z_TI.stride(0) + first, w + first,
                                                       out + t * width + first, group_width, static_cast<scalar_t>(eps));
          }
        }
      });
    });
    ctx->save_for_backward({y_TI, z_TI, weight_I, inverse_TG});
    return out_TI;
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx, const torch::autograd::variable_list& grad) {
    const NoAutocast no_autocast;
    const auto saved = ctx->get_saved_variables();
    const auto &y_TI = saved[0], &z_TI = saved[1], &weight_I = saved[2], &inverse_TG = saved[3];
    const auto dout_TI = grad[0].contiguous();
    const auto num_rows = y_TI.size(0), width = y_TI.size(1), num_groups = inverse_TG.size(1), group_width = width / num_groups;
    const auto num_spans = (num_rows + kSpanRows - 1) / kSpanRows;
    auto dy_TI = at::empty(y_TI.sizes(), y_TI.options()), dz_TI = at::empty(z_TI.sizes(), z_TI.options());
    auto dweight_SI = at::zeros({num_spans, width}, weight_I.options());
    AT_DISPATCH_FLOATING_TYPES(y_TI.scalar_type(), "gated_rms_norm_backward", [&] {
      const auto *in = y_TI.const_data_ptr<scalar_t>(), *gate = z_TI.const_data_ptr<scalar_t>(), *w = weight_I.const_data_ptr<scalar_t>();
      const auto *dout = dout_TI.const_data_ptr<scalar_t>(), *inverse = inverse_TG.const_data_ptr<scalar_t>();
      auto *dy = dy_TI.mutable_data_ptr<scalar_t>(), *dz = dz_TI.mutable_data_ptr<scalar_t>(), *dweight = dweight_SI.mutable_data_ptr<scalar_t>();
      at::parallel_for(0, num_spans, 1, [&](std::int64_t first_span, std::int64_t last_span) {
        for (auto span = first_span; span < last_span; ++span) {
          for (auto t = span * kSpanRows; t < std::min(num_rows, (span + 1) * kSpanRows); ++t) {
            for (std::int64_t g = 0; g < num_groups; ++g) {
              const auto first = g * group_width, row = t * width + first;
              norm_backward(in + t * y_TI.stride(0) + first, gate + t * z_TI.stride(0) + first, w + first, dout + row, inverse[t * num_groups + g],
                            dy + row, dz + row, dweight + span * width + first, group_width);
            }
          }
        }
      });
    });
    return {dy_TI, dz_TI, dweight_SI.sum(0), {}, {}};
  }
};

}  // namespace

Tensor gated_rms_norm(const Tensor& y_TI, const Tensor& z_TI, const Tensor& weight_I, std::int64_t num_groups, double eps) {
  UQA_CHECK(y_TI.dim() == 2 && y_TI.sizes() == z_TI.sizes() && weight_I.dim() == 1 && weight_I.size(0) == y_TI.size(1), ErrorCode::kInternal,
            "gated norm: y [{}], z [{}], weight [{}] do not fit", fmt::join(y_TI.sizes(), ", "), fmt::join(z_TI.sizes(), ", "),
            fmt::join(weight_I.sizes(), ", "));
  UQA_CHECK(num_groups > 0 && y_TI.size(1) % num_groups == 0, ErrorCode::kInternal, "gated norm: {} groups must divide {} features", num_groups,
            y_TI.size(1));
  UQA_CHECK(y_TI.scalar_type() == z_TI.scalar_type() && y_TI.scalar_type() == weight_I.scalar_type(), ErrorCode::kInternal,
            "gated norm: y, z and weight must have one dtype");
  if (!y_TI.is_cpu()) return plain::gated_rms_norm(y_TI, z_TI, weight_I, num_groups, eps);
  return GatedRmsNormFunction::apply(y_TI, z_TI, weight_I, num_groups, eps);
}

}  // namespace uqa::models
