#include "data/questions/published.h"

#include <algorithm>
#include <string>
#include <unordered_map>
#include <vector>

#include "core/error.h"
#include "core/log.h"
#include "data/import/arrow_rows.h"
#include "data/question.h"
#include "data/questions/question_files.h"

namespace uqa::data {

namespace {

std::string content_of(const Json& chat, std::size_t index, const char* role, const std::string& where) {
  UQA_CHECK(chat.is_array() && chat.size() > index, ErrorCode::kData,
            "{}: column 'text' holds no message {}, a JSON list of user and assistant messages is needed", where,
            index + 1);
  const auto found = get<std::string>(chat[index], "role", where);
  UQA_CHECK(found == role, ErrorCode::kData, "{}: message {} has role '{}', must be '{}'", where, index + 1, found,
            role);
  return get<std::string>(chat[index], "content", where);
}

}  // namespace

PublishedQuestionReport import_published_questions(const Dataset& data, const PublishedQuestionFiles& files,
                                                   const fs::path& output, bool overwrite, std::int64_t max_len) {
  UQA_CHECK(max_len >= 1, ErrorCode::kConfig, "max_len = {}, must be at least 1", max_len);
  OutputDir directory(output, {.kind = kQuestionFormat, .overwrite = overwrite});
  std::unordered_map<std::string, std::int64_t> user_of;
  for (std::int64_t user = 0; user < data.num_users(); ++user)
    user_of.emplace(std::string(data.raw_user_id(user)), user);

  PublishedQuestionReport report;
  std::int64_t next_id = 0, row_in_data = files.first_row;
  const auto read = [&](const fs::path& path) {
    std::vector<Question> questions;
    const auto texts = import::read_text_column(path);
    for (std::size_t row = 0; row < texts.size(); ++row, ++row_in_data) {
      const std::string where = fmt::format("{} row {}", path.string(), row + 1);
      const Json chat = parse_json(texts[row], where);
      Question q;
      q.text = q.stem = content_of(chat, 0, "user", where);
      q.answer = content_of(chat, 1, "assistant", where);
      try {
        q.type = classify_official(q.text);
      } catch (const Error& error) {
        UQA_FAIL(ErrorCode::kData, "{}: {}", where, error.what());
      }
      const auto user = user_of.find(std::to_string(row_in_data));
      if (user == user_of.end()) {
        ++report.without_user;
        continue;
      }
      q.id = next_id++;
      q.user = user->second;
      q.end = data.length(q.user);
      q.begin = std::max<std::int64_t>(0, q.end - max_len);
      questions.push_back(std::move(q));
    }
    return questions;
  };
  const auto train_questions = read(files.train), test_questions = read(files.eval);
  report.num_train = std::ssize(train_questions);
  report.num_test = std::ssize(test_questions);
  UQA_CHECK(report.num_train > 0 && report.num_test > 0, ErrorCode::kData,
            "{} and {}: {} train and {} test questions belong to users of the data set; import it from the same files "
            "in this order",
            files.train.string(), files.eval.string(), report.num_train, report.num_test);
  Json notes = Json::array();
  if (report.without_user > 0) {
    notes.push_back(fmt::format("{} questions left out: their rows are not in the data set (fewer than 2 interactions)",
                                report.without_user));
    log::warn("questions", "{}", notes.back().get<std::string>());
  }

  const std::string train = questions_to_jsonl(train_questions), test = questions_to_jsonl(test_questions);
  const auto count = [](const std::vector<Question>& questions) {
    Json counts = Json::object();
    for (const Question& q : questions) counts[code_of(q.type)] = counts.value(code_of(q.type), 0) + 1;
    return counts;
  };
  const Json manifest{
      {"format", kQuestionFormat},
      {"version", 1},
      {"language", "zh"},
      {"data_digest", data.digest()},
      {"digest", question_files_digest(train, test)},
      {"source",
       {{"train", files.train.filename().string()}, {"eval", files.eval.filename().string()}, {"max_len", max_len}}},
      {"counts", {{"train", count(train_questions)}, {"test", count(test_questions)}}},
      {"notes", notes}};
  write_file_atomic(directory.path() / kTrainQuestions, train);
  write_file_atomic(directory.path() / kTestQuestions, test);
  write_file_atomic(directory.path() / kQuestionManifest, manifest.dump(1) + "\n");
  directory.commit();
  return report;
}

}  // namespace uqa::data
