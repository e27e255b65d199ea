// data/questions/question_files.h - names and text form of the files in a question directory; shared by its reader and
// writers.
#pragma once

#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "data/question.h"

namespace uqa::data {

inline constexpr const char* kQuestionFormat = "uqa.questions";
inline constexpr const char* kQuestionManifest = "questions.json";
inline constexpr const char* kTrainQuestions = "train.jsonl";
inline constexpr const char* kTestQuestions = "test.jsonl";

/// One JSON object a line.
[[nodiscard]] std::string questions_to_jsonl(const std::vector<Question>& questions);
/// The inverse; `what` names the text. Throws Error(kData) naming `what` and the line number.
[[nodiscard]] std::vector<Question> questions_from_jsonl(std::string_view text, const std::string& what);

/// Calls `visit(object, "<what> line <n>")` for every line that is not blank. Throws Error(kData) on text that is not
/// JSON.
void for_each_json_line(std::string_view text, const std::string& what,
                        const std::function<void(const Json&, const std::string&)>& visit);

/// Digest of the content of train.jsonl and test.jsonl: names evaluation directories.
[[nodiscard]] std::string question_files_digest(std::string_view train_jsonl, std::string_view test_jsonl);

}  // namespace uqa::data
