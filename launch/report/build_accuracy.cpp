// Accuracies of evaluations, tokens against accuracy, comparisons.
#include <algorithm>
#include <array>
#include <cmath>

#include "launch/report/build.h"

namespace uqa::report {
namespace {

/// The rule that a small LLM is best judged by comes first; see trainer/result.h.
constexpr std::array<const char*, 4> kRuleOrder{"calibrated", "text", "letter", "first_token"};
/// Types by dimension, as tables print them.
constexpr std::array<const char*, 7> kTypeOrder{"df", "mf", "ip", "ap", "li", "si", "it"};

struct Group {
  std::string name;
  Json accuracy;  ///< null: not in this evaluation
};

std::vector<Group> groups_of(const Json& rule) {
  std::vector<Group> groups;
  const Json types = rule.value("types", Json::object());
  for (const char* type : kTypeOrder) {
    if (types.contains(type)) groups.push_back({type, types.at(type)});
  }
  for (const auto& [type, accuracy] : types.items()) {
    if (std::find(kTypeOrder.begin(), kTypeOrder.end(), type) == kTypeOrder.end()) groups.push_back({type, accuracy});
  }
  if (rule.contains("all")) groups.push_back({"all", rule.at("all")});
  return groups;
}

std::string cell(const Json& accuracy) {
  return fmt::format("{:.1f} [{:.1f}, {:.1f}]", 100 * number_or_nan(accuracy, "accuracy"), 100 * number_or_nan(accuracy, "low"), 100 * number_or_nan(accuracy, "high"));
}

}  // namespace

Section accuracy_section(const Loaded& loaded) {
  Section section{.id = "accuracy", .title = "Accuracy", .note = "Bars with 95 % Wilson intervals; the dotted line is chance among four options."};
  if (loaded.evaluations.empty()) return section;
  Plot bars{.id = "accuracy-types", .title = "Accuracy by question type", .note = "", .x_title = "question type", .y_title = "accuracy", .percent_y = true, .line_at = true, .line_y = 0.25, .variants = {}};
  Plot tokens{.id = "accuracy-tokens", .title = "Input tokens against accuracy", .note = "All questions; further left is cheaper, further up is better.", .x_title = "input tokens per question",
              .y_title = "accuracy", .percent_y = true, .line_at = true, .line_y = 0.25, .variants = {}};
  for (const char* rule : kRuleOrder) {
    Variant by_type{.name = fmt::format("rule {}", rule), .series = {}}, by_tokens = by_type;
    TableView table{.title = fmt::format("Accuracy %, rule {}", rule), .note = "", .head = {"evaluation", "prompt"}, .rows = {}};
    std::int64_t color = 0;
    for (const auto& evaluation : loaded.evaluations) {
      const Json& rules = evaluation.result.at("rules");
      if (!rules.contains(rule)) continue;
      const auto groups = groups_of(rules.at(rule));
      Series series{.name = evaluation.name, .mark = Mark::kBar, .color = color};
      std::vector<std::string> row{evaluation.name, show(evaluation.result.value("prompt", Json(nullptr)))};
      for (const auto& [name, accuracy] : groups) {
        series.categories.push_back(name);
        series.y.push_back(number_or_nan(accuracy, "accuracy"));
        series.low.push_back(number_or_nan(accuracy, "low"));
        series.high.push_back(number_or_nan(accuracy, "high"));
        series.labels.push_back(fmt::format("{} of {} questions", show(accuracy.value("correct", Json(nullptr))), show(accuracy.value("n", Json(nullptr)))));
        if (table.rows.empty()) table.head.push_back(name);
      }
      // Evaluations of other questions may have other types: cells follow the head of the first.
      for (std::size_t c = 2; c < table.head.size(); ++c) {
        const auto at = std::find_if(groups.begin(), groups.end(), [&](const Group& g) { return g.name == table.head[c]; });
        row.push_back(at == groups.end() ? "-" : cell(at->accuracy));
      }
      if (table.rows.empty()) table.head.insert(table.head.end(), {"macro", "tokens", "questions/s"});
      row.push_back(rules.at(rule).contains("macro") ? cell(rules.at(rule).at("macro")) : "-");
      row.push_back(show(evaluation.result.value("input_tokens_per_question", Json(nullptr)), 4));
      row.push_back(show(evaluation.result.value("questions_per_s", Json(nullptr)), 4));
      table.rows.push_back(std::move(row));
      const double used = number_or_nan(evaluation.result, "input_tokens_per_question");
      if (rules.at(rule).contains("all") && std::isfinite(used)) {
        const Json& all = rules.at(rule).at("all");
        by_tokens.series.push_back({.name = evaluation.name, .mark = Mark::kPoints, .color = color, .x = {used}, .y = {number_or_nan(all, "accuracy")}, .low = {number_or_nan(all, "low")},
                                    .high = {number_or_nan(all, "high")}});
      }
      by_type.series.push_back(std::move(series));
      ++color;
    }
    if (by_type.series.empty()) continue;
    bars.variants.push_back(std::move(by_type));
    if (!by_tokens.series.empty()) tokens.variants.push_back(std::move(by_tokens));
    section.tables.push_back(std::move(table));
  }
  if (!bars.variants.empty()) section.plots.push_back(std::move(bars));
  if (!tokens.variants.empty()) section.plots.push_back(std::move(tokens));
  return section;
}

Section comparison_section(const Loaded& loaded) {
  Section section{.id = "comparisons", .title = "Comparisons", .note = "Two-sided sign-flip permutation test by user; Holm's adjustment. Detectable: the smallest true difference found with power 0.8."};
  for (const auto& comparison : loaded.comparisons) {
    TableView table{.title = comparison.name, .note = "", .head = {"rule", "first", "second", "questions of", "n", "users", "first %", "second %", "difference", "p", "p (Holm)", "detectable", "in words"}, .rows = {}};
    for (const auto& c : comparison.json.at("comparisons")) {
      const double p = number_or_nan(c, "p_holm"), difference = number_or_nan(c, "difference");
      const std::string words = !(p < 0.05) ? "indistinguishable" : difference > 0 ? "first is better" : "second is better";
      table.rows.push_back({show(c.at("rule")), show(c.at("first")), show(c.at("second")), show(c.at("scope")), show(c.at("questions")), show(c.at("users")),
                            fmt::format("{:.2f}", 100 * number_or_nan(c, "first_accuracy")), fmt::format("{:.2f}", 100 * number_or_nan(c, "second_accuracy")), fmt::format("{:+.2f}", 100 * difference),
                            fmt::format("{:.2g}", number_or_nan(c, "p")), fmt::format("{:.2g}", p), fmt::format("{:.2f}", 100 * number_or_nan(c, "detectable_difference")), words});
    }
    section.tables.push_back(std::move(table));
  }
  return section;
}

}  // namespace uqa::report
