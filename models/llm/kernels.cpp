#include "models/llm/kernels.h"

#include <ATen/Parallel.h>

#include "core/error.h"
#include "models/layers/simd.h"
#include "models/plain/llm_kernels.h"

// Each kernel: an always-inlined row body over a storage type, instantiated in plain functions that are compiled once per
// instruction set, and a loop over rows that is split among threads. Rows are independent, so threads do not change results.

namespace uqa::models::llm {
namespace {

using Half = std::uint16_t;  // bfloat16 bits

UQA_INLINE float load(float x) { return x; }
UQA_INLINE float load(Half x) { return std::bit_cast<float>(static_cast<std::uint32_t>(x) << 16); }
UQA_INLINE void store(float& to, float x) { to = x; }
UQA_INLINE void store(Half& to, float x) {  // round to nearest even; NaN stays NaN
  const auto bits = std::bit_cast<std::uint32_t>(x);
  const std::uint32_t rounded = (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16;
  to = static_cast<Half>((bits & 0x7FFFFFFFu) > 0x7F800000u ? 0x7FC0u : rounded);  // integer test: a float one stops vectorization
}

// Comparisons and selects below work on the bits: between floats they stop vectorization (unless exceptions flags are given up).

/// exp(-|x|) with |x| cut at 80 (NaN too).
UQA_INLINE float exp_minus_abs(float x) {
  constexpr std::uint32_t kCut = 0x42A00000u;  // 80.0f
  const std::uint32_t magnitude = std::bit_cast<std::uint32_t>(x) & 0x7FFFFFFFu;
  return exp_in_range(-std::bit_cast<float>(magnitude < kCut ? magnitude : kCut));
}

UQA_INLINE float sigmoid(float x) {
  const float e = exp_minus_abs(x);
  const auto numerator = std::bit_cast<std::uint32_t>(x) >> 31 ? std::bit_cast<std::uint32_t>(e) : 0x3F800000u;
  return std::bit_cast<float>(numerator) / (1.0f + e);
}

// ---- row bodies ----

template <typename In>
UQA_INLINE void add_body(const float* h, const In* delta, std::int64_t n, float* out) {
#pragma omp simd
  for (std::int64_t i = 0; i < n; ++i) out[i] = h[i] + load(delta[i]);
}

template <typename Out>
UQA_INLINE float norm_body(const float* h, const float* weight, float eps, std::int64_t n, Out* out) {
  float squares = 0;
#pragma omp simd reduction(+ : squares)
  for (std::int64_t i = 0; i < n; ++i) squares += h[i] * h[i];
  const float rstd = 1.0f / std::sqrt(squares / static_cast<float>(n) + eps);
#pragma omp simd
  for (std::int64_t i = 0; i < n; ++i) store(out[i], h[i] * rstd * weight[i]);
  return rstd;
}

template <typename In, typename Delta>
UQA_INLINE void norm_backward_body(const float* h, float rstd, const float* weight, const In* dout, const float* dh_out, std::int64_t n,
                                   float* dh, Delta* ddelta) {
  float dot = 0;
#pragma omp simd reduction(+ : dot)
  for (std::int64_t i = 0; i < n; ++i) dot += load(dout[i]) * weight[i] * h[i];
  const float along = dot * rstd * rstd * rstd / static_cast<float>(n);
#pragma omp simd
  for (std::int64_t i = 0; i < n; ++i) dh[i] = load(dout[i]) * weight[i] * rstd - h[i] * along;
  if (dh_out != nullptr) {
#pragma omp simd
    for (std::int64_t i = 0; i < n; ++i) dh[i] += dh_out[i];
  }
  if (ddelta != nullptr) {
#pragma omp simd
    for (std::int64_t i = 0; i < n; ++i) store(ddelta[i], dh[i]);
  }
}

template <typename S>
UQA_INLINE void swiglu_body(const S* gate, const S* up, std::int64_t n, S* out) {
#pragma omp simd
  for (std::int64_t i = 0; i < n; ++i) {
    const float g = load(gate[i]);
    store(out[i], g * sigmoid(g) * load(up[i]));
  }
}

template <typename S>
UQA_INLINE void swiglu_backward_body(const S* gate, const S* up, const S* dout, std::int64_t n, S* dgate, S* dup) {
#pragma omp simd
  for (std::int64_t i = 0; i < n; ++i) {
    const float g = load(gate[i]), d = load(dout[i]), s = sigmoid(g);
    store(dgate[i], d * load(up[i]) * s * (1.0f + g * (1.0f - s)));
    store(dup[i], d * g * s);
  }
}

template <typename S>
UQA_INLINE void rotate_body(const S* x, const float* bias, const float* cos, const float* sin, std::int64_t half, float sign, S* y) {
#pragma omp simd
  for (std::int64_t i = 0; i < half; ++i) {
    const float a = load(x[i]) + (bias != nullptr ? bias[i] : 0.0f);
    const float b = load(x[i + half]) + (bias != nullptr ? bias[i + half] : 0.0f);
    store(y[i], a * cos[i] - sign * b * sin[i]);
    store(y[i + half], b * cos[i] + sign * a * sin[i]);
  }
}

template <typename S>
UQA_INLINE void copy_body(const S* x, const float* bias, std::int64_t n, S* y) {
#pragma omp simd
  for (std::int64_t i = 0; i < n; ++i) store(y[i], load(x[i]) + (bias != nullptr ? bias[i] : 0.0f));
}

template <typename S>
UQA_INLINE float log_sum_exp_body(const S* x, std::int64_t n) {
  float largest = load(x[0]);
#pragma omp simd reduction(max : largest)
  for (std::int64_t i = 0; i < n; ++i) {
    const float v = load(x[i]);
    largest = v > largest ? v : largest;
  }
  float sum = 0;
#pragma omp simd reduction(+ : sum)
  for (std::int64_t i = 0; i < n; ++i) {
    const float below = load(x[i]) - largest;
    sum += exp_minus_abs(below) + 0.0f * below;  // a logit that is not finite makes the loss NaN
  }
  return largest + std::log(sum);
}

template <typename S>
UQA_INLINE void softmax_body(S* x, float log_sum_exp, float scale, std::int64_t n) {
#pragma omp simd
  for (std::int64_t i = 0; i < n; ++i) store(x[i], scale * exp_minus_abs(load(x[i]) - log_sum_exp));
}

// ---- the same, compiled per instruction set ----

UQA_SIMD_CLONES void add_row(const float* h, const float* delta, std::int64_t n, float* out) { add_body(h, delta, n, out); }
UQA_SIMD_CLONES void add_row(const float* h, const Half* delta, std::int64_t n, float* out) { add_body(h, delta, n, out); }
UQA_SIMD_CLONES float norm_row(const float* h, const float* w, float eps, std::int64_t n, float* out) { return norm_body(h, w, eps, n, out); }
UQA_SIMD_CLONES float norm_row(const float* h, const float* w, float eps, std::int64_t n, Half* out) { return norm_body(h, w, eps, n, out); }
UQA_SIMD_CLONES void norm_backward_row(const float* h, float rstd, const float* w, const float* dout, const float* dh_out, std::int64_t n,
                                       float* dh, float* ddelta) {
  norm_backward_body(h, rstd, w, dout, dh_out, n, dh, ddelta);
}
UQA_SIMD_CLONES void norm_backward_row(const float* h, float rstd, const float* w, const float* dout, const float* dh_out, std::int64_t n,
                                       float* dh, Half* ddelta) {
  norm_backward_body(h, rstd, w, dout, dh_out, n, dh, ddelta);
}
UQA_SIMD_CLONES void norm_backward_row(const float* h, float rstd, const float* w, const Half* dout, const float* dh_out, std::int64_t n,
                                       float* dh, Half* ddelta) {
  norm_backward_body(h, rstd, w, dout, dh_out, n, dh, ddelta);
}
UQA_SIMD_CLONES void swiglu_row(const float* gate, const float* up, std::int64_t n, float* out) { swiglu_body(gate, up, n, out); }
UQA_SIMD_CLONES void swiglu_row(const Half* gate, const Half* up, std::int64_t n, Half* out) { swiglu_body(gate, up, n, out); }
UQA_SIMD_CLONES void swiglu_backward_row(const float* gate, const float* up, const float* dout, std::int64_t n, float* dgate, float* dup) {
  swiglu_backward_body(gate, up, dout, n, dgate, dup);
}
UQA_SIMD_CLONES void swiglu_backward_row(const Half* gate, const Half* up, const Half* dout, std::int64_t n, Half* dgate, Half* dup) {
  swiglu_backward_body(gate, up, dout, n, dgate, dup);
}
UQA_SIMD_CLONES void rotate_row(const float* x, const float* bias, const float* cos, const float* sin, std::int64_t half, float sign, float* y) {
  rotate_body(x, bias, cos, sin, half, sign, y);
}
UQA_SIMD_CLONES void rotate_row(const Half* x, const float* bias, const float* cos, const float* sin, std::int64_t half, float sign, Half* y) {
  rotate_body(x, bias, cos, sin, half, sign, y);
}
UQA_SIMD_CLONES void copy_row(const float* x, const float* bias, std::int64_t n, float* y) { copy_body(x, bias, n, y); }
UQA_SIMD_CLONES void copy_row(const Half* x, const float* bias, std::int64_t n, Half* y) { copy_body(x, bias, n, y); }
UQA_SIMD_CLONES float log_sum_exp_row(const float* x, std::int64_t n) { return log_sum_exp_body(x, n); }
UQA_SIMD_CLONES float log_sum_exp_row(const Half* x, std::int64_t n) { return log_sum_exp_body(x, n); }
UQA_SIMD_CLONES void softmax_row(float* x, float lse, float scale, std::int64_t n) { softmax_body(x, lse, scale, n); }
UQA_SIMD_CLONES void softmax_row(Half* x, float lse, float scale, std::int64_t n) { softmax_body(x, lse, scale, n); }

// ---- loops over rows ----

template <typename S>
S* data(const Tensor& x) {
  if (!x.defined()) return nullptr;
  return static_cast<S*>(x.data_ptr());
}

void check_rows(const Tensor& x, const char* what) {
  UQA_CHECK(x.stride(-1) == 1 || x.size(-1) <= 1, ErrorCode::kInternal, "{}: elements of a row must be adjacent, stride = {}", what, x.stride(-1));
}

/// Calls f with a value of the storage type of `type`.
template <typename F>
void with_storage(at::ScalarType type, F&& f) {
  if (type == at::kFloat) return f(float{});
  UQA_CHECK(type == at::kBFloat16, ErrorCode::kInternal, "LLM kernels take float32 and bfloat16, got {}", c10::toString(type));
  f(Half{});
}

template <typename F>
void for_rows(std::int64_t rows, std::int64_t width, F&& f) {
  const std::int64_t grain = std::max<std::int64_t>(1, 16384 / std::max<std::int64_t>(width, 1));
  at::parallel_for(0, rows, grain, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t t = begin; t < end; ++t) f(t);
  });
}

}  // namespace

