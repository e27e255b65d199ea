#include "trainer/evaluate.h"

#include <algorithm>
#include <map>
#include <numeric>
#include <set>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "align_fixture.h"
#include "tests/support/expect_error.h"
#include "tests/support/temp_dir.h"
#include "trainer/evaluate_parts.h"
#include "trainer/option_audit.h"

namespace uqa::trainer {
namespace {

/// One aligned run for all tests: training takes longest.
class AlignEvaluate : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    dir_ = new tests::TempDir;
    world_ = new test::AlignWorld(test::write_world(dir_->path()));
    auto config = test::world_config(*world_);
    config.loop.train.epochs = 12;
    RunDirectory run(dir_->path() / "run", "align", "x", false, true);
    static_cast<void>(run_align(config, comm::Mesh(comm::Communicator(), 0, 1), run));
  }
  static void TearDownTestSuite() {
    delete world_;
    delete dir_;
  }
  [[nodiscard]] static EvaluateConfig config(const std::string& prompt) {
    EvaluateConfig config;
    config.run = (dir_->path() / "run").string();
    config.data = world_->data.string();
    config.prompt = prompt;
    config.num_threads = 1;
    config.overwrite = true;
    config.cache_responses = false;
    return config;
  }
  static EvaluationResult evaluate(const EvaluateConfig& config) { return run_evaluate(config, comm::Communicator()); }
  static std::vector<Prediction> predictions_of(const EvaluateConfig& config) {
    return read_predictions(evaluation_directory(config, data::read_questions(config.questions.empty() ? world_->questions : fs::path(config.questions)).digest));
  }
  static inline tests::TempDir* dir_ = nullptr;
  static inline test::AlignWorld* world_ = nullptr;
};

TEST_F(AlignEvaluate, AnswersNewUsersFromTheirTokenAndNotWithoutIt) {
  const auto soft = evaluate(config("soft"));
  EXPECT_EQ(soft.rules.at(Rule::kText).all.n, 32);
  EXPECT_GT(soft.rules.at(Rule::kText).all.value(), 0.8);
  for (const char* prompt : {"none", "zero", "shuffled", "text"}) {
    const auto other = evaluate(config(prompt));
    EXPECT_EQ(other.rules.at(Rule::kText).all.n, 32);
    EXPECT_LT(other.rules.at(Rule::kText).all.value(), 0.65) << prompt;
  }
  const auto none = evaluate(config("none"));
  EXPECT_EQ(soft.input_tokens_per_question, none.input_tokens_per_question + 1);
  EXPECT_GT(evaluate(config("text")).input_tokens_per_question, none.input_tokens_per_question + 10);
  EXPECT_GT(soft.questions_per_s, 0);
  EXPECT_EQ(soft.details["prior_only"]["all"]["accuracy"], 0.25);
  const auto soft_nats = predictions_of(config("soft"))[0].text_nats, zero_nats = predictions_of(config("zero"))[0].text_nats;
  EXPECT_GT(std::abs(soft_nats[0] - zero_nats[0]), 1e-3);
}

TEST_F(AlignEvaluate, CountsAgreeWithThePredictionsFile) {
  const auto result = evaluate(config("soft"));
  const auto predictions = predictions_of(config("soft"));
  const auto set = data::read_questions(world_->questions);
  ASSERT_EQ(predictions.size(), set.test.size());
  std::map<std::string, std::int64_t> correct;
  std::int64_t first_token = 0, letter = 0;
  for (std::size_t i = 0; i < predictions.size(); ++i) {
    const auto& p = predictions[i];
    EXPECT_EQ(p.id, set.test[i].id);
    EXPECT_EQ(p.question, set.test[i].text);
    const auto best = std::max_element(p.text_nats.begin(), p.text_nats.end()) - p.text_nats.begin();
    correct[p.type] += best == static_cast<std::ptrdiff_t>(set.test[i].gold()) ? 1 : 0;
    letter += std::max_element(p.letter_nats.begin(), p.letter_nats.end()) - p.letter_nats.begin() == static_cast<std::ptrdiff_t>(set.test[i].gold()) ? 1 : 0;
    first_token += p.prediction.starts_with(p.answer) ? 1 : 0;
    double mass = 0;
    for (const double nats : p.letter_nats) mass += std::exp(nats);
    EXPECT_NEAR(mass, 1, 1e-5);
  }
  const auto& text = result.rules.at(Rule::kText);
  EXPECT_EQ(text.types.at("df").correct, correct["df"]);
  EXPECT_EQ(text.types.at("li").correct, correct["li"]);
  EXPECT_EQ(text.all.correct, correct["df"] + correct["li"]);
  EXPECT_NEAR(text.macro, 0.5 * (text.types.at("df").value() + text.types.at("li").value()), 1e-12);
  EXPECT_EQ(text.dimensions.at("Interest perception").correct, correct["li"]);
  EXPECT_EQ(result.rules.at(Rule::kLetter).all.correct, letter);
  EXPECT_EQ(result.rules.at(Rule::kFirstToken).all.correct, first_token);
  const auto stored = read_result(evaluation_directory(config("soft"), set.digest));
  EXPECT_EQ(to_json(stored), to_json(result));
}

