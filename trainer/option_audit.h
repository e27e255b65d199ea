// trainer/option_audit.h - how much the order of the options moves the result: the same questions with their options rotated, so that every
// option stands once at every letter.
#pragma once

#include <array>
#include <map>
#include <string>
#include <vector>

#include "core/json.h"
#include "trainer/result.h"

namespace uqa::trainer {

struct OptionAudit {
  struct OfRule {
    std::vector<double> accuracies;                  ///< one a rotation
    double swing = 0;                                ///< largest less smallest of them
    double agreement = 0;                            ///< share of questions for which all rotations choose the same option's words
    std::array<double, 4> letter_shares{};           ///< how often A, B, C, D is chosen over all rotations; each would be 1/4
  };
  std::map<Rule, OfRule> rules;                      ///< kFirstToken: questions answered with no letter agree with none
};

/// `rotations[r]` answers the questions with options moved r places forward, in the same order of questions; free-form ones are left out.
[[nodiscard]] OptionAudit audit_options(const std::vector<std::vector<Prediction>>& rotations);
[[nodiscard]] Json to_json(const OptionAudit& audit);
/// What to_json() gave, a line a rule: accuracies, swing, agreement, share of each letter.
[[nodiscard]] std::string render_audit(const Json& audit);

}  // namespace uqa::trainer
