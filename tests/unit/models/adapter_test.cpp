#include "models/adapters/linear_adapter.h"

#include <gtest/gtest.h>

#include "core/error.h"
#include "numeric.h"
#include "tests/support/expect_error.h"

namespace uqa::models {
namespace {

using testing::random_normal;
using testing::relative_error;

std::shared_ptr<LinearAdapterImpl> linear(std::int64_t encoder_hidden, std::int64_t llm_hidden) {
  return std::make_shared<LinearAdapterImpl>(AdapterConfig{.kind = "linear", .encoder_hidden = encoder_hidden, .llm_hidden = llm_hidden});
}

TEST(LinearAdapter, EqualsTheMeanOfLinearRowsWithItsGradients) {
  auto adapter = linear(6, 10);
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

TEST(LinearAdapter, WhitenedTokensVaryEquallyInEveryDirectionAndFoldIntoOneLinearLayer) {
  // Directions of size 10, 4 and 3 around a large common state.
  const auto sizes_H = at::tensor({10.0f, 4.0f, 3.0f});
  const auto means = random_normal({400, 3}, 3, at::kFloat) * sizes_H + 20;
  auto adapter = linear(3, 64);
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

TEST(LinearAdapter, StartsFromAWeightOnWhitenedMeans) {
  const auto means = random_normal({400, 3}, 3, at::kFloat) * at::tensor({10.0f, 1.0f, 0.5f}) + 20;
  auto adapter = linear(3, 8);
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

TEST(LinearAdapter, WhitenedStartOfEqualStatesIsThePlainOne) {
  auto adapter = linear(3, 8);
  auto plain = linear(3, 8);
  adapter->init_whitened(5, at::ones({4, 3}), 0.1);
  plain->init_weights(5);
  EXPECT_TRUE(at::equal(adapter->named_parameters()["up_proj.weight"], plain->named_parameters()["up_proj.weight"]));
}

TEST(LinearAdapter, StartsAsTorchLinearDoes) {
  auto adapter = linear(64, 500);
  adapter->init_weights(5);
  const auto weight = adapter->named_parameters()["up_proj.weight"].detach();
  EXPECT_LE(testing::max_abs(weight), 0.125);
  EXPECT_GT(testing::max_abs(weight), 0.124);
  auto same = linear(64, 500);
  same->init_weights(5);
  EXPECT_TRUE(at::equal(weight, same->named_parameters()["up_proj.weight"]));
}

TEST(LinearAdapter, RefusesAnEmptyHistory) {
  auto adapter = linear(6, 10);
  EXPECT_THROW(static_cast<void>(adapter->forward(at::zeros({2, 6}), {.cu_seqlens = {0, 2, 2}, .sample_ids = {0, 1}})), Error);
}

AdapterConfig config_of(const std::string& kind, std::int64_t tokens = 1) {
  return {.kind = kind, .encoder_hidden = 8, .llm_hidden = 12, .num_tokens = tokens, .inner = 20, .num_layers = 2, .num_heads = 2};
}
const PackedLayout kThreeUsers{.cu_seqlens = {0, 1, 8, 11}, .sample_ids = {0, 1, 2}};

TEST(Adapters, LastStateIsTheNewestRow) {
  const auto adapter = make_adapter(config_of("last"));
  adapter->init_weights(3);
  const auto states = random_normal({11, 8}, 1, at::kFloat);
  const auto parameters = adapter->named_parameters();
  const auto expected = at::linear(states.index_select(0, at::tensor({0, 7, 10})), parameters["up_proj.weight"], parameters["up_proj.bias"]).unsqueeze(1);
  EXPECT_LT(relative_error(adapter->forward(states, kThreeUsers), expected), 1e-6);
}

TEST(Adapters, MlpIsTwoLayersOnTheMean) {
  const auto adapter = make_adapter(config_of("mlp"));
  adapter->init_weights(3);
  const auto states = random_normal({11, 8}, 1, at::kFloat);
  const auto p = adapter->named_parameters();
  const auto means = at::stack({states.narrow(0, 0, 1).mean(0), states.narrow(0, 1, 7).mean(0), states.narrow(0, 8, 3).mean(0)});
  const auto expected = at::linear(at::gelu(at::linear(means, p["fc1.weight"], p["fc1.bias"])), p["fc2.weight"], p["fc2.bias"]).unsqueeze(1);
  EXPECT_LT(relative_error(adapter->forward(states, kThreeUsers), expected), 1e-6);
}

TEST(Adapters, AttentionPoolsEachHistoryByItsQueries) {
  const auto adapter = make_adapter(config_of("attention", 3));
  adapter->init_weights(3);
  for (auto& parameter : adapter->parameters()) parameter.data().add_(random_normal(parameter.sizes().vec(), 9, at::kFloat) * 0.3);
  const auto states = random_normal({11, 8}, 1, at::kFloat);
  const auto p = adapter->named_parameters();
  const auto soft = adapter->forward(states, kThreeUsers);
  ASSERT_EQ(soft.sizes(), at::IntArrayRef({3, 3, 12}));
  for (std::int64_t b = 0; b < 3; ++b) {
    const auto begin = kThreeUsers.cu_seqlens[static_cast<std::size_t>(b)], length = kThreeUsers.cu_seqlens[static_cast<std::size_t>(b) + 1] - begin;
    const auto rows = states.narrow(0, begin, length);
    const auto k = at::linear(rows, p["k_proj.weight"]), v = at::linear(rows, p["v_proj.weight"]);
    std::vector<Tensor> heads;
    for (std::int64_t n = 0; n < 2; ++n) {
      const auto scores = at::mm(p["queries"].narrow(1, 4 * n, 4), k.narrow(1, 4 * n, 4).t()) / 2.0;  // sqrt of the head's width
      heads.push_back(at::mm(scores.softmax(1), v.narrow(1, 4 * n, 4)));
    }
    EXPECT_LT(relative_error(soft[b], at::linear(at::cat(heads, 1), p["up_proj.weight"], p["up_proj.bias"])), 1e-5) << b;
  }
}

TEST(Adapters, QFormerEqualsOneUserAtATimeWithPlainAttention) {
  const auto adapter = make_adapter(config_of("qformer", 3));
  adapter->init_weights(3);
  for (auto& parameter : adapter->parameters()) parameter.data().add_(random_normal(parameter.sizes().vec(), 9, at::kFloat) * 0.2);
  const auto states = random_normal({11, 8}, 1, at::kFloat);
  const auto p = adapter->named_parameters();
  const auto linear_of = [&](const Tensor& x, const std::string& name) { return at::linear(x, p[name + ".weight"], p[name + ".bias"]); };
  const auto norm_of = [&](const Tensor& x, const std::string& name) { return at::layer_norm(x, {8}, p[name + ".weight"], p[name + ".bias"], 1e-5); };
  const auto attention = [](const Tensor& q, const Tensor& k, const Tensor& v) {
    std::vector<Tensor> heads;
    for (std::int64_t n = 0; n < 2; ++n) heads.push_back(at::mm((at::mm(q.narrow(1, 4 * n, 4), k.narrow(1, 4 * n, 4).t()) / 2.0).softmax(1), v.narrow(1, 4 * n, 4)));
    return at::cat(heads, 1);
  };
  const auto soft = adapter->forward(states, kThreeUsers);
  for (std::int64_t b = 0; b < 3; ++b) {
    const auto begin = kThreeUsers.cu_seqlens[static_cast<std::size_t>(b)], length = kThreeUsers.cu_seqlens[static_cast<std::size_t>(b) + 1] - begin;
    Tensor x = p["queries"];
    for (const std::string layer : {"layers.0.", "layers.1."}) {
      const auto own = norm_of(x, layer + "norm_self");
      x = x + linear_of(attention(linear_of(own, layer + "self_q"), linear_of(own, layer + "self_k"), linear_of(own, layer + "self_v")), layer + "self_o");
      const auto seen = norm_of(states.narrow(0, begin, length), layer + "norm_states");
      x = x + linear_of(attention(linear_of(norm_of(x, layer + "norm_cross"), layer + "cross_q"), at::linear(seen, p[layer + "cross_k.weight"]), linear_of(seen, layer + "cross_v")),
                        layer + "cross_o");
      x = x + linear_of(at::gelu(linear_of(norm_of(x, layer + "norm_mlp"), layer + "fc1")), layer + "fc2");
    }
    EXPECT_LT(relative_error(soft[b], linear_of(norm_of(x, "norm"), "up_proj")), 1e-5) << b;
  }
}

TEST(Adapters, EveryKindIsIndependentOfTheBatchAndTrainsEveryParameter) {
  for (const char* kind : {"linear", "mlp", "last", "attention", "qformer"}) {
    SCOPED_TRACE(kind);
    const auto adapter = make_adapter(config_of(kind, std::string(kind) == "attention" || std::string(kind) == "qformer" ? 4 : 1));
    adapter->init_weights(3);
    auto states = random_normal({11, 8}, 1, at::kFloat);
    const auto soft = adapter->forward(states, kThreeUsers);
    const auto alone = adapter->forward(states.narrow(0, 1, 7), {.cu_seqlens = {0, 7}, .sample_ids = {1}});
    EXPECT_LT(testing::max_abs(soft[1] - alone[0]), 1e-6);
    (soft * random_normal(soft.sizes().vec(), 5, at::kFloat)).sum().backward();
    for (const auto& parameter : adapter->named_parameters()) {
      // A key's bias moves all scores of a query alike: its gradient is rounding.
      if (parameter.key().ends_with("_k.bias")) continue;
      ASSERT_TRUE(parameter.value().grad().defined()) << parameter.key();
      EXPECT_GT(testing::max_abs(parameter.value().grad()), 1e-7) << parameter.key();
    }
    const auto again = make_adapter(adapter->config());
    again->init_weights(3);
    EXPECT_TRUE(at::equal(again->forward(states, kThreeUsers), soft));
  }
}

TEST(Adapters, RefusesWhatMakesNoSense) {
  EXPECT_UQA_ERROR(make_adapter(config_of("perceiver")), ErrorCode::kConfig, "adapter.kind = perceiver, must be linear");
  EXPECT_UQA_ERROR(make_adapter(config_of("qformer", 0)), ErrorCode::kConfig, "adapter.tokens = 0, must be between 1 and 64");
  EXPECT_UQA_ERROR(make_adapter(config_of("qformer", 65)), ErrorCode::kConfig, "adapter.tokens = 65");
  EXPECT_UQA_ERROR(make_adapter(config_of("linear", 2)), ErrorCode::kConfig, "adapter.tokens = 2 with adapter.kind = linear");
  auto config = config_of("qformer", 2);
  config.num_heads = 3;
  EXPECT_UQA_ERROR(make_adapter(config), ErrorCode::kConfig, "adapter.heads = 3, must divide the encoder's width 8");
}

TEST(LinearAdapter, NoUsersGiveNoSoftTokens) {
  auto adapter = linear(6, 10);
  EXPECT_EQ(adapter->forward(at::zeros({0, 6}), {}).sizes(), at::IntArrayRef({0, 1, 10}));
}

}  // namespace
}  // namespace uqa::models
