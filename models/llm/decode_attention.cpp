#include "models/llm/decode_attention.h"

#include <algorithm>
#include <vector>

#include <ATen/Parallel.h>

#include "core/error.h"
#include "models/layers/simd.h"
#include "models/plain/decode_attention.h"

namespace uqa::models::llm {
namespace {

UQA_INLINE void load(const float* in, float* out, std::int64_t n) { std::copy_n(in, n, out); }
UQA_INLINE void load(const c10::BFloat16* in, float* out, std::int64_t n) { widen(in, out, n); }
UQA_INLINE void store(const float* in, float* out, std::int64_t n) { std::copy_n(in, n, out); }
UQA_INLINE void store(const float* in, c10::BFloat16* out, std::int64_t n) { narrow(in, out, n); }

/// What one thread reuses.
struct Scratch {
  std::vector<float> query, row, scores, sum;
};

/// G query heads of one sequence against one key/value head: q, out [G, D]; rows are given by pointers.
template <typename T>
UQA_INLINE void attend(const T* q, const std::vector<const T*>& keys, const std::vector<const T*>& values, std::int64_t group, std::int64_t width, float scale,
                       Scratch& scratch, T* out) {
  const auto count = static_cast<std::int64_t>(keys.size());
  scratch.query.resize(static_cast<std::size_t>(group * width));
  scratch.row.resize(static_cast<std::size_t>(width));
  scratch.scores.resize(static_cast<std::size_t>(group * count));
  scratch.sum.assign(static_cast<std::size_t>(group * width), 0.0F);
  float *query = scratch.query.data(), *row = scratch.row.data(), *scores = scratch.scores.data(), *sum = scratch.sum.data();
  load(q, query, group * width);
  for (std::int64_t s = 0; s < count; ++s) {
    load(keys[static_cast<std::size_t>(s)], row, width);
    for (std::int64_t g = 0; g < group; ++g) {
      float dot = 0;
#pragma omp simd reduction(+ : dot)
      for (std::int64_t d = 0; d < width; ++d) dot += query[g * width + d] * row[d];
      scores[g * count + s] = dot * scale;
    }
  }
  for (std::int64_t g = 0; g < group; ++g) {
    float* score = scores + g * count;
    const float largest = *std::max_element(score, score + count);
    float total = 0;
    for (std::int64_t s = 0; s < count; ++s) total += score[s] = vector_exp(score[s] - largest);
    for (std::int64_t s = 0; s < count; ++s) score[s] /= total;
  }
  for (std::int64_t s = 0; s < count; ++s) {
    load(values[static_cast<std::size_t>(s)], row, width);
    for (std::int64_t g = 0; g < group; ++g) {
      const float weight = scores[g * count + s];
#pragma omp simd
      for (std::int64_t d = 0; d < width; ++d) sum[g * width + d] += weight * row[d];
    }
  }
  store(sum, out, group * width);
}

// One clone an instruction set; templates cannot have clones.
UQA_SIMD_CLONES void attend_rows(const float* q, const std::vector<const float*>& keys, const std::vector<const float*>& values, std::int64_t group,
                                 std::int64_t width, float scale, Scratch& scratch, float* out) {
  attend(q, keys, values, group, width, scale, scratch, out);
}
UQA_SIMD_CLONES void attend_rows(const c10::BFloat16* q, const std::vector<const c10::BFloat16*>& keys, const std::vector<const c10::BFloat16*>& values,
                                 std::int64_t group, std::int64_t width, float scale, Scratch& scratch, c10::BFloat16* out) {
  attend(q, keys, values, group, width, scale, scratch, out);
}

template <typename T>
void run(const Tensor& q_AND, const Tensor& k_TKD, const Tensor& v_TKD, const Tensor& own_k_BSKD, const Tensor& own_v_BSKD, const GrowingSequences& sequences,
         float scale, Tensor& out_AND) {
  const std::int64_t rows = q_AND.size(0), heads = q_AND.size(1), width = q_AND.size(2), kv_heads = k_TKD.size(1), group = heads / kv_heads;
  const auto *q = q_AND.const_data_ptr<T>(), *k = k_TKD.const_data_ptr<T>(), *v = v_TKD.const_data_ptr<T>();
  const auto *own_k = own_k_BSKD.const_data_ptr<T>(), *own_v = own_v_BSKD.const_data_ptr<T>();
  auto* out = out_AND.data_ptr<T>();
  at::parallel_for(0, rows * kv_heads, 1, [&](std::int64_t first, std::int64_t last) {
    Scratch scratch;
    std::vector<const T*> keys, values;
    for (auto task = first; task < last; ++task) {
      const std::int64_t a = task / kv_heads, head = task % kv_heads, b = sequences.active[static_cast<std::size_t>(a)];
      keys.clear();
      values.clear();
      const auto add = [&](const T* key_rows, const T* value_rows, std::int64_t row) {
        keys.push_back(key_rows + (row * kv_heads + head) * width);
        values.push_back(value_rows + (row * kv_heads + head) * width);
      };
      for (const auto& range : sequences.seen[static_cast<std::size_t>(b)]) {
        for (auto row = range.begin; row < range.end; ++row) add(k, v, row);
      }
      for (std::int64_t s = 0; s < sequences.length; ++s) add(own_k, own_v, b * sequences.capacity + s);
      const auto at = (a * heads + head * group) * width;
      attend_rows(q + at, keys, values, group, width, scale, scratch, out + at);
    }
  });
}

}  // namespace

Tensor decode_attention(const Tensor& q_AND, const Tensor& k_TKD, const Tensor& v_TKD, const Tensor& own_k_BSKD, const Tensor& own_v_BSKD,
                        const GrowingSequences& sequences, double scale) {
  const auto type = q_AND.scalar_type();
  for (const auto* x : {&q_AND, &k_TKD, &v_TKD, &own_k_BSKD, &own_v_BSKD}) {
    UQA_CHECK(x->is_contiguous() && x->scalar_type() == type, ErrorCode::kInternal, "decode_attention needs contiguous tensors of one type, has {} and {}",
              c10::toString(type), c10::toString(x->scalar_type()));
  }
  UQA_CHECK(q_AND.size(0) == static_cast<std::int64_t>(sequences.active.size()), ErrorCode::kInternal, "decode_attention: {} rows of {} sequences",
            q_AND.size(0), sequences.active.size());
  UQA_CHECK(type == at::kFloat || type == at::kBFloat16, ErrorCode::kInternal, "decode_attention of {}, must be float32 or bfloat16", c10::toString(type));
  if (!q_AND.is_cpu()) return plain::decode_attention(q_AND, k_TKD, v_TKD, own_k_BSKD, own_v_BSKD, sequences, scale);
  auto out_AND = at::empty_like(q_AND);
  const auto factor = static_cast<float>(scale);
  if (type == at::kFloat) {
    run<float>(q_AND, k_TKD, v_TKD, own_k_BSKD, own_v_BSKD, sequences, factor, out_AND);
  } else {
    run<c10::BFloat16>(q_AND, k_TKD, v_TKD, own_k_BSKD, own_v_BSKD, sequences, factor, out_AND);
  }
  return out_AND;
}

}  // namespace uqa::models::llm
