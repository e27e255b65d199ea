#include "models/adapters/adapter.h"

#include <gtest/gtest.h>

#include "core/error.h"
#include "numeric.h"

namespace uqa::models {
namespace {

using testing::random_normal;
using testing::relative_error;

TEST(LinearMeanAdapter, EqualsTheMeanOfLinearRowsWithItsGradients) {
  LinearMeanAdapter adapter(6, 10);
  adapter->init_weights(5);
  const PackedLayout layout{.cu_seqlens = {0, 1, 8, 11}, .sample_ids = {0, 1, 2}};
  const auto states = random_normal({11, 6}, 1, at::kFloat).requires_grad_(true);
  const auto weights = random_normal({3, 1, 10}, 2, at::kFloat);
  const auto &weight = adapter->named_parameters()["up_proj.weight"], &bias = adapter->named_parameters()["up_proj.bias"];

  const auto rows = at::linear(states, weight, bias);
  const auto expected = at::stack({rows.narrow(0, 0, 1).mean(0), rows.narrow(0, 1, 7).mean(0), rows.narrow(0, 8, 3).mean(0)}).unsqueeze(1);
  const auto expected_grads = torch::autograd::grad({(expected * weights).sum()}, {states, weight, bias});
  const auto soft = adapter->forward(states, layout);
  const auto grads = torch::autograd::grad({(soft * weights).sum()}, {states, weight, bias});
  EXPECT_EQ(soft.sizes(), at::IntArrayRef({3, 1, 10}));
  EXPECT_LT(relative_error(soft, expected), 1e-6);
  for (std::size_t i = 0; i < 3; ++i) EXPECT_LT(relative_error(grads[i], expected_grads[i]), 1e-6) << i;
}

TEST(LinearMeanAdapter, WhitenedTokensVaryEquallyInEveryDirectionAndFoldIntoOneLinearLayer) {
  // Directions of size 10, 4 and 3 around a large common state.
  const auto sizes_H = at::tensor({10.0f, 4.0f, 3.0f});
  const auto means = random_normal({400, 3}, 3, at::kFloat) * sizes_H + 20;
  LinearMeanAdapter adapter(3, 64);
  adapter->init_whitened(5, means, 0.1);
  PackedLayout layout{.cu_seqlens = {}, .sample_ids = std::vector<std::int64_t>(400)};
  for (std::int64_t i = 0; i <= 400; ++i) layout.cu_seqlens.push_back(i);
  const at::NoGradGuard no_grad;
  const auto soft = adapter->forward(means, layout).squeeze(1);
  EXPECT_NEAR(soft.square().mean().sqrt().item<double>(), 0.1, 1e-5);
  EXPECT_LT(testing::max_abs(soft.mean(0)), 1e-4);
  adapter->named_parameters()["up_proj.bias"].fill_(0.5);
  const auto [weight_LH, bias_L] = adapter->folded();
  EXPECT_LT(relative_error(at::linear(means, weight_LH, bias_L), soft + 0.5), 1e-4);
  // One standard deviation in any direction moves the token about equally far.
  const auto moves_H = (weight_LH * sizes_H).square().sum(0).sqrt();
  EXPECT_LT((moves_H.max() / moves_H.min()).item<double>(), 1.6);
}

TEST(LinearMeanAdapter, StartsFromAWeightOnWhitenedMeans) {
  const auto means = random_normal({400, 3}, 3, at::kFloat) * at::tensor({10.0f, 1.0f, 0.5f}) + 20;
  LinearMeanAdapter adapter(3, 8);
  adapter->init_whitened(5, means, 0.1);
  const auto x = adapter->inputs_of(means);
  EXPECT_LT(testing::max_abs(x.mean(0)), 1e-3);
  EXPECT_GT(at::mm(x.t(), x).diagonal().min().item<double>() / 400, 0.1);
  const auto weight = random_normal({8, 3}, 4, at::kDouble);
  adapter->start_from(weight, means, 0.2);
  const auto [weight_LH, bias_L] = adapter->folded();
  const auto soft = at::linear(means, weight_LH, bias_L);
  EXPECT_NEAR(soft.square().mean().sqrt().item<double>(), 0.2, 1e-4);
  const auto expected = at::mm(x, weight.to(at::kFloat).t());
  EXPECT_LT(relative_error(soft / soft.norm(), expected / expected.norm()), 1e-4);
  EXPECT_THROW(adapter->start_from(at::zeros({8, 3}), means, 0.2), Error);
}

TEST(LinearMeanAdapter, WhitenedStartOfEqualStatesIsThePlainOne) {
  LinearMeanAdapter adapter(3, 8), plain(3, 8);
  adapter->init_whitened(5, at::ones({4, 3}), 0.1);
  plain->init_weights(5);
  EXPECT_TRUE(at::equal(adapter->named_parameters()["up_proj.weight"], plain->named_parameters()["up_proj.weight"]));
}

TEST(LinearMeanAdapter, StartsAsTorchLinearDoes) {
  LinearMeanAdapter adapter(64, 500);
  adapter->init_weights(5);
  const auto weight = adapter->named_parameters()["up_proj.weight"].detach();
  EXPECT_LE(testing::max_abs(weight), 0.125);
  EXPECT_GT(testing::max_abs(weight), 0.124);
  LinearMeanAdapter same(64, 500);
  same->init_weights(5);
  EXPECT_TRUE(at::equal(weight, same->named_parameters()["up_proj.weight"]));
}

TEST(LinearMeanAdapter, RefusesAnEmptyHistory) {
  LinearMeanAdapter adapter(6, 10);
  EXPECT_THROW(static_cast<void>(adapter->forward(at::zeros({2, 6}), {.cu_seqlens = {0, 2, 2}, .sample_ids = {0, 1}})), Error);
}

TEST(LinearMeanAdapter, NoUsersGiveNoSoftTokens) {
  LinearMeanAdapter adapter(6, 10);
  EXPECT_EQ(adapter->forward(at::zeros({0, 6}), {}).sizes(), at::IntArrayRef({0, 1, 10}));
}

}  // namespace
}  // namespace uqa::models
