#include "models/cost.h"

#include <gtest/gtest.h>

#include "models/adapters/adapter.h"

namespace uqa::models {
namespace {

UserModelConfig config_of(const std::string& encoder) {
  return {.encoder = encoder,
          .tables = {{.name = "item", .rows = 900, .dim = 32}, {.name = "genre", .rows = 20, .dim = 16}},
          .features = {{.name = "item", .table = "item"}, {.name = "genre", .table = "genre"}, {.name = "second_genre", .table = "genre"}},
          .hidden = 40,
          .num_layers = 3,
          .num_heads = 4,
          .inner = 56,
          .max_len = 50,
          .mamba2 = {.head_dim = 20}};
}

/// The published sizes: width 512; tables of 994,447 items and their side information.
UserModelConfig published(const std::string& encoder) {
  UserModelConfig config{.encoder = encoder,
                         .tables = {{.name = "item_id", .rows = 994447, .dim = 128},
                                    {.name = "cate_id", .rows = 9330, .dim = 64},
                                    {.name = "brand_id", .rows = 149750, .dim = 64},
                                    {.name = "shop_id", .rows = 268446, .dim = 64},
                                    {.name = "seller_id", .rows = 268446, .dim = 64},
                                    {.name = "bpe_tokens", .rows = 151936, .dim = 64}},
                         .hidden = 512,
                         .max_len = 512};
  for (const auto* table : {"item_id", "cate_id", "brand_id", "shop_id", "seller_id"}) config.features.push_back({.name = table, .table = table});
  for (const auto* name : {"title", "cate_bpe", "shop_bpe", "brand_bpe", "seller_bpe"}) config.features.push_back({.name = name, .table = "bpe_tokens"});
  if (encoder == "sasrec") {
    config.num_layers = 6;
    config.num_heads = 8;
    config.inner = 1536;
  } else if (encoder == "hstu") {
    config.num_layers = 4;
    config.num_heads = 8;
    config.hstu = {.linear_dim = 256, .attention_dim = 256};
  } else if (encoder == "gru4rec") {
    config.num_layers = 2;
    config.inner = 1024;
  } else {
    config.num_layers = 4;
    config.num_heads = 4;
  }
  return config;
}

std::int64_t count(const torch::nn::Module& module, const std::string& prefix) {
  std::int64_t total = 0;
  for (const auto& item : module.named_parameters()) {
    if (item.key().rfind(prefix, 0) == 0) total += item.value().numel();
  }
  return total;
}

TEST(Cost, ParameterCountsAreThoseOfTheRealModel) {
  for (const auto* encoder : {"sasrec", "hstu", "gru4rec", "mamba2", "trm_plus"}) {
    for (const std::int64_t inner : {0, 56}) {
      auto config = config_of(encoder);
      config.inner = inner;
      const UserModel model(config);
      const auto counts = count_parameters(config);
      EXPECT_EQ(counts.tables, count(*model, "ebc.")) << encoder;
      EXPECT_EQ(counts.backbone, count(*model, "backbone.")) << encoder;
      EXPECT_EQ(counts.projections, count(*model, "proj")) << encoder;
      EXPECT_EQ(counts.total(), count(*model, "")) << encoder;
    }
  }
  const auto adapter = make_adapter({.kind = "linear", .encoder_hidden = 40, .llm_hidden = 64});
  EXPECT_EQ(count_adapter_parameters(40, 64), count(*adapter, ""));
}

TEST(Cost, PublishedSizesGiveTheDerivedParameterCounts) {
  const auto sasrec = count_parameters(published("sasrec")), trm_plus = count_parameters(published("trm_plus"));
  EXPECT_EQ(published("trm_plus").resolved_inner(), 1536);
  EXPECT_EQ(sasrec.backbone, 16028672);
  EXPECT_EQ(trm_plus.backbone, 13635584);
  EXPECT_EQ(count_parameters(published("hstu")).backbone, 20978176);
  EXPECT_EQ(count_parameters(published("gru4rec")).backbone, 11535872);
  EXPECT_EQ(count_parameters(published("mamba2")).backbone, 6880448);
  EXPECT_EQ(trm_plus.tables, 181555328);
  EXPECT_EQ(count_adapter_parameters(512, 2048), 1050624);
}

TEST(Cost, ForwardFlopsAreTwicePerWeightAndVisibleKey) {
  const auto config = config_of("trm_plus");
  const auto flops = forward_flops(config, 100, 9, 70);
  EXPECT_DOUBLE_EQ(flops.backbone, 2.0 * 100 * 3 * (4 * 40 * 40 + 3 * 40 * 56));
  EXPECT_DOUBLE_EQ(flops.projections, 2.0 * (100 * 64 * 40 + 70 * 40 * 32));
  EXPECT_DOUBLE_EQ(flops.attention, 4.0 * 3 * 40 * 100 * 5);  // nine rows see 1, 2, ... 9 keys: 5 on average
  EXPECT_DOUBLE_EQ(flops.item_softmax, 2.0 * 70 * 32 * 900);
  EXPECT_DOUBLE_EQ(flops.total() - flops.item_softmax, flops.without_softmax());
  EXPECT_DOUBLE_EQ(forward_flops(config, 100, 9).item_softmax, 2.0 * 100 * 32 * 900);
}

TEST(Cost, WhatMixesPositionsIsCountedForEveryEncoder) {
  auto hstu = config_of("hstu");
  hstu.hstu = {.linear_dim = 6, .attention_dim = 10};
  EXPECT_DOUBLE_EQ(forward_flops(hstu, 100, 9).attention, 2.0 * 3 * hstu.num_heads * 16 * 100 * 5);
  EXPECT_EQ(forward_flops(config_of("gru4rec"), 100, 9).attention, 0);
  auto mamba2 = config_of("mamba2");
  const double width = 80, state = static_cast<double>(mamba2.mamba2.state_size);
  EXPECT_DOUBLE_EQ(forward_flops(mamba2, 100, 9).attention, 2.0 * 3 * 100 * ((state + width) * 5 + 2 * state * width));
  mamba2.mamba2.chunk = 3;  // a row sees two keys of its chunk on average
  EXPECT_DOUBLE_EQ(forward_flops(mamba2, 100, 9).attention, 2.0 * 3 * 100 * ((state + width) * 2 + 2 * state * width));
}

TEST(Cost, TheItemSoftmaxCostsNineTimesTheBackboneAtThePublishedSizes) {
  const auto flops = forward_flops(published("trm_plus"), 1, 170);
  EXPECT_NEAR(flops.item_softmax / flops.backbone, 9.3, 0.1);
}

}  // namespace
}  // namespace uqa::models
