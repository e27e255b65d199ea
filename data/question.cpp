#include "data/question.h"

#include <algorithm>
#include <string_view>
#include <unordered_set>
#include <utility>

#include "core/error.h"
#include "core/hash.h"
#include "data/questions/question_files.h"

namespace uqa::data {

namespace {

struct Rule {
  QuestionType type;
  const char* substring;
};
// Order matters: the rule of ap is a substring of every ip question. Full-width signs are part of the keys.
constexpr std::array kOfficialRules{
    Rule{QuestionType::kDirectFeature, "次浏览的商品的"},
    Rule{QuestionType::kDirectFeature, "次（从1开始计数）浏览的"},
    Rule{QuestionType::kMatchFeature, "长度是多少？"},
    Rule{QuestionType::kMatchFeature, "的商品有多少个"},
    Rule{QuestionType::kItemPrediction, "下一个可能点击的商品的标题是什么"},
    Rule{QuestionType::kAttributePrediction, "用户下一个可能点击的商品的"},
    Rule{QuestionType::kLongTermInterest, "用户最感兴趣的3个"},
    Rule{QuestionType::kShortTermInterest, "用户近期最感兴趣的"},
    Rule{QuestionType::kInterestTrajectory, "偏好的转移路径是什么"},
};

}  // namespace

const char* code_of(QuestionType type) {
  switch (type) {
    case QuestionType::kDirectFeature:
      return "df";
    case QuestionType::kMatchFeature:
      return "mf";
    case QuestionType::kItemPrediction:
      return "ip";
    case QuestionType::kAttributePrediction:
      return "ap";
    case QuestionType::kLongTermInterest:
      return "li";
    case QuestionType::kShortTermInterest:
      return "si";
    case QuestionType::kInterestTrajectory:
      return "it";
  }
  UQA_FAIL(ErrorCode::kInternal, "question type {} is none of the seven", static_cast<int>(type));
}

QuestionType type_of_code(const std::string& code) {
  for (const QuestionType type : kQuestionTypes) {
    if (code == code_of(type)) return type;
  }
  UQA_FAIL(ErrorCode::kData, "question type = '{}', must be one of df mf ip ap li si it", code);
}

Dimension dimension_of(QuestionType type) {
  switch (type) {
    case QuestionType::kDirectFeature:
    case QuestionType::kMatchFeature:
      return Dimension::kSequenceUnderstanding;
    case QuestionType::kItemPrediction:
    case QuestionType::kAttributePrediction:
      return Dimension::kActionPrediction;
    case QuestionType::kLongTermInterest:
    case QuestionType::kShortTermInterest:
    case QuestionType::kInterestTrajectory:
      return Dimension::kInterestPerception;
  }
  UQA_FAIL(ErrorCode::kInternal, "question type {} is none of the seven", static_cast<int>(type));
}

const char* name_of(Dimension dimension) {
  switch (dimension) {
    case Dimension::kSequenceUnderstanding:
      return "Sequence understanding";
    case Dimension::kActionPrediction:
      return "Action prediction";
    case Dimension::kInterestPerception:
      return "Interest perception";
  }
  UQA_FAIL(ErrorCode::kInternal, "dimension {} is none of the three", static_cast<int>(dimension));
}

QuestionType classify_official(const std::string& question) {
  for (const Rule& rule : kOfficialRules) {
    if (question.find(rule.substring) != std::string::npos) return rule.type;
  }
  UQA_FAIL(ErrorCode::kData,
           "question = '{}', matches none of the official scorer's substrings; use the reference's Chinese wording",
           question);
}

std::size_t Question::gold() const {
  UQA_CHECK(!options.empty(), ErrorCode::kData,
            "question {} is free-form (no options), a multiple-choice one is needed", id);
  UQA_CHECK(answer.size() == 1 && answer[0] >= 'A' && static_cast<std::size_t>(answer[0] - 'A') < options.size(),
            ErrorCode::kData, "question {}: answer = '{}', must be the letter of one of its {} options", id, answer,
            options.size());
  return static_cast<std::size_t>(answer[0] - 'A');
}

Json to_json(const Question& q) {
  return Json{{"id", q.id},           {"user", q.user},          {"begin", q.begin},
              {"end", q.end},         {"type", code_of(q.type)}, {"stem", q.stem},
              {"options", q.options}, {"answer", q.answer},      {"text", q.text}};
}

Question question_from_json(const Json& json, const std::string& what) {
  Question q;
  q.id = get<std::int64_t>(json, "id", what);
  q.user = get<std::int64_t>(json, "user", what);
  q.begin = get<std::int64_t>(json, "begin", what);
  q.end = get<std::int64_t>(json, "end", what);
  const auto code = get<std::string>(json, "type", what);
  try {
    q.type = type_of_code(code);
  } catch (const Error& error) {
    UQA_FAIL(ErrorCode::kData, "{}: {}", what, error.what());
  }
  q.stem = get<std::string>(json, "stem", what);
  q.options = get<std::vector<std::string>>(json, "options", what);
  q.answer = get<std::string>(json, "answer", what);
  q.text = get<std::string>(json, "text", what);
  UQA_CHECK(q.user >= 0, ErrorCode::kData, "{}: user = {}, must be 0 or more", what, q.user);
  UQA_CHECK(0 <= q.begin && q.begin < q.end, ErrorCode::kData,
            "{}: history [begin, end) = [{}, {}), must not be empty or start below 0", what, q.begin, q.end);
  UQA_CHECK(q.options.empty() || q.options.size() == 4, ErrorCode::kData,
            "{}: {} options, must be 4 (or none for a free-form question)", what, q.options.size());
  UQA_CHECK(q.options.empty() || (q.answer.size() == 1 && q.answer[0] >= 'A' && q.answer[0] <= 'D'), ErrorCode::kData,
            "{}: answer = '{}', must be one of A B C D", what, q.answer);
  return q;
}

std::string questions_to_jsonl(const std::vector<Question>& questions) {
  std::string text;
  for (const Question& q : questions) {
    try {
      text += to_json(q).dump() + '\n';
    } catch (const Json::exception& error) {
      UQA_FAIL(
          ErrorCode::kData,
          "question {} about user {}: its text cannot be written as JSON ({}); titles and attributes must be UTF-8",
          q.id, q.user, error.what());
    }
  }
  return text;
}

std::vector<Question> questions_from_jsonl(std::string_view text, const std::string& what) {
  std::vector<Question> questions;
  for_each_json_line(text, what, [&](const Json& json, const std::string& line) {
    questions.push_back(question_from_json(json, line));
  });
  return questions;
}

void for_each_json_line(std::string_view text, const std::string& what,
                        const std::function<void(const Json&, const std::string&)>& visit) {
  std::int64_t number = 0;
  while (!text.empty()) {
    const std::size_t length = std::min(text.find('\n'), text.size());
    const std::string_view line = text.substr(0, length);
    text.remove_prefix(std::min(length + 1, text.size()));
    ++number;
    if (line.find_first_not_of(" \t\r") == std::string_view::npos) continue;
    const std::string where = fmt::format("{} line {}", what, number);
    visit(parse_json(line, where), where);
  }
}

std::string question_files_digest(std::string_view train_jsonl, std::string_view test_jsonl) {
  return hash_hex(hash_hex(train_jsonl) + hash_hex(test_jsonl));
}

QuestionSet read_questions(const fs::path& directory) {
  QuestionSet set;
  const fs::path manifest_path = directory / kQuestionManifest;
  set.manifest = read_json(manifest_path);
  const std::string what = manifest_path.string();
  const auto format = get<std::string>(set.manifest, "format", what);
  UQA_CHECK(format == kQuestionFormat, ErrorCode::kData,
            "{}: format = '{}', must be '{}'; give a directory of `uqa questions`", what, format, kQuestionFormat);
  set.data_digest = get<std::string>(set.manifest, "data_digest", what);
  set.language = get<std::string>(set.manifest, "language", what);
  UQA_CHECK(set.language == "zh" || set.language == "en", ErrorCode::kData, "{}: language = '{}', must be zh or en",
            what, set.language);
  const std::string train = read_file(directory / kTrainQuestions), test = read_file(directory / kTestQuestions);
  set.digest = question_files_digest(train, test);
  const auto recorded = get<std::string>(set.manifest, "digest", what);
  set.train = questions_from_jsonl(train, (directory / kTrainQuestions).string());
  set.test = questions_from_jsonl(test, (directory / kTestQuestions).string());
  UQA_CHECK(set.digest == recorded, ErrorCode::kData,
            "{}: digest = {}, but train.jsonl and test.jsonl give {}; a file was changed, build the questions again",
            what, recorded, set.digest);

  std::unordered_set<std::int64_t> ids, train_users;
  for (const auto* split : {&set.train, &set.test}) {
    for (const Question& q : *split) {
      UQA_CHECK(ids.insert(q.id).second, ErrorCode::kData, "{}: question id = {} appears twice, must be unique",
                directory.string(), q.id);
      if (split == &set.train) {
        train_users.insert(q.user);
      } else {
        UQA_CHECK(!train_users.contains(q.user), ErrorCode::kData,
                  "{}: user {} has train and test questions (test id {}), must be in one split only",
                  directory.string(), q.user, q.id);
      }
    }
  }
  return set;
}

}  // namespace uqa::data
