#include "models/layers/causal_conv.h"

#include <algorithm>
#include <array>

#include "core/error.h"
#include "models/layers/no_autocast.h"
#include "models/layers/silu.h"
#include "models/plain/recurrent.h"

#include <ATen/Parallel.h>

// T packed rows, C channels, K taps, S spans.

namespace uqa::models {
namespace {

constexpr std::int64_t kSpanRows = 128;      // whole sequences whose weight gradients are summed together: fixed, so sums do not depend on threads
constexpr std::int64_t kTapGroup = 4;          // taps of one pass over the channels; kernels are padded with zeros to a multiple of it
constexpr std::int64_t kBlockChannels = 256;  // channels of one task: its rows stay in the innermost cache

/// Consecutive sequences [first, last).
struct Span {
  std::size_t first = 0, last = 0;
};

struct ConvPlan : torch::CustomClassHolder {
  std::vector<std::int64_t> starts;  ///< [B + 1] first row of every sequence
  std::vector<Span> spans;           ///< at least kSpanRows rows each, the last one excepted
};

c10::intrusive_ptr<ConvPlan> make_plan(const std::vector<std::int64_t>& cu_seqlens) {
  auto plan = c10::make_intrusive<ConvPlan>();
  plan->starts = cu_seqlens;
  Span span;
  for (std::size_t b = 0; b + 1 < cu_seqlens.size(); ++b) {
    span.last = b + 1;
    if (cu_seqlens[span.last] - cu_seqlens[span.first] < kSpanRows && span.last + 1 < cu_seqlens.size()) continue;
    plan->spans.push_back(span);
    span.first = span.last;
  }
  return plan;
}

/// Some channels of all arrays, beginning with the same one.
template <typename T>
struct ConvBlock {
  const T* x = nullptr;  ///< [T, *] with `stride` between rows
  std::int64_t stride = 0;
  const T* weight_KC = nullptr;
  const T* bias = nullptr;
  const T* zeros = nullptr;  ///< what is read where a sequence has no row
  std::int64_t num_taps = 0;      ///< a multiple of kTapGroup
  std::int64_t num_channels = 0;
  std::int64_t weight_stride = 0;  ///< between taps, and between rows of outputs and gradients
};

/// The rows that taps [first, first + kTapGroup) meet at row `position` of a sequence whose first row is x.
template <typename T>
UQA_INLINE std::array<const T*, kTapGroup> rows_of(const ConvBlock<T>& block, const T* x, std::int64_t position, std::int64_t first) {
  std::array<const T*, kTapGroup> rows;
  for (std::int64_t k = 0; k < kTapGroup; ++k) {
    const auto row = position - (block.num_taps - 1) + first + k;
    rows[static_cast<std::size_t>(k)] = row < 0 ? block.zeros : x + row * block.stride;
  }
  return rows;
}

/// out = start + sum over a group of taps of weight x row.
template <typename T>
UQA_INLINE void add_taps(const T* start, const T* weight, std::int64_t stride, const std::array<const T*, kTapGroup>& rows, T* out, std::int64_t n) {
  const T *w0 = weight, *w1 = w0 + stride, *w2 = w1 + stride, *w3 = w2 + stride;
  const auto [x0, x1, x2, x3] = rows;
#pragma omp simd
  for (std::int64_t j = 0; j < n; ++j) out[j] = start[j] + w0[j] * x0[j] + w1[j] * x1[j] + w2[j] * x2[j] + w3[j] * x3[j];
}

/// u = bias + convolution at the row `position` of a sequence whose first row is x.
template <typename T>
UQA_INLINE void convolve(const ConvBlock<T>& block, const T* x, std::int64_t position, T* u) {
  for (std::int64_t k = 0; k < block.num_taps; k += kTapGroup) {
    add_taps(k == 0 ? block.bias : u, block.weight_KC + k * block.weight_stride, block.weight_stride, rows_of(block, x, position, k), u,
             block.num_channels);
  }
}

template <typename T>
UQA_INLINE void forward_body(const ConvBlock<T>& block, std::int64_t begin, std::int64_t end, T* y) {
  const T* const x = block.x + begin * block.stride;
  for (auto t = begin; t < end; ++t) {
    T* const out = y + t * block.weight_stride;
    convolve(block, x, t - begin, out);
#pragma omp simd
    for (std::int64_t j = 0; j < block.num_channels; ++j) out[j] *= sigmoid(out[j]);
  }
}

/// From the last row to the first: `ring` [K, C] holds the gradient of the convolution's output at this and the next K - 1 rows.
/// Adds to dweight [K, C] and dbias.
template <typename T>
UQA_INLINE void backward_body(const ConvBlock<T>& block, std::int64_t begin, std::int64_t end, const T* dy, T* dx, T* dweight, T* dbias, T* ring) {
  const auto n = block.num_channels, num_taps = block.num_taps;
  const T* const x = block.x + begin * block.stride;
  for (auto t = end - 1; t >= begin; --t) {
    T* const du = ring + t % num_taps * n;
    const T* const grad = dy + t * block.weight_stride;
    convolve(block, x, t - begin, du);
#pragma omp simd
    for (std::int64_t j = 0; j < n; ++j) {
      du[j] = grad[j] * silu_slope(du[j], sigmoid(du[j]));
      dbias[j] += du[j];
    }
    T* const out = dx + t * block.weight_stride;
    for (std::int64_t k = 0; k < num_taps; k += kTapGroup) {
      const auto [x0, x1, x2, x3] = rows_of(block, x, t - begin, k);
      T *d0 = dweight + k * n, *d1 = d0 + n, *d2 = d1 + n, *d3 = d2 + n;
#pragma omp simd
      for (std::int64_t j = 0; j < n; ++j) {
        d0[j] += du[j] * x0[j];
        d1[j] += du[j] * x1[j];
        d2[j] += du[j] * x2[j];
        d3[j] += du[j] * x3[j];
      }
      std::array<const T*, kTapGroup> later;  // the rows whose taps [k, k + kTapGroup) met this one
      for (std::int64_t i = 0; i < kTapGroup; ++i) {
        const auto row = t + num_taps - 1 - k - i;
        later[static_cast<std::size_t>(i)] = row < end ? ring + row % num_taps * n : block.zeros;
      }
      add_taps(k == 0 ? block.zeros : out, block.weight_KC + k * block.weight_stride, block.weight_stride, later, out, n);
    }
  }
}

UQA_SIMD_CLONES void conv_forward(const ConvBlock<float>& block, std::int64_t begin, std::int64_t end, float* y) { forward_body(block, begin, end, y); }
void conv_forward(const ConvBlock<double>& block, std::int64_t begin, std::int64_t end, double* y) { forward_body(block, begin, end, y); }
UQA_SIMD_CLONES void conv_backward(const ConvBlock<float>& block, std::int64_t begin, std::int64_t end, const float* dy, float* dx, float* dweight,
                                   float* dbias, float* ring) {
  backward_body(block, begin, end, dy, dx, dweight, dbias, ring);
}
void conv_backward(const ConvBlock<double>& block, std::int64_t begin, std::int64_t end, const double* dy, double* dx, double* dweight, double* dbias,
                   double* ring) {
  backward_body(block, begin, end, dy, dx, dweight, dbias, ring);
}

/// [C, 1, K] as contiguous [K', C], where K' is K rounded up to whole groups: zeros are put before the first tap.
Tensor padded_taps(const Tensor& weight_C1K) {
  const auto num_taps = weight_C1K.size(2), padding = (kTapGroup - num_taps % kTapGroup) % kTapGroup;
  return at::constant_pad_nd(weight_C1K.squeeze(1), {padding, 0}).t().contiguous();
}

/// Runs body(span index, first channel, number of channels) over spans x channel blocks.
template <typename Body>
void for_each_block(const ConvPlan& plan, std::int64_t num_channels, const Body& body) {
  const auto num_blocks = (num_channels + kBlockChannels - 1) / kBlockChannels;
  at::parallel_for(0, static_cast<std::int64_t>(plan.spans.size()) * num_blocks, 1, [&](std::int64_t begin, std::int64_t end) {
    for (auto task = begin; task < end; ++task) {
      const auto first = task % num_blocks * kBlockChannels;
      body(static_cast<std::size_t>(task / num_blocks), first, std::min(kBlockChannels, num_channels - first));
    }
  });
}

template <typename T>
ConvBlock<T> block_of(const Tensor& x_TC, const Tensor& weight_KC, const Tensor& bias_C, std::int64_t first, std::int64_t num_channels) {
  static constexpr std::array<T, kBlockChannels> kZeros{};
  return {.x = x_TC.const_data_ptr<T>() + first,
          .stride = x_TC.stride(0),
          .weight_KC = weight_KC.const_data_ptr<T>() + first,
          .bias = bias_C.const_data_ptr<T>() + first,
          .zeros = kZeros.data(),
          .num_taps = weight_KC.size(0),
          .num_channels = num_channels,
          .weight_stride = weight_KC.size(1)};
}

struct CausalConvSilu : torch::autograd::Function<CausalConvSilu> {
  static Tensor forward(torch::autograd::AutogradContext* ctx, const Tensor& x, const Tensor& weight_C1K, const Tensor& bias,
                        const c10::intrusive_ptr<ConvPlan>& plan) {
    const NoAutocast no_autocast;
    const auto x_TC = x.stride(1) == 1 ? x : x.contiguous();
    const auto weight_KC = padded_taps(weight_C1K), bias_C = bias.contiguous();
    auto y_TC = at::empty(x_TC.sizes(), x_TC.options());
    AT_DISPATCH_FLOATING_TYPES(x_TC.scalar_type(), "causal_conv", [&] {
      auto* y = y_TC.mutable_data_ptr<scalar_t>();
      for_each_block(*plan, x_TC.size(1), [&](std::size_t span, std::int64_t first, std::int64_t num_channels) {
        const auto block = block_of<scalar_t>(x_TC, weight_KC, bias_C, first, num_channels);
        for (auto b = plan->spans[span].first; b < plan->spans[span].last; ++b) conv_forward(block, plan->starts[b], plan->starts[b + 1], y + first);
      });
    });
    ctx->save_for_backward({x_TC, weight_KC, bias_C});
    ctx->saved_data["plan"] = c10::IValue::make_capsule(plan);
    ctx->saved_data["num_taps"] = weight_C1K.size(2);
    return y_TC;
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx, const torch::autograd::variable_list& grad) {
    const NoAutocast no_autocast;
    const auto saved = ctx->get_saved_variables();
    const auto &x_TC = saved[0], &weight_KC = saved[1], &bias_C = saved[2];
    const auto plan = c10::static_intrusive_pointer_cast<ConvPlan>(ctx->saved_data["plan"].toCapsule());
    const auto dy_TC = grad[0].contiguous();
    const auto num_taps = weight_KC.size(0), num_all = x_TC.size(1);
    auto dx_TC = at::empty(x_TC.sizes(), x_TC.options());
    // The weights' gradients, tap by tap, and behind them the bias's, of every span.
    auto sums_SKC = at::empty({static_cast<std::int64_t>(plan->spans.size()), num_taps + 1, num_all}, x_TC.options());
    AT_DISPATCH_FLOATING_TYPES(x_TC.scalar_type(), "causal_conv_backward", [&] {
      const auto* dy = dy_TC.const_data_ptr<scalar_t>();
      auto* dx = dx_TC.mutable_data_ptr<scalar_t>();
      auto* sums = sums_SKC.mutable_data_ptr<scalar_t>();
      for_each_block(*plan, num_all, [&](std::size_t span, std::int64_t first, std::int64_t num_channels) {
        const auto block = block_of<scalar_t>(x_TC, weight_KC, bias_C, first, num_channels);
        std::vector<scalar_t> ring(static_cast<std::size_t>(num_taps * num_channels)), dweight(static_cast<std::size_t>((num_taps + 1) * num_channels));
        for (auto b = plan->spans[span].first; b < plan->spans[span].last; ++b) {
          conv_backward(block, plan->starts[b], plan->starts[b + 1], dy + first, dx + first, dweight.data(), dweight.data() + num_taps * num_channels,
                        ring.data());
        }
        for (std::int64_t k = 0; k <= num_taps; ++k) {
          std::copy_n(dweight.data() + k * num_channels, num_channels,
                      sums + (static_cast<std::int64_t>(span) * (num_taps + 1) + k) * num_all + first);
        }
      });
    });
    const auto sums_KC = sums_SKC.sum(0);
    const auto num_real_taps = ctx->saved_data["num_taps"].toInt();
    return {dx_TC, sums_KC.narrow(0, num_taps - num_real_taps, num_real_taps).t().unsqueeze(1).contiguous(), sums_KC.select(0, num_taps), {}};
  }
};

}  // namespace

Tensor causal_conv_silu(const Tensor& x_TC, const Tensor& weight_C1K, const Tensor& bias_C, const PackedLayout& layout) {
  UQA_CHECK(x_TC.dim() == 2 && weight_C1K.dim() == 3 && weight_C1K.size(1) == 1 && weight_C1K.size(2) > 0 && weight_C1K.size(0) == x_TC.size(1) &&
                bias_C.dim() == 1 && bias_C.size(0) == x_TC.size(1),
            ErrorCode::kInternal, "convolution: x [{}], weight [{}], bias [{}] do not fit", fmt::join(x_TC.sizes(), ", "),
            fmt::join(weight_C1K.sizes(), ", "), fmt::join(bias_C.sizes(), ", "));
  UQA_CHECK(x_TC.size(0) == layout.num_rows(), ErrorCode::kInternal, "convolution: {} rows for a layout of {}", x_TC.size(0), layout.num_rows());
  UQA_CHECK(x_TC.scalar_type() == weight_C1K.scalar_type() && x_TC.scalar_type() == bias_C.scalar_type(), ErrorCode::kInternal,
            "convolution: x, weight and bias must have one dtype");
  if (!x_TC.is_cpu()) return plain::causal_conv_silu(x_TC, weight_C1K, bias_C, layout);
  return CausalConvSilu::apply(x_TC, weight_C1K, bias_C, make_plan(layout.cu_seqlens));
}

}  // namespace uqa::models
