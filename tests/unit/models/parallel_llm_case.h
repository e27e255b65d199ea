// tests/unit/models/parallel_llm_case.h - one training pass of a small decoder on one rank and on several.
#pragma once

#include "parallel_case.h"
#include "tests/unit/models/llm_tiny.h"

namespace uqa::models::testing {

/// Two key/value heads: four ranks share each by two. 53 words: no rank count divides them.
inline LlmConfig parallel_llm_config(const std::string& type) {
  auto config = tiny_config(type);
  config.num_heads = 8;
  return config;
}

/// The trained tensors of `full` in `llm`, which holds parts of them.
inline void copy_trained(LlmImpl& llm, const std::map<std::string, Tensor>& full) {
  const at::NoGradGuard no_grad;
  for (auto& [name, tensor] : llm.trainable_parameters()) {
    const auto layout = llm.trainable_layouts().find(name);
    Tensor(tensor).copy_(layout == llm.trainable_layouts().end() ? full.at(name) : part_of(full.at(name), layout->second));
  }
}

struct LlmResult {
  Tensor states_TH, log_probs_N, loss, dsoft_TH, logits_NV, greedy_N;
  std::map<std::string, Tensor> gradients, merged;  ///< full tensors
  std::vector<std::int64_t> generated;
};

/// A tree of prompts with soft rows, scored tokens, loss and gradients, then generation. Collective over llm.tp().comm.
inline LlmResult run_llm(LlmImpl& llm, const std::vector<std::int64_t>& prompt, bool recompute = false) {
  const RecomputeLayers layers(recompute);
  const auto& c = llm.config();
  const std::vector<AttentionBlock> blocks{{.begin = 0, .end = 6}, {.begin = 6, .end = 9, .parent = 0}, {.begin = 9, .end = 13, .parent = 0}, {.begin = 13, .end = 20}};
  const auto positions_T = at::tensor({0, 1, 2, 3, 4, 5, 6, 7, 8, 6, 7, 8, 9, 0, 1, 2, 3, 4, 5, 6}, at::kLong);
  const auto soft_rows = at::tensor({0, 13}, at::kLong);
  const auto soft = (random_normal({2, c.hidden}, 31, at::kFloat)).requires_grad_(true);
  auto x_TH = llm.embed(random_ids(c, 20, 30)).to(at::kFloat).index_copy(0, soft_rows, soft);
  LlmResult result;
  const auto states_TH = llm.forward(x_TH, positions_T, blocks);
  const auto log_probs_N = llm.token_log_probs(states_TH, at::tensor({5, 8, 8, 12, 19}, at::kLong), at::tensor({0, 1, 30, 52, 26}, at::kLong));
  auto labels_T = random_ids(c, 20, 33);
  labels_T.narrow(0, 3, 4).fill_(-100);
  const auto loss = next_token_loss(llm, states_TH, labels_T) - (log_probs_N * random_normal({5}, 34, at::kFloat)).sum();
  loss.backward();
  result.states_TH = states_TH.detach();
  result.log_probs_N = log_probs_N.detach();
  result.loss = loss.detach();
  result.dsoft_TH = soft.grad();
  for (const auto& [name, tensor] : llm.trainable_parameters()) {
    if (!tensor.grad().defined()) continue;
    const auto layout = llm.trainable_layouts().find(name);
    result.gradients[name] = whole_of(tensor.grad(), layout == llm.trainable_layouts().end() ? ParameterLayout{} : layout->second, llm.tp().comm);
  }
  const at::NoGradGuard no_grad;
  result.logits_NV = llm.logits(result.states_TH);
  result.greedy_N = llm.greedy_tokens(result.states_TH);
  result.merged = llm.merge_lora();
  result.generated = generate_greedy(llm, prompt, soft.detach(), 12, /*stop_at_eos=*/false);
  return result;
}

}  // namespace uqa::models::testing
