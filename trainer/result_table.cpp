// Several evaluations as a text table.
#include <algorithm>

#include "trainer/result.h"

namespace uqa::trainer {
namespace {

/// A row of cells; the first one is the label.
using Row = std::vector<std::string>;

std::string show(double accuracy, const Interval& interval) {
  return fmt::format("{:5.1f} [{:4.1f}, {:4.1f}]", 100 * accuracy, 100 * interval.low, 100 * interval.high);
}

std::string show(const Accuracy& accuracy) { return show(accuracy.value(), accuracy.interval()); }

/// "-" where an evaluation has no such group.
std::string show(const std::map<std::string, Accuracy>& group, const std::string& key) {
  const auto found = group.find(key);
  return found == group.end() ? "-" : show(found->second);
}

std::string layout(const std::vector<Row>& rows) {
  std::vector<std::size_t> widths(rows.front().size(), 0);
  for (const auto& row : rows) {
    for (std::size_t c = 0; c < row.size(); ++c) widths[c] = std::max(widths[c], row[c].size());
  }
  std::string text;
  for (const auto& row : rows) {
    for (std::size_t c = 0; c < row.size(); ++c) {
      text += c == 0 ? fmt::format("{:<{}}", row[c], widths[c]) : fmt::format("  {:>{}}", row[c], widths[c]);
    }
    text += "\n";
  }
  return text;
}

}  // namespace

std::string render_table(const std::vector<std::pair<std::string, EvaluationResult>>& columns, Rule rule) {
  if (columns.empty()) return "";
  static const RuleResult kNothing;
  std::vector<const RuleResult*> results;
  std::map<std::string, std::int64_t> counts;  // questions of a type or dimension
  std::int64_t total = 0;
  Row head{fmt::format("accuracy %, rule {}", name_of(rule)), "n"};
  for (const auto& [name, result] : columns) {
    const auto found = result.rules.find(rule);
    results.push_back(found == result.rules.end() ? &kNothing : &found->second);
    head.push_back(name);
    for (const auto& [key, accuracy] : results.back()->types) counts[key] = std::max(counts[key], accuracy.n);
    for (const auto& [key, accuracy] : results.back()->dimensions) counts[key] = std::max(counts[key], accuracy.n);
    total = std::max(total, results.back()->all.n);
  }
  std::vector<Row> rows{head};
  const auto add = [&](const std::string& label, const std::string& count, const auto& cell) {
    Row row{label, count};
    for (std::size_t c = 0; c < columns.size(); ++c) row.push_back(cell(c));
    rows.push_back(std::move(row));
  };
  for (const auto dimension : data::kDimensions) {
    const std::string name = data::name_of(dimension);
    if (!counts.contains(name)) continue;
    add(name, std::to_string(counts[name]), [&](std::size_t c) { return show(results[c]->dimensions, name); });
    for (const auto type : data::kQuestionTypes) {
      const std::string code = data::code_of(type);
      if (data::dimension_of(type) != dimension || !counts.contains(code)) continue;
      add("  " + code, std::to_string(counts[code]), [&](std::size_t c) { return show(results[c]->types, code); });
    }
  }
  add("All (micro)", std::to_string(total), [&](std::size_t c) { return results[c]->all.n == 0 ? "-" : show(results[c]->all); });
  add("All (macro)", "", [&](std::size_t c) { return results[c]->all.n == 0 ? "-" : show(results[c]->macro, results[c]->macro_interval()); });
  add("input tokens per question", "", [&](std::size_t c) { return fmt::format("{:.1f}", columns[c].second.input_tokens_per_question); });
  add("questions/s", "", [&](std::size_t c) { return fmt::format("{:.1f}", columns[c].second.questions_per_s); });
  return layout(rows);
}

}  // namespace uqa::trainer
