#include "models/layers/dropout.h"

#include <algorithm>
#include <bit>
#include <cmath>

#include "core/error.h"
#include "core/random.h"
#include "models/plain/dropout.h"

#include <ATen/Parallel.h>

namespace uqa::models {
namespace {

constexpr int kLanes = 8;             // counters computed side by side
constexpr int kGroup = 8 * kLanes;    // elements drawn from them: eight halves of 16 bits a counter

/// Element e of a row is half (e / 8) % 2 of word (e / 16) % 4 of Philox counter e / 64 * 8 + e % 8: the order that vectorizes. Not cloned for newer
/// instruction sets: the base one has the 32 x 32 -> 64 bit multiplication, and the compiler uses it best there.
void draw_group(std::uint64_t key, std::uint32_t first_counter, std::uint32_t lane, std::uint64_t counter_hi, std::uint32_t threshold,
                float keep_factor, float* factors) {
  auto key_lo = static_cast<std::uint32_t>(key), key_hi = static_cast<std::uint32_t>(key >> 32);
  std::uint32_t words[4][kLanes];
  for (int i = 0; i < kLanes; ++i) {
    words[0][i] = first_counter + static_cast<std::uint32_t>(i);
    words[1][i] = lane;
    words[2][i] = static_cast<std::uint32_t>(counter_hi);
    words[3][i] = static_cast<std::uint32_t>(counter_hi >> 32);
  }
  for (int round = 0; round < 10; ++round) {
#pragma omp simd
    for (int i = 0; i < kLanes; ++i) {
      const std::uint64_t p0 = std::uint64_t{0xD2511F53u} * words[0][i], p1 = std::uint64_t{0xCD9E8D57u} * words[2][i];
      words[0][i] = static_cast<std::uint32_t>(p1 >> 32) ^ words[1][i] ^ key_lo;
      words[1][i] = static_cast<std::uint32_t>(p1);
      words[2][i] = static_cast<std::uint32_t>(p0 >> 32) ^ words[3][i] ^ key_hi;
      words[3][i] = static_cast<std::uint32_t>(p0);
    }
    key_lo += 0x9E3779B9u;
    key_hi += 0xBB67AE85u;
  }
  for (const auto& word : words) {
#pragma omp simd
    for (int i = 0; i < kLanes; ++i) {
      factors[i] = (word[i] & 0xFFFFu) >= threshold ? keep_factor : 0.0f;
      factors[kLanes + i] = (word[i] >> 16) >= threshold ? keep_factor : 0.0f;
    }
    factors += 2 * kLanes;
  }
}

struct DropoutRows : torch::CustomClassHolder {
  std::vector<DropoutRow> rows;
  std::int64_t first_feature = 0;
};

/// Multiplies rows of x by their factors into y; also used for the gradient, whose map is the same.
template <typename T>
void apply_factors(const T* x, T* y, std::int64_t num_rows, std::int64_t width, std::uint64_t key, double p, const DropoutRows& rows) {
  const std::int64_t grain = std::max<std::int64_t>(1, 16384 / std::max<std::int64_t>(1, width));
  at::parallel_for(0, num_rows, grain, [&](std::int64_t begin, std::int64_t end) {
    std::vector<float> factors(static_cast<std::size_t>(width));
    for (std::int64_t t = begin; t < end; ++t) {
      dropout_factors(key, rows.rows[static_cast<std::size_t>(t)], p, factors.data(), width, rows.first_feature);
      const T* in = x + t * width;
      T* out = y + t * width;
      for (std::int64_t j = 0; j < width; ++j) out[j] = static_cast<T>(in[j] * static_cast<T>(factors[static_cast<std::size_t>(j)]));
    }
  });
}

Tensor masked(const Tensor& x_TF, double p, std::uint64_t key, const DropoutRows& rows) {
  if (!x_TF.is_cpu()) return x_TF * plain::dropout_factors(key, rows.rows, p, x_TF.size(1), rows.first_feature, x_TF.options());
  const auto x = x_TF.contiguous();
  auto y = at::empty_like(x);
  if (x.numel() == 0) return y;
  AT_DISPATCH_FLOATING_TYPES_AND(at::kBFloat16, x.scalar_type(), "dropout", [&] {
    apply_factors(x.const_data_ptr<scalar_t>(), y.mutable_data_ptr<scalar_t>(), x.size(0), x.size(1), key, p, rows);
  });
  return y;
}

/// The mask is drawn again in backward: cheaper than keeping it.
struct DropoutFunction : torch::autograd::Function<DropoutFunction> {
  static Tensor forward(torch::autograd::AutogradContext* ctx, const Tensor& x_TF, double p, std::int64_t key,
                        const c10::intrusive_ptr<DropoutRows>& rows) {
    ctx->saved_data["p"] = p;
    ctx->saved_data["key"] = key;
    ctx->saved_data["rows"] = c10::IValue::make_capsule(rows);
    return masked(x_TF, p, std::bit_cast<std::uint64_t>(key), *rows);
  }
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx, const torch::autograd::variable_list& grads) {
    const auto rows = c10::static_intrusive_pointer_cast<DropoutRows>(ctx->saved_data["rows"].toCapsule());
    return {masked(grads[0], ctx->saved_data["p"].toDouble(), std::bit_cast<std::uint64_t>(ctx->saved_data["key"].toInt()), *rows), {}, {}, {}};
  }
};

}  // namespace