TEST_F(AlignEvaluate, CalibratedScoresAreGainsOverThePromptAboutNobody) {
  const auto soft = evaluate(config("soft")), none = evaluate(config("none"));
  EXPECT_GT(soft.rules.at(Rule::kCalibrated).all.value(), 0.8);
  EXPECT_EQ(none.rules.at(Rule::kCalibrated).all.correct, none.rules.at(Rule::kText).all.correct);
  static_cast<void>(evaluate(config("text")));
  const auto with_titles = predictions_of(config("text")), without = predictions_of(config("none"));
  double largest = 0;
  for (std::size_t i = 0; i < with_titles.size(); ++i) {
    for (std::size_t o = 0; o < kNumOptions; ++o) {
      EXPECT_NEAR(with_titles[i].calibrated_nats[o], with_titles[i].text_nats[o] - without[i].text_nats[o], 1e-5);
      EXPECT_EQ(without[i].calibrated_nats[o], without[i].text_nats[o]);
      largest = std::max(largest, std::abs(with_titles[i].calibrated_nats[o]));
    }
  }
  EXPECT_GT(largest, 1e-2);
  // Two users who are asked the same have one reference.
  const auto predictions = predictions_of(config("soft"));
  const auto& a = predictions[0];
  const auto b = std::find_if(predictions.begin() + 1, predictions.end(), [&](const auto& p) { return p.question == a.question; });
  ASSERT_NE(b, predictions.end());
  for (std::size_t o = 0; o < kNumOptions; ++o) EXPECT_NEAR(a.text_nats[o] - a.calibrated_nats[o], b->text_nats[o] - b->calibrated_nats[o], 1e-5);
}

TEST_F(AlignEvaluate, ResultDoesNotDependOnBatchSize) {
  static_cast<void>(evaluate(config("soft")));
  const auto large = predictions_of(config("soft"));
  auto small = config("soft");
  small.batch_rows = 1;  // one question at a time
  static_cast<void>(evaluate(small));
  const auto one = predictions_of(small);
  ASSERT_EQ(one.size(), large.size());
  for (std::size_t i = 0; i < one.size(); ++i) {
    EXPECT_EQ(one[i].correct, large[i].correct);
    EXPECT_EQ(one[i].prediction, large[i].prediction);
    for (std::size_t o = 0; o < kNumOptions; ++o) {
      EXPECT_NEAR(one[i].text_nats[o], large[i].text_nats[o], 1e-5);
      EXPECT_NEAR(one[i].letter_nats[o], large[i].letter_nats[o], 1e-5);
      EXPECT_NEAR(one[i].calibrated_nats[o], large[i].calibrated_nats[o], 1e-5);
    }
  }
}

