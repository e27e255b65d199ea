#include "models/llm/decoder.h"

#include <cmath>

#include "core/error.h"
#include "models/layers/packed_attention.h"
#include "models/llm/decode_attention.h"
#include "models/llm/functions.h"
#include "models/llm/modules.h"
#include "models/parallel/linear.h"
#include "models/recompute.h"

// T rows, H residual width, N query heads, K key/value heads, D head width, C = (N + 2 K) D, V vocabulary; N, K, C and V of this rank.

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

LlmSplit LlmSplit::of(const LlmConfig& config, const TensorParallel& tp) {
  const int size = tp.size();
  LlmSplit split{.heads = cut(config.num_heads, tp, "the LLM's num_attention_heads"),
                 .kv_heads = {},
                 .inner = cut(config.intermediate, tp, "the LLM's intermediate_size"),
                 .vocab = even_range(config.vocab_size, tp.rank(), size),
                 .kv_sharers = {}};
  UQA_CHECK(config.vocab_size >= size, ErrorCode::kConfig, "the LLM's vocab_size = {}, must be at least the tensor-parallel degree {}; change --parallel.llm_tp",
            config.vocab_size, size);
  const auto kv = cut_or_share(config.num_kv_heads, tp, "the LLM's num_key_value_heads", "kv_head");
  split.kv_heads = kv.range;
  split.kv_sharers = kv.sharers;
  return split;
}

LlmImpl::LlmImpl(LlmConfig config, LlmOptions options, const TensorParallel& tp)
    : torch::nn::Module("llm"),
      config_(std::move(config)),
      options_(std::move(options)),
      tp_(tp),
      split_(LlmSplit::of(config_, tp)),
      modules_(std::make_shared<Modules>()) {
  UQA_CHECK(options_.dtype == at::kFloat || options_.dtype == at::kBFloat16, ErrorCode::kConfig, "LLM dtype = {}, must be float32 or bfloat16",
            c10::toString(options_.dtype));
  llm::validate(options_.lora);
  UQA_CHECK(!options_.trainable || options_.lora.rank == 0, ErrorCode::kConfig,
            "lora.rank = {} on an LLM that is trained as a whole, must be 0; freeze the LLM or drop LoRA", options_.lora.rank);

  const auto master = at::TensorOptions().dtype(at::kFloat);
  const llm::LinearSettings settings{.dtype = options_.dtype, .trainable = options_.trainable, .lora = options_.lora, .tp = tp_};
  const auto plain = [&](std::int64_t size) { return at::zeros({size}, master).requires_grad_(options_.trainable); };
  const auto table = [&] {
    return at::zeros({split_.vocab.length, config_.hidden}, master.dtype(options_.trainable ? at::kFloat : options_.dtype))
        .requires_grad_(options_.trainable);
  };
  auto& trainable = modules_->trainable;
  const auto add = [&](const std::string& name, const Tensor& tensor, const ParameterLayout& layout) {
    if (!tensor.defined() || !tensor.requires_grad()) return;
    trainable.emplace_back(name, tensor);
    if (layout.sharded()) modules_->layouts.emplace(name, layout);
  };
  ParameterLayout table_layout;
  if (tp_.size() > 1) table_layout = sliced(ShardAxis::kTp, {config_.vocab_size, config_.hidden}, 0, split_.vocab);
  for (auto& range : table_layout.ranges) range.copies = tp_.replicas;

  modules_->embedding_VH = table();
  add("model.embed_tokens.weight", modules_->embedding_VH, table_layout);
  const std::int64_t dim = config_.head_dim, q_full = config_.num_heads * dim, kv_full = config_.num_kv_heads * dim;
  const auto q_rows = widened(split_.heads, dim), kv_rows = widened(split_.kv_heads, dim);
  const SliceRange whole{.begin = 0, .length = config_.hidden};
  using llm::LinearSplit;
  for (std::int64_t i = 0; i < config_.num_layers; ++i) {
    auto& layer = modules_->layers.emplace_back();
    layer.input_norm_H = plain(config_.hidden);
    layer.attention_norm_H = plain(config_.hidden);
    if (config_.qkv_bias) layer.qkv_bias_C = plain(q_rows.length + 2 * kv_rows.length);
    layer.qkv = llm::FusedLinear({llm::projection("self_attn.q_proj", q_rows, q_full), llm::projection("self_attn.k_proj", kv_rows, kv_full, split_.kv_sharers),
                                  llm::projection("self_attn.v_proj", kv_rows, kv_full, split_.kv_sharers)},
                                 whole, config_.hidden, LinearSplit::kColumns, settings);
    layer.out = llm::FusedLinear({llm::projection("self_attn.o_proj", whole, config_.hidden)}, q_rows, q_full, LinearSplit::kRows, settings);
    layer.gate_up = llm::FusedLinear(
        {llm::projection("mlp.gate_proj", split_.inner, config_.intermediate), llm::projection("mlp.up_proj", split_.inner, config_.intermediate)}, whole,
        config_.hidden, LinearSplit::kColumns, settings);
    layer.down = llm::FusedLinear({llm::projection("mlp.down_proj", whole, config_.hidden)}, split_.inner, config_.intermediate, LinearSplit::kRows, settings);

    const auto prefix = fmt::format("model.layers.{}.", i);
    const auto first = trainable.size();
    add(prefix + "input_layernorm.weight", layer.input_norm_H, {});
    add(prefix + "post_attention_layernorm.weight", layer.attention_norm_H, {});
    add(prefix + "self_attn.qkv_proj.bias", layer.qkv_bias_C, bias_layout());
    for (auto* linear : {&layer.qkv, &layer.out, &layer.gate_up, &layer.down}) {
      linear->init_lora(options_.seed, i);
      for (const auto& p : linear->projections()) {
        add(prefix + p.name + ".weight", p.weight_NK, linear->weight_layout(p));
        add(fmt::format("lora.{}.{}.A", i, llm::target_of(p.name)), p.a_RK, linear->a_layout(p));
        add(fmt::format("lora.{}.{}.B", i, llm::target_of(p.name)), p.b_NR, linear->b_layout(p));
      }
    }
    for (auto t = first; t < trainable.size(); ++t) layer.trainable.push_back(trainable[t].second);
  }
  modules_->final_norm_H = plain(config_.hidden);
  add("model.norm.weight", modules_->final_norm_H, {});
  modules_->head_VH = config_.tied_embeddings ? modules_->embedding_VH : table();
  if (!config_.tied_embeddings) add("lm_head.weight", modules_->head_VH, table_layout);
  for (const auto& [name, tensor] : trainable) register_at(*this, name, tensor);
}

