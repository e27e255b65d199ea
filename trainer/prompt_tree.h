// trainer/prompt_tree.h - prompts and their continuations as packed prefix trees: a prefix that several sequences share is one run of
// rows, computed once. Options share their prompt; questions with the same text share it up to their soft tokens.
//
//   const auto packed = pack_prompts({{.prompt = &q, .continuations = {letter_a, words_a, words_b}}, ...});
//
// T packed rows, B prompts, S soft rows, C continuations, R rows that the head runs on, N scored tokens.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "models/packed.h"
#include "trainer/prompt.h"

namespace uqa::trainer {

using at::Tensor;

struct ScoredPrompt {
  const EncodedQuestion* prompt = nullptr;                  ///< kept alive by the caller while packing
  std::vector<std::span<const std::int64_t>> continuations; ///< none empty
};

/// A continuation's first token is predicted by the prompt's last row and its last token predicts nothing that is scored, so a
/// continuation of n tokens costs at most n - 1 rows.
struct PackedPrompts {
  std::int64_t num_prompts = 0, num_continuations = 0;
  Tensor ids_T, positions_T;                   ///< int64
  std::vector<models::AttentionBlock> blocks;
  Tensor soft_rows_S;                          ///< int64, rows that soft tokens replace, each of its own, a prompt's together; empty when no prompt has one
  Tensor head_rows_R;                          ///< int64, distinct
  Tensor prompt_heads_B;                       ///< int64, into head_rows: each prompt's last row
  Tensor pair_rows_N, pair_tokens_N;           ///< int64: token n is predicted by head row pair_rows[n]
  Tensor pair_continuations_N;                 ///< int64: the continuation that token n belongs to
  Tensor continuation_tokens_C;                ///< float32: number of tokens
  [[nodiscard]] std::int64_t num_rows() const { return ids_T.size(0); }
};

/// Prompts share a tree where the tokens before their soft rows (all tokens when there is none) are the same and are at least half of
/// the prompt: attention scores are computed for whole trees, so a short common prefix is cheaper repeated. Trees are cut at about
/// 768 rows. All prompts have a soft row or none has: Error(kInternal). No MPI, no autograd; safe on a loader thread.
[[nodiscard]] PackedPrompts pack_prompts(const std::vector<ScoredPrompt>& prompts);
/// Rows that pack_prompts() would give these prompts: their cost.
[[nodiscard]] std::int64_t num_rows(const std::vector<ScoredPrompt>& prompts);

/// Key under which prompts can share a tree: equal for prompts that pack_prompts() puts together.
[[nodiscard]] std::vector<std::int64_t> shared_tokens(const EncodedQuestion& question);

}  // namespace uqa::trainer
