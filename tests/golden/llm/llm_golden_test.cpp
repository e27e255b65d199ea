// Tiny Llama and Qwen2 models against transformers in float32, without and with a soft prompt.

#include <gtest/gtest.h>

#include "models/llm/generate.h"
#include "models/tensor_io.h"
#include "tests/golden/llm/packed_cases.h"

namespace uqa::models {
namespace {

using golden::fixtures;
using golden::relative_error;

struct Case {
  std::string name;
  std::map<std::string, Tensor> tensors;
  Llm llm{nullptr};
};

std::vector<Case> load_cases() {
  std::vector<Case> cases;
  for (const auto& name : golden::names_ending(fixtures() / "llm", ".case.safetensors")) {
    const auto directory = fixtures() / "llm" / name;
    if (!fs::is_directory(directory)) continue;  // a model that set-up fetches: smollm2_golden_test.cpp
    cases.push_back({name, load_tensors(fixtures() / "llm" / (name + ".case.safetensors")), load_llm(directory, {})});
  }
  return cases;
}

class LlmGolden : public ::testing::Test {
 protected:
  void SetUp() override { ASSERT_FALSE(cases_.empty()) << "no llm/<name>/ with llm/<name>.case.safetensors in " << fixtures(); }
  std::vector<Case> cases_ = load_cases();
};

TEST_F(LlmGolden, LogitsMatchTransformers) {
  for (auto& [name, tensors, llm] : cases_) {
    const auto& ids_BS = tensors.at("input_ids");
    const auto packed = golden::pack_text(tensors.at("labels"), 0);
    const at::NoGradGuard no_grad;
    const auto states_TH = llm->forward(llm->embed(ids_BS.flatten()), packed.positions_T, packed.blocks);
    EXPECT_LT(relative_error(llm->logits(states_TH).view_as(tensors.at("logits")), tensors.at("logits")), 1e-5) << name;
  }
}

TEST_F(LlmGolden, SoftPromptLogitsLossAndGradientMatchTransformers) {
  for (auto& [name, tensors, llm] : cases_) {
    const auto& ids_BS = tensors.at("input_ids");
    auto soft_BkH = tensors.at("soft_prompt").clone().requires_grad_(true);
    const auto packed = golden::pack_text(tensors.at("labels"), soft_BkH.size(1));
    const auto text_BSH = llm->embed(ids_BS.flatten()).view({ids_BS.size(0), ids_BS.size(1), -1});
    const auto x_TH = at::cat({soft_BkH, text_BSH}, 1).flatten(0, 1);
    const auto states_TH = llm->forward(x_TH, packed.positions_T, packed.blocks);
    const auto& expected = tensors.at("logits_with_soft_prompt");
    EXPECT_LT(relative_error(llm->logits(states_TH).view_as(expected), expected), 1e-5) << name;

    const auto num_labels = (packed.labels_T != -100).sum().item<double>();
    ASSERT_GT(num_labels, 0);
    const auto loss = next_token_loss(*llm, states_TH, packed.labels_T) / num_labels;
    EXPECT_LT(relative_error(loss, tensors.at("loss")), 1e-5) << name;
    loss.backward();
    EXPECT_LT(relative_error(soft_BkH.grad(), tensors.at("grad_soft_prompt")), 1e-4) << name;
  }
}

TEST_F(LlmGolden, GreedyTokensMatchTransformers) {
  for (auto& [name, tensors, llm] : cases_) {
    const auto prompts = tensors.at("generate_prompt_ids"), expected = tensors.at("generate_ids");
    for (std::int64_t b = 0; b < prompts.size(0); ++b) {
      const auto* p = prompts[b].data_ptr<std::int64_t>();
      const auto* e = expected[b].data_ptr<std::int64_t>();
      const std::vector<std::int64_t> want(e, e + expected.size(1));
      EXPECT_EQ(generate_greedy(*llm, {p, p + prompts.size(1)}, Tensor(), expected.size(1), /*stop_at_eos=*/false), want) << name;
    }
  }
}

TEST_F(LlmGolden, ManyPromptsContinuedTogetherGiveTransformersGreedyTokens) {
  for (auto& [name, tensors, llm] : cases_) {
    const at::NoGradGuard no_grad;
    const auto prompts = tensors.at("generate_prompt_ids"), expected = tensors.at("generate_ids");
    const auto count = prompts.size(0), rows = prompts.size(1);
    std::vector<AttentionBlock> blocks;
    std::vector<std::int64_t> last_rows;
    for (std::int64_t b = 0; b < count; ++b) {
      blocks.push_back({.begin = b * rows, .end = (b + 1) * rows});
      last_rows.push_back((b + 1) * rows - 1);
    }
    PackedCache cache;
    const auto states_TH = llm->forward(llm->embed(prompts.flatten()), at::arange(rows, at::kLong).repeat({count}), blocks, &cache);
    const auto answers = generate(*llm, {.cache = &cache, .blocks = &blocks, .last_rows = last_rows, .states_BH = states_TH.index_select(0, at::tensor(last_rows, at::kLong)), .ids = {}},
                                  {.max_new_tokens = expected.size(1), .stop_ids = {}});
    for (std::int64_t b = 0; b < count; ++b) {
      const auto* e = expected[b].data_ptr<std::int64_t>();
      EXPECT_EQ(answers[static_cast<std::size_t>(b)], std::vector<std::int64_t>(e, e + expected.size(1))) << name << ", prompt " << b;
    }
  }
}

}  // namespace
}  // namespace uqa::models
