// models/parallel/vocabulary.h - token embeddings and the language-model head split by rows of the vocabulary. A table of one group's ranks is
// cut into consecutive ranges; on a group of one it is the plain table.
//
//   x_TH = vocabulary_embedding(ids_T, table_VH, slice);
//   log_probs_N = vocabulary_log_probs(states_RH, table_VH, slice, rows_N, tokens_N, at::kBFloat16);   // no rank ever holds [R, vocabulary]
//
// Ids and row numbers may lie on any device; they go to that of the data.
//
// T tokens, R rows of states, N scored tokens, H width, V rows of the table on this rank.
#pragma once

#include "comm/communicator.h"
#include "models/packed.h"

namespace uqa::models {

/// Where this rank's table begins in the vocabulary.
struct VocabularySlice {
  std::int64_t first = 0;
  comm::Communicator comm;
};

/// Rows of the whole table. ids int64 [T], equal on all ranks -> [T, H] in the table's type, equal on all ranks. Differentiable. Collective.
[[nodiscard]] Tensor vocabulary_embedding(const Tensor& ids_T, const Tensor& table_VH, const VocabularySlice& slice);

/// Log-probability, over the whole vocabulary, of token `tokens[n]` in row `rows[n]` of the states; float32 [N], equal on all ranks.
/// Differentiable in the states and a trainable head. Streams blocks of rows and recomputes them in backward. The log-sum-exp's GEMMs are of
/// type `dtype`; the scored tokens' own logits are float32 dot products: bfloat16 results would round them to 1/16 of a nat. NaN where
/// a logit is not finite, on all ranks. Collective.
[[nodiscard]] Tensor vocabulary_log_probs(const Tensor& states_RH, const Tensor& head_VH, const VocabularySlice& slice, const Tensor& rows_N,
                                          const Tensor& tokens_N, at::ScalarType dtype);

/// Most likely token of each row given this rank's float32 logits [R, V]; the lowest id wins a tie. -> int64 [R], equal on all ranks;
/// -1 where a logit of any rank is not finite. No gradient. Collective.
[[nodiscard]] Tensor vocabulary_argmax(const Tensor& logits_RV, const VocabularySlice& slice);

/// Rows of states whose logits of type `dtype` against `head_VH` are computed at once.
[[nodiscard]] std::int64_t vocabulary_block_rows(const Tensor& head_VH, at::ScalarType dtype);

}  // namespace uqa::models
