#include <map>
#include <set>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/error.h"
#include "core/statistics.h"
#include "data/questions/builder.h"
#include "data/questions/question_files.h"
#include "questions_oracle.h"
#include "questions_synthetic.h"

namespace uqa::data {
namespace {

using ::testing::HasSubstr;

class BuiltQuestionsTest : public ::testing::TestWithParam<std::tuple<Language, GoldChoice>> {
 protected:
  BuiltQuestionsTest() {
    options_.gold_choice = std::get<1>(GetParam());
    if (options_.language == Language::kChinese) options_.attributes = {"genre=类型", "release_year=年份"};
    // Made once per parameter: the tests look at different sides of the same questions.
    static std::map<std::tuple<Language, GoldChoice>, BuiltQuestions> made;
    if (!made.contains(GetParam())) made.emplace(GetParam(), make_questions(view_, options_));
    built_ = made.at(GetParam());
  }
  [[nodiscard]] std::vector<Question> all() const {
    auto questions = built_.train;
    questions.insert(questions.end(), built_.test.begin(), built_.test.end());
    return questions;
  }
  HistoryView view_ = synthetic_view();
  QuestionBuildOptions options_ = small_build(std::get<0>(GetParam()));
  BuiltQuestions built_;
};

TEST_P(BuiltQuestionsTest, AnOracleThatReadsTheHistoryAnswersEveryQuestion) {
  const Oracle oracle(
      view_, {{"genre", "genre"}, {"release year", "release_year"}, {"类型", "genre"}, {"年份", "release_year"}});
  std::map<QuestionType, int> seen;
  for (const Question& q : all()) {
    ++seen[q.type];
    ASSERT_EQ(q.options.size(), 4u);
    for (std::size_t i = 0; i < 4; ++i) {
      ASSERT_EQ(oracle.truth(q, q.options[i]), std::optional(i == q.gold()))
          << q.text << "\noption " << i << ", gold " << q.answer;
    }
  }
  EXPECT_EQ(seen.size(), kQuestionTypes.size());
}

TEST_P(BuiltQuestionsTest, EveryTypeGetsTheNumberAskedFor) {
  for (const QuestionType type : kQuestionTypes) {
    EXPECT_EQ(built_.report.train_counts.at(code_of(type)), options_.per_type_train) << code_of(type);
    EXPECT_EQ(built_.report.test_counts.at(code_of(type)), options_.per_type_test) << code_of(type);
  }
  EXPECT_EQ(std::ssize(built_.train), 7 * options_.per_type_train);
  EXPECT_EQ(std::ssize(built_.test), 7 * options_.per_type_test);
}

TEST_P(BuiltQuestionsTest, HistoriesAreTheLatestInteractionsAndLeaveRoomForTheNextItem) {
  for (const Question& q : all()) {
    ASSERT_EQ(q.begin, std::max<std::int64_t>(0, q.end - options_.max_len));
    ASSERT_GE(q.end, options_.min_history);
    const bool asks_next = dimension_of(q.type) == Dimension::kActionPrediction;
    ASSERT_LE(q.end, view_.length(q.user) - (asks_next ? 1 : 0));
  }
}

TEST_P(BuiltQuestionsTest, NoUserIsInBothSplitsAndIdsAreUnique) {
  std::set<std::int64_t> train, test, ids;
  for (const Question& q : built_.train) train.insert(q.user), ids.insert(q.id);
  for (const Question& q : built_.test) test.insert(q.user), ids.insert(q.id);
  EXPECT_EQ(ids.size(), built_.train.size() + built_.test.size());
  for (const std::int64_t user : test) EXPECT_FALSE(train.contains(user)) << user;
  EXPECT_EQ(std::ssize(train), built_.report.train_users);
  EXPECT_EQ(std::ssize(test), built_.report.test_users);
  // 239 users are long enough, 30 % of them rounded up are 72; nearly all of them come up.
  EXPECT_LE(test.size(), 72u);
  EXPECT_GE(test.size(), 68u);
}

TEST_P(BuiltQuestionsTest, GoldLettersAreUniformForEveryType) {
  std::map<QuestionType, std::array<double, 4>> counts;
  for (const Question& q : all()) counts[q.type][q.gold()] += 1;
  for (const auto& [type, letters] : counts) {
    const double expected = static_cast<double>(options_.per_type_train + options_.per_type_test) / 4;
    double chi_square = 0;
    for (const double n : letters) chi_square += (n - expected) * (n - expected) / expected;
    EXPECT_LT(chi_square, options_.gold_choice == GoldChoice::kEachOption ? 1e-9 : 16.27)
        << code_of(type);  // p = 0.001, 3 degrees
  }
}

TEST_P(BuiltQuestionsTest, PriorOnlyAnswererIsAtChance) {
  EXPECT_EQ(built_.report.prior_only.size(), 8u);
  for (const auto& [code, s] : built_.report.prior_only) {
    const Interval wide = wilson_interval(s.correct, s.n, 0.999);
    EXPECT_LE(wide.low, 0.25) << code;
    EXPECT_GE(wide.high, 0.25) << code;
    if (options_.gold_choice == GoldChoice::kEachOption) {
      EXPECT_EQ(s.correct * 4, s.n) << code;
    }
  }
}

TEST_P(BuiltQuestionsTest, TheMessageIsStemThenOptionsThenInstruction) {
  const bool chinese = options_.language == Language::kChinese;
  for (const Question& q : all()) {
    ASSERT_EQ(q.text, q.stem + "\nA. " + q.options[0] + "\nB. " + q.options[1] + "\nC. " + q.options[2] + "\nD. " +
                          q.options[3] + (chinese ? "\n请直接回答选项。" : "\nAnswer with the option."));
    if (chinese) {
      ASSERT_EQ(classify_official(q.stem), q.type) << q.stem;
      ASSERT_EQ(classify_official(q.text), q.type) << q.text;
    }
  }
}

TEST_P(BuiltQuestionsTest, RotatedOptionsKeepTheirGoldAndTheirWords) {
  const std::string language = options_.language == Language::kChinese ? "zh" : "en";
  const Question q = all().front();
  const std::string gold = q.options[q.gold()];
  std::set<std::size_t> letters;
  for (std::int64_t shift = 0; shift < 4; ++shift) {
    const Question moved = with_rotated_options(q, shift, language);
    EXPECT_EQ(moved.options[moved.gold()], gold) << shift;
    EXPECT_EQ(moved.options[0], q.options[static_cast<std::size_t>(shift)]) << shift;
    EXPECT_NE(moved.text.find("\nA. " + moved.options[0] + "\n"), std::string::npos) << shift;
    EXPECT_EQ(with_rotated_options(moved, 4 - shift, language).text, q.text);
    letters.insert(moved.gold());
  }
  EXPECT_EQ(letters.size(), 4u);
  Question foreign = q;
  foreign.text = "Other words";
  EXPECT_EQ(with_rotated_options(foreign, 0, language).text, "Other words");
  EXPECT_THROW((void)with_rotated_options(foreign, 1, language), Error);
}

TEST_P(BuiltQuestionsTest, TheSameSeedGivesTheSameQuestionsAndAnotherDoesNot) {
  const BuiltQuestions again = make_questions(view_, options_);
  EXPECT_EQ(questions_to_jsonl(again.train), questions_to_jsonl(built_.train));
  EXPECT_EQ(questions_to_jsonl(again.test), questions_to_jsonl(built_.test));
  options_.seed += 1;
  EXPECT_NE(questions_to_jsonl(make_questions(view_, options_).train), questions_to_jsonl(built_.train));
}

TEST_P(BuiltQuestionsTest, NoQuestionIsAskedTwice) {
  std::set<std::string> asked;
  for (const Question& q : all()) {
    auto options = q.options;
    std::sort(options.begin(), options.end());
    std::string key = fmt::format("{}|{}|{}|{}", q.stem, q.user, q.end, q.options[q.gold()]);
    for (const auto& option : options) key += "|" + option;
    EXPECT_TRUE(asked.insert(key).second) << key;
  }
}

TEST_P(BuiltQuestionsTest, EveryOptionListIsAskedOnceWithEachOptionAsGold) {
  std::map<std::string, std::multiset<std::string>> golds;
  for (const Question& q : built_.test) golds[q.text].insert(q.answer);
  if (options_.gold_choice == GoldChoice::kOneOption) {
    EXPECT_GT(golds.size(), built_.test.size() / 2);
    return;
  }
  for (const auto& [text, letters] : golds) {
    for (const char* letter : {"A", "B", "C", "D"}) EXPECT_EQ(letters.count(letter) * 4, letters.size()) << text;
  }
}

INSTANTIATE_TEST_SUITE_P(Build, BuiltQuestionsTest,
                         ::testing::Combine(::testing::Values(Language::kEnglish, Language::kChinese),
                                            ::testing::Values(GoldChoice::kEachOption, GoldChoice::kOneOption)),
                         [](const auto& p) {
                           return std::string(std::get<0>(p.param) == Language::kEnglish ? "English" : "Chinese") +
                                  (std::get<1>(p.param) == GoldChoice::kEachOption ? "EachOption" : "OneOption");
                         });

TEST(QuestionBuilder, SaysWhatADataSetWithoutTitlesCannotGive) {
  HistoryView view = synthetic_view();
  view.catalog.titles.clear();
  view.catalog.attributes.clear();
  const BuiltQuestions built = make_questions(view, small_build(Language::kEnglish));
  EXPECT_EQ(built.report.train_counts.at("mf"), 400);
  for (const char* code : {"df", "ip", "ap", "li", "si", "it"}) {
    EXPECT_EQ(built.report.train_counts.at(code), 0) << code;
    EXPECT_THAT(built.report.notes,
                ::testing::Contains(HasSubstr(fmt::format("train: 0 questions of type {} instead of 400", code))));
  }
  EXPECT_THAT(built.report.notes,
              ::testing::Contains(HasSubstr("1 of 240 users have no more than min_history = 5 interactions")));
}

TEST(QuestionBuilder, SubsamplesHistoriesToTheBound) {
  const HistoryView view = synthetic_view();
  auto options = small_build(Language::kEnglish);
  options.per_type_train = options.per_type_test = 40;
  options.max_histories = 100;
  const BuiltQuestions built = make_questions(view, options);
  std::set<std::pair<std::int64_t, std::int64_t>> histories;
  for (const Question& q : built.train) histories.insert({q.user, q.end});
  EXPECT_LE(histories.size(), 100u);
  EXPECT_THAT(built.report.notes, ::testing::Contains(HasSubstr("train: 100 of 167 users were drawn")));
}

TEST(QuestionBuilder, LeavesOutValuesThatTheOfficialRulesWouldPutUnderAnotherType) {
  HistoryView view = synthetic_view();
  view.catalog.attributes[0].vocabulary[0] = "次浏览的商品的";  // the key phrase of df, as the most common genre
  const BuiltQuestions built = make_questions(view, small_build(Language::kChinese));
  for (const Question& q : built.train) ASSERT_EQ(classify_official(q.text), q.type) << q.text;
}

TEST(QuestionBuilder, ReportsProgressUpToTheTotal) {
  std::int64_t last = 0, calls = 0;
  const auto options = small_build(Language::kEnglish);
  (void)make_questions(synthetic_view(), options, [&](std::int64_t done, std::int64_t total) {
    EXPECT_EQ(total, 7 * (options.per_type_train + options.per_type_test));
    EXPECT_GT(done, last);
    last = done;
    ++calls;
  });
  EXPECT_EQ(last, 7 * (options.per_type_train + options.per_type_test));
  EXPECT_GT(calls, 100);
}

template <typename Change>
std::string refusal(Change&& change) {
  auto options = small_build(Language::kEnglish);
  HistoryView view = synthetic_view(20);
  change(options, view);
  try {
    (void)make_questions(view, options);
  } catch (const Error& error) {
    return fmt::format("{} {}", static_cast<int>(error.code()), error.what());
  }
  return "accepted";
}

TEST(QuestionBuilder, RefusesOptionsOutOfRangeByName) {
  using O = QuestionBuildOptions;
  using V = HistoryView;
  EXPECT_THAT(refusal([](O& o, V&) { o.per_type_train = 6; }),
              HasSubstr("2 per_type_train = 6, must be a positive multiple of 4"));
  EXPECT_THAT(refusal([](O& o, V&) { o.per_type_test = 0; }), HasSubstr("2 per_type_test = 0"));
  EXPECT_THAT(refusal([](O& o, V&) { o.test_user_fraction = 1; }), HasSubstr("2 test_user_fraction = 1"));
  EXPECT_THAT(refusal([](O& o, V&) { o.min_history = 2; }), HasSubstr("2 min_history = 2"));
  EXPECT_THAT(refusal([](O& o, V&) { o.max_len = 4; }), HasSubstr("2 max_len = 4"));
  EXPECT_THAT(refusal([](O& o, V&) { o.recent = 61; }), HasSubstr("2 recent = 61"));
  EXPECT_THAT(refusal([](O& o, V&) { o.max_position = 6; }), HasSubstr("2 max_position = 6"));
  EXPECT_THAT(refusal([](O& o, V&) { o.attributes = {"brand"}; }),
              HasSubstr("2 attributes = 'brand', must be among those of the data set: genre, release_year"));
  EXPECT_THAT(refusal([](O& o, V&) { o.attributes = {"genre="}; }),
              HasSubstr("2 attributes = 'genre=', needs a word after '='"));
}

TEST(QuestionBuilder, RefusesDataWithoutEnoughUsers) {
  EXPECT_THAT(refusal([](QuestionBuildOptions& o, HistoryView&) { o.min_history = o.max_len = 1000, o.recent = 10; }),
              HasSubstr("3 0 users have more than min_history = 1000 interactions"));
}

}  // namespace
}  // namespace uqa::data
