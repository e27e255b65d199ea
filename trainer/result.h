// trainer/result.h - predictions and accuracies of one evaluation, their files, and the table that shows several side by side.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "core/json.h"
#include "core/statistics.h"
#include "data/question.h"

namespace uqa::trainer {

/// How a prediction is judged.
enum class Rule {
  kFirstToken,  ///< the official scorer's: the generated text, by default the greedy next token's, begins with the answer
  kLetter,      ///< the gold letter has the highest probability of the four letters
  kText,        ///< the gold option's own words have the highest log-likelihood per token
  /// The gold option's words gain most, per token, over the same prompt about nobody in particular: the average user's soft token, or no
  /// titles. What the LLM likes about an option whoever asks cancels (domain-conditional PMI, Holtzman et al. 2021). A prompt that tells
  /// nothing about a user has nothing to subtract: its kCalibrated is its kText.
  kCalibrated,
};
inline constexpr std::array kRules{Rule::kFirstToken, Rule::kLetter, Rule::kText, Rule::kCalibrated};
[[nodiscard]] const char* name_of(Rule rule);  ///< "first_token" "letter" "text" "calibrated"

/// One line of predictions.jsonl.
struct Prediction {
  std::string question;                    ///< the whole user message
  std::string prediction;                  ///< generated text: the greedy next token, or a whole answer without what ended it
  std::string answer;                      ///< gold letter, or free text
  std::string type;                        ///< code, for example "df"
  std::int64_t user = 0, id = 0;
  std::int64_t input_tokens = 0;           ///< rows of the prompt, the soft token included
  std::vector<double> letter_nats;         ///< log-softmax over the four letters; empty for a free-form question
  std::vector<double> text_nats;           ///< log-likelihood per token of each option's words; empty likewise
  std::vector<double> calibrated_nats;     ///< text_nats less those of the prompt about nobody; empty where that is not known
  std::map<Rule, bool> correct;            ///< free-form questions have kFirstToken alone
};
[[nodiscard]] Json to_json(const Prediction& prediction);
[[nodiscard]] Prediction prediction_from_json(const Json& json, const std::string& what);
/// Fills `correct` from the scores and the gold index (-1: free-form). Equal scores: the first option wins.
void judge(Prediction& prediction, std::int64_t gold);

struct Accuracy {
  std::int64_t n = 0, correct = 0;
  [[nodiscard]] double value() const { return n == 0 ? 0 : static_cast<double>(correct) / static_cast<double>(n); }
  [[nodiscard]] Interval interval() const { return wilson_interval(correct, n); }
};

/// Accuracies of one rule.
struct RuleResult {
  std::map<std::string, Accuracy> types;       ///< by code; only types that occur
  std::map<std::string, Accuracy> dimensions;  ///< by name; only dimensions that occur
  Accuracy all;                                ///< micro average
  double macro = 0;                            ///< mean over types
  /// 95 % interval of `macro`, types taken as independent samples. {0, 1} without a type.
  [[nodiscard]] Interval macro_interval() const;
};

struct EvaluationResult {
  std::string prompt;
  std::string questions_digest;
  std::map<Rule, RuleResult> rules;
  double input_tokens_per_question = 0;
  double questions_per_s = 0;
  Json details;                                ///< configuration, digests, prior-only accuracy, host
};
[[nodiscard]] std::map<Rule, RuleResult> count_correct(const std::vector<Prediction>& predictions);
[[nodiscard]] Json to_json(const EvaluationResult& result);
[[nodiscard]] EvaluationResult evaluation_result_from_json(const Json& json, const std::string& what);

/// Reads result.json and predictions.jsonl of an evaluation directory. Error(kData) naming the file and line.
[[nodiscard]] EvaluationResult read_result(const fs::path& directory);
[[nodiscard]] std::vector<Prediction> read_predictions(const fs::path& directory);

/// Several evaluations side by side, one column each: accuracy in percent with its 95 % interval per type, per dimension, overall and
/// macro under `rule`, input tokens per question, questions/s.
[[nodiscard]] std::string render_table(const std::vector<std::pair<std::string, EvaluationResult>>& columns, Rule rule);

}  // namespace uqa::trainer
