#include "trainer/scoring.h"

#include <algorithm>
#include <utility>

#include "core/error.h"
#include "models/llm/kernels.h"

namespace uqa::trainer {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

constexpr std::int64_t kBlockBytes = 32 << 20;  // logits of one block of rows

std::int64_t block_rows(const Tensor& head_VH, at::ScalarType dtype) {
  return std::max<std::int64_t>(1, kBlockBytes / (static_cast<std::int64_t>(c10::elementSize(dtype)) * head_VH.size(0)));
}

/// Log-sum-exp over the vocabulary of each row, GEMMs in `dtype`. Blocks of rows are streamed, and recomputed in backward.
struct VocabularyLogSumExp : torch::autograd::Function<VocabularyLogSumExp> {
  static Tensor forward(AutogradContext* ctx, const Tensor& states_RH, const Tensor& head_VH, at::ScalarType dtype) {
    const std::int64_t num_rows = states_RH.size(0), block = block_rows(head_VH, dtype);
    const auto weight_VH = head_VH.to(dtype);
    auto log_sum_R = at::empty({num_rows}, states_RH.options());
    for (std::int64_t begin = 0; begin < num_rows; begin += block) {
      const std::int64_t rows = std::min(block, num_rows - begin);
      const auto logits_MV = at::mm(states_RH.narrow(0, begin, rows).to(dtype), weight_VH.t());
      log_sum_R.narrow(0, begin, rows).copy_(models::llm::log_sum_exp_rows(logits_MV));
    }
    ctx->save_for_backward({states_RH, head_VH, log_sum_R});
    ctx->saved_data["dtype"] = static_cast<std::int64_t>(dtype);
    return log_sum_R;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto saved = ctx->get_saved_variables();
    const Tensor &states_RH = saved[0], &head_VH = saved[1], &log_sum_R = saved[2];
    const auto dtype = static_cast<at::ScalarType>(ctx->saved_data["dtype"].toInt());
    const std::int64_t num_rows = states_RH.size(0), block = block_rows(head_VH, dtype);
    const auto weight_VH = head_VH.to(dtype);
    const auto dlog_sum_R = grads[0].contiguous();
    auto dstates_RH = at::empty_like(states_RH);
    Tensor dhead_VH = ctx->needs_input_grad(1) ? at::zeros_like(head_VH) : Tensor();
    for (std::int64_t begin = 0; begin < num_rows; begin += block) {
      const std::int64_t rows = std::min(block, num_rows - begin);
      const auto x_MH = states_RH.narrow(0, begin, rows).to(dtype);
      auto dlogits_MV = at::mm(x_MH, weight_VH.t());
      models::llm::scaled_softmax_rows_(dlogits_MV, log_sum_R.narrow(0, begin, rows), dlog_sum_R.narrow(0, begin, rows));
      dstates_RH.narrow(0, begin, rows).copy_(at::mm(dlogits_MV, weight_VH));
      if (dhead_VH.defined()) dhead_VH.add_(at::mm(dlogits_MV.t(), x_MH));
    }
    return {dstates_RH, dhead_VH, Tensor()};
  }
};

}  // namespace

Tensor run_prompts(models::LlmImpl& llm, const PackedPrompts& packed, const Tensor& soft_SH, models::PackedCache* keep) {
  UQA_CHECK((soft_SH.defined() ? soft_SH.size(0) : 0) == packed.soft_rows_S.numel(), ErrorCode::kInternal, "run_prompts: {} soft tokens for {} soft rows",
            soft_SH.defined() ? soft_SH.size(0) : 0, packed.soft_rows_S.numel());
  auto x_TH = llm.embed(packed.ids_T);
  if (soft_SH.defined()) x_TH = x_TH.index_copy(0, packed.soft_rows_S, soft_SH.to(x_TH.scalar_type()));
  return llm.forward(x_TH, packed.positions_T, packed.blocks, keep).index_select(0, packed.head_rows_R).to(at::kFloat);
}

Tensor token_log_probs(models::LlmImpl& llm, const Tensor& states_RH, const PackedPrompts& packed) {
  const auto& head_VH = llm.head_weight();
  const auto log_sum_R = VocabularyLogSumExp::apply(states_RH, head_VH, llm.options().dtype);
  // The scored tokens' own logits are float32 dot products: bfloat16 results would round them to 1/16 of a nat.
  const auto logits_N = (states_RH.index_select(0, packed.pair_rows_N) * head_VH.index_select(0, packed.pair_tokens_N).to(at::kFloat)).sum(1);
  return logits_N - log_sum_R.index_select(0, packed.pair_rows_N);
}

Tensor continuation_sums(const PackedPrompts& packed, const Tensor& log_probs_N) {
  return at::zeros({packed.num_continuations}, log_probs_N.options()).index_add(0, packed.pair_continuations_N, log_probs_N);
}

}  // namespace uqa::trainer
