#include <map>

#include "data/questions/official_scorer.h"
#include "data/questions/question_files.h"
#include "fixture.h"
#include "questions_synthetic.h"

namespace uqa::data {
namespace {

using ::testing::HasSubstr;

class QuestionFilesTest : public DataTest {
 protected:
  QuestionBuildReport build(const fs::path& output, bool overwrite = false) const {
    auto options = small_build(Language::kEnglish);
    options.per_type_train = options.per_type_test = 40;
    return write_questions(synthetic_view(), options, output, overwrite);
  }
  /// A question directory with these lines and a digest that fits them.
  fs::path directory(const std::string& train, const std::string& test,
                     const std::string& format = "uqa.questions") const {
    write("train.jsonl", train);
    write("test.jsonl", test);
    write("questions.json", Json{{"format", format},
                                 {"data_digest", "d"},
                                 {"language", "en"},
                                 {"digest", question_files_digest(train, test)}}
                                .dump());
    return dir_;
  }
};

Question example(std::int64_t id, std::int64_t user) {
  return {.id = id,
          .user = user,
          .begin = 2,
          .end = 9,
          .type = QuestionType::kShortTermInterest,
          .stem = "Which \"类型\"?",
          .options = {"a", "b", "c\\", "d"},
          .answer = "C",
          .text = "Which \"类型\"?\nA. a"};
}
std::string line(std::int64_t id, std::int64_t user) { return questions_to_jsonl({example(id, user)}); }

TEST_F(QuestionFilesTest, JsonLinesRoundTrip) {
  const std::vector<Question> questions{example(0, 4), example(7, 5)};
  const auto back = questions_from_jsonl(questions_to_jsonl(questions), "text");
  ASSERT_EQ(back.size(), 2u);
  EXPECT_EQ(back[1].id, 7);
  EXPECT_EQ(back[1].user, 5);
  EXPECT_EQ(back[1].begin, 2);
  EXPECT_EQ(back[1].end, 9);
  EXPECT_EQ(back[1].type, QuestionType::kShortTermInterest);
  EXPECT_EQ(back[1].stem, questions[1].stem);
  EXPECT_EQ(back[1].options, questions[1].options);
  EXPECT_EQ(back[1].answer, "C");
  EXPECT_EQ(back[1].text, questions[1].text);
  EXPECT_EQ(back[1].gold(), 2u);
}

TEST_F(QuestionFilesTest, WhatIsWrittenIsReadBackWithItsManifest) {
  const auto report = build(dir_ / "questions");
  const QuestionSet set = read_questions(dir_ / "questions");
  EXPECT_EQ(set.train.size(), 280u);
  EXPECT_EQ(set.test.size(), 280u);
  EXPECT_EQ(set.language, "en");
  EXPECT_EQ(set.data_digest, "synthetic");
  EXPECT_EQ(set.manifest.at("prior_only").at("all").at("n"), 280);
  EXPECT_EQ(set.manifest.at("prior_only").at("df").at("correct"), report.prior_only.at("df").correct);
  EXPECT_EQ(set.manifest.at("counts").at("train").at("it"), 40);
  EXPECT_EQ(set.manifest.at("users").at("test"), report.test_users);
  EXPECT_EQ(set.manifest.at("options").at("seed"), 11);
  EXPECT_EQ(set.manifest.at("options").at("attributes"), (Json{"genre=genre", "release_year=release year"}));
  build(dir_ / "again");
  EXPECT_EQ(read_questions(dir_ / "again").digest, set.digest);
}

TEST_F(QuestionFilesTest, AnExistingDirectoryIsRefusedUnlessOverwritten) {
  build(dir_ / "questions");
  EXPECT_THAT(error_of([&] { build(dir_ / "questions"); }), HasSubstr("2: "));
  build(dir_ / "questions", /*overwrite=*/true);
  EXPECT_EQ(read_questions(dir_ / "questions").train.size(), 280u);
}

TEST_F(QuestionFilesTest, AFailedBuildLeavesNothingBehind) {
  auto options = small_build(Language::kEnglish);
  options.attributes = {"absent"};
  EXPECT_THAT(error_of([&] { write_questions(synthetic_view(20), options, dir_ / "questions"); }),
              HasSubstr("2: attributes = 'absent'"));
  EXPECT_TRUE(fs::is_empty(dir_));
}

TEST_F(QuestionFilesTest, MalformedLinesAreNamedByFileAndNumber) {
  const auto error_with = [&](const std::string& second) {
    return error_of([&] { (void)read_questions(directory(line(0, 0) + second + "\n", line(1, 1))); });
  };
  const auto changed = [](const std::string& key, const Json& value) {
    Json json = to_json(example(5, 0));
    json[key] = value;
    return json.dump();
  };
  Json no_stem = to_json(example(5, 0));
  no_stem.erase("stem");
  for (const auto& [text, what] :
       std::map<std::string, std::string>{{"{\"id\": 1", ""},
                                          {no_stem.dump(), "key 'stem' is missing"},
                                          {changed("user", "x"), "key 'user' = \"x\" has the wrong type"},
                                          {changed("user", -1), "user = -1"},
                                          {changed("end", 2), "[begin, end) = [2, 2)"},
                                          {changed("type", "xx"), "question type = 'xx'"},
                                          {changed("answer", "E"), "answer = 'E'"},
                                          {changed("options", Json{"a", "b"}), "2 options, must be 4"}}) {
    const std::string error = error_with(text);
    EXPECT_THAT(error, HasSubstr("3: ")) << text;
    EXPECT_THAT(error, HasSubstr((dir_ / "train.jsonl").string() + " line 2")) << text;
    EXPECT_THAT(error, HasSubstr(what)) << text;
  }
}

TEST_F(QuestionFilesTest, SetsThatContradictThemselvesAreRefused) {
  EXPECT_EQ(read_questions(directory(line(0, 0) + "\n" + line(1, 0), line(2, 1))).train.size(),
            2u);  // blank lines are fine
  EXPECT_THAT(error_of([&] { (void)read_questions(directory(line(0, 0), line(1, 0))); }),
              HasSubstr("user 0 has train and test questions"));
  EXPECT_THAT(error_of([&] { (void)read_questions(directory(line(0, 0), line(0, 1))); }),
              HasSubstr("question id = 0 appears twice"));
  EXPECT_THAT(error_of([&] { (void)read_questions(directory(line(0, 0), line(1, 1), "uqa.shards")); }),
              HasSubstr("format = 'uqa.shards'"));
  directory(line(0, 0), line(1, 1));
  write("test.jsonl", line(1, 2));
  EXPECT_THAT(error_of([&] { (void)read_questions(dir_); }), HasSubstr("a file was changed"));
  EXPECT_THAT(error_of([&] { (void)read_questions(dir_ / "absent"); }), HasSubstr("3: "));
}

TEST_F(QuestionFilesTest, TextThatIsNotUtf8IsADataError) {
  Question q = example(3, 0);
  q.stem = "\xff";
  EXPECT_THAT(error_of([&] { (void)questions_to_jsonl({q}); }),
              HasSubstr("3: question 3 about user 0: its text cannot be written as JSON"));
}

TEST(Question, GoldOfAFreeFormQuestionIsAnError) {
  Question q = example(0, 0);
  q.options.clear();
  EXPECT_THROW((void)q.gold(), Error);
  q = example(0, 0);
  q.answer = "E";
  EXPECT_THROW((void)q.gold(), Error);
}

TEST(Question, CodesAndDimensionsAreThoseOfTheScorer) {
  std::string codes;
  for (const QuestionType type : kQuestionTypes) {
    codes += std::string(code_of(type)) + " " + name_of(dimension_of(type)) + "; ";
    EXPECT_EQ(type_of_code(code_of(type)), type);
  }
  EXPECT_EQ(codes,
            "df Sequence understanding; mf Sequence understanding; ip Action prediction; ap Action prediction; "
            "li Interest perception; si Interest perception; it Interest perception; ");
  EXPECT_THROW((void)type_of_code("DF"), Error);
}

TEST(Question, OfficialRulesAreTriedInTheirOrder) {
  EXPECT_EQ(classify_official("该用户下一个可能点击的商品的标题是什么？"), QuestionType::kItemPrediction);
  EXPECT_EQ(classify_official("该用户下一个可能点击的商品的品牌是什么？"), QuestionType::kAttributePrediction);
  EXPECT_EQ(classify_official("第2次（从1开始计数）浏览的店铺"), QuestionType::kDirectFeature);
  EXPECT_EQ(classify_official("偏好的转移路径是什么，用户近期最感兴趣的"), QuestionType::kShortTermInterest);
  EXPECT_EQ(classify_official("用户近期最感兴趣的，用户最感兴趣的3个，次浏览的商品的"), QuestionType::kDirectFeature);
  EXPECT_EQ(classify_official("长度是多少？"), QuestionType::kMatchFeature);
  EXPECT_THROW((void)classify_official("长度是多少?"), Error);  // the half-width sign is not the key
}

TEST(OfficialScorer, GroupsWithoutQuestionsHaveNoScore) {
  const auto scores =
      score_official({{"长度是多少？", "AB", {"A"}}, {"长度是多少？", "", {""}}, {"长度是多少？", "B", {}}});
  EXPECT_EQ(scores.by_type[static_cast<std::size_t>(QuestionType::kMatchFeature)], 66.666667);
  const Json json = to_json(scores);
  EXPECT_EQ(json.at("All tasks").at("acc"), 66.666667);
  EXPECT_TRUE(json.at("ip").at("acc").is_null());
  EXPECT_TRUE(json.at("Action prediction").at("acc").is_null());
  EXPECT_FALSE(score_official({}).all.has_value());
}

TEST_F(QuestionFilesTest, PredictionLinesAreNamedByFileAndNumber) {
  const auto path = write("predictions.jsonl",
                          "{\"question\": \"q\", \"prediction\": \"A\", \"answer\": [\"A\", \"B\"], \"user\": 3}\n"
                          "{\"question\": \"q\", \"prediction\": \"A\", \"answer\": 3}\n");
  EXPECT_THAT(error_of([&] { (void)read_predictions(path); }),
              HasSubstr("3: " + path.string() + " line 2: key 'answer' = 3"));
}

}  // namespace
}  // namespace uqa::data
