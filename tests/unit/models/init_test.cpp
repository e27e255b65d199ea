#include "models/init.h"

#include <gtest/gtest.h>

#include "models/user_model.h"
#include "numeric.h"

namespace uqa::models {
namespace {

using testing::max_abs;

double mean_of(const Tensor& x) { return x.to(at::kDouble).mean().item<double>(); }
double std_of(const Tensor& x) { return x.to(at::kDouble).std().item<double>(); }

TEST(Init, NormalHasItsMomentsAndTails) {
  const auto x = at::empty({200000});
  init_normal_(x, 1, "w", 0.02);
  EXPECT_NEAR(mean_of(x), 0, 0.02 * 4 / std::sqrt(2e5));
  EXPECT_NEAR(std_of(x), 0.02, 0.02 * 4 / std::sqrt(4e5));
  EXPECT_NEAR((x.abs() > 0.04).to(at::kDouble).mean().item<double>(), 0.0455, 0.002);
}

TEST(Init, TruncatedNormalStaysWithinTwoDeviations) {
  const auto x = at::empty({200000});
  init_truncated_normal_(x, 1, "w", 0.02);
  EXPECT_LE(max_abs(x), 0.04f);
  EXPECT_GT(max_abs(x), 0.0399);
  EXPECT_NEAR(std_of(x), 0.02 * 0.8796, 1e-4);  // of a normal cut at two deviations
}

TEST(Init, UniformAndXavierFillTheirBounds) {
  const auto x = at::empty({300, 100});
  init_xavier_uniform_(x, 1, "w");
  const double bound = std::sqrt(6.0 / 400);
  EXPECT_LE(max_abs(x), bound);
  EXPECT_GT(max_abs(x), 0.999 * bound);
  EXPECT_NEAR(std_of(x), bound / std::sqrt(3.0), 0.01 * bound);
}

TEST(Init, ElementsDependOnSeedAndNameNotOnShapeOrThreads) {
  const auto a = at::empty({50, 40}), b = at::empty({2000}), c = at::empty({2000}), d = at::empty({2000});
  const auto threads = at::get_num_threads();
  at::set_num_threads(1);
  init_normal_(a, 1, "w", 1);
  at::set_num_threads(threads);
  init_normal_(b, 1, "w", 1);
  init_normal_(c, 2, "w", 1);
  init_normal_(d, 1, "v", 1);
  EXPECT_TRUE(at::equal(a.view({2000}), b));
  EXPECT_FALSE(at::equal(b, c));
  EXPECT_FALSE(at::equal(b, d));
}

UserModelConfig config_of(const std::string& encoder) {
  return {.encoder = encoder,
          .tables = {{.name = "item", .rows = 900, .dim = 32}, {.name = "genre", .rows = 20, .dim = 16}},
          .features = {{.name = "item", .table = "item"}, {.name = "genre", .table = "genre"}},
          .hidden = 128,
          .num_layers = 2,
          .max_len = 50};
}

TEST(Init, SasrecFollowsTheReference) {
  UserModel model(config_of("sasrec"));
  model->init_weights(3);
  const auto w = model->named_parameters();
  EXPECT_NEAR(std_of(w["ebc.bags.item.weight"]), 0.02 * 0.8796, 2e-4);
  EXPECT_LE(max_abs(w["ebc.bags.genre.weight"]), 0.04f);
  EXPECT_NEAR(std_of(w["backbone.position_embedding.weight"]), 0.02, 1e-3);
  EXPECT_NEAR(std_of(w["backbone.transformer.layers.1.linear1.weight"]), 0.02, 5e-4);
  EXPECT_NEAR(std_of(w["backbone.transformer.layers.0.self_attn.out_proj.weight"]), 0.02, 5e-4);
  EXPECT_NEAR(max_abs(w["backbone.transformer.layers.0.self_attn.in_proj_weight"]), std::sqrt(6.0 / (4 * 128)), 1e-3);
  EXPECT_FALSE(at::equal(w["backbone.transformer.layers.0.self_attn.in_proj_weight"], w["backbone.transformer.layers.1.self_attn.in_proj_weight"]));
  EXPECT_NEAR(max_abs(w["proj1.weight"]), 1 / std::sqrt(48.0), 1e-3);
  EXPECT_GT(max_abs(w["proj2.bias"]), 0.05);
  EXPECT_EQ(max_abs(w["backbone.transformer.layers.0.linear1.bias"]), 0);
  EXPECT_TRUE(at::equal(w["backbone.norm.weight"], at::ones({128})));
}

TEST(Init, TrmPlusScalesResidualOutputsByDepth) {
  UserModel model(config_of("trm_plus"));
  model->init_weights(3);
  const auto w = model->named_parameters();
  EXPECT_NEAR(std_of(w["backbone.layers.0.attn.q_proj.weight"]), 0.02, 5e-4);
  EXPECT_NEAR(std_of(w["backbone.layers.1.mlp.up_proj_g.weight"]), 0.02, 5e-4);
  EXPECT_NEAR(std_of(w["backbone.layers.1.attn.o_proj.weight"]), 0.01, 3e-4);
  EXPECT_NEAR(std_of(w["backbone.layers.0.mlp.down_proj.weight"]), 0.01, 3e-4);
}

TEST(Init, EveryParameterIsSetAndDependsOnTheSeed) {
  for (const auto* encoder : {"sasrec", "trm_plus"}) {
    UserModel model(config_of(encoder)), same(config_of(encoder)), other(config_of(encoder));
    const at::NoGradGuard no_grad;
    for (auto& parameter : model->parameters()) parameter.fill_(std::nan(""));
    model->init_weights(3);
    same->init_weights(3);
    other->init_weights(4);
    for (const auto& item : model->named_parameters()) {
      EXPECT_TRUE(at::equal(item.value(), same->named_parameters()[item.key()])) << item.key();  // also refuses NaN
      const bool constant = item.key().find("norm") != std::string::npos || (item.key().find("bias") != std::string::npos && item.key().find("proj1") != 0 && item.key().find("proj2") != 0);
      EXPECT_EQ(at::equal(item.value(), other->named_parameters()[item.key()]), constant) << item.key();
    }
  }
}

}  // namespace
}  // namespace uqa::models
