// trainer/scoring.h - log-likelihoods of many continuations of many prompts in one packed LLM pass.
//
//   const auto packed = pack_prompts({{.prompt = &q, .continuations = {letter_a, words_a, words_b}}, ...});
//   const auto head = run_prompts(*llm, packed, soft_BKH.flatten(0, 1));
//   const auto sums_C = continuation_sums(packed, token_log_probs(*llm, head, packed));
//
// `packed` and `soft` are on the LLM's device (trainer/device.h). B prompts, K soft tokens each, S = B * K, C continuations, R rows that the head runs on, N scored tokens, H LLM width, V vocabulary.
#pragma once

#include "models/llm/decoder.h"
#include "trainer/prompt_tree.h"

namespace uqa::trainer {

/// Runs the LLM's layers; soft_SH [S, H] replaces the soft rows (undefined: there are none); `keep` (may be null) receives the rows' keys and values.
/// Differentiable. -> float32 [R, H]
[[nodiscard]] Tensor run_prompts(models::LlmImpl& llm, const PackedPrompts& packed, const Tensor& soft_SH, models::PackedCache* keep = nullptr);

/// Log-probability of each scored token over the whole vocabulary, float32 [N]. Differentiable in the states and in a trainable
/// head. Streams blocks of rows and recomputes them in backward, so that [R, V] never exists. GEMMs in the LLM's compute type.
[[nodiscard]] Tensor token_log_probs(models::LlmImpl& llm, const Tensor& states_RH, const PackedPrompts& packed);

/// Sums of token log-probabilities per continuation, float32 [C]. Differentiable.
[[nodiscard]] Tensor continuation_sums(const PackedPrompts& packed, const Tensor& log_probs_N);

}  // namespace uqa::trainer
