#include <algorithm>

#include "core/error.h"
#include "models/llm/decoder.h"
#include "models/llm/kernels.h"

namespace uqa::models {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// M labelled rows, H width, V vocabulary.

constexpr std::int64_t kChunkBytes = 32 << 20;  // of one chunk's logits

/// Sum of cross-entropies. The gradients are taken in the forward pass, while a chunk's logits are there, so that no logits are
/// computed twice; backward only scales them.
struct HeadLoss : torch::autograd::Function<HeadLoss> {
  static Tensor forward(AutogradContext* ctx, const Tensor& states_MH, const Tensor& head_VH, const Tensor& labels_M, at::ScalarType dtype,
                        bool states_grad, bool head_grad) {
    const auto rows_MH = states_MH.to(dtype);
    const auto weight_VH = head_VH.to(dtype);
    const std::int64_t vocab = head_VH.size(0), chunk = std::max<std::int64_t>(1, kChunkBytes / (vocab * static_cast<std::int64_t>(rows_MH.element_size())));
    auto total = at::zeros({}, states_MH.options().dtype(at::kDouble));
    Tensor dstates_MH, dhead_VH;
    if (states_grad) dstates_MH = at::empty({states_MH.size(0), states_MH.size(1)}, states_MH.options().dtype(at::kFloat));
    if (head_grad) dhead_VH = at::zeros_like(head_VH, head_VH.options().dtype(at::kFloat));
    for (std::int64_t begin = 0; begin < rows_MH.size(0); begin += chunk) {
      const std::int64_t size = std::min(chunk, rows_MH.size(0) - begin);
      const auto chunk_MH = rows_MH.narrow(0, begin, size);
      auto logits_MV = at::mm(chunk_MH, weight_VH.t());
      total += llm::cross_entropy_rows_(logits_MV, labels_M.narrow(0, begin, size), states_grad || head_grad).sum(at::kDouble);
      if (states_grad) dstates_MH.narrow(0, begin, size).copy_(at::mm(logits_MV, weight_VH));
      if (head_grad) dhead_VH += at::mm(logits_MV.t(), chunk_MH);
    }
    ctx->save_for_backward({dstates_MH, dhead_VH});
    ctx->saved_data["states_type"] = static_cast<std::int64_t>(states_MH.scalar_type());
    return total.to(at::kFloat);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto saved = ctx->get_saved_variables();
    const auto states_type = static_cast<at::ScalarType>(ctx->saved_data["states_type"].toInt());
    return {saved[0].defined() ? (saved[0] * grads[0]).to(states_type) : Tensor(), saved[1].defined() ? saved[1] * grads[0] : Tensor(), Tensor(),
            Tensor(), Tensor(), Tensor()};
  }
};

}  // namespace

Tensor next_token_loss(LlmImpl& llm, const Tensor& states_TH, const Tensor& labels_T) {
  UQA_CHECK(states_TH.dim() == 2 && labels_T.dim() == 1 && states_TH.size(0) == labels_T.size(0), ErrorCode::kInternal,
            "{} states and {} labels, must be equal", states_TH.size(0), labels_T.numel());
  auto rows_M = at::nonzero(labels_T != -100).squeeze(1);
  auto labels_M = labels_T.index_select(0, rows_M).contiguous();
  if (labels_M.numel() > 0) {
    const auto smallest = labels_M.min().item<std::int64_t>(), largest = labels_M.max().item<std::int64_t>();
    UQA_CHECK(smallest >= 0 && largest < llm.config().vocab_size, ErrorCode::kData, "label = {}, must be -100 or in [0, {})",
              smallest < 0 ? smallest : largest, llm.config().vocab_size);
  }
  rows_M = rows_M.to(states_TH.device());
  labels_M = labels_M.to(states_TH.device());
  if (llm.tp().size() > 1) {
    return -llm.token_log_probs(states_TH.index_select(0, rows_M).to(at::kFloat), at::arange(labels_M.numel(), at::kLong), labels_M).sum();
  }
  const auto& head_VH = llm.head_weight();
  const bool grad = at::GradMode::is_enabled();
  return HeadLoss::apply(states_TH.index_select(0, rows_M), head_VH, labels_M, llm.options().dtype, grad && states_TH.requires_grad(),
                         grad && head_VH.requires_grad());
}

}  // namespace uqa::models
