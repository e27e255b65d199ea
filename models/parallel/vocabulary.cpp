#include "models/parallel/vocabulary.h"

#include <algorithm>
#include <limits>

#include "core/error.h"
#include "models/llm/kernels.h"
#include "models/parallel/collectives.h"

namespace uqa::models {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

constexpr std::int64_t kBlockBytes = 32 << 20;  // logits of one block of rows

/// Log-sum-exp over the vocabulary of each row, GEMMs in `dtype`. Blocks of rows are streamed, and recomputed in backward, which gives this
/// rank's share of the states' gradient.
struct VocabularyLogSumExp : torch::autograd::Function<VocabularyLogSumExp> {
  static Tensor forward(AutogradContext* ctx, const Tensor& states_RH, const Tensor& head_VH, at::ScalarType dtype, const CommPtr& comm) {
    const std::int64_t num_rows = states_RH.size(0), block = vocabulary_block_rows(head_VH, dtype);
    const auto weight_VH = head_VH.to(dtype);
    auto log_sum_R = at::empty({num_rows}, states_RH.options());
    for (std::int64_t begin = 0; begin < num_rows; begin += block) {
      const std::int64_t rows = std::min(block, num_rows - begin);
      const auto logits_MV = at::mm(states_RH.narrow(0, begin, rows).to(dtype), weight_VH.t());
      log_sum_R.narrow(0, begin, rows).copy_(llm::log_sum_exp_rows(logits_MV));
    }
    // Gathered, not reduced: a rank's NaN must reach all, which a maximum does not promise.
    if (comm->comm.size() > 1) log_sum_R = comm::all_gather(log_sum_R, comm->comm).view({comm->comm.size(), num_rows}).logsumexp(0);
    ctx->save_for_backward({states_RH, head_VH, log_sum_R});
    ctx->saved_data["dtype"] = static_cast<std::int64_t>(dtype);
    return log_sum_R;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto saved = ctx->get_saved_variables();
    const Tensor &states_RH = saved[0], &head_VH = saved[1], &log_sum_R = saved[2];
    const auto dtype = static_cast<at::ScalarType>(ctx->saved_data["dtype"].toInt());
    const std::int64_t num_rows = states_RH.size(0), block = vocabulary_block_rows(head_VH, dtype);
    const auto weight_VH = head_VH.to(dtype);
    const auto dlog_sum_R = grads[0].contiguous();
    auto dstates_RH = at::empty_like(states_RH);
    Tensor dhead_VH = ctx->needs_input_grad(1) ? at::zeros_like(head_VH) : Tensor();
    for (std::int64_t begin = 0; begin < num_rows; begin += block) {
      const std::int64_t rows = std::min(block, num_rows - begin);
      const auto x_MH = states_RH.narrow(0, begin, rows).to(dtype);
      auto dlogits_MV = at::mm(x_MH, weight_VH.t());
      llm::scaled_softmax_rows_(dlogits_MV, log_sum_R.narrow(0, begin, rows), dlog_sum_R.narrow(0, begin, rows));
      dstates_RH.narrow(0, begin, rows).copy_(at::mm(dlogits_MV, weight_VH));
      if (dhead_VH.defined()) dhead_VH.add_(at::mm(dlogits_MV.t(), x_MH));
    }
    return {dstates_RH, dhead_VH, Tensor(), Tensor()};
  }
};

/// Which ids this rank's table has, and their rows in it (any row for the others).
struct OwnRows {
  Tensor mine_N, rows_N;
};
OwnRows own_rows(const Tensor& ids_N, const Tensor& table_VH, const VocabularySlice& slice) {
  const auto local_N = ids_N - slice.first;
  return {.mine_N = local_N.ge(0).logical_and(local_N.lt(table_VH.size(0))), .rows_N = local_N.clamp(0, table_VH.size(0) - 1)};
}

}  // namespace

std::int64_t vocabulary_block_rows(const Tensor& head_VH, at::ScalarType dtype) {
  return std::max<std::int64_t>(1, kBlockBytes / (static_cast<std::int64_t>(c10::elementSize(dtype)) * head_VH.size(0)));
}

Tensor vocabulary_embedding(const Tensor& ids, const Tensor& table_VH, const VocabularySlice& slice) {
  const auto ids_T = ids.to(table_VH.device());
  if (slice.comm.size() == 1) return at::embedding(table_VH, ids_T);
  const auto own = own_rows(ids_T, table_VH, slice);
  return reduce_from(at::embedding(table_VH, own.rows_N).masked_fill(own.mine_N.logical_not().unsqueeze(-1), 0), slice.comm);
}

Tensor vocabulary_log_probs(const Tensor& states_RH, const Tensor& head_VH, const VocabularySlice& slice, const Tensor& rows, const Tensor& tokens,
                            at::ScalarType dtype) {
  const auto rows_N = rows.to(states_RH.device()), tokens_N = tokens.to(states_RH.device());
  const auto own_states_RH = copy_to(states_RH, slice.comm);
  const auto log_sum_R = VocabularyLogSumExp::apply(own_states_RH, head_VH, dtype, hold(slice.comm));
  const auto dots = [&](const Tensor& rows_of_head_N) {
    return (own_states_RH.index_select(0, rows_N) * head_VH.index_select(0, rows_of_head_N).to(at::kFloat)).sum(1);
  };
  Tensor logits_N;
  if (slice.comm.size() == 1) {
    logits_N = dots(tokens_N);
  } else {
    const auto own = own_rows(tokens_N, head_VH, slice);
    logits_N = reduce_from(dots(own.rows_N).masked_fill(own.mine_N.logical_not(), 0), slice.comm);
  }
  return logits_N - log_sum_R.index_select(0, rows_N);
}

Tensor vocabulary_argmax(const Tensor& logits_RV, const VocabularySlice& slice) {
  const at::NoGradGuard no_grad;
  auto tokens_R = logits_RV.argmax(1);
  auto best_R = logits_RV.gather(1, tokens_R.unsqueeze(1)).squeeze(1);
  best_R = best_R.masked_fill(logits_RV.isfinite().all(1).logical_not(), std::numeric_limits<float>::quiet_NaN());
  tokens_R += slice.first;
  if (slice.comm.size() > 1) {
    const auto num_ranks = slice.comm.size(), num_rows = static_cast<int>(logits_RV.size(0));
    const auto best_SR = comm::all_gather(best_R.contiguous(), slice.comm).view({num_ranks, num_rows});
    const auto tokens_SR = comm::all_gather(tokens_R.contiguous(), slice.comm).view({num_ranks, num_rows});
    tokens_R = tokens_SR.gather(0, best_SR.argmax(0, /*keepdim=*/true)).squeeze(0);
    best_R = best_SR.sum(0);
  }
  return tokens_R.masked_fill(best_R.isfinite().logical_not(), -1);
}

}  // namespace uqa::models