std::uint64_t dropout_key(const DropoutContext& context, std::int64_t layer, DropoutSite site) {
  auto key = stream_key(context.seed, "dropout");
  key = mix_key(key, static_cast<std::uint64_t>(context.step));
  key = mix_key(key, static_cast<std::uint64_t>(context.micro_step));
  key = mix_key(key, static_cast<std::uint64_t>(layer));
  return mix_key(key, static_cast<std::uint64_t>(site));
}

DrawnRate drawn_rate(double p) {
  const auto threshold = static_cast<std::uint32_t>(std::lround(p * 0x1p16));
  return {.threshold = threshold, .keep_factor = static_cast<float>(1.0 / (1.0 - threshold * 0x1p-16))};
}

void dropout_factors(std::uint64_t key, const DropoutRow& row, double p, float* factors, std::int64_t n, std::int64_t first_element) {
  const std::uint64_t counter_hi = static_cast<std::uint64_t>(row.sample_id) << 24 | static_cast<std::uint64_t>(row.position);
  const auto draw = [&, rate = drawn_rate(p)](std::int64_t first, float* out) {
    draw_group(key, static_cast<std::uint32_t>(first / 8), static_cast<std::uint32_t>(row.lane), counter_hi, rate.threshold, rate.keep_factor, out);
  };
  const std::int64_t end = first_element + n;
  for (std::int64_t group = first_element / kGroup * kGroup; group < end; group += kGroup) {
    if (group >= first_element && group + kGroup <= end) {
      draw(group, factors + (group - first_element));
      continue;
    }
    float part[kGroup];
    draw(group, part);
    const auto begin = std::max(group, first_element), last = std::min(group + kGroup, end);
    std::copy(part + (begin - group), part + (last - group), factors + (begin - first_element));
  }
}

Tensor dropout(const Tensor& x_TF, double p, std::uint64_t key, const PackedLayout& layout, std::int64_t first_feature) {
  if (p == 0) return x_TF;
  UQA_CHECK(p > 0 && p <= kMostDropped, ErrorCode::kConfig, "dropout = {}, must be in [0, {}]", p, kMostDropped);
  UQA_CHECK(x_TF.dim() == 2 && x_TF.size(0) == layout.num_rows(), ErrorCode::kInternal, "dropout: {} rows for a layout of {}", x_TF.size(0),
            layout.num_rows());
  UQA_CHECK(layout.sample_ids.size() + 1 == layout.cu_seqlens.size(), ErrorCode::kInternal,
            "dropout: {} sample ids for {} sequences, one each is required", layout.sample_ids.size(), layout.num_sequences());
  auto rows = c10::make_intrusive<DropoutRows>();
  rows->first_feature = first_feature;
  rows->rows.reserve(static_cast<std::size_t>(layout.num_rows()));
  for (std::size_t b = 0; b < layout.sample_ids.size(); ++b) {
    for (std::int64_t t = layout.cu_seqlens[b]; t < layout.cu_seqlens[b + 1]; ++t) {
      rows->rows.push_back({.sample_id = layout.sample_ids[b], .position = t - layout.cu_seqlens[b]});
    }
  }
  return DropoutFunction::apply(x_TF, p, std::bit_cast<std::int64_t>(key), rows);
}

}  // namespace uqa::models
