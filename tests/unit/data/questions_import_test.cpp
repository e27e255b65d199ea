// Questions from imported data: MovieLens-100K out of the RecBole wheel of the virtual environment, and the published
// layout.
#include <arrow/api.h>
#include <arrow/io/api.h>
#include <arrow/ipc/api.h>

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

/// Files in the published layout whose every value the test knows: one `list<list<int64>>` column, and `text`.
class WrittenQuestionsTest : public DataTest {
 protected:
  struct Row {
    std::vector<std::int64_t> clicks;
    std::string text;
  };
  static std::string chat(const std::string& question, const std::string& answer) {
    return Json::array({{{"role", "user"}, {"content", question}}, {{"role", "assistant"}, {"content", answer}}}).dump();
  }
  fs::path write_rows(const std::string& name, const std::vector<Row>& rows) const {
    auto ids = std::make_shared<arrow::Int32Builder>();
    auto clicks = std::make_shared<arrow::ListBuilder>(arrow::default_memory_pool(), ids);
    arrow::ListBuilder users(arrow::default_memory_pool(), clicks);
    arrow::StringBuilder texts;
    for (const Row& row : rows) {
      EXPECT_TRUE(users.Append().ok() && texts.Append(row.text).ok());
      for (const auto id : row.clicks) EXPECT_TRUE(clicks->Append().ok() && ids->Append(static_cast<std::int32_t>(id)).ok());
    }
    const auto items = users.Finish().ValueOrDie();
    const std::shared_ptr<arrow::Array> text = texts.Finish().ValueOrDie();
    const auto table = arrow::Table::Make(arrow::schema({arrow::field("uni_seq_item_id", items->type()), arrow::field("text", text->type())}), {items, text});
    const auto out = arrow::io::FileOutputStream::Open((dir_ / name).string()).ValueOrDie();
    const auto writer = arrow::ipc::MakeFileWriter(out, table->schema()).ValueOrDie();
    EXPECT_TRUE(writer->WriteTable(*table).ok() && writer->Close().ok() && out->Close().ok());
    return dir_ / name;
  }
  Dataset import_rows(const std::vector<fs::path>& files) const {
    const auto schema = SourceSchema::from_json(Json::parse(R"({"name": "small", "layout": "user_rows", "format": "arrow", "tables": {"item": 10},
                                                               "features": [{"name": "uni_seq_item_id", "table": "item"}]})"),
                                                "schema");
    (void)import_files(schema, files, "data");
    return Dataset::open(dir_ / "data");
  }

  static constexpr const char* kRecent = "用户近期最感兴趣的类目是什么？";
  static constexpr const char* kTrajectory = "用户的类目偏好的转移路径是什么？";
};

TEST_F(WrittenQuestionsTest, KeepsTextAnswerTypeAndTheLatestInteractions) {
  const PublishedQuestionFiles files{.train = write_rows("train.arrow", {{{1, 2, 3}, chat(kRecent, "A")}, {{4}, chat(kRecent, "B")}, {{5, 6, 7, 8, 9}, chat(kTrajectory, "C")}}),
                                     .eval = write_rows("eval.arrow", {{{2, 2}, chat(kTrajectory, "运动鞋")}})};
  const auto data = import_rows({files.train, files.eval});
  const auto report = import_published_questions(data, files, dir_ / "questions", /*overwrite=*/false, /*max_len=*/3);
  EXPECT_EQ(report.num_train, 2);
  EXPECT_EQ(report.num_test, 1);
  EXPECT_EQ(report.without_user, 1);  // the row with one click
  const QuestionSet set = read_questions(dir_ / "questions");
  ASSERT_EQ(set.train.size(), 2u);
  ASSERT_EQ(set.test.size(), 1u);
  EXPECT_EQ(set.train[0].text, kRecent);
  EXPECT_EQ(set.train[0].answer, "A");
  EXPECT_EQ(set.train[0].type, QuestionType::kShortTermInterest);
  const Question& longest = set.train[1];
  EXPECT_EQ(longest.answer, "C");
  EXPECT_EQ(longest.type, QuestionType::kInterestTrajectory);
  EXPECT_EQ(data.raw_user_id(longest.user), "2");
  EXPECT_EQ(longest.begin, 2);
  EXPECT_EQ(longest.end, 5);
  EXPECT_EQ(data.item(longest.user, longest.begin), 7);
  EXPECT_EQ(set.test[0].answer, "运动鞋");
  EXPECT_EQ(data.raw_user_id(set.test[0].user), "3");
}

TEST_F(WrittenQuestionsTest, WrongTextsAreRefusedWithFileAndRow) {
  const auto train = write_rows("train.arrow", {{{1, 2}, chat(kRecent, "A")}});
  const auto data = import_rows({train, write_rows("rest.arrow", {{{1, 2}, chat(kRecent, "A")}})});
  const auto error_of_eval = [&](const std::string& text) {
    const auto eval = write_rows("eval.arrow", {{{1, 2}, chat(kRecent, "A")}, {{1, 2}, text}});
    const auto error = error_of([&] { (void)import_published_questions(data, {.train = train, .eval = eval}, dir_ / "questions"); });
    EXPECT_THAT(error, HasSubstr("eval.arrow row 2"));
    EXPECT_FALSE(fs::exists(dir_ / "questions"));
    return error;
  };
  EXPECT_THAT(error_of_eval("not JSON"), ::testing::StartsWith("3: "));
  EXPECT_THAT(error_of_eval("[]"), HasSubstr("no message 1"));
  EXPECT_THAT(error_of_eval(Json::array({{{"role", "assistant"}, {"content", "A"}}}).dump()), HasSubstr("has role 'assistant', must be 'user'"));
  EXPECT_THAT(error_of_eval(Json::array({{{"role", "user"}, {"content", kRecent}}}).dump()), HasSubstr("no message 2"));
  EXPECT_THAT(error_of_eval(chat("你好", "A")), ::testing::StartsWith("3: "));
}

}  // namespace
}  // namespace uqa::data
