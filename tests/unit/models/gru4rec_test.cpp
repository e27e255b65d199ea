#include "models/encoders/gru4rec.h"

#include <ATen/autocast_mode.h>
#include <gtest/gtest.h>

#include "core/error.h"
#include "models/layers/dropout.h"
#include "models/layers/packed_gru.h"
#include "numeric.h"

namespace uqa::models {
namespace {

using testing::gradient_error;
using testing::max_abs;
using testing::random_normal;
using testing::relative_error;

std::vector<std::int64_t> starts_of(const std::vector<std::int64_t>& lengths) {
  std::vector<std::int64_t> starts{0};
  for (const auto length : lengths) starts.push_back(starts.back() + length);
  return starts;
}

/// The definition, one row at a time, differentiable by autograd.
Tensor step_by_step(const Tensor& x_TG, const Tensor& weight_hh, const std::vector<std::int64_t>& cu_seqlens) {
  const auto width = weight_hh.size(1);
  std::vector<Tensor> rows;
  for (std::size_t b = 0; b + 1 < cu_seqlens.size(); ++b) {
    auto h = at::zeros({width}, x_TG.options());
    for (auto t = cu_seqlens[b]; t < cu_seqlens[b + 1]; ++t) {
      const auto x = x_TG[t].chunk(3), y = at::mv(weight_hh, h).chunk(3);
      const auto r = at::sigmoid(x[0] + y[0]), z = at::sigmoid(x[1] + y[1]), n = at::tanh(x[2] + r * y[2]);
      h = (1 - z) * n + z * h;
      rows.push_back(h);
    }
  }
  return at::stack(rows);
}

struct Case {
  Tensor x, weight;
  std::vector<std::int64_t> cu_seqlens;
};

Case case_of(const std::vector<std::int64_t>& lengths, std::int64_t width, at::ScalarType type = at::kDouble) {
  const auto starts = starts_of(lengths);
  return {.x = random_normal({starts.back(), 3 * width}, 1, type),
          .weight = random_normal({3 * width, width}, 2, type) * (1.5 / std::sqrt(static_cast<double>(width))),
          .cu_seqlens = starts};
}

/// Lengths of more users than one tile, in no order, with equal ones, a single row and an empty history among them.
const std::vector<std::int64_t> kManyLengths{3, 9, 1, 7, 7, 0, 12, 2, 5, 9, 4, 6, 1, 8, 10, 3, 11, 2, 9};

class ThreadCount {
 public:
  explicit ThreadCount(int count) { at::set_num_threads(count); }
  ~ThreadCount() { at::set_num_threads(before_); }

