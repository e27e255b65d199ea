#include "models/layers/norm.h"

#include <algorithm>
#include <cmath>

#include "core/error.h"
#include "models/layers/attention_rows.h"
#include "models/layers/no_autocast.h"
#include "models/plain/row_layers.h"

#include <ATen/Parallel.h>

namespace uqa::models {
namespace {

constexpr std::int64_t kRowChunk = 64;  // rows whose weight gradients are summed together: fixed, so sums do not depend on threads

template <typename T>
void normalize(const T* x, const ComputeType<T>* weight, T* y, ComputeType<T>* inverse_rms, std::int64_t num_rows, std::int64_t width, double eps) {
  using Compute = ComputeType<T>;
  at::parallel_for(0, num_rows, kRowChunk, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t t = begin; t < end; ++t) {
      const T* in = x + t * width;
      T* out = y + t * width;
      Compute sum = 0;
#pragma omp simd reduction(+ : sum)
      for (std::int64_t j = 0; j < width; ++j) {
        const auto value = static_cast<Compute>(in[j]);
        sum += value * value;
      }
      const Compute inverse = 1 / std::sqrt(sum / static_cast<Compute>(width) + static_cast<Compute>(eps));
      for (std::int64_t j = 0; j < width; ++j) out[j] = static_cast<T>(static_cast<Compute>(in[j]) * inverse * weight[j]);
      inverse_rms[t] = inverse;
    }
  });
}

template <typename T>
void normalize_backward(const T* x, const ComputeType<T>* weight, const T* dy, const ComputeType<T>* inverse_rms, T* dx,
                        ComputeType<T>* dweight_chunks, std::int64_t num_rows, std::int64_t width) {
  using Compute = ComputeType<T>;
  const auto num_chunks = (num_rows + kRowChunk - 1) / kRowChunk;
  at::parallel_for(0, num_chunks, 1, [&](std::int64_t first, std::int64_t last) {
    for (std::int64_t chunk = first; chunk < last; ++chunk) {
      Compute* dweight = dweight_chunks + chunk * width;
      for (std::int64_t t = chunk * kRowChunk; t < std::min(num_rows, (chunk + 1) * kRowChunk); ++t) {
        const T* in = x + t * width;
        const T* grad = dy + t * width;
        T* out = dx + t * width;
        Compute dot = 0;
#pragma omp simd reduction(+ : dot)
        for (std::int64_t j = 0; j < width; ++j) dot += static_cast<Compute>(grad[j]) * weight[j] * static_cast<Compute>(in[j]);
        const Compute inverse = inverse_rms[t];
        const Compute shift = dot * inverse * inverse * inverse / static_cast<Compute>(width);
        for (std::int64_t j = 0; j < width; ++j) {
          const auto value = static_cast<Compute>(in[j]), g = static_cast<Compute>(grad[j]);
          out[j] = static_cast<T>(g * weight[j] * inverse - value * shift);
          dweight[j] += g * value * inverse;
        }
      }
    }
  });
}

struct RmsNormFunction : torch::autograd::Function<RmsNormFunction> {
  static Tensor forward(torch::autograd::AutogradContext* ctx, const Tensor& x, const Tensor& weight_F, double eps) {
    const NoAutocast no_autocast;
    const auto x_TF = x.contiguous();
    auto y_TF = at::empty_like(x_TF);
    auto inverse_rms_T = at::empty({x_TF.size(0)}, weight_F.options());
    AT_DISPATCH_FLOATING_TYPES_AND(at::kBFloat16, x_TF.scalar_type(), "rms_norm", [&] {
      using Compute = ComputeType<scalar_t>;
      normalize<scalar_t>(x_TF.const_data_ptr<scalar_t>(), weight_F.const_data_ptr<Compute>(), y_TF.mutable_data_ptr<scalar_t>(),
                          inverse_rms_T.mutable_data_ptr<Compute>(), x_TF.size(0), x_TF.size(1), eps);
    });
    ctx->save_for_backward({x_TF, weight_F, inverse_rms_T});
    return y_TF;
  }
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx, const torch::autograd::variable_list& grad) {
    const NoAutocast no_autocast;
    const auto saved = ctx->get_saved_variables();
    const auto &x_TF = saved[0], &weight_F = saved[1], &inverse_rms_T = saved[2];
    const auto dy_TF = grad[0].contiguous();
    auto dx_TF = at::empty_like(x_TF);
    auto dweight_CF = at::zeros({(x_TF.size(0) + kRowChunk - 1) / kRowChunk, x_TF.size(1)}, weight_F.options());
    AT_DISPATCH_FLOATING_TYPES_AND(at::kBFloat16, x_TF.scalar_type(), "rms_norm_backward", [&] {
      using Compute = ComputeType<scalar_t>;
      normalize_backward<scalar_t>(x_TF.const_data_ptr<scalar_t>(), weight_F.const_data_ptr<Compute>(), dy_TF.const_data_ptr<scalar_t>(),
                                   inverse_rms_T.const_data_ptr<Compute>(), dx_TF.mutable_data_ptr<scalar_t>(),
                                   dweight_CF.mutable_data_ptr<Compute>(), x_TF.size(0), x_TF.size(1));
    });
    return {dx_TF, dweight_CF.sum(0), {}};
  }
};

}  // namespace

Tensor rms_norm(const Tensor& x_TF, const Tensor& weight_F, double eps) {
  UQA_CHECK(x_TF.dim() == 2 && weight_F.dim() == 1 && x_TF.size(1) == weight_F.size(0), ErrorCode::kInternal, "rms_norm: x [{}], weight [{}] do not fit",
            fmt::join(x_TF.sizes(), ", "), fmt::join(weight_F.sizes(), ", "));
  const auto expected = x_TF.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  UQA_CHECK(weight_F.scalar_type() == expected && weight_F.is_contiguous(), ErrorCode::kInternal, "rms_norm: weight must be contiguous {}",
            c10::toString(expected));
  if (!x_TF.is_cpu()) return plain::rms_norm(x_TF, weight_F, eps);
  return RmsNormFunction::apply(x_TF, weight_F, eps);
}

}  // namespace uqa::models
