#include "models/plain/attention.h"

#include <memory>

#include "models/layers/no_autocast.h"
#include "models/plain/dropout.h"
#include "models/recompute.h"

// R rows of one tree, N query heads, K key/value heads, G = N / K, D head width.

namespace uqa::models::plain {
namespace {

/// Blocks [first, last) of `blocks` are the tree.
struct Tree {
  std::shared_ptr<const std::vector<AttentionBlock>> blocks;
  std::shared_ptr<const PackedDropout> dropout;
  std::size_t first = 0, last = 0;
  [[nodiscard]] std::int64_t begin() const { return (*blocks)[first].begin; }
  [[nodiscard]] std::int64_t rows() const { return (*blocks)[last - 1].end - begin(); }
};

/// What row i of the tree sees, bool [R, R], on the CPU.
Tensor visible_rows(const Tree& tree) {
  const auto& blocks = *tree.blocks;
  const auto begin = tree.begin(), rows = tree.rows();
  auto visible_RR = at::zeros({rows, rows}, at::kBool);
  for (auto b = tree.first; b < tree.last; ++b) {
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

/// The fused kernel's factors, [N, R, R] of `options`. Those of rows that a query does not see have no meaning.
Tensor factors_of(const Tree& tree, std::int64_t num_heads, const at::TensorOptions& options) {
  const auto& blocks = *tree.blocks;
  const auto& dropout = *tree.dropout;
  const auto begin = tree.begin(), num_rows = tree.rows();
  std::vector<DropoutRow> rows(static_cast<std::size_t>(num_heads * num_rows));  // rows of no block: any
  for (std::int64_t head = 0; head < num_heads; ++head) {
    for (auto b = tree.first; b < tree.last; ++b) {
      for (auto row = blocks[b].begin; row < blocks[b].end; ++row) {
        rows[static_cast<std::size_t>(head * num_rows + row - begin)] = {
            .sample_id = dropout.sample_ids[b], .position = row - blocks[b].begin, .lane = dropout.first_head + head};
      }
    }
  }
  return dropout_factors(dropout.key, rows, dropout.p, num_rows, 0, options).view({num_heads, num_rows, num_rows});
}

/// q [R, N, D], k and v [R, K, D] of the tree's rows -> [R, N, D].
Tensor attend_tree(const std::vector<Tensor>& inputs, const Tree& tree, double scale) {
  const NoAutocast no_autocast;
  const auto rows = tree.rows(), num_heads = inputs[0].size(1), num_kv_heads = inputs[1].size(1), width = inputs[0].size(2);
  const auto type = inputs[0].scalar_type(), compute = type == at::kDouble ? at::kDouble : at::kFloat;
  const auto heads_first = [](const Tensor& x) { return x.permute({1, 0, 2}); };  // [heads, R, D]
  const auto q_KGRD = heads_first(inputs[0]).reshape({num_kv_heads, num_heads / num_kv_heads, rows, width});
  const auto k_K1RD = heads_first(inputs[1]).unsqueeze(1), v_K1RD = heads_first(inputs[2]).unsqueeze(1);
  const auto hidden_RR = visible_rows(tree).logical_not().to(inputs[0].device());
  const auto scores = at::matmul(q_KGRD, k_K1RD.transpose(2, 3)).to(compute) * scale;
  // A row of no block sees nothing: its softmax is over equal scores, and what comes out is dropped.
  auto p_KGRR = scores.masked_fill(hidden_RR, -1e30).softmax(-1).masked_fill(hidden_RR, 0);
  if (tree.dropout->p > 0) p_KGRR = p_KGRR * factors_of(tree, num_heads, p_KGRR.options()).view(p_KGRR.sizes());
  return at::matmul(p_KGRR.to(type), v_K1RD).reshape({num_heads, rows, width}).permute({1, 0, 2});
}

}  // namespace

Tensor packed_attention(const Tensor& q_TND, const Tensor& k_TKD, const Tensor& v_TKD, const std::vector<AttentionBlock>& blocks, double scale,
                        const PackedDropout& dropout) {
  const auto num_rows = q_TND.size(0), num_heads = q_TND.size(1), width = q_TND.size(2);
  Tree tree{.blocks = std::make_shared<const std::vector<AttentionBlock>>(blocks), .dropout = std::make_shared<const PackedDropout>(dropout)};
  std::vector<Tensor> parts;
  std::int64_t done = 0;
  const auto fill_up_to = [&](std::int64_t row) {  // rows of no block
    if (row > done) parts.push_back(at::zeros({row - done, num_heads, width}, q_TND.options()));
    done = row;
  };
  for (; tree.first < blocks.size(); tree.first = tree.last) {
    for (tree.last = tree.first + 1; tree.last < blocks.size() && blocks[tree.last].parent >= 0; ++tree.last) {
    }
    const auto begin = tree.begin(), rows = tree.rows();
    if (rows == 0) continue;
    fill_up_to(begin);
    const auto of_tree = [&](const Tensor& x) { return x.narrow(0, begin, rows); };
    const auto attend = [tree, scale](const std::vector<Tensor>& inputs) -> std::vector<Tensor> { return {attend_tree(inputs, tree, scale)}; };
    parts.push_back(recomputed(LayerFunction(attend), {of_tree(q_TND), of_tree(k_TKD), of_tree(v_TKD)}, {}).front());
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