TEST_F(AlignEvaluate, WhatWasAnsweredBeforeIsNotAskedAgain) {
  auto cached = config("soft");
  cached.cache_responses = true;
  cached.max_questions = 10;
  const auto some = evaluate(cached);
  EXPECT_EQ(some.details["scored"], 10);
  cached.max_questions = 0;
  const auto all = evaluate(cached);
  EXPECT_EQ(all.details["scored"], 22);
  const auto first = predictions_of(cached);
  const auto again = evaluate(cached);
  EXPECT_EQ(again.details["scored"], 0);
  EXPECT_EQ(to_json(again)["rules"], to_json(all)["rules"]);
  const auto second = predictions_of(cached);
  for (std::size_t i = 0; i < first.size(); ++i) EXPECT_EQ(to_json(first[i]), to_json(second[i]));
  const auto fresh = predictions_of(config("soft")).size() == 32 ? evaluate(config("soft")) : EvaluationResult{};
  EXPECT_EQ(to_json(fresh)["rules"], to_json(all)["rules"]);
  // Another prompt, another user's token: other questions.
  auto shuffled = config("shuffled");
  shuffled.cache_responses = true;
  EXPECT_EQ(evaluate(shuffled).details["scored"], 32);
  shuffled.shuffle_seed = 2;
  EXPECT_GT(evaluate(shuffled).details["scored"].get<int>(), 0);
  const auto file = dir_->path() / "run" / "eval" / "responses.bin";
  auto bytes = read_file(file);
  bytes[40] = static_cast<char>(bytes[40] ^ 1);
  write_file_atomic(file, bytes);
  EXPECT_UQA_ERROR(evaluate(cached), ErrorCode::kData, "responses.bin is damaged");
  fs::remove(file);
}

TEST_F(AlignEvaluate, WholeAnswersAreWhatTheModelWritesAlone) {
  const auto aligned = load_aligned(dir_->path() / "run");
  auto llm = aligned.llm;
  const auto set = data::read_questions(world_->questions);
  const auto data = data::Dataset::open(world_->data);
  const PromptEncoder encoder(aligned.llm_directory, set.language, aligned.prompt_options);
  const auto states = compute_user_states(aligned.encoder, data, encoder_spans(set.test, aligned.encoder_config.max_len), aligned.adapter->view(), comm::Communicator());
  std::vector<std::int64_t> every(set.test.size());
  std::iota(every.begin(), every.end(), std::int64_t{0});
  const at::NoGradGuard no_grad;
  const auto [rows_TH, layout] = states.select(every);
  const auto soft_BKL = aligned.adapter->forward(rows_TH, layout);
  for (const char* prompt : {"none", "soft"}) {
    auto whole = config(prompt);
    whole.max_new_tokens = 7;
    const auto result = evaluate(whole);
    const auto predictions = predictions_of(whole);
    std::int64_t tokens = 0, correct = 0;
    for (std::size_t q = 0; q < set.test.size(); ++q) {
      auto ids = encoder.encode(set.test[q], prompt_of_name(prompt)).prompt;
      Tensor soft_KL;
      if (std::string(prompt) == "soft") {
        ids.erase(ids.begin());  // the token's row: it stands before the chat
        soft_KL = soft_BKL[static_cast<std::int64_t>(q)];
      }
      auto answer = generate_greedy(*llm, ids, soft_KL, 7, /*stop_at_eos=*/false);
      if (const auto end = std::find(answer.begin(), answer.end(), encoder.end_id()); end != answer.end()) answer.erase(end + 1, answer.end());
      tokens += static_cast<std::int64_t>(answer.size());
      const auto text = encoder.tokenizer().decode(answer, /*skip_special=*/true);
      EXPECT_EQ(predictions[q].prediction, text) << prompt << " question " << q;
      correct += text.starts_with(set.test[q].answer) ? 1 : 0;
    }
    EXPECT_EQ(result.rules.at(Rule::kFirstToken).all.correct, correct);
    EXPECT_DOUBLE_EQ(result.details["output_tokens_per_question"].get<double>(), static_cast<double>(tokens) / static_cast<double>(set.test.size()));
    EXPECT_GT(tokens, static_cast<std::int64_t>(set.test.size())) << "more than one token each";
    // The scores are those of the first-token evaluation.
    const auto first = evaluate(config(prompt));
    EXPECT_EQ(result.rules.at(Rule::kText).all.correct, first.rules.at(Rule::kText).all.correct);
  }
}

