#include "models/llm/generate.h"
#include "trainer/scoring.h"

#include <gtest/gtest.h>

#include "align_fixture.h"
#include "tests/support/temp_dir.h"
#include "trainer/align_parts.h"

namespace uqa::trainer {
namespace {

class AlignScoring : public ::testing::Test {
 protected:
  AlignScoring() : data_(test::write_world_data(dir_.path())), prompts_(llm_path_, "en", {}), letters_(letter_tokens(prompts_)) {
    encode("before");
    torch::manual_seed(1);
    soft_BH_ = at::randn({5, llm_->config().hidden});
  }
  void encode(const std::string& place, Prompt prompt = Prompt::kSoft, const std::optional<std::string>& system = std::nullopt) {
    const PromptEncoder encoder(llm_path_, "en", {.place = place, .system = system});
    encoded_.clear();
    for (std::int64_t i = 0; i < 5; ++i) encoded_.push_back(encoder.encode(test::world_question(data_, i, i, i % 4), prompt));
  }
  void expect_scores_of_single_runs();
  [[nodiscard]] ScoredPrompt scored(std::size_t q) const {
    ScoredPrompt prompt{.prompt = &encoded_[q], .continuations = {}};
    for (const auto& letter : letters_) prompt.continuations.emplace_back(letter);
    for (const auto& option : encoded_[q].options) prompt.continuations.emplace_back(option);
    return prompt;
  }
  /// Log-likelihood of `continuation` from a run of its own, over every position's full logits.
  [[nodiscard]] double one_at_a_time(std::size_t q, std::span<const std::int64_t> continuation) {
    const at::NoGradGuard no_grad;
    auto ids = encoded_[q].prompt;
    ids.insert(ids.end(), continuation.begin(), continuation.end());
    auto x_TH = llm_->embed(at::tensor(ids, at::kLong)).clone();
    if (soft_BH_.defined()) x_TH[encoded_[q].soft_index] = soft_BH_[static_cast<std::int64_t>(q)];
    const auto rows = static_cast<std::int64_t>(ids.size());
    const auto log_probs = llm_->logits(llm_->forward(x_TH, at::arange(rows), {{.begin = 0, .end = rows}})).log_softmax(1);
    double sum = 0;
    const auto first = static_cast<std::int64_t>(encoded_[q].prompt.size());
    for (std::size_t i = 0; i < continuation.size(); ++i) {
      sum += log_probs[first - 1 + static_cast<std::int64_t>(i)][continuation[i]].item<double>();
    }
    return sum;
  }

