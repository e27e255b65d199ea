#include "models/llm/decoder.h"

#include <cmath>

#include "core/error.h"
#include "models/layers/packed_attention.h"
#include "models/llm/decode_attention.h"
#include "models/llm/functions.h"
#include "models/llm/modules.h"

// T rows, H residual width, N query heads, K key/value heads, D head width, C = (N + 2 K) D, V vocabulary.

namespace uqa::models {
namespace {

/// Registers `tensor` at a dotted path, making the modules in between: module names must not contain dots.
void register_at(torch::nn::Module& root, const std::string& path, const Tensor& tensor) {
  const auto dot = path.find('.');
  if (dot == std::string::npos) {
    root.register_parameter(path, tensor);
    return;
  }
  const auto head = path.substr(0, dot);
  const auto children = root.named_children();
  const auto child = children.contains(head) ? children[head] : root.register_module(head, std::make_shared<torch::nn::Module>(head));
  register_at(*child, path.substr(dot + 1), tensor);
}

}  // namespace

std::map<std::string, std::vector<std::int64_t>> LlmConfig::weight_shapes() const {
  std::map<std::string, std::vector<std::int64_t>> shapes;
  shapes["model.embed_tokens.weight"] = {vocab_size, hidden};
  if (!tied_embeddings) shapes["lm_head.weight"] = {vocab_size, hidden};
  shapes["model.norm.weight"] = {hidden};
  for (std::int64_t i = 0; i < num_layers; ++i) {
    const auto layer = fmt::format("model.layers.{}.", i);
    shapes[layer + "input_layernorm.weight"] = {hidden};
    shapes[layer + "post_attention_layernorm.weight"] = {hidden};
    shapes[layer + "self_attn.q_proj.weight"] = {num_heads * head_dim, hidden};
    for (const char* name : {"k_proj", "v_proj"}) shapes[fmt::format("{}self_attn.{}.weight", layer, name)] = {num_kv_heads * head_dim, hidden};
    shapes[layer + "self_attn.o_proj.weight"] = {hidden, num_heads * head_dim};
    if (qkv_bias) {
      shapes[layer + "self_attn.q_proj.bias"] = {num_heads * head_dim};
      for (const char* name : {"k_proj", "v_proj"}) shapes[fmt::format("{}self_attn.{}.bias", layer, name)] = {num_kv_heads * head_dim};
    }
    for (const char* name : {"gate_proj", "up_proj"}) shapes[fmt::format("{}mlp.{}.weight", layer, name)] = {intermediate, hidden};
    shapes[layer + "mlp.down_proj.weight"] = {hidden, intermediate};
  }
  return shapes;
}

LlmImpl::LlmImpl(LlmConfig config, LlmOptions options)
    : torch::nn::Module("llm"), config_(std::move(config)), options_(std::move(options)), modules_(std::make_shared<Modules>()) {
  UQA_CHECK(options_.dtype == at::kFloat || options_.dtype == at::kBFloat16, ErrorCode::kConfig, "LLM dtype = {}, must be float32 or bfloat16",
            c10::toString(options_.dtype));
  llm::validate(options_.lora);
  UQA_CHECK(!options_.trainable || options_.lora.rank == 0, ErrorCode::kConfig,
            "lora.rank = {} on an LLM that is trained as a whole, must be 0; freeze the LLM or drop LoRA", options_.lora.rank);

  const auto master = at::TensorOptions().dtype(at::kFloat);
  const llm::LinearSettings settings{.dtype = options_.dtype, .trainable = options_.trainable, .lora = options_.lora};
  const auto plain = [&](std::int64_t size) { return at::zeros({size}, master).requires_grad_(options_.trainable); };
  const auto table = [&] {
    return at::zeros({config_.vocab_size, config_.hidden}, master.dtype(options_.trainable ? at::kFloat : options_.dtype))
        .requires_grad_(options_.trainable);
  };
  auto& trainable = modules_->trainable;
  const auto add = [&](const std::string& name, const Tensor& tensor) {
    if (tensor.defined() && tensor.requires_grad()) trainable.emplace_back(name, tensor);
  };

  modules_->embedding_VH = table();
  add("model.embed_tokens.weight", modules_->embedding_VH);
  const std::int64_t q_size = config_.num_heads * config_.head_dim, kv_size = config_.num_kv_heads * config_.head_dim;
  for (std::int64_t i = 0; i < config_.num_layers; ++i) {
    auto& layer = modules_->layers.emplace_back();
    layer.input_norm_H = plain(config_.hidden);
    layer.attention_norm_H = plain(config_.hidden);
    if (config_.qkv_bias) layer.qkv_bias_C = plain(q_size + 2 * kv_size);
    layer.qkv = llm::FusedLinear({{.name = "self_attn.q_proj", .size = q_size, .weight_NK = {}, .a_RK = {}, .b_NR = {}},
                                  {.name = "self_attn.k_proj", .size = kv_size, .weight_NK = {}, .a_RK = {}, .b_NR = {}},
                                  {.name = "self_attn.v_proj", .size = kv_size, .weight_NK = {}, .a_RK = {}, .b_NR = {}}},
                                 config_.hidden, settings);
    layer.out = llm::FusedLinear({{.name = "self_attn.o_proj", .size = config_.hidden, .weight_NK = {}, .a_RK = {}, .b_NR = {}}}, q_size, settings);
    layer.gate_up = llm::FusedLinear({{.name = "mlp.gate_proj", .size = config_.intermediate, .weight_NK = {}, .a_RK = {}, .b_NR = {}},
                                      {.name = "mlp.up_proj", .size = config_.intermediate, .weight_NK = {}, .a_RK = {}, .b_NR = {}}},
                                     config_.hidden, settings);
    layer.down = llm::FusedLinear({{.name = "mlp.down_proj", .size = config_.hidden, .weight_NK = {}, .a_RK = {}, .b_NR = {}}},
                                  config_.intermediate, settings);

    const auto prefix = fmt::format("model.layers.{}.", i);
    add(prefix + "input_layernorm.weight", layer.input_norm_H);
    add(prefix + "post_attention_layernorm.weight", layer.attention_norm_H);
    add(prefix + "self_attn.qkv_proj.bias", layer.qkv_bias_C);
    for (auto* linear : {&layer.qkv, &layer.out, &layer.gate_up, &layer.down}) {
      linear->init_lora(options_.seed, i);
      for (const auto& p : linear->projections()) {
        add(prefix + p.name + ".weight", p.weight_NK);
        add(fmt::format("lora.{}.{}.A", i, llm::target_of(p.name)), p.a_RK);
        add(fmt::format("lora.{}.{}.B", i, llm::target_of(p.name)), p.b_NR);
      }
    }
  }
  modules_->final_norm_H = plain(config_.hidden);
  add("model.norm.weight", modules_->final_norm_H);
  modules_->head_VH = config_.tied_embeddings ? modules_->embedding_VH : table();
  if (!config_.tied_embeddings) add("lm_head.weight", modules_->head_VH);
  for (const auto& [name, tensor] : trainable) register_at(*this, name, tensor);
}

std::vector<std::pair<std::string, Tensor>> LlmImpl::trainable_parameters() const { return modules_->trainable; }
const Tensor& LlmImpl::head_weight() const { return modules_->head_VH; }

Tensor LlmImpl::embed(const Tensor& ids_T) const { return at::embedding(modules_->embedding_VH, ids_T); }

template <typename Attend>
Tensor LlmImpl::run_layers(const Tensor& x_TH, const Tensor& positions_T, Attend&& attend) {
  auto h_TH = x_TH.to(at::kFloat).contiguous();
  const std::int64_t rows = h_TH.size(0);
  UQA_CHECK(h_TH.dim() == 2 && h_TH.size(1) == config_.hidden && positions_T.numel() == rows, ErrorCode::kInternal,
            "LLM input has {} rows and {} positions, must be equal, rows of width {}", rows, positions_T.numel(), config_.hidden);
  if (rows == 0) return h_TH;
  const auto longest = positions_T.max().item<std::int64_t>();
  UQA_CHECK(longest < config_.max_positions, ErrorCode::kConfig, "prompt of {} tokens, the LLM takes at most {}; shorten the prompt",
            longest + 1, config_.max_positions);

  const auto dtype = options_.dtype;
  const auto rope = llm::rope_tables(positions_T, config_.head_dim, config_.rope_theta, config_.rope_scaling);
  Tensor delta_TH;
  for (std::size_t i = 0; i < modules_->layers.size(); ++i) {
    auto& layer = modules_->layers[i];
    Tensor normed_TL;
    std::tie(h_TH, normed_TL) = llm::add_norm(h_TH, delta_TH, layer.input_norm_H, config_.norm_eps, dtype, layer.qkv.lora_columns());
    const auto heads = llm::rope_heads(layer.qkv(normed_TL), layer.qkv_bias_C, rope, config_.num_heads, config_.num_kv_heads, config_.head_dim);
    const Tensor mixed_TND = attend(i, heads.q_TND, heads.k_TKD, heads.v_TKD);
    delta_TH = layer.out(mixed_TND.reshape({rows, -1}));
    std::tie(h_TH, normed_TL) = llm::add_norm(h_TH, delta_TH, layer.attention_norm_H, config_.norm_eps, dtype, layer.gate_up.lora_columns());
    delta_TH = layer.down(llm::swiglu_activation(layer.gate_up(normed_TL), layer.down.lora_columns()));
  }
  // The head is float32, so the last norm's output is not rounded.
  return llm::add_norm(h_TH, delta_TH, modules_->final_norm_H, config_.norm_eps, at::kFloat, 0).second;
}

Tensor LlmImpl::forward(const Tensor& x_TH, const Tensor& positions_T, const std::vector<AttentionBlock>& blocks, PackedCache* keep) {
  const double scale = 1.0 / std::sqrt(static_cast<double>(config_.head_dim));
  return run_layers(x_TH, positions_T, [&](std::size_t, const Tensor& q_TND, const Tensor& k_TKD, const Tensor& v_TKD) {
    if (keep != nullptr) {
      keep->k_TKD.push_back(k_TKD);
      keep->v_TKD.push_back(v_TKD);
    }
    return packed_attention(q_TND, k_TKD, v_TKD, blocks, scale);
  });
}

Tensor LlmImpl::forward_next(const Tensor& x_AH, const Tensor& positions_A, GrowingSequences& sequences) {
  const at::NoGradGuard no_grad;
  const double scale = 1.0 / std::sqrt(static_cast<double>(config_.head_dim));
  UQA_CHECK(sequences.length < sequences.capacity, ErrorCode::kInternal, "sequences of {} rows cannot grow beyond {}", sequences.length, sequences.capacity);
  const auto active_A = at::tensor(sequences.active, at::kLong);
  const std::int64_t row = sequences.length++;
  return run_layers(x_AH, positions_A, [&](std::size_t i, const Tensor& q_AND, const Tensor& k_AKD, const Tensor& v_AKD) {
    if (row == 0) {
      const std::vector<std::int64_t> shape{static_cast<std::int64_t>(sequences.seen.size()), sequences.capacity, k_AKD.size(1), k_AKD.size(2)};
      for (auto* own : {&sequences.k_BSKD, &sequences.v_BSKD}) own->push_back(at::empty(shape, k_AKD.options()));
    }
    auto &k_BSKD = sequences.k_BSKD[i], &v_BSKD = sequences.v_BSKD[i];
    k_BSKD.select(1, row).index_copy_(0, active_A, k_AKD);
    v_BSKD.select(1, row).index_copy_(0, active_A, v_AKD);
    return llm::decode_attention(q_AND, sequences.context->k_TKD[i], sequences.context->v_TKD[i], k_BSKD, v_BSKD, sequences, scale);
  });
}

Tensor LlmImpl::logits(const Tensor& states_NH) {
  const auto& head_VH = modules_->head_VH;
  const auto rows_NH = states_NH.to(at::kFloat);
  if (head_VH.scalar_type() == at::kFloat) return at::linear(rows_NH, head_VH);
  if (at::GradMode::is_enabled() && states_NH.requires_grad()) return at::linear(rows_NH, head_VH.to(at::kFloat));
  // bfloat16 results would tie neighbouring logits, so the product is float32; the head is widened a block at a time.
  auto logits_NV = at::empty({rows_NH.size(0), head_VH.size(0)}, rows_NH.options());
  constexpr std::int64_t kBlock = 4096;
  for (std::int64_t begin = 0; begin < head_VH.size(0); begin += kBlock) {
    const auto size = std::min(kBlock, head_VH.size(0) - begin);
    logits_NV.narrow(1, begin, size).copy_(at::linear(rows_NH, head_VH.narrow(0, begin, size).to(at::kFloat)));
  }
  return logits_NV;
}

}  // namespace uqa::models