TEST_F(AlignEvaluate, DrawnAnswersDoNotDependOnTheBatch) {
  auto drawn = config("none");
  drawn.max_new_tokens = 6;
  drawn.temperature = 1.5;
  const auto texts = [&](const EvaluateConfig& settings) {
    static_cast<void>(evaluate(settings));
    std::map<std::int64_t, std::string> by_id;
    for (const auto& p : predictions_of(settings)) by_id[p.id] = p.prediction;
    return by_id;
  };
  const auto large = texts(drawn);
  auto other = drawn;
  other.batch_rows = 1;
  EXPECT_EQ(texts(other), large);
  other.max_questions = 10;
  const auto some = texts(other);
  EXPECT_EQ(some.size(), 10U);
  for (const auto& [id, text] : some) EXPECT_EQ(large.at(id), text) << "question " << id;
  other = drawn;
  other.sample_seed = 2;
  EXPECT_NE(texts(other), large);
  EXPECT_THAT(evaluation_directory(other, "0123456789").string(), ::testing::EndsWith("eval/none.new6.temperature1.5.sample2-01234567"));
  other.temperature = 0;
  EXPECT_NE(texts(other), large);
}

TEST_F(AlignEvaluate, WholeAnswersAreKeptToo) {
  auto cached = config("soft");
  cached.cache_responses = true;
  cached.max_new_tokens = 5;
  EXPECT_EQ(evaluate(cached).details["scored"], 32);
  const auto first = predictions_of(cached);
  const auto again = evaluate(cached);
  EXPECT_EQ(again.details["scored"], 0);
  const auto second = predictions_of(cached);
  for (std::size_t i = 0; i < first.size(); ++i) EXPECT_EQ(to_json(first[i]), to_json(second[i]));
  cached.max_new_tokens = 6;
  EXPECT_EQ(evaluate(cached).details["scored"], 32) << "another length is another answer";
  cached.temperature = 1;
  EXPECT_EQ(evaluate(cached).details["scored"], 32);
  cached.sample_seed = 2;
  EXPECT_EQ(evaluate(cached).details["scored"], 32);
  EXPECT_EQ(evaluate(cached).details["scored"], 0);
  const auto file = dir_->path() / "run" / "eval" / "responses.bin";
  write_file_atomic(file, "uqa.responses 1\n" + std::string(80, '\0'));
  EXPECT_UQA_ERROR(evaluate(cached), ErrorCode::kData, "of an earlier version");
  fs::remove(file);
}

TEST_F(AlignEvaluate, SeveralBudgetsAreTheSameAsOneByOne) {
  std::vector<EvaluateConfig> budgets;
  for (const std::int64_t items : {1, 3}) {
    auto budget = config("text");
    budget.text_items = items;
    budgets.push_back(budget);
  }
  const auto together = run_evaluations(budgets, comm::Communicator());
  ASSERT_EQ(together.size(), 2U);
  EXPECT_EQ(together[0].details["titles_per_question"], 1.0);
  EXPECT_GT(together[1].details["titles_per_question"].get<double>(), 2.0);
  EXPECT_GT(together[1].input_tokens_per_question, together[0].input_tokens_per_question + 5);
  for (std::size_t b = 0; b < 2; ++b) {
    const auto predictions = predictions_of(budgets[b]);
    const auto alone = evaluate(budgets[b]);
    EXPECT_EQ(to_json(alone)["rules"], to_json(together[b])["rules"]);
    const auto again = predictions_of(budgets[b]);
    for (std::size_t i = 0; i < predictions.size(); ++i) EXPECT_EQ(to_json(predictions[i]), to_json(again[i])) << "budget " << budgets[b].text_items;
  }
  // Seeds of the shuffle likewise; each has histories of its own.
  std::vector<EvaluateConfig> seeds{config("shuffled"), config("shuffled")};
  seeds[1].shuffle_seed = 2;
  static_cast<void>(run_evaluations(seeds, comm::Communicator()));
  const auto first = predictions_of(seeds[0]), second = predictions_of(seeds[1]);
  static_cast<void>(evaluate(seeds[1]));
  const auto second_alone = predictions_of(seeds[1]);
  bool differ = false;
  for (std::size_t i = 0; i < first.size(); ++i) {
    EXPECT_EQ(to_json(second[i]), to_json(second_alone[i]));
    differ = differ || to_json(first[i]) != to_json(second[i]);
  }
  EXPECT_TRUE(differ);
}