  tests::TempDir dir_;
  fs::path llm_path_ = tests::fixtures() / "llm" / "qwen2-tiny";
  data::Dataset data_;
  PromptEncoder prompts_;
  LetterTokens letters_;
  models::Llm llm_ = models::load_llm(llm_path_, {});
  std::vector<EncodedQuestion> encoded_;
  Tensor soft_BH_;
};

/// Scores of the whole list in one pass against runs of one sequence each.
void AlignScoring::expect_scores_of_single_runs() {
  const at::NoGradGuard no_grad;
  std::vector<ScoredPrompt> list;
  for (std::size_t q = 0; q < encoded_.size(); ++q) list.push_back(scored(q));
  const auto packed = pack_prompts(list);
  EXPECT_EQ(packed.num_rows(), num_rows(list));
  const auto head_RH = run_prompts(*llm_, packed, soft_BH_);
  const auto sums_C = continuation_sums(packed, token_log_probs(*llm_, head_RH, packed));
  const auto greedy_B = models::next_tokens(*llm_, head_RH.index_select(0, packed.prompt_heads_B), {}, {}, 0);
  std::int64_t c = 0;
  bool some_long = false;
  for (std::size_t q = 0; q < list.size(); ++q) {
    for (const auto& continuation : list[q].continuations) {
      EXPECT_NEAR(sums_C[c].item<double>(), one_at_a_time(q, continuation), 2e-4) << "question " << q << " continuation " << c;
      EXPECT_EQ(packed.continuation_tokens_C[c].item<float>(), static_cast<float>(continuation.size()));
      some_long = some_long || continuation.size() > 2;
      ++c;
    }
    // Nothing is likelier than the greedy token.
    const std::vector<std::int64_t> greedy{greedy_B[static_cast<std::int64_t>(q)].item<std::int64_t>()};
    const double best = one_at_a_time(q, greedy);
    for (const auto& letter : letters_) EXPECT_LE(one_at_a_time(q, letter), best);
  }
  EXPECT_TRUE(some_long) << "options of one token would not test the prefix";
}

TEST_F(AlignScoring, SharedPrefixScoresEqualOneOptionAtATime) {
  expect_scores_of_single_runs();
  // Nothing is shared but a prompt among its options: prompts begin with a soft row of their own.
  std::int64_t rows = 0;
  for (std::size_t q = 0; q < encoded_.size(); ++q) rows += num_rows({scored(q)});
  EXPECT_EQ(num_rows({scored(0), scored(1), scored(2), scored(3), scored(4)}), rows);
}

TEST_F(AlignScoring, QuestionsWithOneTextShareItsRows) {
  encode("user_end");
  encoded_[3] = encoded_[1];  // the same text for another user
  expect_scores_of_single_runs();
  const auto alone = num_rows({scored(1)});
  EXPECT_EQ(num_rows({scored(1), scored(3)}), 2 * alone - encoded_[1].soft_index);
  EXPECT_EQ(num_rows({scored(1), scored(2)}), alone + num_rows({scored(2)}));
  EXPECT_EQ(pack_prompts({scored(1), scored(0), scored(3)}).blocks.front().parent, -1);
}

TEST_F(AlignScoring, AShortCommonStartIsRepeated) {
  encode("user", Prompt::kSoft, "Hi");
  expect_scores_of_single_runs();
  EXPECT_EQ(num_rows({scored(0), scored(1)}), num_rows({scored(0)}) + num_rows({scored(1)}));
}

TEST_F(AlignScoring, PromptsWithoutSoftRowMergeWhereTheyAreTheSame) {
  encode("before", Prompt::kNone);
  encoded_[3] = encoded_[1];
  soft_BH_ = Tensor();
  expect_scores_of_single_runs();
  EXPECT_EQ(num_rows({scored(1), scored(3)}), num_rows({scored(1)}));
}

TEST_F(AlignScoring, GradientsEqualThoseOfFullLogSoftmax) {
  const auto packed = pack_prompts({scored(0), scored(1)});
  const auto rows = packed.head_rows_R.size(0);
  auto states_RH = at::randn({rows, llm_->config().hidden}).requires_grad_(true);
  const auto weight_N = at::randn({packed.pair_rows_N.size(0)});
  (token_log_probs(*llm_, states_RH, packed) * weight_N).sum().backward();
  const auto ours = states_RH.grad().clone();
  states_RH.mutable_grad() = Tensor();
  const auto log_probs_RV = at::linear(states_RH, llm_->head_weight()).log_softmax(1);
  (log_probs_RV.index({packed.pair_rows_N, packed.pair_tokens_N}) * weight_N).sum().backward();
  EXPECT_GT(ours.abs().max().item<double>(), 0.1);
  EXPECT_LE((ours - states_RH.grad()).abs().max().item<double>(), 1e-5 * ours.abs().max().item<double>());
}

TEST_F(AlignScoring, GradientsReachATrainedHead) {
  auto trained = models::load_llm(llm_path_, {.trainable = true});
  const auto packed = pack_prompts({scored(0)});
  const auto states_RH = at::randn({packed.head_rows_R.size(0), trained->config().hidden});
  const auto head_VH = trained->head_weight();
  token_log_probs(*trained, states_RH, packed).sum().backward();
  const auto ours = head_VH.grad().clone();
  head_VH.mutable_grad() = Tensor();
  at::linear(states_RH, head_VH).log_softmax(1).index({packed.pair_rows_N, packed.pair_tokens_N}).sum().backward();
  EXPECT_LE((ours - head_VH.grad()).abs().max().item<double>(), 1e-5 * ours.abs().max().item<double>());
}

TEST_F(AlignScoring, SoftTokensGetGradients) {
  const auto packed = pack_prompts({scored(0), scored(1), scored(2)});
  auto soft_BH = soft_BH_.narrow(0, 0, 3).clone().requires_grad_(true);
  // Only the second prompt's score is asked about: the others' soft tokens must not matter to it.
  const auto sums_C = continuation_sums(packed, token_log_probs(*llm_, run_prompts(*llm_, packed, soft_BH), packed));
  sums_C[8 + 5].backward();
  EXPECT_GT(soft_BH.grad()[1].abs().max().item<double>(), 1e-3);
  EXPECT_EQ(soft_BH.grad()[0].abs().max().item<double>(), 0);
  EXPECT_EQ(soft_BH.grad()[2].abs().max().item<double>(), 0);
}

TEST(AlignParts, GroupsRespectBothLimitsAndSharesCoverEverything) {
  const std::vector<std::int64_t> rows{5, 5, 5, 20, 1, 1, 1, 1};
  const auto groups = group_by_rows(rows, 10, 3);
  std::vector<std::pair<std::size_t, std::size_t>> got;
  for (const auto& group : groups) got.emplace_back(group.begin, group.end);
  EXPECT_EQ(got, (std::vector<std::pair<std::size_t, std::size_t>>{{0, 2}, {2, 3}, {3, 4}, {4, 7}, {7, 8}}));
  for (int size = 1; size <= 11; ++size) {
    std::size_t next = 0;
    for (int part = 0; part < size; ++part) {
      const auto share = share_of(rows, part, size);
      if (share.begin == share.end) continue;
      EXPECT_EQ(share.begin, next);
      next = share.end;
    }
    EXPECT_EQ(next, rows.size()) << size;
  }
  const auto none = share_of({}, 1, 3);
  EXPECT_EQ(none.begin, none.end);
}

}  // namespace
}  // namespace uqa::trainer
