// Layers that run again in the backward pass: the same gradients, less memory held between forward and backward.
#include "models/recompute.h"

#include <gtest/gtest.h>

#include <ATen/autocast_mode.h>

#include "models/loss/item_softmax.h"
#include "models/user_model.h"
#include "tests/support/counting_allocator.h"
#include "tests/unit/models/llm_tiny.h"

namespace uqa::models {
namespace {

using tests::CountingAllocator;

struct Pass {
  std::vector<Tensor> gradients;
  double loss = 0;
  std::int64_t held_bytes = 0;  ///< by the graph between forward and backward
};

Pass run_encoder(const std::string& encoder, bool recompute, bool bf16) {
  UserModelConfig config{.encoder = encoder,
                         .tables = {{.name = "item", .rows = 200, .dim = 16}},
                         .features = {{.name = "item", .table = "item"}},
                         .hidden = 32,
                         .num_layers = 4,
                         .num_heads = 2,
                         .inner = 64,
                         .max_len = 64,
                         .dropout = 0.2,
                         .attention_dropout = 0.2};
  config.mamba2 = {.head_dim = 16, .state_size = 16, .expand = 2, .conv_kernel = 4, .num_groups = 1, .chunk = 16};
  config.hstu.bias = "position";
  UserModel model(config);
  model->init_weights(5);
  model->train();
  Tensor loss;
  std::int64_t before = 0;
  {
    UserBatch batch;  // gone before the backward pass, as in training
    batch.layout.cu_seqlens = {0, 40, 40, 97};
    batch.layout.sample_ids = {3, 9, 4};
    batch.features = {{.values = at::arange(97, at::kLong).mul(7).remainder(200)}};
    const auto targets = batch.features[0].values.roll(-1);
    before = CountingAllocator::held;
    const RecomputeLayers layers(recompute);
    at::autocast::set_autocast_enabled(at::kCPU, bf16);
    at::autocast::set_autocast_dtype(at::kCPU, at::kBFloat16);
    at::autocast::increment_nesting();
    const auto h = model->item_hiddens(model->forward(batch, {.seed = 1, .step = 2}));
    if (at::autocast::decrement_nesting() == 0) at::autocast::clear_cache();
    at::autocast::set_autocast_enabled(at::kCPU, false);
    loss = item_softmax_loss(h.to(at::kFloat), model->item_table(), targets, {});
  }
  Pass pass{.held_bytes = CountingAllocator::held - before};
  loss.backward();
  pass.loss = loss.item<double>();
  for (const auto& parameter : model->parameters()) pass.gradients.push_back(parameter.grad());
  return pass;
}

void expect_same(const Pass& plain, const Pass& again) {
  EXPECT_EQ(plain.loss, again.loss);
  ASSERT_EQ(plain.gradients.size(), again.gradients.size());
  std::size_t with_gradient = 0;
  for (std::size_t i = 0; i < plain.gradients.size(); ++i) {
    ASSERT_EQ(plain.gradients[i].defined(), again.gradients[i].defined()) << "parameter " << i;
    if (!plain.gradients[i].defined()) continue;
    ++with_gradient;
    EXPECT_TRUE(at::equal(plain.gradients[i], again.gradients[i])) << "parameter " << i << " differs by " << (plain.gradients[i] - again.gradients[i]).abs().max().item<double>();
  }
  EXPECT_GT(with_gradient, 4U);
}

class RecomputeEncoder : public ::testing::TestWithParam<const char*> {};

TEST_P(RecomputeEncoder, GivesTheSameBitsAndHoldsLess) {
  const CountingAllocator counting;
  const auto plain = run_encoder(GetParam(), false, false), again = run_encoder(GetParam(), true, false);
  expect_same(plain, again);
  EXPECT_LT(again.held_bytes, 0.75 * static_cast<double>(plain.held_bytes)) << again.held_bytes << " against " << plain.held_bytes;
}

TEST_P(RecomputeEncoder, GivesTheSameBitsUnderAutocast) { expect_same(run_encoder(GetParam(), false, true), run_encoder(GetParam(), true, true)); }

INSTANTIATE_TEST_SUITE_P(All, RecomputeEncoder, ::testing::Values("sasrec", "hstu", "gru4rec", "mamba2", "trm_plus"));

Pass run_llm(const LlmOptions& options, bool recompute) {
  auto config = testing::tiny_config();
  config.num_layers = 4;
  auto llm = testing::tiny_llm(config, options);
  if (options.lora.rank > 0) testing::fill_lora_b(llm);
  Tensor loss, soft;
  std::int64_t before = 0;
  {
    soft = testing::random_normal({40, config.hidden}, 3, at::kFloat).requires_grad_();
    const std::vector<AttentionBlock> blocks{{.begin = 0, .end = 20}, {.begin = 20, .end = 28, .parent = 0}, {.begin = 28, .end = 40, .parent = 0}};
    const auto positions = at::arange(40, at::kLong), labels = testing::random_ids(config, 40, 11);
    before = CountingAllocator::held;
    const RecomputeLayers layers(recompute);
    loss = next_token_loss(*llm, llm->forward(soft, positions, blocks), labels);
  }
  Pass pass{.held_bytes = CountingAllocator::held - before};
  loss.backward();
  pass.loss = loss.item<double>();
  pass.gradients.push_back(soft.grad());
  for (const auto& [name, tensor] : llm->trainable_parameters()) pass.gradients.push_back(tensor.grad());
  for (int i = 0; i < 4; ++i) pass.gradients.push_back(soft.grad());  // a frozen LLM has no other gradient
  return pass;
}

TEST(RecomputeLlm, FrozenLoraAndTrainableGiveTheSameBitsAndHoldLess) {
  const CountingAllocator counting;
  for (const auto& options : {LlmOptions{}, LlmOptions{.lora = {.rank = 2}}, LlmOptions{.trainable = true}, LlmOptions{.dtype = at::kBFloat16, .lora = {.rank = 2}}}) {
    SCOPED_TRACE(fmt::format("rank {} trainable {} {}", options.lora.rank, options.trainable, c10::toString(options.dtype)));
    const auto plain = run_llm(options, false), again = run_llm(options, true);
    expect_same(plain, again);
    EXPECT_LT(again.held_bytes, 0.75 * static_cast<double>(plain.held_bytes)) << again.held_bytes << " against " << plain.held_bytes;
  }
}

struct CountHook : torch::autograd::PostAccumulateGradHook {
  explicit CountHook(int& count) : count_(count) {}
  void operator()(const torch::autograd::Variable&) override { ++count_; }
  int& count_;
};

TEST(Recompute, ASharedParameterGetsTheSumOnceAndItsHookRunsOnce) {
  const auto run = [](bool recompute, int& fired) {
    auto w = (at::arange(9, at::kFloat).view({3, 3}) * 0.1).requires_grad_();
    torch::autograd::impl::set_post_acc_grad_hooks(w, std::make_unique<CountHook>(fired));
    const auto layer = [w](const Tensor& x) { return at::tanh(at::mm(x, w)); };
    const std::function<Tensor(const Tensor&)> function(layer);
    auto x = at::ones({2, 3});
    for (int i = 0; i < 3; ++i) x = recompute ? recomputed(function, x, {w}) : layer(x);
    x.square().sum().backward();
    return w.grad();
  };
  int plain_fired = 0, again_fired = 0;
  const auto plain = run(false, plain_fired), again = run(true, again_fired);
  EXPECT_LT((plain - again).abs().max().item<double>(), 1e-6);
  EXPECT_GT(plain.abs().max().item<double>(), 0.01);
  EXPECT_EQ(plain_fired, 1);
  EXPECT_EQ(again_fired, 1);
}

TEST(Recompute, UndefinedInputsAndUnusedParametersPass) {
  const auto w = at::ones({3}).requires_grad_(), unused = at::ones({3}).requires_grad_();
  const LayerFunction layer = [w](const std::vector<Tensor>& in) -> std::vector<Tensor> {
    return {in[1].defined() ? in[0] + in[1] : in[0] * w, Tensor(), in[0]};
  };
  auto x = at::full({3}, 2.0).requires_grad_();
  const auto out = recomputed(layer, {x, Tensor()}, {w, unused});
  ASSERT_EQ(out.size(), 3U);
  EXPECT_FALSE(out[1].defined());
  (out[0] * 3 + out[2]).sum().backward();
  EXPECT_TRUE(at::equal(w.grad(), at::full({3}, 6.0)));
  EXPECT_TRUE(at::equal(x.grad(), at::full({3}, 4.0)));
  EXPECT_FALSE(unused.grad().defined());
}

TEST(Recompute, WithoutGradientsItIsAPlainCall) {
  int calls = 0;
  const std::function<Tensor(const Tensor&)> layer = [&calls](const Tensor& x) {
    ++calls;
    return x * 2;
  };
  const at::NoGradGuard no_grad;
  EXPECT_TRUE(at::equal(recomputed(layer, at::ones({2}), {}), at::full({2}, 2.0)));
  EXPECT_EQ(calls, 1);
}

}  // namespace
}  // namespace uqa::models
