// What is trained: LoRA against autograd on a plain float64 decoder, merging, full tuning.

#include <gtest/gtest.h>

#include "core/error.h"
#include "models/llm/lora.h"
#include "tests/unit/models/llm_tiny.h"

namespace uqa::models {
namespace {

using testing::plain_forward;
using testing::random_ids;
using testing::relative_error;
using testing::tiny_config;
using testing::tiny_llm;

const std::vector<AttentionBlock> kBlocks = {{.begin = 0, .end = 5}, {.begin = 5, .end = 8, .parent = 0}, {.begin = 8, .end = 12, .parent = 0}};
constexpr std::int64_t kRows = 12;

Tensor positions() { return at::cat({at::arange(8, at::kLong), at::arange(5, 9, at::kLong)}); }

Tensor loss_of(Llm& llm, const Tensor& x_TH, const Tensor& labels_T) {
  return next_token_loss(*llm, llm->forward(x_TH, positions(), kBlocks), labels_T);
}

/// The same loss from plain operations; `w` float64 by Hugging Face name.
Tensor plain_loss(const LlmConfig& config, const std::map<std::string, Tensor>& w, const Tensor& x_TH, const Tensor& labels_T) {
  const auto& head_VH = w.at(config.tied_embeddings ? "model.embed_tokens.weight" : "lm_head.weight");
  return at::cross_entropy_loss(at::matmul(plain_forward(config, w, x_TH, positions(), kBlocks), head_VH.t()), labels_T, {}, at::Reduction::Sum, -100);
}

std::map<std::string, Tensor> by_name(const Llm& llm) {
  const auto list = llm->trainable_parameters();
  return {list.begin(), list.end()};
}

std::string module_of(const std::string& target) {
  return (target == "gate_proj" || target == "up_proj" || target == "down_proj" ? "mlp." : "self_attn.") + target;
}

/// Plain float64 weights with LoRA merged by autograd: leaves are the float64 copies in `leaves`.
std::map<std::string, Tensor> merged_by_autograd(const LlmConfig& config, const std::map<std::string, Tensor>& leaves, double scale) {
  auto w = testing::to_double(testing::tiny_weights(config));
  for (const auto& [name, a] : leaves) {
    if (!name.ends_with(".A")) continue;
    const auto stem = name.substr(0, name.size() - 2);  // lora.<layer>.<target>
    const auto second = stem.find('.', 5);
    auto& weight = w.at(fmt::format("model.layers.{}.{}.weight", stem.substr(5, second - 5), module_of(stem.substr(second + 1))));
    weight = weight + scale * at::matmul(leaves.at(stem + ".B"), a);
  }
  return w;
}

class LlmLora : public ::testing::TestWithParam<std::vector<std::string>> {
 protected:
  LlmConfig config_ = tiny_config();
  LlmOptions options_{.lora = {.rank = 3, .alpha = 4.5, .targets = GetParam()}, .seed = 11};
};

TEST_P(LlmLora, GradientsMatchAutogradOnAPlainDecoder) {
  auto llm = tiny_llm(config_, options_);
  testing::fill_lora_b(llm);
  auto x_TH = testing::random_normal({kRows, config_.hidden}, 21, at::kFloat).requires_grad_(true);
  const auto labels_T = random_ids(config_, kRows, 5);
  const auto loss = loss_of(llm, x_TH, labels_T);
  loss.backward();

  std::map<std::string, Tensor> leaves;
  for (const auto& [name, tensor] : by_name(llm)) leaves[name] = tensor.detach().to(at::kDouble).requires_grad_(true);
  auto x64_TH = x_TH.detach().to(at::kDouble).requires_grad_(true);
  const auto loss64 = plain_loss(config_, merged_by_autograd(config_, leaves, 1.5), x64_TH, labels_T);
  loss64.backward();

  EXPECT_LT(relative_error(loss, loss64), 1e-5);
  EXPECT_LT(relative_error(x_TH.grad(), x64_TH.grad()), 1e-4);
  ASSERT_EQ(leaves.size(), 2 * GetParam().size() * static_cast<std::size_t>(config_.num_layers));
  for (const auto& [name, tensor] : by_name(llm)) EXPECT_LT(relative_error(tensor.grad(), leaves.at(name).grad()), 1e-4) << name;
}

TEST_P(LlmLora, GradientsWithoutAnInputGradientAreTheSame) {
  auto llm = tiny_llm(config_, options_);
  testing::fill_lora_b(llm);
  const auto x_TH = testing::random_normal({kRows, config_.hidden}, 21, at::kFloat);
  const auto labels_T = random_ids(config_, kRows, 5);
  loss_of(llm, x_TH.clone().requires_grad_(true), labels_T).backward();
  std::map<std::string, Tensor> with_input;
  for (auto& [name, tensor] : by_name(llm)) {
    with_input[name] = tensor.grad().clone();
    Tensor(tensor).mutable_grad() = Tensor();
  }
  loss_of(llm, x_TH, labels_T).backward();
  for (const auto& [name, tensor] : by_name(llm)) EXPECT_LT(relative_error(tensor.grad(), with_input.at(name)), 1e-5) << name;
}

TEST_P(LlmLora, ZeroBGivesTheBaseModel) {
  const at::NoGradGuard no_grad;
  auto base = tiny_llm(config_), lora = tiny_llm(config_, options_);
  const auto x_TH = testing::random_normal({kRows, config_.hidden}, 21, at::kFloat);
  EXPECT_LT(relative_error(lora->forward(x_TH, positions(), kBlocks), base->forward(x_TH, positions(), kBlocks)), 1e-6);
  testing::fill_lora_b(lora);
  EXPECT_GT(relative_error(lora->forward(x_TH, positions(), kBlocks), base->forward(x_TH, positions(), kBlocks)), 1e-3);
}

TEST_P(LlmLora, MergedModelGivesTheSameLogits) {
  const at::NoGradGuard no_grad;
  auto lora = tiny_llm(config_, options_);
  testing::fill_lora_b(lora);
  Llm merged(config_, LlmOptions{});
  const auto weights = lora->merge_lora();
  EXPECT_EQ(weights.size(), config_.weight_shapes().size());
  for (const auto& [name, tensor] : weights) merged->set_weight(name, tensor);
  const auto x_TH = testing::random_normal({kRows, config_.hidden}, 21, at::kFloat);
  EXPECT_LT(relative_error(merged->logits(merged->forward(x_TH, positions(), kBlocks)), lora->logits(lora->forward(x_TH, positions(), kBlocks))), 1e-4);
}

INSTANTIATE_TEST_SUITE_P(Targets, LlmLora,
                         ::testing::Values(LoraOptions{}.targets, std::vector<std::string>{"q_proj", "v_proj"},
                                           std::vector<std::string>{"k_proj", "up_proj", "down_proj"}),
                         [](const auto& instance) { return fmt::format("{}", fmt::join(instance.param, "_")); });

TEST(LlmTraining, BFloat16LoraGradientsStayCloseToFloat32) {
  const auto config = tiny_config();
  std::map<std::string, Tensor> gradients[2];
  for (const int half : {0, 1}) {
    auto llm = tiny_llm(config, {.dtype = half == 1 ? at::kBFloat16 : at::kFloat, .lora = {.rank = 3}, .seed = 11});
    testing::fill_lora_b(llm);
    const auto x_TH = testing::random_normal({kRows, config.hidden}, 21, at::kFloat);
    loss_of(llm, x_TH, random_ids(config, kRows, 5)).backward();
    for (const auto& [name, tensor] : by_name(llm)) gradients[half][name] = tensor.grad();
  }
  for (const auto& [name, expected] : gradients[0]) {
    const auto& actual = gradients[1].at(name);
    EXPECT_EQ(actual.scalar_type(), at::kFloat);
    EXPECT_LT((actual - expected).norm().item<double>(), 0.1 * expected.norm().item<double>()) << name;
  }
}

TEST(LlmTraining, LoraStartsTheSameForEqualSeedsAndElsewhereForOthers) {
  const auto config = tiny_config();
  const auto first = [&](std::uint64_t seed) { return by_name(tiny_llm(config, {.lora = {.rank = 3}, .seed = seed})).at("lora.1.k_proj.A"); };
  EXPECT_TRUE(at::equal(first(4), first(4)));
  EXPECT_FALSE(at::equal(first(4), first(5)));
  EXPECT_LE(testing::max_abs(first(4)), 1 / std::sqrt(static_cast<double>(config.hidden)));
}

TEST(LlmTraining, FullTuningGradientsMatchAutogradOnAPlainDecoder) {
  for (const char* type : {"qwen2", "llama"}) {
    const auto config = tiny_config(type);
    auto llm = tiny_llm(config, {.trainable = true});
    const auto ids_T = random_ids(config, kRows, 9), labels_T = random_ids(config, kRows, 5);
    const auto loss = loss_of(llm, llm->embed(ids_T), labels_T);
    loss.backward();

    auto w = testing::to_double(testing::tiny_weights(config));
    for (auto& [name, tensor] : w) tensor.requires_grad_(true);
    const auto loss64 = plain_loss(config, w, at::embedding(w.at("model.embed_tokens.weight"), ids_T), labels_T);
    loss64.backward();
    EXPECT_LT(relative_error(loss, loss64), 1e-5);
    for (const auto& [name, tensor] : by_name(llm)) {
      auto expected = Tensor();
      if (name.ends_with("qkv_proj.bias")) {
        const auto prefix = name.substr(0, name.size() - std::string("qkv_proj.bias").size());
        expected = at::cat({w.at(prefix + "q_proj.bias").grad(), w.at(prefix + "k_proj.bias").grad(), w.at(prefix + "v_proj.bias").grad()});
      } else {
        expected = w.at(name).grad();
      }
      EXPECT_LT(relative_error(tensor.grad(), expected), 1e-4) << type << " " << name;
    }
  }
}

TEST(LlmTraining, FrozenModelHasNoParametersAndTrainedOnesAreRegistered) {
  const auto config = tiny_config();
  EXPECT_TRUE(tiny_llm(config)->parameters().empty());
  auto lora = tiny_llm(config, {.lora = {.rank = 2}});
  EXPECT_EQ(lora->parameters().size(), lora->trainable_parameters().size());
  EXPECT_TRUE(lora->named_parameters().contains("lora.0.q_proj.A"));
}

TEST(LlmTraining, RefusesLoraOptionsThatDoNotFit) {
  const auto config = tiny_config();
  EXPECT_THROW(Llm(config, LlmOptions{.trainable = true, .lora = {.rank = 2}}), Error);
  EXPECT_THROW(Llm(config, LlmOptions{.lora = {.rank = -1}}), Error);
  EXPECT_THROW(Llm(config, LlmOptions{.lora = {.rank = 2, .targets = {"lm_head"}}}), Error);
  EXPECT_THROW(Llm(config, LlmOptions{.lora = {.rank = 2, .targets = {}}}), Error);
  EXPECT_THROW(Llm(config, LlmOptions{.dtype = at::kHalf}), Error);
}

}  // namespace
}  // namespace uqa::models
