#include "models/user_model.h"

#include <functional>

#include <ATen/autocast_mode.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/error.h"
#include "models/loss/item_softmax.h"
#include "numeric.h"

namespace uqa::models {
namespace {

using testing::max_abs;
using testing::relative_error;

UserModelConfig config_of(const std::string& encoder) {
  return {.encoder = encoder,
          .tables = {{.name = "item", .rows = 60, .dim = 12}, {.name = "genre", .rows = 7, .dim = 4}},
          .features = {{.name = "item", .table = "item"}, {.name = "genre", .table = "genre"}},
          .hidden = 16,
          .num_layers = 2,
          .num_heads = 2,
          .inner = 24,
          .max_len = 20,
          .dropout = 0.3,
          .attention_dropout = 0.3};
}

/// One user's history; item i has i % 3 genres.
struct User {
  std::int64_t sample_id;
  std::vector<std::int64_t> items;
};

UserBatch pack(const std::vector<User>& users) {
  UserBatch batch;
  std::vector<std::int64_t> items, genres, offsets{0};
  for (const auto& user : users) {
    for (const auto item : user.items) {
      items.push_back(item);
      for (std::int64_t g = 0; g < item % 3; ++g) genres.push_back((item + g) % 7);
      offsets.push_back(static_cast<std::int64_t>(genres.size()));
    }
    batch.layout.cu_seqlens.push_back(static_cast<std::int64_t>(items.size()));
    batch.layout.sample_ids.push_back(user.sample_id);
  }
  const auto longs = [](const std::vector<std::int64_t>& x) { return at::tensor(at::ArrayRef<std::int64_t>(x), at::kLong); };
  batch.features = {{.values = longs(items)}, {.values = longs(genres), .offsets = longs(offsets)}};
  return batch;
}

const User kAnn{.sample_id = 100, .items = {5, 1, 8, 30, 59}};
const User kBob{.sample_id = 7, .items = {2, 2, 44}};
const User kCat{.sample_id = 31, .items = {9, 10, 11, 12, 13, 14, 15}};

/// Larger weights than at the start, so that attention and gates matter.
UserModel make_model(const UserModelConfig& config) {
  UserModel model(config);
  model->init_weights(1);
  const at::NoGradGuard no_grad;
  for (auto& item : model->named_parameters()) {
    if (item.value().dim() == 2) item.value().mul_(8);
  }
  return model;
}

Tensor hiddens_of(UserModel& model, const std::vector<User>& users, const DropoutContext& context = {}) {
  return model->item_hiddens(model->forward(pack(users), context));
}

class EncoderTest : public ::testing::TestWithParam<const char*> {
 protected:
  Tensor hiddens(const std::vector<User>& users, const DropoutContext& context = {}) { return hiddens_of(model_, users, context); }
  UserModel model_ = make_model(config_of(GetParam()));
};
INSTANTIATE_TEST_SUITE_P(Encoders, EncoderTest, ::testing::Values("sasrec", "trm_plus"), [](const auto& param) { return std::string(param.param); });

TEST_P(EncoderTest, AUserDoesNotDependOnWhoSharesTheBatch) {
  model_->eval();
  const auto together = hiddens({kAnn, kBob, kCat});
  EXPECT_GT(max_abs(together), 0.1);
  EXPECT_LT(relative_error(together.narrow(0, 5, 3), hiddens({kBob})), 1e-5);
  EXPECT_LT(relative_error(together.narrow(0, 8, 7), hiddens({kCat, kAnn}).narrow(0, 0, 7)), 1e-5);
}

TEST_P(EncoderTest, ALaterInteractionNeverChangesAnEarlierState) {
  model_->eval();
  auto changed = kCat;
  changed.items[5] = 50;
  const auto before = hiddens({kCat}), after = hiddens({changed});
  EXPECT_LT(relative_error(after.narrow(0, 0, 5), before.narrow(0, 0, 5)), 1e-6);
  EXPECT_GT(max_abs(after[5] - before[5]), 1e-3);
  EXPECT_GT(max_abs(after[6] - before[6]), 1e-3) << "later states must see the change";
}

TEST_P(EncoderTest, OrderMatters) {
  model_->eval();
  auto swapped = kCat;
  std::swap(swapped.items[0], swapped.items[3]);
  EXPECT_GT(max_abs(hiddens({swapped})[6] - hiddens({kCat})[6]), 1e-3);
}

TEST_P(EncoderTest, EveryDropoutFollowsTheSampleNotTheBatch) {
  for (const bool of_attention : {false, true}) {
    auto config = config_of(GetParam());
    (of_attention ? config.dropout : config.attention_dropout) = 0;
    auto model = make_model(config);
    model->train();
    const DropoutContext context{.seed = 4, .step = 2};
    const auto together = hiddens_of(model, {kAnn, kBob, kCat}, context);
    EXPECT_LT(relative_error(hiddens_of(model, {kCat, kBob}, context).narrow(0, 0, 7), together.narrow(0, 8, 7)), 1e-5);
    auto renamed = kCat;
    renamed.sample_id = 8;
    EXPECT_GT(max_abs(hiddens_of(model, {renamed}, context) - together.narrow(0, 8, 7)), 1e-2);
    EXPECT_GT(max_abs(hiddens_of(model, {kCat}, {.seed = 4, .step = 3}) - together.narrow(0, 8, 7)), 1e-2);
  }
}

TEST_P(EncoderTest, EvaluationDrawsNothing) {
  model_->eval();
  EXPECT_TRUE(at::equal(hiddens({kAnn}, {.seed = 1}), hiddens({kAnn}, {.seed = 2})));
  model_->train();
  EXPECT_FALSE(at::equal(hiddens({kAnn}, {.seed = 1}), hiddens({kAnn}, {.seed = 2})));
}

TEST_P(EncoderTest, EveryParameterGetsAGradient) {
  model_->train();
  const auto targets = at::arange(15, at::kLong);
  item_softmax_loss(hiddens({kAnn, kBob, kCat}), model_->item_table(), targets).backward();
  for (const auto& item : model_->named_parameters()) {
    ASSERT_TRUE(item.value().grad().defined()) << item.key();
    EXPECT_GT(max_abs(item.value().grad()), 0) << item.key();
  }
}

TEST_P(EncoderTest, AnEmptyBatchRunsThroughForwardAndBackward) {
  model_->train();
  const auto h = hiddens({});
  EXPECT_EQ(h.sizes(), at::IntArrayRef({0, 12}));
  item_softmax_loss(h, model_->item_table(), at::empty({0}, at::kLong)).backward();
  for (const auto& item : model_->named_parameters()) {
    ASSERT_TRUE(item.value().grad().defined()) << item.key();
    EXPECT_EQ(max_abs(item.value().grad()), 0) << item.key();
  }
}

TEST_P(EncoderTest, Bf16AutocastStaysCloseAndKeepsMastersInFloat32) {
  model_->eval();
  const auto exact = hiddens({kAnn, kBob, kCat}).detach();
  at::autocast::set_autocast_enabled(at::kCPU, true);
  at::autocast::set_autocast_dtype(at::kCPU, at::kBFloat16);
  const auto h = hiddens({kAnn, kBob, kCat});
  at::autocast::clear_cache();
  at::autocast::set_autocast_enabled(at::kCPU, false);
  item_softmax_loss(h, model_->item_table(), at::arange(15, at::kLong), {.bf16 = true}).backward();
  EXPECT_EQ(h.scalar_type(), at::kFloat);
  EXPECT_GT(relative_error(h, exact), 1e-5) << "nothing was computed in bfloat16";
  EXPECT_LT(relative_error(h, exact), 0.05);
  for (const auto& item : model_->named_parameters()) EXPECT_EQ(item.value().grad().scalar_type(), at::kFloat) << item.key();
}

TEST_P(EncoderTest, RefusesAHistoryLongerThanMaxLen) {
  User longer{.sample_id = 1};
  for (std::int64_t i = 0; i < 21; ++i) longer.items.push_back(i);
  try {
    static_cast<void>(hiddens({longer}));
    ADD_FAILURE() << "accepted 21 interactions";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kData);
  }
}

TEST(UserModelConfig, RulesForTheInnerWidth) {
  auto config = config_of("trm_plus");
  config.inner = 0;
  config.hidden = 512;
  EXPECT_EQ(config.resolved_inner(), 1536);
  config.hidden = 32;
  config.ffn_multiple_of = 16;
  EXPECT_EQ(config.resolved_inner(), 96);
  config.encoder = "sasrec";
  EXPECT_EQ(config.resolved_inner(), 128);
}

TEST(UserModelConfig, ValidationNamesTheField) {
  struct Wrong {
    const char* named;
    std::function<void(UserModelConfig&)> change;
  };
  const std::vector<Wrong> cases{{"encoder = mamba", [](auto& c) { c.encoder = "mamba"; }},
                                 {"model.hidden = 0", [](auto& c) { c.hidden = 0; }},
                                 {"model.num_heads = 3", [](auto& c) { c.num_heads = 3; }},
                                 {"must be even", [](auto& c) { c.num_heads = 16; }},
                                 {"model.num_layers = 0", [](auto& c) { c.num_layers = 0; }},
                                 {"model.inner = -1", [](auto& c) { c.inner = -1; }},
                                 {"model.max_len = 0", [](auto& c) { c.max_len = 0; }},
                                 {"model.ffn_multiple_of = 0", [](auto& c) { c.ffn_multiple_of = 0; }},
                                 {"model.norm_eps", [](auto& c) { c.norm_eps = 0; }},
                                 {"model.rope_base", [](auto& c) { c.rope_base = std::nan(""); }},
                                 {"model.dropout = 1", [](auto& c) { c.dropout = 1; }},
                                 {"model.attention_dropout = -0.1", [](auto& c) { c.attention_dropout = -0.1; }},
                                 {"model.features", [](auto& c) { c.features.clear(); }},
                                 {"table brand", [](auto& c) { c.features.push_back({.name = "brand", .table = "brand"}); }},
                                 {"table item is given twice", [](auto& c) { c.tables.push_back(c.tables.front()); }},
                                 {"table item: rows = 0", [](auto& c) { c.tables.front().rows = 0; }},
                                 {"table item: dim = 0", [](auto& c) { c.tables.front().dim = 0; }},
                                 {"used by no feature", [](auto& c) { c.features.pop_back(); }},
                                 {"a.b", [](auto& c) { c.tables.push_back({.name = "a.b", .rows = 1, .dim = 1}); }}};
  EXPECT_NO_THROW(config_of("trm_plus").validate());
  for (const auto& wrong : cases) {
    auto config = config_of("trm_plus");
    wrong.change(config);
    try {
      config.validate();
      ADD_FAILURE() << "accepted: " << wrong.named;
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kConfig);
      EXPECT_THAT(error.what(), ::testing::HasSubstr(wrong.named));
    }
  }
}

}  // namespace
}  // namespace uqa::models
