// data/questions/official_scorer.h - UQABench's own accuracy: a prediction counts when it starts with the answer.
//
//   const auto scores = score_official(read_predictions("eval/soft-0123/predictions.jsonl"));
//   fmt::print("{}\n", to_json(scores).dump(1));
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "core/file.h"
#include "core/json.h"
#include "data/question.h"

namespace uqa::data {

struct Prediction {
  std::string question;              ///< Chinese text, classified by the official substrings
  std::string prediction;            ///< what the model said; may be empty
  std::vector<std::string> answers;  ///< any of them as a prefix counts; an empty string always does
};

/// Reads lines with at least {"question", "prediction", "answer"}; the answer is a text or a list of texts. Throws
/// Error(kData) naming file and line.
[[nodiscard]] std::vector<Prediction> read_predictions(const fs::path& path);

/// Percent, rounded to 6 places (half to even on the binary value, as Python's round does); all and dimensions are
/// micro averages. Empty where there is no question: the reference divides by zero there.
struct OfficialScores {
  std::optional<double> all;
  std::array<std::optional<double>, kDimensions.size()> by_dimension;  ///< in the order of kDimensions
  std::array<std::optional<double>, kQuestionTypes.size()> by_type;    ///< in the order of kQuestionTypes
};
/// Throws Error(kData) for a question that the official rules do not classify.
[[nodiscard]] OfficialScores score_official(const std::vector<Prediction>& predictions);

/// {"All tasks": {"acc": 38.5}, "Sequence understanding": ..., "df": ...} as the reference writes it; null for an
/// absent group.
[[nodiscard]] Json to_json(const OfficialScores& scores);

}  // namespace uqa::data