void add_rms_norm(const Tensor& h_TH, const Tensor& delta_TH, const Tensor& weight_H, double eps, Tensor& h_out_TH, Tensor& out_TL,
                  Tensor& rstd_T) {
  if (!h_TH.is_cpu()) return plain::add_rms_norm(h_TH, delta_TH, weight_H, eps, h_out_TH, out_TL, rstd_T);
  const std::int64_t width = h_TH.size(1), ld = out_TL.stride(0);
  check_rows(out_TL, "norm output");
  const auto* h = data<float>(h_TH);
  const auto* w = data<float>(weight_H);
  auto* sum = data<float>(h_out_TH);
  auto* rstd = data<float>(rstd_T);
  with_storage(out_TL.scalar_type(), [&](auto out_type) {
    using Out = decltype(out_type);
    auto* out = data<Out>(out_TL);
    with_storage(delta_TH.defined() ? delta_TH.scalar_type() : at::kFloat, [&](auto delta_type) {
      using Delta = decltype(delta_type);
      const auto* delta = data<Delta>(delta_TH);
      for_rows(h_TH.size(0), width, [&](std::int64_t t) {
        const float* row = h + t * width;
        if (delta != nullptr) {
          add_row(row, delta + t * width, width, sum + t * width);
          row = sum + t * width;
        }
        rstd[t] = norm_row(row, w, static_cast<float>(eps), width, out + t * ld);
      });
    });
  });
}

