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
  std::string scope;                  ///< "all" or a type's code
  std::int64_t num_questions = 0, num_users = 0;
  double first_accuracy = 0, second_accuracy = 0;
  PairedTest test;                    ///< sign-flip permutation by user
  double p_holm = 1;                  ///< adjusted over the second arms ("all"), or over second arms and types (types)
  std::optional<double> mcnemar_p;    ///< exact; only where both arms are one directory. Ignores that a user's questions are correlated
};

struct CompareReport {
  std::vector<Comparison> comparisons;  ///< by rule, then second arm, then scope ("all" first)
  CompareOptions options;
};

/// Every directory must hold the same questions with the same answers: Error(kConfig) naming the first that differs.
[[nodiscard]] CompareReport compare(const CompareArm& first, const std::vector<CompareArm>& others, const CompareOptions& options = {});
[[nodiscard]] Json to_json(const CompareReport& report);
/// A text table; one line a comparison.
[[nodiscard]] std::string render(const CompareReport& report);

}  // namespace uqa::trainer
