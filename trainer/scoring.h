// trainer/scoring.h - log-likelihoods of many continuations of many prompts in one packed LLM pass: each prompt runs once, and
// every continuation attends to it as a shared prefix.
//
//   const auto packed = pack_prompts({{.prompt = &q, .continuations = {letter_a, words_a, words_b}}, ...});
//   const auto head = run_prompts(*llm, packed, soft_BH);
//   const auto sums_C = continuation_sums(packed, token_log_probs(*llm, head, packed));
//
// T packed rows, B prompts, C continuations, R rows that the head runs on, N scored tokens, H LLM width, V vocabulary.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "models/llm/decoder.h"
#include "trainer/prompt.h"

namespace uqa::trainer {

using at::Tensor;

struct ScoredPrompt {
  const EncodedQuestion* prompt = nullptr;                  ///< kept alive by the caller while packing
  std::vector<std::span<const std::int64_t>> continuations; ///< none empty
};

/// The first token of a continuation is predicted by the prompt's last row and its last token predicts nothing that is scored, so a
/// continuation of n tokens costs n - 1 rows.
struct PackedPrompts {
  std::int64_t num_prompts = 0, num_continuations = 0;
  Tensor ids_T, positions_T;                   ///< int64
  std::vector<models::AttentionBlock> blocks;
  Tensor soft_rows_B;                          ///< int64, rows that soft tokens replace; empty when no prompt has one
  Tensor head_rows_R;                          ///< int64; the first B are the prompts' last rows
  Tensor pair_rows_N, pair_tokens_N;           ///< int64: token n is predicted by head row pair_rows[n]
  Tensor pair_continuations_N;                 ///< int64: the continuation that token n belongs to
  Tensor continuation_tokens_C;                ///< float32: number of tokens
  [[nodiscard]] std::int64_t num_rows() const { return ids_T.size(0); }
};
/// All prompts have a soft row or none has: Error(kInternal). No MPI, no autograd; safe on a loader thread.
[[nodiscard]] PackedPrompts pack_prompts(const std::vector<ScoredPrompt>& prompts);
/// Rows that pack_prompts() would give one prompt: its cost.
[[nodiscard]] std::int64_t num_rows(const ScoredPrompt& prompt);

/// Runs the LLM's layers; soft_BH [B, H] replaces the soft rows (undefined: there are none). Differentiable. -> float32 [R, H]
[[nodiscard]] Tensor run_prompts(models::LlmImpl& llm, const PackedPrompts& packed, const Tensor& soft_BH);

/// Log-probability of each scored token over the whole vocabulary, float32 [N]. Differentiable in the states and in a trainable
/// head. Streams blocks of rows and recomputes them in backward, so that [R, V] never exists. GEMMs in the LLM's compute type.
[[nodiscard]] Tensor token_log_probs(models::LlmImpl& llm, const Tensor& states_RH, const PackedPrompts& packed);

/// Sums of token log-probabilities per continuation, float32 [C]. Differentiable.
[[nodiscard]] Tensor continuation_sums(const PackedPrompts& packed, const Tensor& log_probs_N);

/// Most likely next token of each prompt, int64 [B]; the lowest id wins a tie. Error(kNumeric) if a logit is not finite. No gradient.
[[nodiscard]] Tensor greedy_tokens(models::LlmImpl& llm, const Tensor& states_RH, const PackedPrompts& packed);

}  // namespace uqa::trainer
