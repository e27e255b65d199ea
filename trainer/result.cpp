#include "trainer/result.h"

#include <algorithm>
#include <sstream>
#include <utility>

#include "core/error.h"

namespace uqa::trainer {
namespace {

Rule rule_of_name(const std::string& name, const std::string& what) {
  for (const Rule rule : kRules) {
    if (name == name_of(rule)) return rule;
  }
  UQA_FAIL(ErrorCode::kData, "{}: rule '{}', must be first_token, letter, text or calibrated", what, name);
}

/// Index of the largest score; the first of equal ones.
std::int64_t best(const std::vector<double>& scores) {
  return std::distance(scores.begin(), std::max_element(scores.begin(), scores.end()));
}

Json to_json(const Accuracy& accuracy) {
  const auto interval = accuracy.interval();
  return {{"n", accuracy.n}, {"correct", accuracy.correct}, {"accuracy", accuracy.value()}, {"low", interval.low}, {"high", interval.high}};
}

Accuracy accuracy_from_json(const Json& json, const std::string& what) {
  const Accuracy accuracy{.n = get<std::int64_t>(json, "n", what), .correct = get<std::int64_t>(json, "correct", what)};
  UQA_CHECK(accuracy.n >= 0 && accuracy.correct >= 0 && accuracy.correct <= accuracy.n, ErrorCode::kData,
            "{}: correct = {} of n = {}, must be between 0 and n", what, accuracy.correct, accuracy.n);
  return accuracy;
}

std::map<std::string, Accuracy> accuracies_from_json(const Json& json, const std::string& what) {
  UQA_CHECK(json.is_object(), ErrorCode::kData, "{}: accuracies must be an object", what);
  std::map<std::string, Accuracy> accuracies;
  for (const auto& [key, value] : json.items()) accuracies[key] = accuracy_from_json(value, what + ": " + key);
  return accuracies;
}

}  // namespace

const char* name_of(Rule rule) {
  switch (rule) {
    case Rule::kFirstToken: return "first_token";
    case Rule::kLetter: return "letter";
    case Rule::kText: return "text";
    case Rule::kCalibrated: return "calibrated";
  }
  UQA_FAIL(ErrorCode::kInternal, "unknown rule {}", static_cast<int>(rule));
}

void judge(Prediction& prediction, std::int64_t gold) {
  prediction.correct[Rule::kFirstToken] = prediction.prediction.starts_with(prediction.answer);
  if (gold < 0) return;
  prediction.correct[Rule::kLetter] = best(prediction.letter_nats) == gold;
  prediction.correct[Rule::kText] = best(prediction.text_nats) == gold;
  if (!prediction.calibrated_nats.empty()) prediction.correct[Rule::kCalibrated] = best(prediction.calibrated_nats) == gold;
}

Json to_json(const Prediction& prediction) {
  Json correct = Json::object();
  for (const auto& [rule, value] : prediction.correct) correct[name_of(rule)] = value;
  return {{"question", prediction.question}, {"prediction", prediction.prediction}, {"answer", prediction.answer},
          {"type", prediction.type},         {"user", prediction.user},             {"id", prediction.id},
          {"input_tokens", prediction.input_tokens}, {"letter_nats", prediction.letter_nats}, {"text_nats", prediction.text_nats},
          {"calibrated_nats", prediction.calibrated_nats}, {"correct", correct}};
}

Prediction prediction_from_json(const Json& json, const std::string& what) {
  Prediction prediction{.question = get<std::string>(json, "question", what),
                        .prediction = get<std::string>(json, "prediction", what),
                        .answer = get<std::string>(json, "answer", what),
                        .type = get<std::string>(json, "type", what),
                        .user = get<std::int64_t>(json, "user", what),
                        .id = get<std::int64_t>(json, "id", what),
                        .input_tokens = get<std::int64_t>(json, "input_tokens", what),
                        .letter_nats = get<std::vector<double>>(json, "letter_nats", what),
                        .text_nats = get<std::vector<double>>(json, "text_nats", what),
                        .calibrated_nats = get<std::vector<double>>(json, "calibrated_nats", what),
                        .correct = {}};
  static_cast<void>(data::type_of_code(prediction.type));
  const auto correct = get<Json>(json, "correct", what);
  UQA_CHECK(correct.is_object(), ErrorCode::kData, "{}: key 'correct' must be an object", what);
  for (const auto& [name, value] : correct.items()) prediction.correct[rule_of_name(name, what)] = get<bool>(correct, name, what);
  return prediction;
}

std::map<Rule, RuleResult> count_correct(const std::vector<Prediction>& predictions) {
  std::map<Rule, RuleResult> rules;
  for (const auto& prediction : predictions) {
    const std::string dimension = data::name_of(data::dimension_of(data::type_of_code(prediction.type)));
    for (const auto& [rule, correct] : prediction.correct) {
      auto& result = rules[rule];
      for (Accuracy* accuracy : {&result.types[prediction.type], &result.dimensions[dimension], &result.all}) {
        ++accuracy->n;
        accuracy->correct += correct ? 1 : 0;
      }
    }
  }
  for (auto& [rule, result] : rules) {
    double sum = 0;
    for (const auto& [type, accuracy] : result.types) sum += accuracy.value();
    result.macro = sum / static_cast<double>(result.types.size());
  }
  return rules;
}

Interval RuleResult::macro_interval() const {
  if (types.empty()) return {0, 1};
  std::vector<Proportion> proportions;
  for (const auto& [code, accuracy] : types) proportions.push_back({accuracy.correct, accuracy.n});
  return mean_proportion_interval(proportions);
}

Json to_json(const EvaluationResult& result) {
  Json rules = Json::object();
  for (const auto& [rule, value] : result.rules) {
    Json types = Json::object(), dimensions = Json::object();
    for (const auto& [name, accuracy] : value.types) types[name] = to_json(accuracy);
    for (const auto& [name, accuracy] : value.dimensions) dimensions[name] = to_json(accuracy);
    const auto macro = value.macro_interval();
    rules[name_of(rule)] = {{"types", types}, {"dimensions", dimensions}, {"all", to_json(value.all)},
                            {"macro", {{"accuracy", value.macro}, {"low", macro.low}, {"high", macro.high}}}};
  }
  return {{"format", "uqa.evaluation"},
          {"version", 1},
          {"prompt", result.prompt},
          {"questions_digest", result.questions_digest},
          {"rules", rules},
          {"input_tokens_per_question", result.input_tokens_per_question},
          {"questions_per_s", result.questions_per_s},
          {"details", result.details}};
}

EvaluationResult evaluation_result_from_json(const Json& json, const std::string& what) {
  UQA_CHECK(get<std::string>(json, "format", what) == "uqa.evaluation", ErrorCode::kData, "{}: format is not uqa.evaluation; give the directory of an evaluation",
            what);
  EvaluationResult result{.prompt = get<std::string>(json, "prompt", what),
                          .questions_digest = get<std::string>(json, "questions_digest", what),
                          .rules = {},
                          .input_tokens_per_question = get<double>(json, "input_tokens_per_question", what),
                          .questions_per_s = get<double>(json, "questions_per_s", what),
                          .details = get<Json>(json, "details", what)};
  const auto rules = get<Json>(json, "rules", what);
  UQA_CHECK(rules.is_object(), ErrorCode::kData, "{}: key 'rules' must be an object", what);
  for (const auto& [name, value] : rules.items()) {
    RuleResult rule;
    rule.types = accuracies_from_json(get<Json>(value, "types", what), what);
    rule.dimensions = accuracies_from_json(get<Json>(value, "dimensions", what), what);
    rule.all = accuracy_from_json(get<Json>(value, "all", what), what);
    rule.macro = get<double>(get<Json>(value, "macro", what), "accuracy", what);
    result.rules[rule_of_name(name, what)] = std::move(rule);
  }
  return result;
}

EvaluationResult read_result(const fs::path& directory) {
  const fs::path path = directory / "result.json";
  return evaluation_result_from_json(read_json(path), path.string());
}

std::vector<Prediction> read_predictions(const fs::path& directory) {
  const fs::path path = directory / "predictions.jsonl";
  std::istringstream lines(read_file(path));
  std::vector<Prediction> predictions;
  std::string line;
  for (std::int64_t number = 1; std::getline(lines, line); ++number) {
    const std::string what = fmt::format("{} line {}", path.string(), number);
    predictions.push_back(prediction_from_json(parse_json(line, what), what));
  }
  UQA_CHECK(!predictions.empty(), ErrorCode::kData, "{} has no predictions; evaluate again", path.string());
  return predictions;
}

}  // namespace uqa::trainer
