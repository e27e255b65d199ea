// trainer/evaluate_parts.h - which questions an evaluation asks, and whether they fit the LLM; private to trainer/.
#pragma once

#include <cstdint>
#include <vector>

#include "data/question.h"
#include "trainer/evaluate.h"
#include "trainer/prompt.h"

namespace uqa::trainer {

/// At most `limit` (0: all) of the questions: a random subset that depends on their ids alone, in their order.
[[nodiscard]] std::vector<data::Question> question_subset(std::vector<data::Question> questions, std::int64_t limit);

/// Error(kConfig) naming the settings and both numbers when a prompt, with the answer or an option's words behind it, has more tokens than the LLM has positions.
void check_context(const std::vector<data::Question>& questions, const std::vector<EncodedQuestion>& encoded, const EvaluateConfig& config,
                   std::int64_t text_items, std::int64_t max_positions);

}  // namespace uqa::trainer