void add_rms_norm_backward(const Tensor& h_TH, const Tensor& rstd_T, const Tensor& weight_H, const Tensor& dout_TL, const Tensor& dh_out_TH,
                           Tensor& dh_TH, Tensor& ddelta_TH) {
  if (!h_TH.is_cpu()) return plain::add_rms_norm_backward(h_TH, rstd_T, weight_H, dout_TL, dh_out_TH, dh_TH, ddelta_TH);
  const std::int64_t width = h_TH.size(1), ld = dout_TL.stride(0);
  check_rows(dout_TL, "norm gradient");
  const auto* h = data<float>(h_TH);
  const auto* w = data<float>(weight_H);
  const auto* rstd = data<float>(rstd_T);
  const auto* dh_out = data<float>(dh_out_TH);
  auto* dh = data<float>(dh_TH);
  const auto run = [&](auto* dout, auto* ddelta) {
    for_rows(h_TH.size(0), width, [&](std::int64_t t) {
      norm_backward_row(h + t * width, rstd[t], w, dout + t * ld, dh_out == nullptr ? nullptr : dh_out + t * width, width, dh + t * width,
                        ddelta == nullptr ? nullptr : ddelta + t * width);
    });
  };
  const bool half_delta = ddelta_TH.defined() && ddelta_TH.scalar_type() == at::kBFloat16;
  with_storage(dout_TL.scalar_type(), [&](auto type) {
    using In = decltype(type);
    const auto* dout = data<const In>(dout_TL);
    if constexpr (std::is_same_v<In, float>) {
      if (half_delta) {
        run(dout, data<Half>(ddelta_TH));
      } else {
        run(dout, data<float>(ddelta_TH));
      }
    } else {
      UQA_CHECK(half_delta || !ddelta_TH.defined(), ErrorCode::kInternal, "norm gradient: a bfloat16 output goes with a bfloat16 delta");
      run(dout, data<Half>(ddelta_TH));
    }
  });
}

