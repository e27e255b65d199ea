#include "models/layers/rope.h"

#include <algorithm>

#include "core/error.h"
#include "models/layers/attention_rows.h"
#include "models/layers/no_autocast.h"
#include "models/plain/row_layers.h"

#include <ATen/Parallel.h>

namespace uqa::models {
namespace {

enum class Turn { kForward, kBack };

template <typename T>
void turn_rows(const Tensor& x_TND, const float* cosines, const float* sines, T* y, Turn direction) {
  using Compute = ComputeType<T>;
  const auto num_heads = x_TND.size(1), half = x_TND.size(2) / 2;
  const auto row_stride = x_TND.stride(0), head_stride = x_TND.stride(1);
  const T* x = x_TND.const_data_ptr<T>();
  const Compute sign = direction == Turn::kForward ? 1 : -1;
  const auto grain = std::max<std::int64_t>(1, 8192 / std::max<std::int64_t>(1, num_heads * half));
  at::parallel_for(0, x_TND.size(0), grain, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t t = begin; t < end; ++t) {
      const float* c = cosines + t * half;
      const float* s = sines + t * half;
      for (std::int64_t n = 0; n < num_heads; ++n) {
        const T* in = x + t * row_stride + n * head_stride;
        T* out = y + (t * num_heads + n) * 2 * half;
#pragma omp simd
        for (std::int64_t d = 0; d < half; ++d) {
          const auto a = static_cast<Compute>(in[d]), b = static_cast<Compute>(in[d + half]);
          const auto cosine = static_cast<Compute>(c[d]), sine = sign * static_cast<Compute>(s[d]);
          out[d] = static_cast<T>(a * cosine - b * sine);
          out[d + half] = static_cast<T>(b * cosine + a * sine);
        }
      }
    }
  });
}

Tensor turned(const Tensor& x, const Tensor& cos_TE, const Tensor& sin_TE, Turn direction) {
  const auto x_TND = x.stride(2) == 1 ? x : x.contiguous();
  auto y_TND = at::empty(x_TND.sizes(), x_TND.options());
  AT_DISPATCH_FLOATING_TYPES_AND(at::kBFloat16, x_TND.scalar_type(), "apply_rope", [&] {
    turn_rows<scalar_t>(x_TND, cos_TE.const_data_ptr<float>(), sin_TE.const_data_ptr<float>(), y_TND.mutable_data_ptr<scalar_t>(), direction);
  });
  return y_TND;
}

struct RopeFunction : torch::autograd::Function<RopeFunction> {
  static Tensor forward(torch::autograd::AutogradContext* ctx, const Tensor& x_TND, const Tensor& cos_TE, const Tensor& sin_TE) {
    const NoAutocast no_autocast;
    ctx->save_for_backward({cos_TE, sin_TE});
    return turned(x_TND, cos_TE, sin_TE, Turn::kForward);
  }
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx, const torch::autograd::variable_list& grad) {
    const NoAutocast no_autocast;
    const auto saved = ctx->get_saved_variables();
    return {turned(grad[0], saved[0], saved[1], Turn::kBack), {}, {}};
  }
};

}  // namespace

RopeAngles rope_angles(const Tensor& positions_T, std::int64_t head_dim, double base) {
  UQA_CHECK(head_dim > 0 && head_dim % 2 == 0, ErrorCode::kConfig, "head width = {}, must be even for rotary positions; change hidden or num_heads",
            head_dim);
  const NoAutocast no_autocast;
  const auto exponent_E = at::arange(0, head_dim, 2, positions_T.options()).to(at::kFloat) / static_cast<double>(head_dim);
  const auto frequency_E = at::pow(base, exponent_E).reciprocal();
  const auto angle_TE = positions_T.to(at::kFloat).unsqueeze(1) * frequency_E;
  return {.cos_TE = angle_TE.cos(), .sin_TE = angle_TE.sin()};
}

Tensor apply_rope(const Tensor& x_TND, const RopeAngles& angles) {
  UQA_CHECK(x_TND.dim() == 3 && x_TND.size(0) == angles.cos_TE.size(0) && x_TND.size(2) == 2 * angles.cos_TE.size(1), ErrorCode::kInternal,
            "rope: x [{}] and angles [{}] do not fit", fmt::join(x_TND.sizes(), ", "), fmt::join(angles.cos_TE.sizes(), ", "));
  if (!x_TND.is_cpu()) return plain::turned_halves(x_TND, angles.cos_TE, angles.sin_TE);
  return RopeFunction::apply(x_TND, angles.cos_TE, angles.sin_TE);
}

}  // namespace uqa::models
