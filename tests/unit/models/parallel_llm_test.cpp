// A decoder split over ranks (threads here) gives what one rank gives: states, scores, gradients, generated tokens, merged weights.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "parallel_llm_case.h"
#include "tests/support/fixtures.h"

namespace uqa::models {
namespace {

using testing::copy_trained;
using testing::LlmResult;
using testing::max_abs;
using testing::parallel_llm_config;
using testing::relative_error;
using testing::run_llm;
using testing::tiny_weights;
using testing::worst_error;

struct Case {
  std::string name, type;
  LlmOptions options;
};

class ParallelLlm : public ::testing::TestWithParam<Case> {
 protected:
  [[nodiscard]] Llm make(const TensorParallel& tp = {}) const { return make(GetParam().options, tp); }
  [[nodiscard]] static Llm make(const LlmOptions& options, const TensorParallel& tp) {
    const auto config = parallel_llm_config(GetParam().type);
    Llm llm(config, options, tp);
    for (const auto& [name, tensor] : tiny_weights(config)) llm->set_weight(name, tensor);
    return llm;
  }
};

TEST_P(ParallelLlm, IsThatOfOneRank) {
  auto full_llm = make();
  testing::fill_lora_b(full_llm);
  std::map<std::string, Tensor> trained;
  for (const auto& [name, tensor] : full_llm->trainable_parameters()) trained[name] = tensor.detach().clone();
  const std::vector<std::int64_t> prompt{5, 9, 1, 40, 52};
  const auto full = run_llm(*full_llm, prompt);
  const bool half = GetParam().options.dtype == at::kBFloat16;
  // bfloat16 rounds partial sums of other size on other ranks: bounded by what it costs on one rank, against float32.
  auto exact_options = GetParam().options;
  exact_options.dtype = at::kFloat;
  auto exact_llm = make(exact_options, {});
  copy_trained(*exact_llm, trained);
  const auto exact = run_llm(*exact_llm, prompt);
  for (const int size : {2, 4}) {
    comm::run_ranks(size, [&](const comm::Communicator& comm) {
      auto llm = make({.comm = comm});
      for (const auto& [name, tensor] : llm->trainable_parameters()) {
        if (name.ends_with(".A")) {
          const auto layout = llm->trainable_layouts().find(name);
          EXPECT_TRUE(at::equal(tensor, layout == llm->trainable_layouts().end() ? trained.at(name) : part_of(trained.at(name), layout->second))) << name;
        }
      }
      copy_trained(*llm, trained);
      const auto parts = run_llm(*llm, prompt);
      std::string where;
      EXPECT_LE(worst_error(parts.merged, full.merged, &where), 1e-6) << where;
      // Root mean squares where rounding decides: the largest of a few numbers says little about it.
      const auto error = [half](const Tensor& a, const Tensor& b) { return half ? ((a - b).norm() / b.norm()).item<double>() : relative_error(a, b); };
      const auto bound = [half](double of_one_rank) { return half ? 2 * of_one_rank : 1e-5; };
      EXPECT_LE(error(parts.states_TH, exact.states_TH), bound(error(full.states_TH, exact.states_TH)));
      EXPECT_LE(error(parts.log_probs_N, exact.log_probs_N), bound(error(full.log_probs_N, exact.log_probs_N)));
      EXPECT_LE(error(parts.dsoft_TH, exact.dsoft_TH), bound(error(full.dsoft_TH, exact.dsoft_TH)));
      EXPECT_LE(error(parts.logits_NV, exact.logits_NV), bound(error(full.logits_NV, exact.logits_NV)));
      EXPECT_LE(worst_error(parts.gradients, exact.gradients, &where), bound(worst_error(full.gradients, exact.gradients))) << where;
      if (half) return;
      EXPECT_LE(relative_error(parts.loss, full.loss), 1e-5);
      EXPECT_TRUE(at::equal(parts.greedy_N, full.greedy_N));
      EXPECT_EQ(parts.generated, full.generated);
    });
  }
}

TEST_P(ParallelLlm, RecomputedLayersMeetTheSameWay) {
  auto full_llm = make();
  testing::fill_lora_b(full_llm);
  std::map<std::string, Tensor> trained;
  for (const auto& [name, tensor] : full_llm->trainable_parameters()) trained[name] = tensor.detach().clone();
  for (const int size : {1, 2, 4}) {
    comm::run_ranks(size, [&](const comm::Communicator& comm) {
      const auto run = [&](bool recompute) {
        auto llm = make({.comm = comm});
        copy_trained(*llm, trained);
        return run_llm(*llm, {5, 9, 1, 40, 52}, recompute);
      };
      const auto kept = run(false), again = run(true);
      std::string where;
      EXPECT_EQ(again.loss.item<float>(), kept.loss.item<float>());
      EXPECT_TRUE(at::equal(again.states_TH, kept.states_TH));
      EXPECT_LE(relative_error(again.dsoft_TH, kept.dsoft_TH), 1e-6);
      EXPECT_LE(worst_error(again.gradients, kept.gradients, &where), 1e-6) << where;
      EXPECT_EQ(again.generated, kept.generated);
    });
  }
}

INSTANTIATE_TEST_SUITE_P(Cases, ParallelLlm,
                         ::testing::Values(Case{"qwen2_lora", "qwen2", {.lora = {.rank = 3}, .seed = 4}}, Case{"llama_lora", "llama", {.lora = {.rank = 3}, .seed = 4}},
                                           Case{"qwen2_lora_bf16", "qwen2", {.dtype = at::kBFloat16, .lora = {.rank = 3}, .seed = 4}},
                                           Case{"qwen2_trained", "qwen2", {.trainable = true}}, Case{"llama_trained", "llama", {.trainable = true}},
                                           Case{"qwen2_frozen", "qwen2", {}}),
                         [](const auto& test) { return test.param.name; });

TEST(ParallelLlmLoad, ReadsItsPartOfTheFiles) {
  for (const char* name : {"qwen2-tiny", "llama-tiny"}) {
    const auto directory = tests::fixtures() / "llm" / name;
    auto one = load_llm(directory, {});
    const auto expected = one->merge_lora();
    const auto ids = at::arange(40, at::kLong);
    const auto logits = [&](LlmImpl& llm) { return llm.logits(llm.forward(llm.embed(ids), ids, {{.begin = 0, .end = 40}})); };
    const auto expected_logits = logits(*one);
    comm::run_ranks(4, [&](const comm::Communicator& comm) {
      auto llm = load_llm(directory, {}, {.comm = comm});
      EXPECT_LT(llm->head_weight().size(0), 160);
      EXPECT_EQ(worst_error(llm->merge_lora(), expected), 0) << name;
      EXPECT_LE(relative_error(logits(*llm), expected_logits), 1e-5) << name;
    });
  }
}

TEST(ParallelLlmLoad, RefusesDegreesThatDoNotFitWithBothNumbers) {
  auto config = parallel_llm_config("qwen2");
  const auto refusal = [&](int size, const std::string& text) {
    comm::run_ranks(size, [&](const comm::Communicator& comm) {
      EXPECT_THAT([&] { static_cast<void>(Llm(config, LlmOptions{}, TensorParallel{.comm = comm})); }, ::testing::ThrowsMessage<Error>(::testing::HasSubstr(text)));
    });
  };
  refusal(3, "num_attention_heads = 8, must be divisible by the tensor-parallel degree 3");
  config.intermediate = 41;
  refusal(2, "intermediate_size = 41, must be divisible by the tensor-parallel degree 2");
  config.intermediate = 42, config.num_heads = 6, config.num_kv_heads = 2;
  refusal(3, "num_key_value_heads = 2, must be a multiple or a divisor of the tensor-parallel degree 3");
}

}  // namespace
}  // namespace uqa::models
