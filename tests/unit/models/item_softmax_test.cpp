#include "models/loss/item_softmax.h"

#include <limits>

#include <gtest/gtest.h>

#include "core/error.h"
#include "numeric.h"

namespace uqa::models {
namespace {

using testing::gradient_error;
using testing::max_abs;
using testing::random_normal;
using testing::relative_error;

struct Case {
  Tensor h, w, targets;
};

/// 40 rows, some without a label, over 333 items: no multiple of any block.
Case make_case(at::ScalarType type, double scale = 1) {
  auto targets = (at::arange(40, at::kLong) * 97).remainder(333);
  targets[0] = 332;
  targets[3] = targets[17] = targets[39] = -1;
  return {.h = (random_normal({40, 12}, 1) * scale).to(type), .w = random_normal({333, 12}, 2).to(type), .targets = targets};
}

Tensor dense_loss(const Case& c) {
  return at::cross_entropy_loss(at::matmul(c.h, c.w.t()), c.targets.masked_fill(c.targets < 0, -100), {}, at::Reduction::Sum, -100);
}

TEST(ItemSoftmax, EqualsDenseCrossEntropyAtEveryBlockSize) {
  for (const std::int64_t block_bytes : {1, 160, 4 * 40 * 7, 4 * 37 * 64, 4 * 40 * 100, 1 << 20}) {
    auto c = make_case(at::kFloat);
    c.h.requires_grad_(true);
    c.w.requires_grad_(true);
    const auto exact = Case{.h = c.h.detach().to(at::kDouble).requires_grad_(true), .w = c.w.detach().to(at::kDouble).requires_grad_(true), .targets = c.targets};
    const auto expected = dense_loss(exact);
    const auto loss = item_softmax_loss(c.h, c.w, c.targets, {.block_bytes = block_bytes});
    EXPECT_EQ(loss.scalar_type(), at::kFloat);
    EXPECT_LT(relative_error(loss, expected), 1e-6) << block_bytes;
    (expected * 0.25).backward();
    (loss * 0.25).backward();
    EXPECT_LT(relative_error(c.h.grad(), exact.h.grad()), 1e-6) << block_bytes;
    EXPECT_LT(relative_error(c.w.grad(), exact.w.grad()), 1e-6) << block_bytes;
    EXPECT_EQ(max_abs(c.h.grad()[17]), 0);
  }
}

TEST(ItemSoftmax, GradientsEqualFiniteDifferences) {
  const auto h = random_normal({5, 3}, 1), w = random_normal({11, 3}, 2);
  const auto targets = at::tensor({0, 10, -1, 4, 4}, at::kLong);
  EXPECT_LT(gradient_error({h, w}, [&] { return item_softmax_loss(h, w, targets, {.block_bytes = 60}); }), 1e-6);
}

TEST(ItemSoftmax, MoreRowsThanOneTileEqualDenseCrossEntropy) {
  const Case c{.h = random_normal({2500, 6}, 1, at::kFloat).requires_grad_(true), .w = random_normal({50, 6}, 2, at::kFloat).requires_grad_(true),
               .targets = at::arange(2500, at::kLong).remainder(50)};
  const auto expected = torch::autograd::grad({dense_loss(c)}, {c.h, c.w});
  const auto actual = torch::autograd::grad({item_softmax_loss(c.h, c.w, c.targets, {.block_bytes = 1 << 16})}, {c.h, c.w});
  EXPECT_LT(relative_error(actual[0], expected[0]), 1e-5);
  EXPECT_LT(relative_error(actual[1], expected[1]), 1e-5);
}

TEST(ItemSoftmax, HugeLogitsNeitherOverflowNorVanish) {
  const auto c = make_case(at::kFloat, 400);
  const auto exact = Case{.h = c.h.to(at::kDouble), .w = c.w.to(at::kDouble), .targets = c.targets};
  EXPECT_GT(max_abs(at::matmul(c.h, c.w.t())), 1000);
  EXPECT_LT(relative_error(item_softmax_loss(c.h, c.w, c.targets, {.block_bytes = 4000}), dense_loss(exact)), 1e-6);
}

TEST(ItemSoftmax, NoRowsOrNoLabelsGiveZeroLossAndZeroGradients) {
  for (const std::int64_t num_rows : {0, 3}) {
    const auto h = at::ones({num_rows, 4}).requires_grad_(true), w = at::ones({9, 4}).requires_grad_(true);
    const auto loss = item_softmax_loss(h, w, at::full({num_rows}, -1, at::kLong));
    EXPECT_EQ(loss.item<float>(), 0);
    loss.backward();
    EXPECT_EQ(h.grad().sizes(), h.sizes());
    EXPECT_EQ(max_abs(h.grad()), 0);
    EXPECT_EQ(max_abs(w.grad()), 0);
  }
}

TEST(ItemSoftmax, Bf16ErrorIsOfTheSizeOfItsRounding) {
  const auto run = [](const Case& c, bool bf16) {
    const auto h = c.h.detach().requires_grad_(true), w = c.w.detach().requires_grad_(true);
    const auto loss = item_softmax_loss(h, w, c.targets, {.block_bytes = 8000, .bf16 = bf16});
    loss.backward();
    return std::vector<Tensor>{loss.detach(), h.grad(), w.grad()};
  };
  const auto c = make_case(at::kFloat);
  // What casting the inputs alone costs: the yardstick of rounding.
  const Case rounded{.h = c.h.to(at::kBFloat16).to(at::kFloat), .w = c.w.to(at::kBFloat16).to(at::kFloat), .targets = c.targets};
  const auto exact = run(c, false), cast = run(rounded, false), bf16 = run(c, true);
  EXPECT_EQ(bf16[2].scalar_type(), at::kFloat);
  for (std::size_t i = 0; i < 3; ++i) {
    EXPECT_GT(relative_error(bf16[i], exact[i]), 0) << i;
    EXPECT_LT(relative_error(bf16[i], exact[i]), 4 * relative_error(cast[i], exact[i]) + 0.004) << i;
  }
}

TEST(ItemSoftmax, RefusesATargetBeyondTheTable) {
  const auto h = at::zeros({2, 4}), w = at::zeros({9, 4});
  EXPECT_THROW(static_cast<void>(item_softmax_loss(h, w, at::tensor({0, 9}, at::kLong))), Error);
}

TEST(ItemRanks, CountLargerScoresAndHalfOfTheTies) {
  // One feature: scores are the table's values.
  const auto h = at::ones({4, 1});
  const auto w = at::tensor({3.0f, 1.0f, 2.0f, 2.0f, 2.0f, 0.0f, 5.0f}).unsqueeze(1);
  const auto targets = at::tensor({6, 2, 5, 0}, at::kLong);
  for (const std::int64_t block_bytes : {1, 40, 1 << 20}) {
    const auto ranks = item_ranks(h, w, targets, {.block_bytes = block_bytes});
    EXPECT_TRUE(at::equal(ranks, at::tensor({0.0, 3.0, 6.0, 1.0}, at::kDouble))) << block_bytes << " " << ranks;
  }
}

TEST(ItemRanks, EqualADenseSortOnRandomScores) {
  auto c = make_case(at::kFloat);
  c.targets = c.targets.clamp_min(0);
  const auto scores = at::matmul(c.h.to(at::kDouble), c.w.to(at::kDouble).t());
  const auto own = scores.gather(1, c.targets.unsqueeze(1));
  EXPECT_TRUE(at::equal(item_ranks(c.h, c.w, c.targets, {.block_bytes = 5000}), (scores > own).sum(1).to(at::kDouble)));
}

TEST(ItemRanks, AScoreThatIsNotFiniteIsANumericError) {
  for (const float broken : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    const auto h = at::ones({2, 3});
    auto w = at::ones({20, 3});
    w[11][1] = broken;
    try {
      static_cast<void>(item_ranks(h, w, at::tensor({0, 1}, at::kLong)));
      ADD_FAILURE() << "ranked " << broken;
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kNumeric);
    }
  }
}

}  // namespace
}  // namespace uqa::models
