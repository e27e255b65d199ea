#include <algorithm>

#include "core/error.h"
#include "models/llm/decoder.h"
#include "models/llm/modules.h"

namespace uqa::models {

std::vector<std::int64_t> generate_greedy(LlmImpl& llm, const std::vector<std::int64_t>& prompt, const Tensor& soft_kH,
                                          std::int64_t max_new_tokens, bool stop_at_eos) {
  const at::NoGradGuard no_grad;
  UQA_CHECK(!prompt.empty() || (soft_kH.defined() && soft_kH.size(0) > 0), ErrorCode::kInternal, "generation needs a prompt of at least one row");
  const auto int_options = at::TensorOptions().dtype(at::kLong);
  auto x_TH = llm.embed(at::tensor(prompt, int_options)).to(at::kFloat);
  if (soft_kH.defined()) x_TH = at::cat({soft_kH.to(at::kFloat), x_TH}, 0);

  KeyValueCache cache;
  std::vector<std::int64_t> generated;
  std::int64_t position = 0;
  while (static_cast<std::int64_t>(generated.size()) < max_new_tokens) {
    const auto rows = x_TH.size(0);
    const auto states_TH = llm.forward_cached(x_TH, at::arange(position, position + rows, int_options), cache);
    position += rows;
    const auto token = llm.logits(states_TH.narrow(0, rows - 1, 1)).argmax(-1).item<std::int64_t>();
    generated.push_back(token);
    const auto& eos = llm.config().eos_ids;
    if (stop_at_eos && std::ranges::find(eos, token) != eos.end()) break;
    x_TH = llm.embed(at::tensor({token}, int_options)).to(at::kFloat);
  }
  return generated;
}

}  // namespace uqa::models
