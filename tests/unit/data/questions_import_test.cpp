// Questions from imported data: MovieLens-100K out of the RecBole wheel of the virtual environment, and the published
// layout.
#include "data/questions/builder.h"
#include "data/questions/published.h"
#include "data/questions/question_files.h"
#include "fixture.h"
#include "questions_oracle.h"
#include "tests/support/fixtures.h"
#include "tests/support/source_dir.h"

namespace uqa::data {
namespace {

using ::testing::HasSubstr;

class ImportedQuestionsTest : public DataTest {
 protected:
  static SourceSchema recipe(const std::string& name) {
    return SourceSchema::read(tests::source_dir() / "recipes" / name);
  }
  static fs::path movielens() {
    for (const auto& entry : fs::directory_iterator(fs::path(UQA_VENV_DIR) / "lib")) {
      const auto found = entry.path() / "site-packages/recbole/dataset_example/ml-100k";
      if (fs::exists(found / "ml-100k.inter")) return found;
    }
    throw std::runtime_error("MovieLens-100K is not in " UQA_VENV_DIR "; run scripts/setup.sh");
  }
};

TEST_F(ImportedQuestionsTest, MovieLensGivesFairQuestionsOfAllTypes) {
  (void)import_files(recipe("ml-100k.schema.json"), {movielens() / "ml-100k.inter", movielens() / "ml-100k.item"},
                     "data");
  const auto data = Dataset::open(dir_ / "data");
  const auto report = build_questions(data, {.language = Language::kEnglish}, dir_ / "questions");
  for (const QuestionType type : kQuestionTypes) {
    EXPECT_EQ(report.train_counts.at(code_of(type)), 3428) << code_of(type);
    const PriorScore& s = report.prior_only.at(code_of(type));
    EXPECT_EQ(s.n, 600) << code_of(type);
    EXPECT_LE(s.low, 0.25) << code_of(type);
    EXPECT_GE(s.high, 0.25) << code_of(type);
  }
  EXPECT_GE(report.test_users, 280);
  EXPECT_LT(report.seconds, 60);
  const HistoryView view = view_of(data);
  const Oracle oracle(view, {{"genre", "genre"}, {"year", "year"}});
  for (const Question& q : read_questions(dir_ / "questions").test) {
    for (std::size_t i = 0; i < 4; ++i)
      ASSERT_EQ(oracle.truth(q, q.options[i]), std::optional(i == q.gold())) << q.text;
  }
}

TEST_F(ImportedQuestionsTest, TheViewHoldsWhatTheDatasetHolds) {
  const auto data = tiny();
  const HistoryView view = view_of(data);
  EXPECT_EQ(view.digest, data.digest());
  ASSERT_EQ(view.num_users(), data.num_users());
  for (std::int64_t user = 0; user < data.num_users(); ++user) {
    ASSERT_EQ(view.length(user), data.length(user));
    for (std::int64_t t = 0; t < data.length(user); ++t) EXPECT_EQ(view.item(user, t), data.item(user, t));
  }
}

class PublishedQuestionsTest : public ImportedQuestionsTest {
 protected:
  PublishedQuestionsTest() {
    (void)import_files(recipe("uqabench.schema.json"), {files_.train, files_.eval}, "data");
    data_.emplace(Dataset::open(dir_ / "data"));
  }
  PublishedQuestionFiles files_{tests::fixtures() / "arrow/align_data_train.arrow",
                                tests::fixtures() / "arrow/align_data_eval.arrow"};
  std::optional<Dataset> data_;
};

TEST_F(PublishedQuestionsTest, EachRowBecomesAQuestionAboutItsUser) {
  const auto report = import_published_questions(*data_, files_, dir_ / "questions");
  const QuestionSet set = read_questions(dir_ / "questions");
  EXPECT_EQ(std::ssize(set.train), report.num_train);
  EXPECT_EQ(std::ssize(set.test), report.num_test);
  EXPECT_EQ(report.num_train + report.num_test + report.without_user, data_->num_users() + report.without_user);
  EXPECT_EQ(set.language, "zh");
  EXPECT_EQ(set.data_digest, data_->digest());
  std::int64_t previous = -1;
  for (const auto* split : {&set.train, &set.test}) {
    for (const Question& q : *split) {
      const std::int64_t row = std::stol(std::string(data_->raw_user_id(q.user)));
      EXPECT_GT(row, previous);  // one after the other, eval after train
      previous = row;
      EXPECT_EQ(q.end, data_->length(q.user));
      EXPECT_EQ(q.begin, std::max<std::int64_t>(0, q.end - 512));
      EXPECT_EQ(q.type, classify_official(q.text));
      EXPECT_TRUE(q.options.empty());
      EXPECT_FALSE(q.answer.empty());
    }
  }
}

TEST_F(PublishedQuestionsTest, AnotherDataSetIsRefused) {
  files_.first_row = 1'000'000;
  EXPECT_THAT(error_of([&] { (void)import_published_questions(*data_, files_, dir_ / "questions"); }),
              HasSubstr("0 train and 0 test questions belong to users of the data set"));
  EXPECT_FALSE(fs::exists(dir_ / "questions"));
}

TEST_F(PublishedQuestionsTest, FilesWithoutTextAreRefused) {
  files_.train = tests::fixtures() / "arrow/pretrain_data_train.arrow";
  EXPECT_THAT(error_of([&] { (void)import_published_questions(*data_, files_, dir_ / "questions"); }),
              HasSubstr("text"));
  EXPECT_FALSE(fs::exists(dir_ / "questions"));
}

}  // namespace
}  // namespace uqa::data