TEST_F(AlignEvaluate, RefusesWhatDoesNotFitBeforeAnyWork) {
  auto bad = config("none");
  bad.max_new_tokens = 1000;
  bad.output = (dir_->path() / "refused").string();
  EXPECT_UQA_ERROR(evaluate(bad), ErrorCode::kConfig, "max_new_tokens = 1000 behind a prompt of");
  EXPECT_UQA_ERROR(evaluate(bad), ErrorCode::kConfig, "the LLM takes at most 512");
  EXPECT_FALSE(fs::exists(bad.output));
  bad = config("none");
  bad.max_new_tokens = 0;
  EXPECT_UQA_ERROR(evaluate(bad), ErrorCode::kConfig, "max_new_tokens = 0, must be > 0");
  bad.max_new_tokens = 1;
  bad.temperature = -0.5;
  EXPECT_UQA_ERROR(evaluate(bad), ErrorCode::kConfig, "temperature = -0.5, must be a number >= 0");
  bad.temperature = 0;
  bad.text_items = 0;
  EXPECT_UQA_ERROR(evaluate(bad), ErrorCode::kConfig, "text_items = 0");
  // The longest prompt decides, with the longest that may follow it less the last token.
  std::vector<data::Question> questions(2);
  questions[1].id = 7;
  std::vector<EncodedQuestion> encoded(2);
  encoded[0].prompt.resize(10);
  encoded[1].prompt.resize(9);
  encoded[1].options = {{1, 2, 3}};
  const auto text = config("text");
  EXPECT_NO_THROW(check_context(questions, encoded, text, 64, 11));
  EXPECT_UQA_ERROR(check_context(questions, encoded, text, 64, 10), ErrorCode::kConfig,
                   "text_items = 64 makes a prompt of 9 tokens (question 7), 11 with what follows it, the LLM takes at most 10; lower --text_items");
}

TEST_F(AlignEvaluate, TitlesThatAreMissingAreRefused) {
  const auto bare = dir_->path() / "bare";
  static_cast<void>(test::write_world_data(bare, /*with_titles=*/false));
  auto bad = config("text");
  bad.data = (bare / "data").string();
  bad.text_items = 16;
  EXPECT_UQA_ERROR(evaluate(bad), ErrorCode::kConfig, "prompt = text with text_items = 16, needs item titles");
}

TEST_F(AlignEvaluate, AuditCountsWhatTheOrderOfOptionsMoves) {
  auto audited = config("soft");
  audited.audit_options = true;
  // The world's texts are not worded as `uqa questions` does: reword them.
  auto set = data::read_questions(world_->questions);
  for (auto* questions : {&set.train, &set.test}) {
    for (auto& question : *questions) question.text += "\nAnswer with the option.";
  }
  test::write_question_set(dir_->path() / "worded", set.train, set.test, set.data_digest);
  EXPECT_UQA_ERROR(evaluate(audited), ErrorCode::kConfig, "its options cannot be moved");
  audited.questions = (dir_->path() / "worded").string();
  const auto result = evaluate(audited);
  const auto& rules = result.details.at("option_audit").at("rules");
  const auto& text = rules.at("text");
  ASSERT_EQ(text.at("accuracies").size(), 4U);
  EXPECT_EQ(text.at("accuracies")[0].get<double>(), result.rules.at(Rule::kText).all.value());
  double shares = 0;
  for (const double share : text.at("letter_shares").get<std::vector<double>>()) shares += share;
  EXPECT_NEAR(shares, 1, 1e-9);
  EXPECT_THAT(render_audit(result.details.at("option_audit")), ::testing::HasSubstr("agreement"));
}

