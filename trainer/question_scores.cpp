#include "trainer/question_scores.h"

#include <algorithm>

#include "core/error.h"
#include "trainer/device.h"

namespace uqa::trainer {

QuestionBatch question_batch(const std::vector<data::Question>& questions, const std::vector<EncodedQuestion>& encoded, const std::vector<std::size_t>& members,
                             const LetterTokens& letters, const std::vector<EncodedQuestion>* reference) {
  QuestionBatch batch;
  for (const auto q : members) {
    auto& prompt = batch.prompts.emplace_back(ScoredPrompt{.prompt = &encoded[q], .continuations = {}});
    batch.ids.push_back(static_cast<std::uint64_t>(questions[q].id));
    if (encoded[q].gold < 0) continue;
    for (const auto& letter : letters) prompt.continuations.emplace_back(letter);
    for (const auto& option : encoded[q].options) prompt.continuations.emplace_back(option);
  }
  if (reference != nullptr) batch.reference_of = add_references(batch.prompts, questions, members, *reference);
  return batch;
}

Response QuestionScores::response(std::size_t question) const {
  Response response;
  const auto row_S = option_nats_BS[static_cast<std::int64_t>(question)].contiguous();
  std::copy_n(row_S.const_data_ptr<float>(), kScores, response.option_nats.begin());
  response.tokens = answers[question];
  return response;
}

QuestionScores score_questions(models::LlmImpl& llm, const QuestionBatch& batch, const Tensor& soft_SL, const models::GenerateOptions& options) {
  const at::NoGradGuard no_grad;
  const auto size = batch.num_questions();
  const auto packed = pack_prompts(batch.prompts);
  const auto on_device = to_device(packed, device_of(llm));
  models::PackedCache cache;
  const auto head_RH = run_prompts(llm, on_device, soft_SL, options.max_new_tokens > 1 ? &cache : nullptr);
  QuestionScores scores{.option_nats_BS = at::zeros({size, kScores}, at::kFloat), .answers = {}};
  const auto heads_B = packed.prompt_heads_B.narrow(0, 0, size);
  const auto rows_B = packed.head_rows_R.index_select(0, heads_B);
  scores.answers = models::generate(llm,
                                    {.cache = &cache, .blocks = &packed.blocks,
                                     .last_rows = {rows_B.const_data_ptr<std::int64_t>(), rows_B.const_data_ptr<std::int64_t>() + size},
                                     .states_BH = head_RH.index_select(0, on_device.prompt_heads_B.narrow(0, 0, size)), .ids = batch.ids},
                                    options);

  std::vector<std::int64_t> with_options, references;  // of the questions that have options: which, and whose reference
  std::vector<std::int64_t> place(batch.prompts.size(), -1);
  std::int64_t count = 0;
  for (std::size_t p = 0; p < batch.prompts.size(); ++p) {
    if (!batch.prompts[p].continuations.empty()) place[p] = count++;
  }
  for (std::int64_t i = 0; i < size; ++i) {
    const auto q = static_cast<std::size_t>(i);
    if (place[q] < 0) continue;
    with_options.push_back(i);
    if (!batch.reference_of.empty()) references.push_back(place[static_cast<std::size_t>(batch.reference_of[q])]);
  }
  if (with_options.empty()) return scores;
  const auto sums_C = continuation_sums(on_device, token_log_probs(llm, head_RH, on_device)).cpu();
  const auto means_P24 = (sums_C / packed.continuation_tokens_C).view({-1, 2, static_cast<std::int64_t>(kNumOptions)});
  const auto means_M24 = means_P24.narrow(0, 0, static_cast<std::int64_t>(with_options.size()));
  const auto text_M4 = means_M24.select(1, 1);
  const auto calibrated_M4 = references.empty() ? text_M4 : text_M4 - means_P24.select(1, 1).index_select(0, at::tensor(references, at::kLong));
  const auto nats_MS = at::cat({means_M24.select(1, 0).log_softmax(1), text_M4, calibrated_M4}, 1);
  UQA_CHECK(nats_MS.isfinite().all().item<bool>(), ErrorCode::kNumeric,
            "an option's log-likelihood is not finite; align with a smaller optim.peak_lr, or evaluate with --dtype float32");
  scores.option_nats_BS.index_copy_(0, at::tensor(with_options, at::kLong), nats_MS);
  return scores;
}

std::vector<std::int64_t> stop_tokens(const models::LlmImpl& llm, const PromptEncoder& encoder) {
  auto ids = llm.config().eos_ids;
  if (std::ranges::find(ids, encoder.end_id()) == ids.end()) ids.push_back(encoder.end_id());
  return ids;
}

Prediction prediction_of(const data::Question& question, const EncodedQuestion& encoded, const Response& response, const format::Tokenizer& tokenizer,
                         const std::vector<std::int64_t>& stop_ids, bool calibrated) {
  auto words = response.tokens;
  if (!words.empty() && std::ranges::find(stop_ids, words.back()) != stop_ids.end()) words.pop_back();
  Prediction prediction{.question = question.text,
                        .prediction = tokenizer.decode(words, /*skip_special=*/true),
                        .answer = question.answer,
                        .type = data::code_of(question.type),
                        .user = question.user,
                        .id = question.id,
                        .input_tokens = static_cast<std::int64_t>(encoded.prompt.size()),
                        .letter_nats = {},
                        .text_nats = {},
                        .calibrated_nats = {},
                        .correct = {}};
  if (encoded.gold >= 0) {
    const auto* row = response.option_nats.data();
    prediction.letter_nats.assign(row, row + kNumOptions);
    prediction.text_nats.assign(row + kNumOptions, row + 2 * kNumOptions);
    if (calibrated) prediction.calibrated_nats.assign(row + 2 * kNumOptions, row + kScores);
  }
  judge(prediction, encoded.gold);
  return prediction;
}

}  // namespace uqa::trainer
