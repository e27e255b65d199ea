#include "models/plain/attention.h"

#include "models/layers/dropout.h"
#include "models/layers/no_autocast.h"

// R rows of one tree, N query heads, K key/value heads, G = N / K, D head width.

namespace uqa::models::plain {
namespace {

/// What row i of the tree sees, bool [R, R], on the CPU.
Tensor visible_rows(const std::vector<AttentionBlock>& blocks, std::size_t first, std::size_t last) {
  const auto begin = blocks[first].begin, rows = blocks[last - 1].end - begin;
  auto visible_RR = at::zeros({rows, rows}, at::kBool);
  for (auto b = first; b < last; ++b) {
    const auto& block = blocks[b];
    const auto size = block.end - block.begin;
    auto mine = visible_RR.narrow(0, block.begin - begin, size);
    for (auto a = block.parent; a >= 0; a = blocks[static_cast<std::size_t>(a)].parent) {
      const auto& above = blocks[static_cast<std::size_t>(a)];
      mine.narrow(1, above.begin - begin, above.end - above.begin).fill_(true);
    }
    mine.narrow(1, block.begin - begin, size).copy_(at::ones({size, size}, at::kBool).tril());
  }
  return visible_RR;
}

/// The fused kernel's factors, float32 [N, R, R], on the CPU.
Tensor factors_of(const std::vector<AttentionBlock>& blocks, std::size_t first, std::size_t last, std::int64_t num_heads, const PackedDropout& dropout) {
  const auto begin = blocks[first].begin, rows = blocks[last - 1].end - begin;
  auto factors_NRR = at::zeros({num_heads, rows, rows});
  auto* const factors = factors_NRR.mutable_data_ptr<float>();
  for (auto b = first; b < last; ++b) {
    for (auto row = blocks[b].begin; row < blocks[b].end; ++row) {
      for (std::int64_t head = 0; head < num_heads; ++head) {
        dropout_factors(dropout.key, {.sample_id = dropout.sample_ids[b], .position = row - blocks[b].begin, .lane = dropout.first_head + head}, dropout.p,
                        factors + (head * rows + row - begin) * rows, row - begin + 1);
      }
    }
  }
  return factors_NRR;
}

}  // namespace

Tensor packed_attention(const Tensor& q_TND, const Tensor& k_TKD, const Tensor& v_TKD, const std::vector<AttentionBlock>& blocks, double scale,
                        const PackedDropout& dropout) {
  const NoAutocast no_autocast;
  const auto num_rows = q_TND.size(0), num_heads = q_TND.size(1), num_kv_heads = k_TKD.size(1), group = num_heads / num_kv_heads, width = q_TND.size(2);
  const auto type = q_TND.scalar_type(), compute = type == at::kDouble ? at::kDouble : at::kFloat;
  std::vector<Tensor> parts;
  std::int64_t done = 0;
  const auto fill_up_to = [&](std::int64_t row) {  // rows of no block
    if (row > done) parts.push_back(at::zeros({row - done, num_heads, width}, q_TND.options()));
    done = row;
  };
  for (std::size_t first = 0, last = 0; first < blocks.size(); first = last) {
    for (last = first + 1; last < blocks.size() && blocks[last].parent >= 0; ++last) {
    }
    const auto begin = blocks[first].begin, rows = blocks[last - 1].end - begin;
    if (rows == 0) continue;
    fill_up_to(begin);
    const auto heads_first = [&](const Tensor& x) { return x.narrow(0, begin, rows).permute({1, 0, 2}); };  // [heads, R, D]
    const auto q_KGRD = heads_first(q_TND).reshape({num_kv_heads, group, rows, width});
    const auto k_K1RD = heads_first(k_TKD).unsqueeze(1), v_K1RD = heads_first(v_TKD).unsqueeze(1);
    const auto visible_RR = visible_rows(blocks, first, last).to(q_TND.device());
    const auto scores = at::matmul(q_KGRD, k_K1RD.transpose(2, 3)).to(compute) * scale;
    // A row of no block sees nothing: its softmax is over equal scores, and what comes out is dropped.
    auto p_KGRR = scores.masked_fill(visible_RR.logical_not(), -1e30).softmax(-1).masked_fill(visible_RR.logical_not(), 0);
    if (dropout.p > 0) p_KGRR = p_KGRR * factors_of(blocks, first, last, num_heads, dropout).to(q_TND.device(), compute).view(p_KGRR.sizes());
    const auto out_KGRD = at::matmul(p_KGRR.to(type), v_K1RD);
    parts.push_back(out_KGRD.reshape({num_heads, rows, width}).permute({1, 0, 2}));
    done = begin + rows;
  }
  const bool no_block = parts.empty();
  fill_up_to(num_rows);
  if (!no_block) return at::cat(parts, 0);
  // Connected to all three here too, as the fused kernel's result is. Sums of nothing: a NaN in a row that nobody reads stays where it is.
  const auto nothing = [](const Tensor& x) { return x.narrow(0, 0, 0).sum(); };
  return at::zeros({num_rows, num_heads, width}, q_TND.options()) + (nothing(q_TND) + nothing(k_TKD) + nothing(v_TKD));
}

}  // namespace uqa::models::plain