ParameterLayout LlmImpl::bias_layout() const {
  if (tp_.size() == 1) return {};
  const auto dim = config_.head_dim, q = config_.num_heads * dim, kv = config_.num_kv_heads * dim;
  const auto q_rows = widened(split_.heads, dim), kv_rows = widened(split_.kv_heads, dim);
  const int kv_copies = split_.kv_sharers.size() * tp_.replicas;
  return {.axis = ShardAxis::kTp,
          .global_shape = {q + 2 * kv},
          .dim = 0,
          .ranges = {{.begin = q_rows.begin, .length = q_rows.length, .copies = tp_.replicas},
                     {.begin = q + kv_rows.begin, .length = kv_rows.length, .copies = kv_copies},
                     {.begin = q + kv + kv_rows.begin, .length = kv_rows.length, .copies = kv_copies}}};
}

Tensor LlmImpl::bias_of(std::size_t index) const {
  const auto& bias_C = modules_->layers[index].qkv_bias_C;
  if (!bias_C.defined() || !bias_C.requires_grad() || split_.kv_sharers.size() == 1) return bias_C;
  const auto q = split_.heads.length * config_.head_dim;
  const auto shared = copy_all_to({bias_C.narrow(0, q, bias_C.size(0) - q)}, split_.kv_sharers);
  return at::cat({bias_C.narrow(0, 0, q), shared[0]}, 0);
}

std::vector<std::pair<std::string, Tensor>> LlmImpl::trainable_parameters() const { return modules_->trainable; }
std::vector<std::vector<Tensor>> LlmImpl::layer_parameters() const {
  std::vector<std::vector<Tensor>> parameters;
  for (const auto& layer : modules_->layers) parameters.push_back(layer.trainable);
  return parameters;
}
const Tensor& LlmImpl::head_weight() const { return modules_->head_VH; }
const std::map<std::string, ParameterLayout>& LlmImpl::trainable_layouts() const { return modules_->layouts; }

void LlmImpl::to(torch::Device device, bool non_blocking) {
  torch::nn::Module::to(device, non_blocking);
  // What is trained has moved already, under the same handles.
  const bool tied = modules_->head_VH.is_same(modules_->embedding_VH);
  const auto move = [&](Tensor& x) {
    if (x.defined()) x = x.to(device, non_blocking);
  };
  move(modules_->embedding_VH);
  if (tied) modules_->head_VH = modules_->embedding_VH;
  move(modules_->head_VH);
  move(modules_->final_norm_H);
  for (auto& layer : modules_->layers) {
    for (auto* x : {&layer.input_norm_H, &layer.attention_norm_H, &layer.qkv_bias_C}) move(*x);
    for (auto* linear : {&layer.qkv, &layer.out, &layer.gate_up, &layer.down}) linear->to(device, non_blocking);
  }
}

