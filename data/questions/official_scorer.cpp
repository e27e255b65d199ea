#include "data/questions/official_scorer.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>

#include "core/error.h"
#include "data/questions/question_files.h"

namespace uqa::data {

namespace {

struct Count {
  std::int64_t correct = 0, n = 0;
  [[nodiscard]] std::optional<double> percent() const {
    if (n == 0) return std::nullopt;
    // printf rounds the exact binary value half to even, as Python's round() does; multiplying by 1e6 first would not.
    std::array<char, 64> text{};
    std::snprintf(text.data(), text.size(), "%.6f", static_cast<double>(correct) / static_cast<double>(n) * 100);
    return std::strtod(text.data(), nullptr);
  }
};

Json acc(const std::optional<double>& value) { return value ? Json{{"acc", *value}} : Json{{"acc", nullptr}}; }

}  // namespace

std::vector<Prediction> read_predictions(const fs::path& path) {
  std::vector<Prediction> predictions;
  for_each_json_line(read_file(path), path.string(), [&](const Json& json, const std::string& where) {
    Prediction p{get<std::string>(json, "question", where), get<std::string>(json, "prediction", where), {}};
    const bool list = json.contains("answer") && json.at("answer").is_array();
    p.answers = list ? get<std::vector<std::string>>(json, "answer", where)
                     : std::vector{get<std::string>(json, "answer", where)};
    predictions.push_back(std::move(p));
  });
  return predictions;
}

OfficialScores score_official(const std::vector<Prediction>& predictions) {
  Count all;
  std::array<Count, kDimensions.size()> dimensions;
  std::array<Count, kQuestionTypes.size()> types;
  for (const Prediction& p : predictions) {
    const QuestionType type = classify_official(p.question);
    const bool correct = std::any_of(p.answers.begin(), p.answers.end(),
                                     [&](const std::string& answer) { return p.prediction.starts_with(answer); });
    for (Count* count :
         {&all, &dimensions[static_cast<std::size_t>(dimension_of(type))], &types[static_cast<std::size_t>(type)]}) {
      ++count->n;
      if (correct) ++count->correct;
    }
  }
  OfficialScores scores;
  scores.all = all.percent();
  for (std::size_t i = 0; i < dimensions.size(); ++i) scores.by_dimension[i] = dimensions[i].percent();
  for (std::size_t i = 0; i < types.size(); ++i) scores.by_type[i] = types[i].percent();
  return scores;
}

Json to_json(const OfficialScores& scores) {
  Json json{{"All tasks", acc(scores.all)}};
  for (const Dimension d : kDimensions) json[name_of(d)] = acc(scores.by_dimension[static_cast<std::size_t>(d)]);
  for (const QuestionType t : kQuestionTypes) json[code_of(t)] = acc(scores.by_type[static_cast<std::size_t>(t)]);
  return json;
}

}  // namespace uqa::data
