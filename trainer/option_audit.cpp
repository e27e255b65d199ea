#include "trainer/option_audit.h"

#include <algorithm>
#include <cstdint>

#include "core/error.h"

namespace uqa::trainer {
namespace {

constexpr std::int64_t kOptions = 4;

/// Index of the chosen letter; -1: none.
std::int64_t chosen(const Prediction& prediction, Rule rule) {
  const auto best = [](const std::vector<double>& scores) { return std::distance(scores.begin(), std::max_element(scores.begin(), scores.end())); };
  switch (rule) {
    case Rule::kFirstToken: {
      const char letter = prediction.prediction.empty() ? ' ' : prediction.prediction.front();
      return letter >= 'A' && letter < 'A' + kOptions ? letter - 'A' : -1;
    }
    case Rule::kLetter: return best(prediction.letter_nats);
    case Rule::kText: return best(prediction.text_nats);
    case Rule::kCalibrated: return best(prediction.calibrated_nats);
  }
  UQA_FAIL(ErrorCode::kInternal, "unknown rule {}", static_cast<int>(rule));
}

}  // namespace

OptionAudit audit_options(const std::vector<std::vector<Prediction>>& rotations) {
  UQA_CHECK(!rotations.empty(), ErrorCode::kInternal, "audit_options: no rotation");
  OptionAudit audit;
  for (const Rule rule : kRules) {
    std::vector<std::size_t> questions;
    for (std::size_t q = 0; q < rotations.front().size(); ++q) {
      if (!rotations.front()[q].letter_nats.empty() && rotations.front()[q].correct.contains(rule)) questions.push_back(q);
    }
    if (questions.empty()) continue;
    auto& result = audit.rules[rule];
    const auto count = static_cast<double>(questions.size());
    std::vector<std::int64_t> first(questions.size());
    std::vector<bool> agrees(questions.size(), true);
    for (std::size_t r = 0; r < rotations.size(); ++r) {
      double correct = 0;
      for (std::size_t i = 0; i < questions.size(); ++i) {
        const auto& prediction = rotations[r].at(questions[i]);
        UQA_CHECK(prediction.id == rotations.front()[questions[i]].id, ErrorCode::kInternal, "audit_options: question {} where {} belongs", prediction.id,
                  rotations.front()[questions[i]].id);
        correct += prediction.correct.at(rule) ? 1 : 0;
        const auto letter = chosen(prediction, rule);
        if (letter >= 0) result.letter_shares[static_cast<std::size_t>(letter)] += 1 / (count * static_cast<double>(rotations.size()));
        const auto option = letter < 0 ? -1 : (letter + static_cast<std::int64_t>(r)) % kOptions;  // among the options as stored
        if (r == 0) first[i] = option;
        agrees[i] = agrees[i] && option >= 0 && option == first[i];
      }
      result.accuracies.push_back(correct / count);
    }
    const auto [smallest, largest] = std::minmax_element(result.accuracies.begin(), result.accuracies.end());
    result.swing = *largest - *smallest;
    result.agreement = static_cast<double>(std::count(agrees.begin(), agrees.end(), true)) / count;
  }
  return audit;
}

Json to_json(const OptionAudit& audit) {
  Json rules = Json::object();
  for (const auto& [rule, value] : audit.rules) {
    rules[name_of(rule)] = {{"accuracies", value.accuracies}, {"swing", value.swing}, {"agreement", value.agreement}, {"letter_shares", value.letter_shares}};
  }
  return {{"rotations", audit.rules.empty() ? 0 : audit.rules.begin()->second.accuracies.size()}, {"rules", rules}};
}

std::string render_audit(const Json& audit) {
  std::string text = fmt::format("{:<12} {:>32} {:>7} {:>9} {:>27}\n", "options", "accuracy % by rotation", "swing", "agreement", "chosen % A / B / C / D");
  for (const Rule rule : kRules) {
    if (!audit.at("rules").contains(name_of(rule))) continue;
    const auto& value = audit.at("rules").at(name_of(rule));
    std::string accuracies, letters;
    for (const double accuracy : value.at("accuracies").get<std::vector<double>>()) accuracies += fmt::format("{:>8.1f}", 100 * accuracy);
    for (const double share : value.at("letter_shares").get<std::vector<double>>()) letters += fmt::format("{:>6.1f} ", 100 * share);
    text += fmt::format("{:<12} {:>32} {:>7.1f} {:>9.1f} {:>27}\n", name_of(rule), accuracies, 100 * value.at("swing").get<double>(),
                        100 * value.at("agreement").get<double>(), letters);
  }
  return text;
}

}  // namespace uqa::trainer
