#include "models/layers/packed_attention.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include <gtest/gtest.h>

#include "core/error.h"
#include "models/layers/dropout.h"
#include "numeric.h"

namespace uqa::models {
namespace {

using testing::gradient_error;
using testing::max_abs;
using testing::random_normal;
using testing::relative_error;

/// Rows that row `t` of block `b` sees, in order.
std::vector<std::int64_t> visible_rows(const std::vector<AttentionBlock>& blocks, std::size_t b, std::int64_t t) {
  std::vector<std::int64_t> visible;
  for (auto s = blocks[b].begin; s <= t; ++s) visible.push_back(s);
  for (auto a = blocks[b].parent; a >= 0; a = blocks[static_cast<std::size_t>(a)].parent) {
    for (auto s = blocks[static_cast<std::size_t>(a)].begin; s < blocks[static_cast<std::size_t>(a)].end; ++s) visible.push_back(s);
  }
  std::sort(visible.begin(), visible.end());
  return visible;
}

std::int64_t tree_begin(const std::vector<AttentionBlock>& blocks, std::size_t b) {
  while (blocks[b].parent >= 0) b = static_cast<std::size_t>(blocks[b].parent);
  return blocks[b].begin;
}

/// The definition, one query and head at a time, differentiable by autograd.
Tensor dense_attention(const Tensor& q_TND, const Tensor& k_TKD, const Tensor& v_TKD, const std::vector<AttentionBlock>& blocks, double scale,
                       const PackedDropout& dropout = {}) {
  const auto group = q_TND.size(1) / k_TKD.size(1);
  std::vector<Tensor> rows(static_cast<std::size_t>(q_TND.size(0)), at::zeros({q_TND.size(1), q_TND.size(2)}, q_TND.options()));
  for (std::size_t b = 0; b < blocks.size(); ++b) {
    const auto& block = blocks[b];
    for (auto t = block.begin; t < block.end; ++t) {
      const auto visible = visible_rows(blocks, b, t);
      const auto index = at::tensor(visible);
      std::vector<Tensor> heads;
      for (std::int64_t n = 0; n < q_TND.size(1); ++n) {
        const auto keys = k_TKD.select(1, n / group).index_select(0, index), values = v_TKD.select(1, n / group).index_select(0, index);
        auto p = at::softmax(at::mv(keys, q_TND[t][n]) * scale, 0);
        if (dropout.p > 0) {
          std::vector<float> factors(static_cast<std::size_t>(t - tree_begin(blocks, b) + 1));
          dropout_factors(dropout.key, {.sample_id = dropout.sample_ids[b], .position = t - block.begin, .lane = n}, dropout.p, factors.data(),
                          static_cast<std::int64_t>(factors.size()));
          p = p * at::tensor(factors).index_select(0, index - tree_begin(blocks, b)).to(p.scalar_type());
        }
        heads.push_back(at::mv(values.t(), p));
      }
      rows[static_cast<std::size_t>(t)] = at::stack(heads);
    }
  }
  return at::stack(rows);
}

struct Case {
  Tensor q, k, v;
  std::vector<AttentionBlock> blocks;
};

/// A tree of depth three whose root is shared by three branches that do not follow it directly, a tree of two blocks, and a plain sequence; rows 6
/// and 21 are of no block.
Case prefix_case(std::int64_t num_heads, std::int64_t num_kv_heads, at::ScalarType type = at::kDouble) {
  return {.q = random_normal({22, num_heads, 4}, 1, type),
          .k = random_normal({22, num_kv_heads, 4}, 2, type),
          .v = random_normal({22, num_kv_heads, 4}, 3, type),
          .blocks = {{.begin = 0, .end = 6},
                     {.begin = 7, .end = 9, .parent = 0},
                     {.begin = 9, .end = 11, .parent = 0},
                     {.begin = 11, .end = 12, .parent = 2},
                     {.begin = 12, .end = 14, .parent = 2},
                     {.begin = 14, .end = 15, .parent = 0},
                     {.begin = 15, .end = 17},
                     {.begin = 17, .end = 19, .parent = 6},
                     {.begin = 19, .end = 21}}};
}

TEST(PackedAttention, EqualsDenseAttentionWithSharedPrefixesAndGroupedHeads) {
  for (const std::int64_t num_kv_heads : {1, 2, 4}) {
    const auto c = prefix_case(4, num_kv_heads);
    const auto expected = dense_attention(c.q, c.k, c.v, c.blocks, 0.7);
    EXPECT_GT(max_abs(expected), 0.1);
    EXPECT_LT(relative_error(packed_attention(c.q, c.k, c.v, c.blocks, 0.7), expected), 1e-12);
    EXPECT_LT(relative_error(packed_attention(c.q.to(at::kFloat), c.k.to(at::kFloat), c.v.to(at::kFloat), c.blocks, 0.7), expected), 1e-6);
  }
}

TEST(PackedAttention, GradientsEqualFiniteDifferences) {
  const auto c = prefix_case(4, 2);
  EXPECT_LT(gradient_error({c.q, c.k, c.v}, [&] { return packed_attention(c.q, c.k, c.v, c.blocks, 0.7); }), 1e-6);
}

TEST(PackedAttention, GradientsWithDropoutEqualFiniteDifferences) {
  const auto c = prefix_case(4, 2);
  const PackedDropout dropout{.p = 0.3, .key = 77, .sample_ids = {5, 6, 7, 8, 9, 10, 11, 12, 13}};
  EXPECT_LT(relative_error(packed_attention(c.q, c.k, c.v, c.blocks, 0.7, dropout), dense_attention(c.q, c.k, c.v, c.blocks, 0.7, dropout)), 1e-6);
  EXPECT_LT(gradient_error({c.q, c.k, c.v}, [&] { return packed_attention(c.q, c.k, c.v, c.blocks, 0.7, dropout); }), 1e-6);
}

TEST(PackedAttention, LongSequencesOfSeveralTilesEqualDenseSoftmax) {
  constexpr std::int64_t kLength = 700, kPrefix = 33;
  auto q = random_normal({kPrefix + kLength, 2, 8}, 1), k = random_normal({kPrefix + kLength, 1, 8}, 2), v = random_normal({kPrefix + kLength, 1, 8}, 3);
  for (auto* x : {&q, &k, &v}) x->requires_grad_(true);
  const std::vector<AttentionBlock> blocks{{.begin = 0, .end = kPrefix}, {.begin = kPrefix, .end = kPrefix + kLength, .parent = 0}};
  const auto weights = random_normal({kPrefix + kLength, 2, 8}, 4);
  // A block that follows its parent directly is plain causal attention over both.
  const auto causal = at::full({kPrefix + kLength, kPrefix + kLength}, -std::numeric_limits<double>::infinity(), at::kDouble).triu(1);
  const auto scores = at::matmul(q.transpose(0, 1), k.permute({1, 2, 0})) * 0.4 + causal;
  const auto expected = at::matmul(at::softmax(scores, -1), v.transpose(0, 1)).transpose(0, 1);
  const auto expected_grads = torch::autograd::grad({(expected * weights).sum()}, {q, k, v});
  const auto actual = packed_attention(q, k, v, blocks, 0.4);
  EXPECT_LT(relative_error(actual, expected), 1e-12);
  const auto actual_grads = torch::autograd::grad({(actual * weights).sum()}, {q, k, v});
  for (std::size_t i = 0; i < 3; ++i) EXPECT_LT(relative_error(actual_grads[i], expected_grads[i]), 1e-12) << i;
}

TEST(PackedAttention, ATreeOfSeveralTilesEqualsItsPathsAlone) {
  constexpr std::int64_t kRoot = 150, kBranch = 170;
  const auto rows = kRoot + 2 * kBranch;
  const auto q = random_normal({rows, 2, 8}, 1), k = random_normal({rows, 1, 8}, 2), v = random_normal({rows, 1, 8}, 3);
  const auto tree = packed_attention(
      q, k, v, {{.begin = 0, .end = kRoot}, {.begin = kRoot, .end = kRoot + kBranch, .parent = 0}, {.begin = kRoot + kBranch, .end = rows, .parent = 0}}, 0.4);
  for (const std::int64_t branch : {kRoot, kRoot + kBranch}) {
    const auto path = [&](const Tensor& x) { return at::cat({x.narrow(0, 0, kRoot), x.narrow(0, branch, kBranch)}); };
    const auto alone = packed_attention(path(q), path(k), path(v), {{.begin = 0, .end = kRoot + kBranch}}, 0.4);
    EXPECT_LT(relative_error(path(tree), alone), 1e-12) << branch;
  }
}

TEST(PackedAttention, RowsOfNoBlockGiveZerosAndNoGradient) {
  const auto c = prefix_case(2, 2);
  c.q.requires_grad_(true);
  const auto out = packed_attention(c.q, c.k, c.v, c.blocks, 1);
  EXPECT_EQ(max_abs(out[6]), 0);
  EXPECT_EQ(max_abs(out[21]), 0);
  out.sum().backward();
  EXPECT_EQ(max_abs(c.q.grad()[6]), 0);
  EXPECT_GT(max_abs(c.q.grad()), 1e-3);
}

TEST(PackedAttention, ASequenceDoesNotDependOnItsNeighbours) {
  const auto q = random_normal({30, 2, 8}, 1, at::kFloat), k = random_normal({30, 2, 8}, 2, at::kFloat), v = random_normal({30, 2, 8}, 3, at::kFloat);
  const auto together = packed_attention(q, k, v, {{.begin = 0, .end = 11}, {.begin = 11, .end = 30}}, 0.3);
  const auto alone = packed_attention(q.narrow(0, 11, 19), k.narrow(0, 11, 19), v.narrow(0, 11, 19), {{.begin = 0, .end = 19}}, 0.3);
  EXPECT_LT(relative_error(together.narrow(0, 11, 19), alone), 1e-6);
}

TEST(PackedAttention, ALaterRowNeverChangesAnEarlierOne) {
  const auto q = random_normal({12, 2, 8}, 1, at::kFloat), v = random_normal({12, 2, 8}, 3, at::kFloat);
  auto k = random_normal({12, 2, 8}, 2, at::kFloat);
  const std::vector<AttentionBlock> blocks{{.begin = 0, .end = 12}};
  const auto before = packed_attention(q, k, v, blocks, 0.3);
  k[9].fill_(3);
  const auto after = packed_attention(q, k, v, blocks, 0.3);
  EXPECT_TRUE(at::equal(before.narrow(0, 0, 9), after.narrow(0, 0, 9)));
  EXPECT_FALSE(at::equal(before[9], after[9]));
}

TEST(PackedAttention, Bf16CostsRoundingOnly) {
  auto exact = prefix_case(4, 2, at::kBFloat16);
  for (auto* x : {&exact.q, &exact.k, &exact.v}) *x = x->detach().requires_grad_(true);
  const auto out = packed_attention(exact.q, exact.k, exact.v, exact.blocks, 0.7);
  const auto q = exact.q.detach().to(at::kDouble).requires_grad_(true), k = exact.k.detach().to(at::kDouble).requires_grad_(true),
             v = exact.v.detach().to(at::kDouble).requires_grad_(true);
  const auto expected = dense_attention(q, k, v, exact.blocks, 0.7);
  EXPECT_EQ(out.scalar_type(), at::kBFloat16);
  EXPECT_LT(relative_error(out, expected), 0.02);
  const auto weights = random_normal(expected.sizes(), 9);
  const auto grads = torch::autograd::grad({(out.to(at::kDouble) * weights).sum()}, {exact.q, exact.k, exact.v});
  const auto expected_grads = torch::autograd::grad({(expected * weights).sum()}, {q, k, v});
  for (std::size_t i = 0; i < 3; ++i) EXPECT_LT(relative_error(grads[i], expected_grads[i]), 0.03) << i;
}

TEST(PackedAttention, TakesViewsIntoOneProjection) {
  const auto qkv = random_normal({9, 3, 2, 4}, 5);
  const auto parts = qkv.unbind(1);
  const std::vector<AttentionBlock> blocks{{.begin = 0, .end = 9}};
  EXPECT_TRUE(at::equal(packed_attention(parts[0], parts[1], parts[2], blocks, 1),
                        packed_attention(parts[0].contiguous(), parts[1].contiguous(), parts[2].contiguous(), blocks, 1)));
}

TEST(PackedAttention, TheNumberOfThreadsChangesNothingButSpeed) {
  const auto c = prefix_case(4, 2, at::kFloat);
  const auto threads = at::get_num_threads();
  at::set_num_threads(1);
  const auto one = packed_attention(c.q, c.k, c.v, c.blocks, 0.7);
  at::set_num_threads(3);
  const auto three = packed_attention(c.q, c.k, c.v, c.blocks, 0.7);
  at::set_num_threads(threads);
  EXPECT_LT(relative_error(three, one), 1e-6);
}

TEST(PackedAttention, NoRowsGiveNoRows) {
  const auto none = at::zeros({0, 2, 4}).requires_grad_(true);
  const auto out = packed_attention(none, none, none, {}, 1);
  EXPECT_EQ(out.size(0), 0);
  out.sum().backward();
  EXPECT_EQ(none.grad().size(0), 0);
}

TEST(PackedAttention, RefusesBlocksThatOverlapAndParentsOutsideTheTree) {
  const auto x = at::zeros({8, 2, 4});
  EXPECT_THROW(static_cast<void>(packed_attention(x, x, x, {{.begin = 0, .end = 5}, {.begin = 4, .end = 8}}, 1)), Error);
  EXPECT_THROW(static_cast<void>(packed_attention(x, x, x, {{.begin = 0, .end = 9}}, 1)), Error);
  EXPECT_THROW(static_cast<void>(packed_attention(x, x, x, {{.begin = 2, .end = 8, .parent = 0}}, 1)), Error);
  EXPECT_THROW(static_cast<void>(packed_attention(x, x, x, {{.begin = 0, .end = 2}, {.begin = 2, .end = 4}, {.begin = 4, .end = 8, .parent = 0}}, 1)), Error);
  EXPECT_THROW(static_cast<void>(packed_attention(x, at::zeros({8, 3, 4}), at::zeros({8, 3, 4}), {{.begin = 0, .end = 8}}, 1)), Error);
}

}  // namespace
}  // namespace uqa::models