void swiglu(const Tensor& gate_up_TI2, Tensor& out_TL) {
  if (!gate_up_TI2.is_cpu()) return plain::swiglu(gate_up_TI2, out_TL);
  const std::int64_t inner = gate_up_TI2.size(1) / 2, ld = out_TL.stride(0), in_ld = gate_up_TI2.stride(0);
  check_rows(gate_up_TI2, "swiglu input");
  with_storage(out_TL.scalar_type(), [&](auto type) {
    using S = decltype(type);
    const auto* x = data<S>(gate_up_TI2);
    auto* out = data<S>(out_TL);
    for_rows(gate_up_TI2.size(0), inner, [&](std::int64_t t) { swiglu_row(x + t * in_ld, x + t * in_ld + inner, inner, out + t * ld); });
  });
}

void swiglu_backward(const Tensor& gate_up_TI2, const Tensor& dout_TL, Tensor& dgate_up_TI2) {
  if (!gate_up_TI2.is_cpu()) return plain::swiglu_backward(gate_up_TI2, dout_TL, dgate_up_TI2);
  const std::int64_t inner = gate_up_TI2.size(1) / 2, ld = dout_TL.stride(0), in_ld = gate_up_TI2.stride(0);
  check_rows(dout_TL, "swiglu gradient");
  with_storage(dout_TL.scalar_type(), [&](auto type) {
    using S = decltype(type);
    const auto* x = data<S>(gate_up_TI2);
    const auto* dout = data<S>(dout_TL);
    auto* dx = data<S>(dgate_up_TI2);
    for_rows(gate_up_TI2.size(0), inner, [&](std::int64_t t) {
      auto* row = dx + t * 2 * inner;
      swiglu_backward_row(x + t * in_ld, x + t * in_ld + inner, dout + t * ld, inner, row, row + inner);
    });
  });
}

void rope_split(const Tensor& qkv_TC, const Tensor& bias_C, const Tensor& cos_TR, const Tensor& sin_TR, Tensor& q_TND, Tensor& k_TKD,
                Tensor& v_TKD) {
  if (!qkv_TC.is_cpu()) return plain::rope_split(qkv_TC, bias_C, cos_TR, sin_TR, q_TND, k_TKD, v_TKD);
  const std::int64_t heads = q_TND.size(1), kv = k_TKD.size(1), width = q_TND.size(2), half = width / 2, ld = qkv_TC.stride(0);
  check_rows(qkv_TC, "qkv");
  const auto* cos = data<float>(cos_TR);
  const auto* sin = data<float>(sin_TR);
  const auto* bias = data<float>(bias_C);
  with_storage(qkv_TC.scalar_type(), [&](auto type) {
    using S = decltype(type);
    const auto* x = data<S>(qkv_TC);
    S* out[3] = {data<S>(q_TND), data<S>(k_TKD), data<S>(v_TKD)};
    for_rows(qkv_TC.size(0), qkv_TC.size(1), [&](std::int64_t t) {
      const S* row = x + t * ld;
      for (std::int64_t h = 0; h < heads + kv; ++h) {
        S* y = h < heads ? out[0] + (t * heads + h) * width : out[1] + (t * kv + h - heads) * width;
        rotate_row(row + h * width, bias == nullptr ? nullptr : bias + h * width, cos + t * half, sin + t * half, half, 1.0f, y);
      }
      const std::int64_t at = (heads + kv) * width;
      copy_row(row + at, bias == nullptr ? nullptr : bias + at, kv * width, out[2] + t * kv * width);
    });
  });
}

