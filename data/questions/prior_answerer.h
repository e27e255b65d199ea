// data/questions/prior_answerer.h - an answerer that sees everything but the user: question type, stem, option texts
// and their order. What it gets right above chance is leaked by the questions, not said by the user embedding.
//
//   const auto prior = PriorAnswerer::train(set.train);
//   const auto scores = score(prior, set.test);   // scores.at("all").low <= 0.25 <= scores.at("all").high
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <string>
#include <unordered_map>
#include <vector>

#include "core/json.h"
#include "data/question.h"

namespace uqa::data {

struct PriorOptions {
  std::vector<double> l2{1e-4, 1e-3, 1e-2, 1e-1};  ///< candidates for the penalty; chosen per type by cross-validation
  int folds = 3;                                   ///< of users; >= 2
  int epochs = 8;                                  ///< passes of AdaGrad; >= 1
  std::uint64_t seed = 1;
};

/// A conditional logit over the options of a question, one per question type. Features of an option: its text, alone
/// and with the stem; its words and the parts of "A, B, C" or "A -> B", alone and by place; its letter; its length, how
/// often training questions offer it, its rank by each of these and by numeric value; how much it shares with the other
/// options.
class PriorAnswerer {
 public:
  /// Multiple-choice questions only (Error(kData) otherwise).
  [[nodiscard]] static PriorAnswerer train(const std::vector<Question>& questions, const PriorOptions& options = {});
  /// Index of the option that it picks; ties go to the first. Types without training questions get option A.
  [[nodiscard]] std::size_t answer(const Question& question) const;
  /// Probability of each option.
  [[nodiscard]] std::vector<double> probabilities(const Question& question) const;

 private:
  struct Model {
    std::unordered_map<std::string, std::uint32_t> feature_index;
    std::unordered_map<std::string, double> offered;  ///< how many training questions offer an option text
    std::vector<double> weights;
  };
  struct Feature {
    std::uint32_t index = 0;
    float value = 1;
  };
  using Features = std::vector<std::vector<Feature>>;  ///< [options]
  template <typename Intern>
  static Features features_of(const Question& question, const Model& model, Intern&& intern);
  std::map<QuestionType, Model> models_;
};

struct PriorScore {
  std::int64_t n = 0, correct = 0;
  double accuracy = 0, low = 0, high = 1;  ///< 95 % Wilson interval
};
/// Accuracy per type code present in `questions`, and "all".
[[nodiscard]] std::map<std::string, PriorScore> score(const PriorAnswerer& answerer,
                                                      const std::vector<Question>& questions);
[[nodiscard]] Json to_json(const std::map<std::string, PriorScore>& scores);

}  // namespace uqa::data