Tensor LlmImpl::embed(const Tensor& ids_T) const { return vocabulary_embedding(ids_T, modules_->embedding_VH, vocabulary()); }

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
  const auto rope = llm::rope_tables(positions_T.to(h_TH.device()), config_.head_dim, config_.rope_theta, config_.rope_scaling);
  const auto owner = RecomputeLayers::is_on() ? shared_from_this() : nullptr;
  Tensor delta_TH;
  for (std::size_t i = 0; i < modules_->layers.size(); ++i) {
    enter_layer(i);
    // {residual stream, what the part before adds to it (undefined at first)} -> the same behind the layer. Run again in backward, it needs the
    // decoder then; peers meet in it in the same order both times.
    const auto run = [this, owner, i, rows, dtype, rope, attend](const std::vector<Tensor>& in) -> std::vector<Tensor> {
      auto& layer = modules_->layers[i];
      auto [sum_TH, normed_TL] = llm::add_norm(in[0], in[1], layer.input_norm_H, config_.norm_eps, dtype, layer.qkv.lora_columns());
      const auto heads = llm::rope_heads(layer.qkv(copy_to(normed_TL, tp_.comm)), bias_of(i), rope, split_.heads.length, split_.kv_heads.length,
                                         config_.head_dim);
      const Tensor mixed_TND = attend(i, heads.q_TND, heads.k_TKD, heads.v_TKD);
      const Tensor mixed_TH = reduce_from(layer.out(mixed_TND.reshape({rows, -1})), tp_.comm);
      std::tie(sum_TH, normed_TL) = llm::add_norm(sum_TH, mixed_TH, layer.attention_norm_H, config_.norm_eps, dtype, layer.gate_up.lora_columns());
      const auto inner_TL = llm::swiglu_activation(layer.gate_up(copy_to(normed_TL, tp_.comm)), layer.down.lora_columns());
      return {sum_TH, reduce_from(layer.down(inner_TL), tp_.comm)};
    };
    const std::vector<Tensor> in{std::move(h_TH), std::move(delta_TH)};
    auto out = RecomputeLayers::is_on() ? recomputed(LayerFunction(run), in, modules_->layers[i].trainable) : run(in);
    out = leave_layer(i, std::move(out));
    h_TH = std::move(out[0]);
    delta_TH = std::move(out[1]);
  }
  // The head is float32, so the last norm's output is not rounded.
  return llm::add_norm(h_TH, delta_TH, modules_->final_norm_H, config_.norm_eps, at::kFloat, 0).second;
}

Tensor LlmImpl::forward(const Tensor& x_TH, const Tensor& positions_T, const std::vector<AttentionBlock>& blocks, PackedCache* keep) {
  const double scale = 1.0 / std::sqrt(static_cast<double>(config_.head_dim));
  UQA_CHECK(keep == nullptr || !at::GradMode::is_enabled() || !RecomputeLayers::is_on(), ErrorCode::kInternal,
            "keys and values cannot be kept from layers that run twice; use a NoGradGuard");
  const auto shared = std::make_shared<const std::vector<AttentionBlock>>(blocks);  // a recomputed layer outlives the caller's
  return run_layers(x_TH, positions_T, [shared, scale, keep](std::size_t, const Tensor& q_TND, const Tensor& k_TKD, const Tensor& v_TKD) {
    if (keep != nullptr) {
      keep->k_TKD.push_back(k_TKD);
      keep->v_TKD.push_back(v_TKD);
    }
    return packed_attention(q_TND, k_TKD, v_TKD, *shared, scale);
  });
}

Tensor LlmImpl::forward_next(const Tensor& x_AH, const Tensor& positions_A, GrowingSequences& sequences) {
  const at::NoGradGuard no_grad;
  const double scale = 1.0 / std::sqrt(static_cast<double>(config_.head_dim));
  UQA_CHECK(sequences.length < sequences.capacity, ErrorCode::kInternal, "sequences of {} rows cannot grow beyond {}", sequences.length, sequences.capacity);
  const auto active_A = at::tensor(sequences.active, at::kLong).to(x_AH.device());
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

Tensor LlmImpl::logits(const Tensor& states_NH) { return gather_from(local_logits(copy_to(states_NH, tp_.comm)), tp_.comm); }

Tensor LlmImpl::greedy_tokens(const Tensor& states_NH) {
  const at::NoGradGuard no_grad;
  auto tokens_N = at::empty({states_NH.size(0)}, at::kLong);
  // Blocks of the whole vocabulary's size: every rank makes as many.
  const std::int64_t block = vocabulary_block_rows(at::empty({config_.vocab_size, 0}), at::kFloat);
  for (std::int64_t begin = 0; begin < states_NH.size(0); begin += block) {
    const std::int64_t rows = std::min(block, states_NH.size(0) - begin);
    tokens_N.narrow(0, begin, rows).copy_(vocabulary_argmax(local_logits(states_NH.narrow(0, begin, rows)), vocabulary()));
  }
  UQA_CHECK(tokens_N.ge(0).all().item<bool>(), ErrorCode::kNumeric,
            "a logit of the LLM is not finite; align with a smaller optim.peak_lr, or evaluate with --dtype float32");
  return tokens_N;
}

Tensor LlmImpl::token_log_probs(const Tensor& states_RH, const Tensor& rows_N, const Tensor& tokens_N) const {
  return vocabulary_log_probs(states_RH, modules_->head_VH, vocabulary(), rows_N, tokens_N, options_.dtype);
}

Tensor LlmImpl::local_logits(const Tensor& states_NH) {
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