void rope_split_backward(const Tensor& dq_TND, const Tensor& dk_TKD, const Tensor& dv_TKD, const Tensor& cos_TR, const Tensor& sin_TR,
                         Tensor& dqkv_TC) {
  if (!dq_TND.is_cpu()) return plain::rope_split_backward(dq_TND, dk_TKD, dv_TKD, cos_TR, sin_TR, dqkv_TC);
  const std::int64_t heads = dq_TND.size(1), kv = dk_TKD.size(1), width = dq_TND.size(2), half = width / 2, columns = dqkv_TC.size(1);
  const auto* cos = data<float>(cos_TR);
  const auto* sin = data<float>(sin_TR);
  with_storage(dqkv_TC.scalar_type(), [&](auto type) {
    using S = decltype(type);
    const S* in[3] = {data<S>(dq_TND), data<S>(dk_TKD), data<S>(dv_TKD)};
    auto* out = data<S>(dqkv_TC);
    for_rows(dqkv_TC.size(0), columns, [&](std::int64_t t) {
      S* row = out + t * columns;
      for (std::int64_t h = 0; h < heads + kv; ++h) {
        const S* d = h < heads ? in[0] + (t * heads + h) * width : in[1] + (t * kv + h - heads) * width;
        rotate_row(d, nullptr, cos + t * half, sin + t * half, half, -1.0f, row + h * width);
      }
      copy_row(in[2] + t * kv * width, nullptr, kv * width, row + (heads + kv) * width);
    });
  });
}

Tensor cross_entropy_rows_(Tensor& logits_MV, const Tensor& labels_M, bool to_gradient) {
  if (!logits_MV.is_cpu()) return plain::cross_entropy_rows_(logits_MV, labels_M, to_gradient);
  const std::int64_t vocab = logits_MV.size(1);
  auto losses_M = at::empty({logits_MV.size(0)}, logits_MV.options().dtype(at::kFloat));
  auto* losses = data<float>(losses_M);
  const auto* labels = data<std::int64_t>(labels_M);
  with_storage(logits_MV.scalar_type(), [&](auto type) {
    using S = decltype(type);
    auto* logits = data<S>(logits_MV);
    for_rows(logits_MV.size(0), vocab, [&](std::int64_t m) {
      S* row = logits + m * vocab;
      const float lse = log_sum_exp_row(row, vocab);
      losses[m] = lse - load(row[labels[m]]);
      if (!to_gradient) return;
      softmax_row(row, lse, 1, vocab);
      // -loss is the label's log probability: the difference p - 1 keeps its digits where p is about 1.
      store(row[labels[m]], std::expm1(-losses[m]));
    });
  });
  return losses_M;
}

Tensor log_sum_exp_rows(const Tensor& logits_MV) {
  if (!logits_MV.is_cpu()) return plain::log_sum_exp_rows(logits_MV);
  const std::int64_t vocab = logits_MV.size(1), ld = logits_MV.stride(0);
  check_rows(logits_MV, "logits");
  auto log_sum_M = at::empty({logits_MV.size(0)}, logits_MV.options().dtype(at::kFloat));
  auto* log_sum = data<float>(log_sum_M);
  with_storage(logits_MV.scalar_type(), [&](auto type) {
    const auto* logits = data<const decltype(type)>(logits_MV);
    for_rows(logits_MV.size(0), vocab, [&](std::int64_t m) { log_sum[m] = log_sum_exp_row(logits + m * ld, vocab); });
  });
  return log_sum_M;
}

void scaled_softmax_rows_(Tensor& logits_MV, const Tensor& log_sum_M, const Tensor& scale_M) {
  if (!logits_MV.is_cpu()) return plain::scaled_softmax_rows_(logits_MV, log_sum_M, scale_M);
  const std::int64_t vocab = logits_MV.size(1), ld = logits_MV.stride(0);
  check_rows(logits_MV, "logits");
  const auto* log_sum = data<float>(log_sum_M);
  const auto* scale = data<float>(scale_M);
  with_storage(logits_MV.scalar_type(), [&](auto type) {
    auto* logits = data<decltype(type)>(logits_MV);
    for_rows(logits_MV.size(0), vocab, [&](std::int64_t m) { softmax_row(logits + m * ld, log_sum[m], scale[m], vocab); });
  });
}

}  // namespace uqa::models::llm