TEST(OptionAudit, AgreementFollowsTheOptionAndSwingTheAccuracy) {
  // Question 0: always the option stored first. Question 1: always the letter A, whatever stands there.
  std::vector<std::vector<Prediction>> rotations(4);
  for (std::size_t r = 0; r < 4; ++r) {
    for (std::int64_t q = 0; q < 2; ++q) {
      Prediction p{.question = "?", .prediction = "A", .answer = "A", .type = "df", .id = q, .letter_nats = {0, 0, 0, 0}, .text_nats = {0, 0, 0, 0},
                   .calibrated_nats = {0, 0, 0, 0}, .correct = {}};
      const std::size_t letter = q == 0 ? (4 - r) % 4 : 0;
      p.text_nats[letter] = p.letter_nats[letter] = 1;
      const std::size_t gold = (4 - r) % 4;  // the option stored first is right
      p.answer = std::string(1, static_cast<char>('A' + static_cast<int>(gold)));
      judge(p, static_cast<std::int64_t>(gold));
      rotations[r].push_back(p);
    }
  }
  const auto audit = audit_options(rotations);
  const auto& text = audit.rules.at(Rule::kText);
  EXPECT_EQ(text.accuracies, (std::vector<double>{1, 0.5, 0.5, 0.5}));
  EXPECT_EQ(text.swing, 0.5);
  EXPECT_EQ(text.agreement, 0.5);
  EXPECT_NEAR(text.letter_shares[0], 5.0 / 8, 1e-12);
  EXPECT_NEAR(text.letter_shares[1], 1.0 / 8, 1e-12);
  const auto& first_token = audit.rules.at(Rule::kFirstToken);
  EXPECT_EQ(first_token.agreement, 0);
  EXPECT_EQ(first_token.letter_shares[0], 1);
}

TEST_F(AlignEvaluate, SubsetsKeepTheOrderAndNameTheDirectory) {
  auto some = config("none");
  some.max_questions = 10;
  EXPECT_EQ(evaluate(some).rules.at(Rule::kText).all.n, 10);
  const auto predictions = predictions_of(some);
  EXPECT_TRUE(std::is_sorted(predictions.begin(), predictions.end(), [](const auto& a, const auto& b) { return a.id < b.id; }));
  auto seed = config("shuffled");
  seed.shuffle_seed = 2;
  EXPECT_THAT(evaluation_directory(seed, "0123456789").string(), ::testing::EndsWith("eval/shuffled.seed2-01234567"));
  EXPECT_THAT(evaluation_directory(config("soft"), "0123456789").string(), ::testing::EndsWith("eval/soft-01234567"));
}

TEST_F(AlignEvaluate, FreeFormQuestionsHaveTheFirstTokenRuleAlone) {
  auto set = data::read_questions(world_->questions);
  for (auto& question : set.test) question.options.clear();
  set.test[0].options = {"a", "b", "c", "d"};  // mixed with a multiple-choice one
  test::write_question_set(dir_->path() / "free", set.train, set.test, set.data_digest);
  auto free = config("soft");
  free.questions = (dir_->path() / "free").string();
  const auto result = evaluate(free);
  EXPECT_EQ(result.rules.at(Rule::kFirstToken).all.n, 32);
  EXPECT_EQ(result.rules.at(Rule::kText).all.n, 1);
  EXPECT_EQ(result.rules.at(Rule::kCalibrated).all.n, 1);
  EXPECT_TRUE(predictions_of(free)[1].text_nats.empty());
  EXPECT_TRUE(predictions_of(free)[1].calibrated_nats.empty());
}

TEST_F(AlignEvaluate, RefusesAnEncoderThatChanged) {
  const auto weights = world_->encoder_run / "model.safetensors";
  const auto before = read_file(weights);
  test::write_encoder(world_->encoder_run, data::Dataset::open(world_->data), 4);
  EXPECT_UQA_ERROR(evaluate(config("soft")), ErrorCode::kData, "has changed since");
  write_file_atomic(weights, before);
  EXPECT_EQ(evaluate(config("soft")).rules.at(Rule::kText).all.n, 32);
}

TEST_F(AlignEvaluate, RefusesWhatCannotBeEvaluated) {
  auto bad = config("warm");
  EXPECT_UQA_ERROR(evaluate(bad), ErrorCode::kConfig, "prompt = warm");
  bad = config("soft");
  bad.run = (dir_->path() / "nothing").string();
  EXPECT_UQA_ERROR(evaluate(bad), ErrorCode::kConfig, "holds no model.json");
  bad = config("soft");
  bad.run = world_->encoder_run.string();
  EXPECT_UQA_ERROR(evaluate(bad), ErrorCode::kConfig, "uqa align");
  bad = config("soft");
  bad.dtype = "fp8";
  EXPECT_UQA_ERROR(evaluate(bad), ErrorCode::kConfig, "dtype = fp8");
  bad = config("none");
  static_cast<void>(evaluate(bad));
  bad.overwrite = false;
  EXPECT_UQA_ERROR(evaluate(bad), ErrorCode::kConfig, "--overwrite");
}

