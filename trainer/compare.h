// trainer/compare.h - is one evaluation better than another? Paired by question, claims by user.
//
//   const auto report = compare({.name = "soft", .directories = {"eval/soft-1a2b3c4d"}}, {{.name = "none", .directories = {...}}}, {});
//   fmt::print("{}", render(report));
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "core/json.h"
#include "core/statistics.h"
#include "trainer/result.h"

namespace uqa::trainer {

/// Evaluations of the same questions that are averaged per question: several seeds, or several shuffles.
struct CompareArm {
  std::string name;
  std::vector<fs::path> directories;  ///< at least one
};

struct CompareOptions {
  std::int64_t num_permutations = 20000;  ///< of the sign-flip test; > 0
  std::int64_t seed = 1;
  void validate() const;
};

/// One test: first arm against one other, under one rule, over one group of questions.
struct Comparison {
  std::string first, second;          ///< names of the arms
  Rule rule = Rule::kText;
  std::string scope;                  ///< "all", a dimension's name or a type's code
  std::int64_t num_questions = 0, num_users = 0;
  double first_accuracy = 0, second_accuracy = 0;
  PairedTest test;                    ///< sign-flip permutation by user
  double p_holm = 1;                  ///< adjusted over the second arms and the scopes of one kind: "all", dimensions, types
  std::optional<double> mcnemar_p;    ///< exact; only where both arms are one directory. Ignores that a user's questions are correlated
};

/// What may be said of the first arm under one rule: a claim is about the strongest of the other arms, not about a weak one.
struct Claim {
  std::string first, strongest;       ///< arms; the other with the highest accuracy over all questions
  Rule rule = Rule::kText;
  std::int64_t num_others = 0;
  double difference = 0, p_holm = 1;  ///< against the strongest
  double detectable = 0;              ///< smallest true difference to it that the users and questions can show
  bool above_all = false;             ///< above every other arm, each with p_holm < 0.05
};

struct CompareReport {
  std::vector<Comparison> comparisons;  ///< by rule, then second arm, then scope ("all" first)
  CompareOptions options;
};

/// Every directory must hold the same questions with the same answers: Error(kConfig) naming the first that differs.
[[nodiscard]] CompareReport compare(const CompareArm& first, const std::vector<CompareArm>& others, const CompareOptions& options = {});
/// One a rule, from the comparisons over all questions.
[[nodiscard]] std::vector<Claim> claims_of(const CompareReport& report);
[[nodiscard]] Json to_json(const CompareReport& report);
/// A text table, one line a comparison; behind it a line for each claim.
[[nodiscard]] std::string render(const CompareReport& report);

}  // namespace uqa::trainer
