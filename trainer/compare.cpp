#include "trainer/compare.h"

#include <algorithm>
#include <utility>

#include "core/error.h"

namespace uqa::trainer {
namespace {

/// Mean correctness of each question over an arm's directories, in the order of the first directory.
struct ArmScores {
  std::vector<Prediction> questions;           ///< of the first directory
  std::map<Rule, std::vector<double>> correct; ///< one entry a question; only rules that every question has
  bool single = false;                         ///< one directory: correctness is 0 or 1
};

ArmScores load(const CompareArm& arm) {
  UQA_CHECK(!arm.directories.empty(), ErrorCode::kConfig, "comparison arm {} has no directory; give at least one", arm.name);
  ArmScores scores;
  scores.single = arm.directories.size() == 1;
  for (const auto& directory : arm.directories) {
    auto predictions = read_predictions(directory);
    if (scores.questions.empty()) {
      scores.questions = predictions;
      for (const Rule rule : kRules) {
        if (std::all_of(predictions.begin(), predictions.end(), [&](const auto& p) { return p.correct.contains(rule); })) {
          scores.correct[rule].assign(predictions.size(), 0);
        }
      }
    }
    UQA_CHECK(predictions.size() == scores.questions.size(), ErrorCode::kConfig,
              "{} holds {} questions and {} holds {}, must be the same ones; evaluate them on one question set", directory.string(),
              predictions.size(), arm.directories.front().string(), scores.questions.size());
    for (auto& [rule, correct] : scores.correct) {
      for (std::size_t q = 0; q < predictions.size(); ++q) {
        const auto found = predictions[q].correct.find(rule);
        UQA_CHECK(predictions[q].id == scores.questions[q].id && found != predictions[q].correct.end(), ErrorCode::kConfig,
                  "{} line {}: question {} stands where {} has {}; evaluate them on one question set", directory.string(), q + 1,
                  predictions[q].id, arm.directories.front().string(), scores.questions[q].id);
        correct[q] += (found->second ? 1.0 : 0.0) / static_cast<double>(arm.directories.size());
      }
    }
  }
  return scores;
}

void check_same_questions(const ArmScores& a, const CompareArm& first, const ArmScores& b, const CompareArm& other) {
  UQA_CHECK(a.questions.size() == b.questions.size(), ErrorCode::kConfig,
            "{} holds {} questions and {} holds {}, must be the same ones; evaluate both on one question set", first.directories.front().string(),
            a.questions.size(), other.directories.front().string(), b.questions.size());
  for (std::size_t q = 0; q < a.questions.size(); ++q) {
    const auto &x = a.questions[q], &y = b.questions[q];
    UQA_CHECK(x.id == y.id && x.answer == y.answer && x.type == y.type && x.user == y.user && x.question == y.question, ErrorCode::kConfig,
              "line {}: {} has question {} and {} has question {} or another text, must be the same; evaluate both on one question set", q + 1,
              first.directories.front().string(), x.id, other.directories.front().string(), y.id);
  }
}

/// Of a question: its type's code, its dimension's name, or "all".
bool is_in_scope(const Prediction& question, const std::string& scope) {
  return scope == "all" || question.type == scope || scope == data::name_of(data::dimension_of(data::type_of_code(question.type)));
}

/// "all", then each dimension that occurs followed by its types.
std::vector<std::string> scopes_of(const std::vector<Prediction>& questions) {
  std::vector<std::string> scopes{"all"};
  const auto add = [&](const std::string& scope) {
    if (std::any_of(questions.begin(), questions.end(), [&](const auto& q) { return is_in_scope(q, scope); })) scopes.push_back(scope);
  };
  for (const auto dimension : data::kDimensions) {
    add(data::name_of(dimension));
    for (const auto type : data::kQuestionTypes) {
      if (data::dimension_of(type) == dimension) add(data::code_of(type));
    }
  }
  return scopes;
}

bool is_dimension(const std::string& scope) {
  return std::any_of(data::kDimensions.begin(), data::kDimensions.end(), [&](auto dimension) { return data::name_of(dimension) == scope; });
}

Comparison test_scope(const ArmScores& a, const ArmScores& b, Rule rule, const std::string& scope, const CompareOptions& options) {
  const auto &ca = a.correct.at(rule), &cb = b.correct.at(rule);
  Comparison result{.first = {}, .second = {}, .rule = rule, .scope = scope, .test = {}, .mcnemar_p = {}};
  std::map<std::int64_t, double> sums;  // by user
  std::int64_t only_first = 0, only_second = 0;
  for (std::size_t q = 0; q < ca.size(); ++q) {
    if (!is_in_scope(a.questions[q], scope)) continue;
    ++result.num_questions;
    result.first_accuracy += ca[q];
    result.second_accuracy += cb[q];
    sums[a.questions[q].user] += ca[q] - cb[q];
    only_first += ca[q] > cb[q] ? 1 : 0;
    only_second += cb[q] > ca[q] ? 1 : 0;
  }
  result.first_accuracy /= static_cast<double>(result.num_questions);
  result.second_accuracy /= static_cast<double>(result.num_questions);
  std::vector<double> differences;
  for (const auto& [user, sum] : sums) differences.push_back(sum);
  result.num_users = static_cast<std::int64_t>(differences.size());
  result.test = sign_flip_test(differences, result.num_questions, options.num_permutations, static_cast<std::uint64_t>(options.seed));
  result.p_holm = result.test.p;
  if (a.single && b.single) result.mcnemar_p = mcnemar_exact_p(only_first, only_second);
  return result;
}

/// Adjusts p over the comparisons of one rule that `pick` selects.
template <typename Pick>
void adjust(std::vector<Comparison>& comparisons, Rule rule, Pick&& pick) {
  std::vector<Comparison*> family;
  std::vector<double> p;
  for (auto& comparison : comparisons) {
    if (comparison.rule != rule || !pick(comparison)) continue;
    family.push_back(&comparison);
    p.push_back(comparison.test.p);
  }
  const auto adjusted = holm_adjust(p);
  for (std::size_t i = 0; i < family.size(); ++i) family[i]->p_holm = adjusted[i];
}

}  // namespace

void CompareOptions::validate() const {
  UQA_CHECK(num_permutations > 0, ErrorCode::kConfig, "permutations = {}, must be > 0; change --permutations", num_permutations);
}

CompareReport compare(const CompareArm& first, const std::vector<CompareArm>& others, const CompareOptions& options) {
  options.validate();
  UQA_CHECK(!others.empty(), ErrorCode::kConfig, "nothing to compare {} with; give at least two evaluation directories", first.name);
  const auto a = load(first);
  std::vector<ArmScores> loaded;
  for (const auto& other : others) {
    loaded.push_back(load(other));
    check_same_questions(a, first, loaded.back(), other);
  }
  CompareReport report{.comparisons = {}, .options = options};
  for (const Rule rule : kRules) {
    for (std::size_t i = 0; i < others.size(); ++i) {
      if (!a.correct.contains(rule) || !loaded[i].correct.contains(rule)) continue;
      for (const auto& scope : scopes_of(a.questions)) {
        auto comparison = test_scope(a, loaded[i], rule, scope, options);
        comparison.first = first.name;
        comparison.second = others[i].name;
        report.comparisons.push_back(std::move(comparison));
      }
    }
    adjust(report.comparisons, rule, [](const Comparison& c) { return c.scope == "all"; });
    adjust(report.comparisons, rule, [](const Comparison& c) { return is_dimension(c.scope); });
    adjust(report.comparisons, rule, [](const Comparison& c) { return c.scope != "all" && !is_dimension(c.scope); });
  }
  return report;
}

std::vector<Claim> claims_of(const CompareReport& report) {
  constexpr double kLevel = 0.05;
  std::vector<Claim> claims;
  double strongest = 0;
  for (const auto& c : report.comparisons) {  // by rule
    if (c.scope != "all") continue;
    const bool is_new = claims.empty() || claims.back().rule != c.rule;
    if (is_new) claims.push_back({.first = c.first, .strongest = {}, .rule = c.rule, .above_all = true});
    auto& claim = claims.back();
    ++claim.num_others;
    claim.above_all = claim.above_all && c.test.difference > 0 && c.p_holm < kLevel;
    if (!is_new && c.second_accuracy <= strongest) continue;
    strongest = c.second_accuracy;
    claim.strongest = c.second;
    claim.difference = c.test.difference;
    claim.p_holm = c.p_holm;
    claim.detectable = c.test.detectable;
  }
  return claims;
}

Json to_json(const CompareReport& report) {
  Json comparisons = Json::array();
  for (const auto& c : report.comparisons) {
    Json json{{"first", c.first},
              {"second", c.second},
              {"rule", name_of(c.rule)},
              {"scope", c.scope},
              {"questions", c.num_questions},
              {"users", c.num_users},
              {"first_accuracy", c.first_accuracy},
              {"second_accuracy", c.second_accuracy},
              {"difference", c.test.difference},
              {"p", c.test.p},
              {"p_holm", c.p_holm},
              {"detectable_difference", c.test.detectable}};
    json["mcnemar_p"] = c.mcnemar_p ? Json(*c.mcnemar_p) : Json(nullptr);
    comparisons.push_back(std::move(json));
  }
  Json claims = Json::array();
  for (const auto& c : claims_of(report)) {
    claims.push_back({{"rule", name_of(c.rule)}, {"first", c.first}, {"strongest_other", c.strongest}, {"others", c.num_others}, {"difference", c.difference},
                      {"p_holm", c.p_holm}, {"detectable_difference", c.detectable}, {"above_all", c.above_all}});
  }
  return {{"format", "uqa.comparison"},
          {"version", 1},
          {"test", "two-sided sign-flip permutation of users' sums of differences"},
          {"permutations", report.options.num_permutations},
          {"seed", report.options.seed},
          {"holm", "per rule: over the second arms for scope all, over second arms and dimensions for the dimensions, over second arms and types for the types"},
          {"comparisons", comparisons},
          {"claims", claims}};
}

std::string render(const CompareReport& report) {
  std::size_t width = 0;
  std::size_t scope_width = 5;
  for (const auto& c : report.comparisons) {
    width = std::max(width, c.first.size() + c.second.size() + 4);
    scope_width = std::max(scope_width, c.scope.size());
  }
  std::string text = fmt::format("{:<11}  {:<{}}  {:<{}}  {:>9}  {:>6}  {:>7}  {:>7}  {:>7}  {:>9}  {:>9}  {:>9}  {:>10}\n", "rule", "first - second", width,
                                 "scope", scope_width, "questions", "users", "first", "second", "diff", "p", "p Holm", "McNemar p", "detectable");
  for (const auto& c : report.comparisons) {
    text += fmt::format("{:<11}  {:<{}}  {:<{}}  {:>9}  {:>6}  {:>6.2f}%  {:>6.2f}%  {:>+6.2f}%  {:>9.2g}  {:>9.2g}  {:>9}  {:>9.2f}%\n", name_of(c.rule),
                        c.first + " - " + c.second, width, c.scope, scope_width, c.num_questions, c.num_users, 100 * c.first_accuracy,
                        100 * c.second_accuracy, 100 * c.test.difference, c.test.p, c.p_holm,
                        c.mcnemar_p ? fmt::format("{:.2g}", *c.mcnemar_p) : "-", 100 * c.test.detectable);
  }
  for (const auto& c : claims_of(report)) {
    text += fmt::format("\n{:<11}  {} is {} the {} other(s) at level 0.05; the strongest is {}: {:+.2f} %, p Holm {:.2g}, detectable {:.2f} %", name_of(c.rule), c.first,
                        c.above_all ? "above" : "not shown to be above", c.num_others, c.strongest, 100 * c.difference, c.p_holm, 100 * c.detectable);
  }
  text += "\n";
  return text;
}

}  // namespace uqa::trainer
