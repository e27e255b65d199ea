// tests/unit/models/llm_tiny.h - small random decoders, and the same computation from plain torch operations.
#pragma once

#include <cmath>
#include <map>
#include <string>
#include <vector>

#include "models/llm/decoder.h"
#include "tests/unit/models/numeric.h"

namespace uqa::models::testing {

inline LlmConfig tiny_config(const std::string& type = "qwen2") {
  LlmConfig config;
  config.model_type = type;
  config.hidden = 24, config.num_layers = 2, config.num_heads = 6, config.num_kv_heads = 2, config.head_dim = 4, config.intermediate = 40;
  config.vocab_size = 53, config.max_positions = 64, config.rope_theta = 1000, config.norm_eps = 1e-6;
  config.tied_embeddings = type == "qwen2", config.qkv_bias = type == "qwen2", config.eos_ids = {2};
  return config;
}

/// Weights that make logits of magnitude one and attention far from uniform.
inline std::map<std::string, Tensor> tiny_weights(const LlmConfig& config, std::uint64_t seed = 7) {
  std::map<std::string, Tensor> weights;
  for (const auto& [name, shape] : config.weight_shapes()) {
    const bool norm = name.ends_with("norm.weight");
    weights[name] = random_normal(shape, ++seed, at::kFloat) * (norm ? 0.2 : 0.3) + (norm ? 1.0 : 0.0);
  }
  return weights;
}

inline Llm tiny_llm(const LlmConfig& config, const LlmOptions& options = {}, std::uint64_t seed = 7) {
  Llm llm(config, options);
  for (const auto& [name, tensor] : tiny_weights(config, seed)) llm->set_weight(name, tensor);
  return llm;
}

/// Gives LoRA's B values away from zero, so that LoRA changes the output.
inline void fill_lora_b(Llm& llm, std::uint64_t seed = 99) {
  const at::NoGradGuard no_grad;
  for (auto& [name, tensor] : llm->trainable_parameters()) {
    if (name.ends_with(".B")) Tensor(tensor).copy_(random_normal(tensor.sizes(), ++seed, at::kFloat) * 0.1);
  }
}

inline Tensor random_ids(const LlmConfig& config, std::int64_t rows, std::uint64_t seed) {
  return random_normal({rows}, seed).abs().mul(1e6).to(at::kLong).remainder(config.vocab_size);
}

/// Hidden rows after the final norm, from plain operations: weights by Hugging Face name, of x's type; they may require gradients.
inline Tensor plain_forward(const LlmConfig& c, const std::map<std::string, Tensor>& w, const Tensor& x_TH, const Tensor& positions_T,
                            const std::vector<AttentionBlock>& blocks) {
  const auto rows = x_TH.size(0);
  auto visible_TT = at::zeros({rows, rows}, at::kBool);
  for (const auto& b : blocks) {
    for (auto a = b.parent; a >= 0; a = blocks[static_cast<std::size_t>(a)].parent) {
      const auto& above = blocks[static_cast<std::size_t>(a)];
      visible_TT.narrow(0, b.begin, b.end - b.begin).narrow(1, above.begin, above.end - above.begin).fill_(true);
    }
    auto own = visible_TT.narrow(0, b.begin, b.end - b.begin).narrow(1, b.begin, b.end - b.begin);
    own.copy_(at::ones_like(own).tril());
  }
  const auto norm = [&](const Tensor& x, const Tensor& weight) { return x * at::rsqrt(x.square().mean(-1, true) + c.norm_eps) * weight; };
  const auto frequencies = at::pow(c.rope_theta, at::arange(0, c.head_dim, 2, at::kDouble) / static_cast<double>(c.head_dim) * -1.0);
  const auto angles = at::outer(positions_T.to(at::kDouble), frequencies).repeat({1, 2}).unsqueeze(1);
  const auto cos = angles.cos().to(x_TH.scalar_type()), sin = angles.sin().to(x_TH.scalar_type());
  const auto rotate = [&](const Tensor& x) {
    const auto halves = x.chunk(2, -1);
    return x * cos + at::cat({-halves[1], halves[0]}, -1) * sin;
  };
  auto h = x_TH;
  for (std::int64_t i = 0; i < c.num_layers; ++i) {
    const auto p = fmt::format("model.layers.{}.", i);
    const auto linear = [&](const Tensor& x, const std::string& name) {
      const auto y = at::matmul(x, w.at(p + name + ".weight").t());
      const auto bias = w.find(p + name + ".bias");
      return bias == w.end() ? y : y + bias->second;
    };
    auto x = norm(h, w.at(p + "input_layernorm.weight"));
    const auto q = rotate(linear(x, "self_attn.q_proj").view({rows, c.num_heads, -1}));
    const auto repeats = c.num_heads / c.num_kv_heads;
    const auto k = rotate(linear(x, "self_attn.k_proj").view({rows, c.num_kv_heads, -1})).repeat_interleave(repeats, 1);
    const auto v = linear(x, "self_attn.v_proj").view({rows, c.num_kv_heads, -1}).repeat_interleave(repeats, 1);
    const auto scores = at::einsum("tnd,snd->nts", {q, k}) / std::sqrt(static_cast<double>(c.head_dim));
    const auto probs = scores.masked_fill(visible_TT.logical_not(), -INFINITY).softmax(-1);
    h = h + linear(at::einsum("nts,snd->tnd", {probs, v}).reshape({rows, -1}), "self_attn.o_proj");
    x = norm(h, w.at(p + "post_attention_layernorm.weight"));
    h = h + linear(at::silu(linear(x, "mlp.gate_proj")) * linear(x, "mlp.up_proj"), "mlp.down_proj");
  }
  return norm(h, w.at("model.norm.weight"));
}

inline std::map<std::string, Tensor> to_type(const std::map<std::string, Tensor>& weights, at::ScalarType type) {
  std::map<std::string, Tensor> cast;
  for (const auto& [name, tensor] : weights) cast[name] = tensor.detach().to(type);
  return cast;
}
inline std::map<std::string, Tensor> to_double(const std::map<std::string, Tensor>& weights) { return to_type(weights, at::kDouble); }

}  // namespace uqa::models::testing