 private:
  int before_ = at::get_num_threads();
};

/// States and gradients of x and the weights against the definition's.
void expect_equal_to_definition(const Case& c, double bound) {
  const auto x = c.x.detach().requires_grad_(true), weight = c.weight.detach().requires_grad_(true);
  const auto exact_x = c.x.detach().to(at::kDouble).requires_grad_(true), exact_weight = c.weight.detach().to(at::kDouble).requires_grad_(true);
  const auto expected = step_by_step(exact_x, exact_weight, c.cu_seqlens);
  const auto actual = packed_gru(x, weight, c.cu_seqlens);
  EXPECT_GT(max_abs(expected), 0.1);
  EXPECT_EQ(actual.scalar_type(), c.x.scalar_type());
  EXPECT_LT(relative_error(actual, expected), bound);
  const auto weights = random_normal(expected.sizes(), 3);
  const auto expected_grads = torch::autograd::grad({(expected * weights).sum()}, {exact_x, exact_weight});
  const auto grads = torch::autograd::grad({(actual * weights.to(c.x.scalar_type())).sum()}, {x, weight});
  EXPECT_LT(relative_error(grads[0], expected_grads[0]), bound) << "inputs";
  EXPECT_LT(relative_error(grads[1], expected_grads[1]), bound) << "weights";
}

TEST(PackedGru, EqualsItsDefinitionWithAllGradients) {
  for (const std::int64_t width : {1, 20, 48}) {
    expect_equal_to_definition(case_of(kManyLengths, width), 1e-12);
    expect_equal_to_definition(case_of(kManyLengths, width, at::kFloat), 5e-6);
  }
  expect_equal_to_definition(case_of({1, 2, 1}, 5), 1e-12);
}

TEST(PackedGru, LargeWeightsSharedByThreadsEqualTheDefinition) {
  constexpr std::int64_t kLarge = 424;  // more weights than one core's cache
  for (const int threads : {1, 2, 3}) {
    const ThreadCount count(threads);
    expect_equal_to_definition(case_of(kManyLengths, kLarge, at::kFloat), 5e-6);
    expect_equal_to_definition(case_of({4, 1, 3}, kLarge, at::kFloat), 5e-6);
  }
}

TEST(PackedGru, GradientsEqualFiniteDifferences) {
  const auto c = case_of({4, 1, 0, 6, 2}, 5);
  EXPECT_LT(gradient_error({c.x, c.weight}, [&] { return packed_gru(c.x, c.weight, c.cu_seqlens); }), 1e-6);
}

TEST(PackedGru, GatesFarFromZeroSaturate) {
  auto c = case_of({5}, 20, at::kFloat);
  c.x *= 60;
  c.x.narrow(0, 1, 1).fill_(1000);
  c.x.narrow(0, 3, 1).fill_(-1000);
  expect_equal_to_definition(c, 5e-6);
}

TEST(PackedGru, ATinyCandidateKeepsItsRelativeAccuracy) {
  const auto x = at::full({1, 3}, 1e-6, at::kFloat);  // r = z = 1/2: h = tanh(x) / 2
  const auto h = packed_gru(x, at::zeros({3, 1}), {0, 1}).item<double>();
  EXPECT_NEAR(h / 0.5e-6, 1, 1e-5);
}

/// Alone with one thread, and between neighbours with several: every bit of states and input gradients.
TEST(PackedGru, ASequenceDependsNeitherOnItsNeighboursNorOnTheNumberOfThreads) {
  for (const std::int64_t width : {40, 424}) {
    const auto c = case_of(kManyLengths, width, at::kFloat);
    const auto weights = random_normal({c.cu_seqlens.back(), width}, 5, at::kFloat);
    const auto run = [&](const Tensor& rows, const Tensor& row_weights, const std::vector<std::int64_t>& starts) {
      const auto x = rows.detach().requires_grad_(true);
      const auto out = packed_gru(x, c.weight, starts);
      return std::pair(out.detach(), torch::autograd::grad({(out * row_weights).sum()}, {x})[0]);
    };
    for (const int threads : {1, 2, 3}) {
      std::pair<Tensor, Tensor> together;
      {
        const ThreadCount count(threads);
        together = run(c.x, weights, c.cu_seqlens);
      }
      const ThreadCount one(1);
      for (std::size_t b = 0; b < kManyLengths.size(); ++b) {
        const auto begin = c.cu_seqlens[b], length = kManyLengths[b];
        if (length == 0) continue;
        const auto alone = run(c.x.narrow(0, begin, length), weights.narrow(0, begin, length), {0, length});
        EXPECT_TRUE(at::equal(together.first.narrow(0, begin, length), alone.first)) << "width " << width << ", user " << b;
        EXPECT_TRUE(at::equal(together.second.narrow(0, begin, length), alone.second)) << "width " << width << ", user " << b;
      }
    }
  }
}

TEST(PackedGru, ALaterRowNeverChangesAnEarlierOne) {
  const auto c = case_of({12}, 20, at::kFloat);
  const auto before = packed_gru(c.x, c.weight, c.cu_seqlens);
  c.x[9].fill_(3);
  const auto after = packed_gru(c.x, c.weight, c.cu_seqlens);
  EXPECT_TRUE(at::equal(before.narrow(0, 0, 9), after.narrow(0, 0, 9)));
  for (std::int64_t t = 9; t < 12; ++t) EXPECT_GT(max_abs(after[t] - before[t]), 1e-3) << t;
}

TEST(PackedGru, TakesNoRowsAtAll) {
  auto c = case_of({0, 0}, 6);
  c.weight.requires_grad_(true);
  for (const auto& starts : {c.cu_seqlens, std::vector<std::int64_t>{0}}) {
    const auto out = packed_gru(c.x, c.weight, starts);
    EXPECT_EQ(out.sizes(), at::IntArrayRef({0, 6}));
    EXPECT_EQ(max_abs(torch::autograd::grad({out.sum()}, {c.weight})[0]), 0);
  }
}

TEST(PackedGru, RefusesShapesThatDoNotFit) {
  const auto c = case_of({3, 2}, 4);
  const auto fails = [](const Tensor& x, const Tensor& weight, const std::vector<std::int64_t>& starts) {
    try {
      static_cast<void>(packed_gru(x, weight, starts));
    } catch (const Error& error) {
      return error.code() == ErrorCode::kInternal;
    }
    return false;
  };
  EXPECT_FALSE(fails(c.x, c.weight, c.cu_seqlens));
  EXPECT_TRUE(fails(c.x.narrow(1, 0, 11), c.weight, c.cu_seqlens));
  EXPECT_TRUE(fails(c.x, c.weight.narrow(0, 0, 11), c.cu_seqlens));
  EXPECT_TRUE(fails(c.x, c.weight, {0, 3, 4}));
  EXPECT_TRUE(fails(c.x, c.weight, {0, 6, 5}));
  EXPECT_TRUE(fails(c.x, c.weight, {1, 3, 5}));
  EXPECT_TRUE(fails(c.x, c.weight, {}));
}

UserModelConfig small_config() { return {.encoder = "gru4rec", .hidden = 12, .num_layers = 3, .inner = 20, .max_len = 20, .dropout = 0.3}; }

PackedLayout layout_of(const std::vector<std::int64_t>& lengths, const std::vector<std::int64_t>& sample_ids) {
  return {.cu_seqlens = starts_of(lengths), .sample_ids = sample_ids};
}

class Gru4RecTest : public ::testing::Test {
 protected:
  Gru4RecTest() { encoder_->init_weights(3, "backbone."); }
  Tensor forward(const Tensor& x_TH, const PackedLayout& layout, const DropoutContext& context = {}) { return encoder_->forward(x_TH, layout, context); }
  Tensor parameter(const std::string& name) { return encoder_->named_parameters()[name]; }