TEST_F(AlignEvaluate, ShuffleLeavesNobodyInPlace) {
  const auto set = data::read_questions(world_->questions);
  std::set<std::vector<std::int64_t>> distinct;
  for (std::int64_t seed = 1; seed <= 5; ++seed) {
    const auto spans = shuffled_spans(set.test, seed);
    std::map<std::int64_t, std::int64_t> other_of;
    std::set<std::int64_t> taken;
    std::vector<std::int64_t> order;
    for (std::size_t q = 0; q < spans.size(); ++q) {
      EXPECT_NE(spans[q].user, set.test[q].user);
      const auto [found, is_new] = other_of.try_emplace(set.test[q].user, spans[q].user);
      EXPECT_EQ(found->second, spans[q].user) << "one other user a user";
      if (is_new) {
        EXPECT_TRUE(taken.insert(spans[q].user).second) << "a permutation";
      }
      order.push_back(spans[q].user);
      EXPECT_TRUE(std::any_of(set.test.begin(), set.test.end(), [&](const auto& other) {
        return other.user == spans[q].user && other.begin == spans[q].begin && other.end == spans[q].end;
      })) << "an end of that user's own questions";
    }
    distinct.insert(order);
  }
  EXPECT_GE(distinct.size(), 4u) << "depends on the seed";
  const std::vector<data::Question> lonely(set.test.begin(), set.test.begin() + 4);
  EXPECT_UQA_ERROR(shuffled_spans(lonely, 1), ErrorCode::kConfig, "at least 2 users");
}

TEST_F(AlignEvaluate, ThePriorOnlyAnswererIsAnEvaluationToo) {
  const auto output = dir_->path() / "prior";
  const auto prior = write_prior_evaluation(world_->questions, output, /*overwrite=*/true);
  const auto predictions = read_predictions(output);
  ASSERT_EQ(predictions.size(), 32u);
  EXPECT_EQ(prior.rules.at(Rule::kText).all.n, 32);
  EXPECT_EQ(prior.rules.at(Rule::kText).all.correct, prior.rules.at(Rule::kFirstToken).all.correct);
  EXPECT_LT(prior.rules.at(Rule::kText).all.value(), 0.6) << "it sees no user";
  static_cast<void>(evaluate(config("soft")));
  EXPECT_EQ(predictions[5].question, predictions_of(config("soft"))[5].question);
}

TEST(AlignResult, TableShowsEveryColumn) {
  std::vector<Prediction> predictions(4);
  for (std::size_t i = 0; i < 4; ++i) {
    predictions[i].type = i < 2 ? "df" : "it";
    predictions[i].answer = "A";
    predictions[i].prediction = i == 0 ? "A" : "B";
    predictions[i].letter_nats = predictions[i].text_nats = {0, -1, -2, static_cast<double>(i) - 2.5};
    judge(predictions[i], 0);
  }
  EvaluationResult result{.prompt = "soft", .questions_digest = "d", .rules = count_correct(predictions), .input_tokens_per_question = 12.5,
                          .questions_per_s = 3, .details = Json::object()};
  EXPECT_EQ(result.rules.at(Rule::kText).all.correct, 3);
  EXPECT_EQ(result.rules.at(Rule::kFirstToken).all.correct, 1);
  const auto table = render_table({{"soft", result}, {"other", result}}, Rule::kText);
  for (const char* part : {"Sequence understanding", "  df", "  it", "All (micro)", "All (macro)", "75.0 [30.1, 95.4]", "100.0 [", "12.5", "questions/s", "other"}) {
    EXPECT_THAT(table, ::testing::HasSubstr(part));
  }
  EXPECT_THAT(table, ::testing::Not(::testing::HasSubstr("Action prediction"))) << "no such question";
}

}  // namespace
}  // namespace uqa::trainer
