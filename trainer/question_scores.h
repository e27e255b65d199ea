// trainer/question_scores.h - what the LLM makes of some questions: scores of their options and the text that it answers with. Shared by evaluation and
// by alignment, which asks its held-out users now and then; private to trainer/.
//
//   const auto batch = question_batch(questions, encoded, members, letters, &reference);
//   const auto scores = score_questions(*llm, batch, soft_SL, {});
//   const Prediction p = prediction_of(questions[members[0]], encoded[members[0]], scores.response(0), tokenizer, stop_ids, /*calibrated=*/true);
//
// B questions, S soft rows, L LLM width.
#pragma once

#include <cstdint>
#include <vector>

#include "models/llm/generate.h"
#include "trainer/align_parts.h"
#include "trainer/response_cache.h"
#include "trainer/result.h"

namespace uqa::trainer {

inline constexpr std::int64_t kScores = 3 * static_cast<std::int64_t>(kNumOptions);  ///< letters, texts, calibrated texts

struct QuestionBatch {
  std::vector<ScoredPrompt> prompts;        ///< one a question and, behind them, the same about nobody
  std::vector<std::int64_t> reference_of;   ///< index of the latter for each question; empty: there are none
  std::vector<std::uint64_t> ids;           ///< of the questions: keys of random draws
  [[nodiscard]] std::int64_t num_questions() const { return static_cast<std::int64_t>(ids.size()); }
  [[nodiscard]] std::int64_t num_references() const { return static_cast<std::int64_t>(prompts.size()) - num_questions(); }
};
/// The questions `members`, each with the four letters and its options' words behind it. `reference` (may be null: no references) holds, for every question, its
/// tokens when it is asked about nobody in particular. All arguments are kept alive by the caller.
[[nodiscard]] QuestionBatch question_batch(const std::vector<data::Question>& questions, const std::vector<EncodedQuestion>& encoded,
                                           const std::vector<std::size_t>& members, const LetterTokens& letters, const std::vector<EncodedQuestion>* reference);

struct QuestionScores {
  Tensor option_nats_BS;                            ///< float32 [B, kScores]; zeros for a free-form question. Without references calibrated texts are texts
  std::vector<std::vector<std::int64_t>> answers;   ///< [B] generated tokens
  [[nodiscard]] Response response(std::size_t question) const;
};
/// One pass over the prompts, and one row a generated token behind it. `soft_SL` as run_prompts() takes it, on the LLM's device; scores are in host memory. Error(kNumeric) when a score is not finite. No gradient.
[[nodiscard]] QuestionScores score_questions(models::LlmImpl& llm, const QuestionBatch& batch, const Tensor& soft_SL, const models::GenerateOptions& options);

/// What ends an answer: the LLM's end tokens and the end of the turn.
[[nodiscard]] std::vector<std::int64_t> stop_tokens(const models::LlmImpl& llm, const PromptEncoder& encoder);
/// A judged prediction. `calibrated` false: the calibrated scores are not known, and the rule is left out.
[[nodiscard]] Prediction prediction_of(const data::Question& question, const EncodedQuestion& encoded, const Response& response, const format::Tokenizer& tokenizer,
                                       const std::vector<std::int64_t>& stop_ids, bool calibrated);

}  // namespace uqa::trainer
