#include "trainer/scoring.h"

#include "core/error.h"

namespace uqa::trainer {

Tensor run_prompts(models::LlmImpl& llm, const PackedPrompts& packed, const Tensor& soft_SH, models::PackedCache* keep) {
  UQA_CHECK((soft_SH.defined() ? soft_SH.size(0) : 0) == packed.soft_rows_S.numel(), ErrorCode::kInternal, "run_prompts: {} soft tokens for {} soft rows",
            soft_SH.defined() ? soft_SH.size(0) : 0, packed.soft_rows_S.numel());
  auto x_TH = llm.embed(packed.ids_T);
  if (soft_SH.defined()) x_TH = x_TH.index_copy(0, packed.soft_rows_S, soft_SH.to(x_TH.scalar_type()));
  return llm.forward(x_TH, packed.positions_T, packed.blocks, keep).index_select(0, packed.head_rows_R).to(at::kFloat);
}

Tensor token_log_probs(models::LlmImpl& llm, const Tensor& states_RH, const PackedPrompts& packed) {
  return llm.token_log_probs(states_RH, packed.pair_rows_N, packed.pair_tokens_N);
}

Tensor continuation_sums(const PackedPrompts& packed, const Tensor& log_probs_N) {
  return at::zeros({packed.num_continuations}, log_probs_N.options()).index_add(0, packed.pair_continuations_N, log_probs_N);
}

}  // namespace uqa::trainer
