// data/question.h - one personalized multiple-choice question, and the files that hold them.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "core/file.h"
#include "core/json.h"

namespace uqa::data {

/// The seven types of UQABench, named as its official scorer names them.
enum class QuestionType { kDirectFeature, kMatchFeature, kItemPrediction, kAttributePrediction, kLongTermInterest, kShortTermInterest, kInterestTrajectory };
inline constexpr std::array kQuestionTypes{QuestionType::kDirectFeature,     QuestionType::kMatchFeature,
                                           QuestionType::kItemPrediction,    QuestionType::kAttributePrediction,
                                           QuestionType::kLongTermInterest,  QuestionType::kShortTermInterest,
                                           QuestionType::kInterestTrajectory};
enum class Dimension { kSequenceUnderstanding, kActionPrediction, kInterestPerception };
inline constexpr std::array kDimensions{Dimension::kSequenceUnderstanding, Dimension::kActionPrediction, Dimension::kInterestPerception};

[[nodiscard]] const char* code_of(QuestionType type);       ///< "df" "mf" "ip" "ap" "li" "si" "it"
[[nodiscard]] QuestionType type_of_code(const std::string& code);  ///< Error(kData) if unknown
[[nodiscard]] Dimension dimension_of(QuestionType type);
[[nodiscard]] const char* name_of(Dimension dimension);     ///< "Sequence understanding" "Action prediction" "Interest perception"
/// The type that the official scorer's substring rules give to a Chinese question (first match wins), reference section 4d.
/// Error(kData) when none matches, as there.
[[nodiscard]] QuestionType classify_official(const std::string& question);

/// A record as stored, one JSON object a line. `end` is exclusive: the history shown is interactions [begin, end).
struct Question {
  std::int64_t id = 0;                 ///< unique within a question set, over both splits
  std::int64_t user = 0;               ///< user index in the data set
  std::int64_t begin = 0, end = 0;
  QuestionType type = QuestionType::kDirectFeature;
  std::string stem;                    ///< the question without its options
  std::vector<std::string> options;    ///< 4 texts, in the order shown; empty for imported free-form questions
  std::string answer;                  ///< gold letter "A".."D", or free text for imported questions
  std::string text;                    ///< the whole user message: stem, options, and how to answer
  /// Index of the gold option; Error(kData) for a free-form question.
  [[nodiscard]] std::size_t gold() const;
};

/// The same question with its options moved `shift` places forward (option i becomes the old option (i + shift) modulo 4), the gold letter and the
/// text with them. `language` is the question set's. Error(kConfig) for a question whose text is not stem, options and how to answer as
/// `uqa questions` words them: its options cannot be moved.
[[nodiscard]] Question with_rotated_options(const Question& question, std::int64_t shift, const std::string& language);

[[nodiscard]] Json to_json(const Question& q);
[[nodiscard]] Question question_from_json(const Json& json, const std::string& what);

/// A directory written by `uqa questions`: questions.json (language, counts, data digest, prior-only answerer), train.jsonl,
/// test.jsonl. No user appears in both splits.
struct QuestionSet {
  std::string data_digest;   ///< of the data set that it was built from
  std::string language;      ///< "zh" or "en"
  std::vector<Question> train, test;
  Json manifest;             ///< all of questions.json
  std::string digest;        ///< of both files: names evaluation directories
};
[[nodiscard]] QuestionSet read_questions(const fs::path& directory);

}  // namespace uqa::data