  std::shared_ptr<Gru4RecImpl> encoder_ = std::make_shared<Gru4RecImpl>(small_config());
  PackedLayout layout_ = layout_of({5, 1, 8, 3}, {100, 7, 31, 4});
  Tensor x_TH_ = random_normal({17, 12}, 1, at::kFloat);
};

TEST_F(Gru4RecTest, EqualsTorchGruUserByUserWithAllGradients) {
  encoder_->eval();
  torch::nn::GRU gru(torch::nn::GRUOptions(12, 20).num_layers(3).bias(false));
  {
    const at::NoGradGuard no_grad;
    for (auto& item : gru->named_parameters()) item.value().copy_(parameter("gru_layers." + item.key()));
  }
  const auto x = x_TH_.detach().requires_grad_(true), expected_x = x_TH_.detach().requires_grad_(true);
  std::vector<Tensor> users;
  for (std::size_t b = 0; b < 4; ++b) {
    const auto begin = layout_.cu_seqlens[b], length = layout_.cu_seqlens[b + 1] - begin;
    users.push_back(std::get<0>(gru->forward(expected_x.narrow(0, begin, length).unsqueeze(1))).squeeze(1));
  }
  const auto dense = at::linear(at::cat(users), parameter("dense.weight"), parameter("dense.bias"));
  const auto expected = at::layer_norm(dense, {12}, parameter("norm.weight"), parameter("norm.bias"), 1e-5);
  const auto actual = forward(x, layout_);
  EXPECT_GT(max_abs(expected), 0.1);
  EXPECT_LT(relative_error(actual, expected), 5e-6);
  const auto weights = random_normal({17, 12}, 2, at::kFloat);
  std::vector<Tensor> inputs{x}, expected_inputs{expected_x};
  for (auto& item : encoder_->named_parameters()) {
    inputs.push_back(item.value());
    const auto name = item.key().rfind("gru_layers.", 0) == 0 ? item.key().substr(11) : "";
    expected_inputs.push_back(name.empty() ? item.value() : gru->named_parameters()[name]);
  }
  ASSERT_EQ(inputs.size(), 1u + 6u + 4u);
  const auto grads = torch::autograd::grad({(actual * weights).sum()}, inputs);
  const auto expected_grads = torch::autograd::grad({(expected * weights).sum()}, expected_inputs);
  for (std::size_t i = 0; i < inputs.size(); ++i) EXPECT_LT(relative_error(grads[i], expected_grads[i]), 1e-5) << i;
}

TEST_F(Gru4RecTest, ALaterRowNeverChangesAnEarlierOne) {
  encoder_->eval();
  const auto before = forward(x_TH_, layout_);
  x_TH_[10].fill_(2);  // row 4 of the third user
  const auto after = forward(x_TH_, layout_);
  EXPECT_TRUE(at::equal(before.narrow(0, 0, 10), after.narrow(0, 0, 10)));
  EXPECT_TRUE(at::equal(before.narrow(0, 14, 3), after.narrow(0, 14, 3)));
  for (std::int64_t t = 10; t < 14; ++t) EXPECT_GT(max_abs(after[t] - before[t]), 1e-3) << t;
}

TEST_F(Gru4RecTest, AUserDoesNotDependOnWhoSharesTheBatch) {
  encoder_->eval();
  const auto together = forward(x_TH_, layout_);
  EXPECT_LT(relative_error(together.narrow(0, 6, 8), forward(x_TH_.narrow(0, 6, 8), layout_of({8}, {31}))), 1e-6);
}

TEST_F(Gru4RecTest, DropoutStandsBetweenTheLastLayerAndTheLinearLayerAndFollowsTheSample) {
  encoder_->train();
  const DropoutContext context{.seed = 4, .step = 2};
  auto state = x_TH_;
  for (const auto* index : {"0", "1", "2"}) {
    const auto name = std::string("gru_layers.weight_");
    state = packed_gru(at::linear(state, parameter(name + "ih_l" + index)), parameter(name + "hh_l" + index), layout_.cu_seqlens);
  }
  state = dropout(state, 0.3, dropout_key(context, -1, DropoutSite::kFfnInner), layout_);
  const auto dense = at::linear(state, parameter("dense.weight"), parameter("dense.bias"));
  const auto together = forward(x_TH_, layout_, context);
  EXPECT_LT(relative_error(together, at::layer_norm(dense, {12}, parameter("norm.weight"), parameter("norm.bias"), 1e-5)), 1e-6);

  const auto user = [&](std::int64_t sample_id, const DropoutContext& where) {
    return forward(x_TH_.narrow(0, 6, 8), layout_of({8}, {sample_id}), where);
  };
  EXPECT_LT(relative_error(user(31, context), together.narrow(0, 6, 8)), 1e-5);
  EXPECT_GT(max_abs(user(32, context) - user(31, context)), 1e-2);
  EXPECT_GT(max_abs(user(31, {.seed = 4, .step = 3}) - user(31, context)), 1e-2);
  encoder_->eval();
  EXPECT_TRUE(at::equal(user(31, context), user(32, context)));
}

TEST_F(Gru4RecTest, Bf16AutocastStaysCloseAndKeepsStatesInFloat32) {
  encoder_->eval();
  const auto exact = forward(x_TH_, layout_).detach();
  at::autocast::set_autocast_enabled(at::kCPU, true);
  at::autocast::set_autocast_dtype(at::kCPU, at::kBFloat16);
  const auto states = forward(x_TH_, layout_);
  at::autocast::clear_cache();
  at::autocast::set_autocast_enabled(at::kCPU, false);
  states.sum().backward();
  EXPECT_EQ(states.scalar_type(), at::kFloat);
  EXPECT_GT(relative_error(states, exact), 1e-5) << "nothing was computed in bfloat16";
  EXPECT_LT(relative_error(states, exact), 0.05);
  for (const auto& item : encoder_->named_parameters()) EXPECT_EQ(item.value().grad().scalar_type(), at::kFloat) << item.key();
}

TEST_F(Gru4RecTest, OnlyTheFirstLayerStartsFromXavier) {
  const auto expect_uniform_within = [&](const std::string& name, double bound) {
    const auto x = parameter(name).detach().to(at::kDouble);
    EXPECT_LE(max_abs(x), bound * (1 + 1e-6)) << name;
    EXPECT_GT(max_abs(x), 0.98 * bound) << name;
    EXPECT_NEAR(x.square().mean().item<double>(), bound * bound / 3, 0.1 * bound * bound) << name;
  };
  expect_uniform_within("gru_layers.weight_ih_l0", std::sqrt(6.0 / (60 + 12)));
  expect_uniform_within("gru_layers.weight_hh_l0", std::sqrt(6.0 / (60 + 20)));
  for (const auto* name : {"gru_layers.weight_ih_l1", "gru_layers.weight_hh_l1", "gru_layers.weight_ih_l2", "gru_layers.weight_hh_l2", "dense.weight"}) {
    expect_uniform_within(name, 1 / std::sqrt(20.0));
  }
  EXPECT_LE(max_abs(parameter("dense.bias")), 1 / std::sqrt(20.0));
  EXPECT_GT(max_abs(parameter("dense.bias")), 0);
  EXPECT_TRUE(at::equal(parameter("norm.weight"), at::ones({12})));
  EXPECT_TRUE(at::equal(parameter("norm.bias"), at::zeros({12})));
  EXPECT_FALSE(at::equal(parameter("gru_layers.weight_hh_l1"), parameter("gru_layers.weight_hh_l2")));
}

TEST(Gru4Rec, HasThePublishedNumberOfParametersAtThePublishedSize) {
  UserModelConfig config{.encoder = "gru4rec", .hidden = 512, .num_layers = 2, .max_len = 512};
  EXPECT_EQ(config.resolved_inner(), 1024);
  std::int64_t total = 0;
  for (const auto& parameter : Gru4RecImpl(config).parameters()) total += parameter.numel();
  const std::int64_t h = 512, f = 1024;
  EXPECT_EQ(total, 3 * f * (h + f) + 6 * f * f + (f + 1) * h + 2 * h);
  EXPECT_EQ(total, 11535872);
}

}  // namespace
}  // namespace uqa::models
