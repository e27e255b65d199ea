// models/llm/generate.h - whole answers: many sequences grow by a token at a time behind packed prompts that ran once. A prefix that several
// prompts share is neither computed nor kept twice.
//
//   PackedCache cache;
//   const auto states_TH = llm->forward(x_TH, positions_T, blocks, &cache);
//   const auto answers = generate(*llm, {.cache = &cache, .blocks = &blocks, .last_rows = {41, 80}, .states_BH = ..., .ids = {7, 8}},
//                                 {.max_new_tokens = 32, .stop_ids = llm->config().eos_ids});
//
// B sequences, A of them still growing, S rows that a sequence may grow by, T packed rows, N query heads, K key/value heads, D head width.
#pragma once

#include <cstdint>
#include <vector>

#include "models/llm/decoder.h"

namespace uqa::models {

/// Rows [begin, end) of packed rows.
struct RowRange {
  std::int64_t begin = 0, end = 0;
};
/// The rows that `row` sees in its tree, itself included, first to last: what a sequence that ends with `row` consists of.
[[nodiscard]] std::vector<RowRange> rows_seen(const std::vector<AttentionBlock>& blocks, std::int64_t row);

/// Sequences that grow row by row, all by the same number of rows; what LlmImpl::forward_next() works on.
struct GrowingSequences {
  const PackedCache* context = nullptr;      ///< of the packed rows that they continue; kept alive by the caller
  std::vector<std::vector<RowRange>> seen;   ///< of each sequence, in the context
  std::vector<std::int64_t> active;          ///< sequences that still grow, ascending
  std::int64_t length = 0, capacity = 0;     ///< rows grown so far, and at most (S)
  std::vector<Tensor> k_BSKD, v_BSKD;        ///< of the rows grown, one a layer; made by the first call
};

struct GenerateOptions {
  std::int64_t max_new_tokens = 1;           ///< > 0
  double temperature = 0;                    ///< 0: the most likely token, the lowest id of equal ones; > 0: drawn from softmax(logits / temperature)
  std::uint64_t seed = 1;                    ///< of the draws
  std::vector<std::int64_t> stop_ids;        ///< a sequence ends with the first of these, which it keeps; empty: only max_new_tokens ends it
  void validate() const;                     ///< Error(kConfig) naming the field
};

/// The token behind each state [B, H] (after the final norm), int64 [B]. A draw depends on (seed, ids[b], step) alone, not on what else is in
/// the batch. Error(kNumeric) if a logit is not finite. No gradient.
[[nodiscard]] Tensor next_tokens(LlmImpl& llm, const Tensor& states_BH, const GenerateOptions& options, const std::vector<std::uint64_t>& ids, std::int64_t step);

/// What generate() continues.
struct GenerateFrom {
  const PackedCache* cache = nullptr;                    ///< of a forward() over `blocks`; may be null when max_new_tokens is 1
  const std::vector<AttentionBlock>* blocks = nullptr;
  std::vector<std::int64_t> last_rows;                   ///< [B] last row of each prompt
  Tensor states_BH;                                      ///< of those rows, after the final norm
  std::vector<std::uint64_t> ids;                        ///< [B] keys of the random draws, equal wherever the same prompt is continued
};
/// At least one token a sequence. Rows are computed for sequences that have not ended only. Error(kConfig) when a sequence outgrows the LLM's positions.
[[nodiscard]] std::vector<std::vector<std::int64_t>> generate(LlmImpl& llm, const GenerateFrom& from, const GenerateOptions& options);

}  // namespace uqa::models
