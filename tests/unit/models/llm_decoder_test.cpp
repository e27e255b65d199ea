// Decoder over packed rows: against plain operations, packing, shared prefixes, bfloat16, loss, generation.

#include <algorithm>
#include <numeric>

#include <gtest/gtest.h>

#include "core/error.h"
#include "models/llm/generate.h"
#include "tests/unit/models/llm_tiny.h"

namespace uqa::models {
namespace {

using testing::plain_forward;
using testing::random_ids;
using testing::relative_error;
using testing::tiny_config;
using testing::tiny_llm;

Tensor causal_states(Llm& llm, const Tensor& ids_T) {
  const auto rows = ids_T.numel();
  return llm->forward(llm->embed(ids_T), at::arange(rows, at::kLong), {{.begin = 0, .end = rows}});
}

/// Prompt and options as one packed tree: options share the prompt's rows and continue its positions.
struct Tree {
  Tensor ids_T, positions_T;
  std::vector<AttentionBlock> blocks;
};
Tree make_tree(const Tensor& prompt, const std::vector<Tensor>& options, std::int64_t first_row = 0) {
  const auto length = prompt.numel();
  Tree tree{.ids_T = prompt, .positions_T = at::arange(length, at::kLong), .blocks = {{.begin = first_row, .end = first_row + length}}};
  for (const auto& option : options) {
    const auto begin = first_row + tree.ids_T.numel();
    tree.blocks.push_back({.begin = begin, .end = begin + option.numel(), .parent = 0});
    tree.ids_T = at::cat({tree.ids_T, option});
    tree.positions_T = at::cat({tree.positions_T, at::arange(length, length + option.numel(), at::kLong)});
  }
  return tree;
}

class LlmDecoder : public ::testing::TestWithParam<const char*> {
 protected:
  LlmConfig config_ = tiny_config(GetParam());
};

TEST_P(LlmDecoder, MatchesPlainOperationsForwardAndInTheInputGradient) {
  auto llm = tiny_llm(config_);
  const auto ids_T = random_ids(config_, 11, 3);
  const auto positions_T = at::cat({at::arange(7, at::kLong), at::arange(4, at::kLong)});
  const std::vector<AttentionBlock> blocks = {{.begin = 0, .end = 7}, {.begin = 7, .end = 11}};
  auto x_TH = llm->embed(ids_T).detach().clone().requires_grad_(true);
  const auto states_TH = llm->forward(x_TH, positions_T, blocks);

  auto x64_TH = x_TH.detach().to(at::kDouble).requires_grad_(true);
  const auto states64_TH = plain_forward(config_, testing::to_double(testing::tiny_weights(config_)), x64_TH, positions_T, blocks);
  EXPECT_LT(relative_error(states_TH, states64_TH), 1e-5);
  const auto weights = testing::random_normal(states_TH.sizes(), 5);
  (states_TH * weights).sum().backward();
  (states64_TH * weights).sum().backward();
  EXPECT_LT(relative_error(x_TH.grad(), x64_TH.grad()), 1e-5);
}

TEST_P(LlmDecoder, OptionsBehindASharedPromptEqualSeparateSequences) {
  auto llm = tiny_llm(config_);
  const at::NoGradGuard no_grad;
  const auto prompt = random_ids(config_, 9, 1);
  std::vector<Tensor> options;
  for (std::uint64_t o = 0; o < 4; ++o) options.push_back(random_ids(config_, static_cast<std::int64_t>(o) + 1, 20 + o));
  const auto tree = make_tree(prompt, options);
  const auto logits = llm->logits(llm->forward(llm->embed(tree.ids_T), tree.positions_T, tree.blocks));
  for (std::size_t o = 0; o < options.size(); ++o) {
    const auto alone = llm->logits(causal_states(llm, at::cat({prompt, options[o]})));
    const auto& block = tree.blocks[o + 1];
    EXPECT_LT(relative_error(logits.narrow(0, block.begin, block.end - block.begin), alone.narrow(0, prompt.numel(), options[o].numel())), 1e-5);
    EXPECT_LT(relative_error(logits.narrow(0, 0, prompt.numel()), alone.narrow(0, 0, prompt.numel())), 1e-5);
  }
}

TEST_P(LlmDecoder, TwoPackedSequencesEqualTheSameSeparately) {
  auto llm = tiny_llm(config_);
  const at::NoGradGuard no_grad;
  const auto a = random_ids(config_, 6, 1), b = random_ids(config_, 9, 2);
  const auto positions_T = at::cat({at::arange(6, at::kLong), at::arange(9, at::kLong)});
  const auto both = llm->forward(llm->embed(at::cat({a, b})), positions_T, {{.begin = 0, .end = 6}, {.begin = 6, .end = 15}});
  EXPECT_LT(relative_error(both.narrow(0, 0, 6), causal_states(llm, a)), 1e-5);
  EXPECT_LT(relative_error(both.narrow(0, 6, 9), causal_states(llm, b)), 1e-5);
}

TEST_P(LlmDecoder, BFloat16LosesNoMoreThanPlainBFloat16Operations) {
  const at::NoGradGuard no_grad;
  const std::vector<AttentionBlock> blocks = {{.begin = 0, .end = 40}};
  const auto positions_T = at::arange(40, at::kLong);
  const auto x_TH = testing::random_normal({40, config_.hidden}, 3, at::kFloat);
  const auto weights = testing::tiny_weights(config_);
  auto llm = tiny_llm(config_, {.dtype = at::kBFloat16});
  const auto exact_TH = plain_forward(config_, testing::to_double(weights), x_TH.to(at::kDouble), positions_T, blocks);
  const auto plain_TH = plain_forward(config_, testing::to_type(weights, at::kBFloat16), x_TH.to(at::kBFloat16), positions_T, blocks);
  const auto error = [&](const Tensor& x) { return ((x.to(at::kDouble) - exact_TH).norm() / exact_TH.norm()).item<double>(); };
  const auto states_TH = llm->forward(x_TH, positions_T, blocks);
  EXPECT_LE(error(states_TH), error(plain_TH));
  EXPECT_GT(error(states_TH), 1e-4) << "bfloat16 was not used";
  EXPECT_EQ(llm->logits(states_TH).scalar_type(), at::kFloat);
}

TEST_P(LlmDecoder, CachedGenerationEqualsRecomputation) {
  auto llm = tiny_llm(config_);
  const auto ids_T = random_ids(config_, 5, 3);
  const auto soft_kH = testing::random_normal({2, config_.hidden}, 8, at::kFloat);
  const std::vector<std::int64_t> prompt(ids_T.data_ptr<std::int64_t>(), ids_T.data_ptr<std::int64_t>() + ids_T.numel());
  const auto generated = generate_greedy(*llm, prompt, soft_kH, 8, /*stop_at_eos=*/false);
  ASSERT_EQ(generated.size(), 8U);

  const at::NoGradGuard no_grad;
  auto sequence = prompt;
  for (const auto token : generated) {
    const auto x_TH = at::cat({soft_kH, llm->embed(at::tensor(sequence, at::kLong))});
    const auto rows = x_TH.size(0);
    const auto states = llm->forward(x_TH, at::arange(rows, at::kLong), {{.begin = 0, .end = rows}});
    EXPECT_EQ(llm->logits(states.narrow(0, rows - 1, 1)).argmax().item<std::int64_t>(), token);
    sequence.push_back(token);
  }
}

/// Two prompts that share their first five rows, each with an option behind it that is scored and not continued, and one prompt alone.
struct Forest {
  Tensor ids_T, positions_T;
  std::vector<AttentionBlock> blocks = {{.begin = 0, .end = 5},                 // shared
                                        {.begin = 5, .end = 8, .parent = 0},    // first prompt, ends with row 6; row 7 is its option
                                        {.begin = 8, .end = 12, .parent = 0},   // second prompt
                                        {.begin = 12, .end = 14, .parent = 2},  // its option
                                        {.begin = 14, .end = 20}};              // a prompt alone
  std::vector<std::int64_t> last_rows = {6, 11, 19};
  explicit Forest(const LlmConfig& config) : ids_T(random_ids(config, 20, 3)) {
    positions_T = at::cat({at::arange(5, at::kLong), at::arange(5, 8, at::kLong), at::arange(5, 9, at::kLong), at::arange(9, 11, at::kLong), at::arange(6, at::kLong)});
  }
  /// Tokens of prompt b.
  [[nodiscard]] std::vector<std::int64_t> prompt(std::size_t b) const {
    std::vector<std::int64_t> tokens;
    for (const auto& range : rows_seen(blocks, last_rows[b])) {
      const auto* rows = ids_T.const_data_ptr<std::int64_t>();
      tokens.insert(tokens.end(), rows + range.begin, rows + range.end);
    }
    return tokens;
  }
  [[nodiscard]] std::vector<std::vector<std::int64_t>> continued(Llm& llm, const GenerateOptions& options, const std::vector<std::uint64_t>& ids = {1, 2, 3}) const {
    const at::NoGradGuard no_grad;
    PackedCache cache;
    const auto states_TH = llm->forward(llm->embed(ids_T), positions_T, blocks, &cache);
    return generate(*llm, {.cache = &cache, .blocks = &blocks, .last_rows = last_rows, .states_BH = states_TH.index_select(0, at::tensor(last_rows, at::kLong)), .ids = ids},
                    options);
  }
};

TEST_P(LlmDecoder, SequencesBehindATreeContinueAsTheyDoAlone) {
  auto llm = tiny_llm(config_);
  const at::NoGradGuard no_grad;
  const Forest forest(config_);
  EXPECT_EQ(forest.prompt(0).size(), 7U);
  EXPECT_EQ(forest.prompt(1).size(), 9U);
  const auto answers = forest.continued(llm, {.max_new_tokens = 9, .stop_ids = {}});
  for (std::size_t b = 0; b < 3; ++b) {
    auto sequence = forest.prompt(b);
    ASSERT_EQ(answers[b].size(), 9U);
    for (const auto token : answers[b]) {
      const auto states = causal_states(llm, at::tensor(sequence, at::kLong));
      EXPECT_EQ(llm->logits(states.narrow(0, states.size(0) - 1, 1)).argmax().item<std::int64_t>(), token) << "sequence " << b;
      sequence.push_back(token);
    }
  }
  EXPECT_NE(answers[0], answers[1]);
}

TEST_P(LlmDecoder, OneMoreRowEqualsOneForward) {
  for (const auto dtype : {at::kFloat, at::kBFloat16}) {
    auto llm = tiny_llm(config_, {.dtype = dtype});
    const at::NoGradGuard no_grad;
    const auto ids_T = random_ids(config_, 12, 3);
    PackedCache cache;
    const std::vector<AttentionBlock> blocks{{.begin = 0, .end = 9}};
    static_cast<void>(llm->forward(llm->embed(ids_T.narrow(0, 0, 9)), at::arange(9, at::kLong), blocks, &cache));
    // Of three sequences behind the same rows the second has ended.
    GrowingSequences sequences{.context = &cache, .seen = {rows_seen(blocks, 8), rows_seen(blocks, 8), rows_seen(blocks, 8)}, .active = {0, 2}, .capacity = 3,
                               .k_BSKD = {}, .v_BSKD = {}};
    std::vector<Tensor> last;
    for (std::int64_t step = 0; step < 3; ++step) {
      const auto token_A = ids_T.narrow(0, 9 + step, 1).repeat({2});
      last.push_back(llm->forward_next(llm->embed(token_A), at::full({2}, 9 + step, at::kLong), sequences));
      EXPECT_TRUE(at::equal(last.back()[0], last.back()[1]));
    }
    const auto whole_TH = causal_states(llm, ids_T);
    for (std::int64_t step = 0; step < 3; ++step) {
      EXPECT_LT(relative_error(last[static_cast<std::size_t>(step)][0], whole_TH[9 + step]), dtype == at::kFloat ? 1e-5 : 3e-2);
    }
    EXPECT_THROW(static_cast<void>(llm->forward_next(llm->embed(ids_T.narrow(0, 0, 2)), at::full({2}, 12, at::kLong), sequences)), Error);
  }
}

TEST_P(LlmDecoder, SequencesEndOneByOne) {
  auto llm = tiny_llm(config_);
  const Forest forest(config_);
  const auto free_run = forest.continued(llm, {.max_new_tokens = 8, .stop_ids = {}});
  const std::vector<std::int64_t> stop{free_run[0][0], free_run[1][4]};
  const auto stopped = forest.continued(llm, {.max_new_tokens = 8, .stop_ids = stop});
  EXPECT_EQ(stopped[0].size(), 1U);
  for (std::size_t b = 0; b < 3; ++b) {
    const auto end = std::ranges::find_first_of(free_run[b], stop);
    const auto length = std::min<std::ptrdiff_t>(8, end - free_run[b].begin() + 1);
    EXPECT_EQ(stopped[b], std::vector<std::int64_t>(free_run[b].begin(), free_run[b].begin() + length)) << "sequence " << b;
  }
  EXPECT_LE(stopped[1].size(), 5U);
}

TEST_P(LlmDecoder, DrawsDependOnSeedIdAndStepAlone) {
  auto llm = tiny_llm(config_);
  const Forest forest(config_);
  const GenerateOptions options{.max_new_tokens = 8, .temperature = 0.8, .seed = 5, .stop_ids = {}};
  const auto together = forest.continued(llm, options);
  EXPECT_EQ(forest.continued(llm, options), together);
  auto fewer = forest;
  fewer.last_rows = {19};
  EXPECT_EQ(fewer.continued(llm, options, {3}).front(), together[2]);
  EXPECT_NE(fewer.continued(llm, options, {4}).front(), together[2]);
  auto other = options;
  other.seed = 6;
  EXPECT_NE(forest.continued(llm, other), together);
  other.temperature = 1e-12;
  EXPECT_EQ(forest.continued(llm, other), forest.continued(llm, {.max_new_tokens = 8, .stop_ids = {}}));
}

TEST_P(LlmDecoder, DrawnTokensHaveTheDistributionOfTheLogits) {
  auto llm = tiny_llm(config_);
  const at::NoGradGuard no_grad;
  const std::int64_t draws = 20000;
  const auto state_1H = testing::random_normal({1, config_.hidden}, 11, at::kFloat);
  std::vector<std::uint64_t> ids(draws);
  std::iota(ids.begin(), ids.end(), 0U);
  for (const double temperature : {0.7, 2.0}) {
    const auto expected_V = (llm->logits(state_1H).to(at::kDouble) / temperature).softmax(1).squeeze(0);
    const auto tokens = next_tokens(*llm, state_1H.expand({draws, -1}), {.temperature = temperature, .stop_ids = {}}, ids, 3);
    const auto share_V = at::bincount(tokens, {}, config_.vocab_size).to(at::kDouble) / static_cast<double>(draws);
    const auto sd_V = (expected_V * (1 - expected_V) / static_cast<double>(draws)).sqrt();
    EXPECT_LT(((share_V - expected_V).abs() - 5 * sd_V).max().item<double>(), 1e-4) << "temperature " << temperature;
    EXPECT_GT(expected_V.max().item<double>() - expected_V.min().item<double>(), 0.02) << "not uniform";
  }
}

TEST_P(LlmDecoder, GenerationStopsAtAnEndToken) {
  auto config = config_;
  const auto free_run = [&] {
    auto llm = tiny_llm(config);
    return generate_greedy(*llm, {1, 4, 7}, Tensor(), 10, /*stop_at_eos=*/false);
  }();
  config.eos_ids = {free_run[3]};
  const auto first = std::ranges::find(free_run, free_run[3]) - free_run.begin();
  auto llm = tiny_llm(config);
  const auto stopped = generate_greedy(*llm, {1, 4, 7}, Tensor(), 10);
  EXPECT_EQ(stopped, std::vector<std::int64_t>(free_run.begin(), free_run.begin() + first + 1));
}

TEST_P(LlmDecoder, LossOfLabelledRowsAndItsGradientMatchPlainCrossEntropy) {
  auto llm = tiny_llm(config_);
  auto states_TH = testing::random_normal({9, config_.hidden}, 4, at::kFloat).requires_grad_(true);
  auto labels_T = random_ids(config_, 9, 6);
  labels_T[0] = -100;
  labels_T[5] = -100;
  const auto loss = next_token_loss(*llm, states_TH, labels_T);
  (loss * 0.25).backward();

  auto states64_TH = states_TH.detach().to(at::kDouble).requires_grad_(true);
  const auto logits64_TV = at::matmul(states64_TH, llm->head_weight().to(at::kDouble).t());
  const auto loss64 = at::cross_entropy_loss(logits64_TV, labels_T, {}, at::Reduction::Sum, -100);
  (loss64 * 0.25).backward();
  EXPECT_LT(relative_error(loss, loss64), 1e-6);
  EXPECT_LT(relative_error(states_TH.grad(), states64_TH.grad()), 1e-5);
  EXPECT_EQ(testing::max_abs(states_TH.grad()[5]), 0);
}

TEST_P(LlmDecoder, LossWithoutLabelsOrRowsIsZeroAndDifferentiable) {
  auto llm = tiny_llm(config_);
  for (const std::int64_t rows : {0, 3}) {
    auto x_TH = testing::random_normal({rows, config_.hidden}, 4, at::kFloat).requires_grad_(true);
    std::vector<AttentionBlock> blocks;
    if (rows > 0) blocks.push_back({.begin = 0, .end = rows});
    const auto loss = next_token_loss(*llm, llm->forward(x_TH, at::arange(rows, at::kLong), blocks), at::full({rows}, -100, at::kLong));
    loss.backward();
    EXPECT_EQ(loss.item<double>(), 0);
    EXPECT_EQ(testing::max_abs(x_TH.grad()), 0);
  }
}

TEST_P(LlmDecoder, RefusesPromptsBeyondItsPositionsAndLabelsBeyondItsVocabulary) {
  auto llm = tiny_llm(config_);
  EXPECT_THROW((void)causal_states(llm, random_ids(config_, config_.max_positions + 1, 3)), Error);
  EXPECT_THROW((void)next_token_loss(*llm, at::zeros({1, config_.hidden}), at::full({1}, config_.vocab_size, at::kLong)), Error);
}

INSTANTIATE_TEST_SUITE_P(Types, LlmDecoder, ::testing::Values("qwen2", "llama"), [](const auto& instance) { return std::string(instance.param); });

}  // namespace
}  // namespace uqa::models
