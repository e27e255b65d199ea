#include "models/plain/decode_attention.h"

#include <algorithm>
#include <limits>

// A sequences, a of them at a time; N query heads, K key/value heads of G = N / K each, D head width; R rows seen, C of them in the context.

namespace uqa::models::llm::plain {
namespace {

constexpr std::int64_t kRowElements = std::int64_t{1} << 25;

/// Rows of the context that some sequences see.
struct ContextRows {
  Tensor rows_aC;    ///< int64: any row behind the last one
  Tensor absent_aC;  ///< bool: behind the last one
};

ContextRows context_rows(const GrowingSequences& sequences, std::int64_t first, std::int64_t count, at::Device device) {
  std::vector<std::vector<std::int64_t>> rows(static_cast<std::size_t>(count));
  std::size_t most = 0;
  for (std::size_t a = 0; a < rows.size(); ++a) {
    const auto b = sequences.active[static_cast<std::size_t>(first) + a];
    for (const auto& range : sequences.seen[static_cast<std::size_t>(b)]) {
      for (auto row = range.begin; row < range.end; ++row) rows[a].push_back(row);
    }
    most = std::max(most, rows[a].size());
  }
  std::vector<std::int64_t> all, lengths;
  for (auto& of_sequence : rows) {
    lengths.push_back(static_cast<std::int64_t>(of_sequence.size()));
    of_sequence.resize(most, 0);
    all.insert(all.end(), of_sequence.begin(), of_sequence.end());
  }
  const auto width = static_cast<std::int64_t>(most);
  const auto absent_aC = at::arange(width, at::kLong).unsqueeze(0) >= at::tensor(lengths, at::kLong).unsqueeze(1);
  return {.rows_aC = at::tensor(all, at::kLong).view({count, width}).to(device), .absent_aC = absent_aC.to(device)};
}

/// [a, R, K, D] -> float32 [a, K, R, D]
Tensor heads_first(const Tensor& x_aRKD) { return x_aRKD.to(at::kFloat).transpose(1, 2); }

}  // namespace

Tensor decode_attention(const Tensor& q_AND, const Tensor& k_TKD, const Tensor& v_TKD, const Tensor& own_k_BSKD, const Tensor& own_v_BSKD,
                        const GrowingSequences& sequences, double scale) {
  const auto device = q_AND.device();
  const std::int64_t num_rows = q_AND.size(0), num_heads = q_AND.size(1), width = q_AND.size(2), kv_heads = k_TKD.size(1);
  std::int64_t longest = 1;
  for (const auto& ranges : sequences.seen) {
    std::int64_t length = sequences.length;
    for (const auto& range : ranges) length += range.end - range.begin;
    longest = std::max(longest, length);
  }
  const auto at_once = std::max<std::int64_t>(1, kRowElements / (longest * kv_heads * width));
  const auto active_A = at::tensor(sequences.active, at::kLong).to(device);
  auto out_AND = at::empty_like(q_AND);
  for (std::int64_t first = 0; first < num_rows; first += at_once) {
    const auto count = std::min(at_once, num_rows - first);
    const auto context = context_rows(sequences, first, count, device);
    const auto num_context = context.rows_aC.size(1);
    const auto active_a = active_A.narrow(0, first, count);
    const auto seen = [&](const Tensor& context_TKD, const Tensor& own_BSKD) {
      const auto shared_aCKD = context_TKD.index_select(0, context.rows_aC.flatten()).view({count, num_context, kv_heads, width});
      return heads_first(at::cat({shared_aCKD, own_BSKD.narrow(1, 0, sequences.length).index_select(0, active_a)}, 1));
    };
    const auto q_aKGD = q_AND.narrow(0, first, count).to(at::kFloat).view({count, kv_heads, num_heads / kv_heads, width});
    const auto scores_aKGR = at::matmul(q_aKGD, seen(k_TKD, own_k_BSKD).transpose(2, 3)) * scale;
    scores_aKGR.narrow(3, 0, num_context).masked_fill_(context.absent_aC.view({count, 1, 1, num_context}), -std::numeric_limits<double>::infinity());
    const auto out_aKGD = at::matmul(scores_aKGR.softmax(-1), seen(v_TKD, own_v_BSKD));
    out_AND.narrow(0, first, count).copy_(out_aKGD.reshape({count, num_heads, width}));
  }
  return out_AND;
}

}  // namespace uqa::models::llm::plain
