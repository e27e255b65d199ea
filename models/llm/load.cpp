#include <algorithm>
#include <set>

#include "core/error.h"
#include "core/json.h"
#include "models/llm/decoder.h"
#include "models/llm/modules.h"
#include "models/parallel/linear.h"
#include "models/tensor_io.h"

namespace uqa::models {
namespace {

/// Where one projection's bias lies in this rank's fused q, k, v bias, and which of its elements; length 0 for other names.
struct BiasPlace {
  std::int64_t at = 0;
  SliceRange elements;
};
BiasPlace bias_place(const LlmConfig& config, const LlmSplit& split, const std::string& name) {
  const auto q = widened(split.heads, config.head_dim), kv = widened(split.kv_heads, config.head_dim);
  if (name == "self_attn.q_proj.bias") return {.at = 0, .elements = q};
  if (name == "self_attn.k_proj.bias") return {.at = q.length, .elements = kv};
  if (name == "self_attn.v_proj.bias") return {.at = q.length + kv.length, .elements = kv};
  return {};
}

struct LayerName {
  std::int64_t index = -1;
  std::string rest;
};
/// "model.layers.3.mlp.up_proj.weight" -> {3, "mlp.up_proj.weight"}.
LayerName split_layer(const std::string& name) {
  static const std::string prefix = "model.layers.";
  if (!name.starts_with(prefix)) return {};
  const auto dot = name.find('.', prefix.size());
  return {std::stoll(name.substr(prefix.size(), dot - prefix.size())), name.substr(dot + 1)};
}

std::string shape_text(const std::vector<std::int64_t>& shape) { return fmt::format("[{}]", fmt::join(shape, ", ")); }

/// Files that hold the model's tensors, in order.
std::vector<fs::path> weight_files(const fs::path& directory) {
  const auto single = directory / "model.safetensors", index = directory / "model.safetensors.index.json";
  if (fs::exists(single)) return {single};
  UQA_CHECK(fs::exists(index), ErrorCode::kData, "{}: neither model.safetensors nor model.safetensors.index.json is there; give a Hugging Face model directory",
            directory.string());
  const auto json = read_json(index);
  const auto map = get<std::map<std::string, std::string>>(json, "weight_map", index.string());
  std::set<std::string> names;
  for (const auto& [tensor, file] : map) {
    UQA_CHECK(!file.empty() && file.find('/') == std::string::npos, ErrorCode::kData, "{}: shard '{}' of tensor '{}' must be a file name in the same directory",
              index.string(), file, tensor);
    names.insert(file);
  }
  std::vector<fs::path> files;
  for (const auto& name : names) files.push_back(directory / name);
  return files;
}

}  // namespace

void LlmImpl::set_weight(const std::string& name, const Tensor& value) {
  const auto shapes = config_.weight_shapes();
  const auto shape = shapes.find(name);
  UQA_CHECK(shape != shapes.end() && value.sizes() == at::IntArrayRef(shape->second), ErrorCode::kInternal,
            "tensor '{}' of shape {} is not part of this LLM", name, shape_text(value.sizes().vec()));
  const at::NoGradGuard no_grad;
  if (name == "model.embed_tokens.weight") {
    modules_->embedding_VH.copy_(value.narrow(0, split_.vocab.begin, split_.vocab.length));
  } else if (name == "lm_head.weight") {
    modules_->head_VH.copy_(value.narrow(0, split_.vocab.begin, split_.vocab.length));
  } else if (name == "model.norm.weight") {
    modules_->final_norm_H.copy_(value);
  } else {
    const auto [index, rest] = split_layer(name);
    auto& layer = modules_->layers.at(static_cast<std::size_t>(index));
    const auto [at, elements] = bias_place(config_, split_, rest);
    if (rest == "input_layernorm.weight") {
      layer.input_norm_H.copy_(value);
    } else if (rest == "post_attention_layernorm.weight") {
      layer.attention_norm_H.copy_(value);
    } else if (elements.length > 0) {
      layer.qkv_bias_C.narrow(0, at, elements.length).copy_(value.narrow(0, elements.begin, elements.length));
    } else {
      const auto projection = rest.substr(0, rest.rfind('.'));
      for (auto* linear : {&layer.qkv, &layer.out, &layer.gate_up, &layer.down}) {
        const auto& all = linear->projections();
        if (std::ranges::any_of(all, [&](const auto& p) { return p.name == projection; })) linear->set_weight(projection, value);
      }
    }
  }
}

std::map<std::string, Tensor> LlmImpl::merge_lora() const {
  const at::NoGradGuard no_grad;
  const auto& comm = tp_.comm;
  const auto copy = [](const Tensor& x) { return x.detach().to(at::kFloat).contiguous().clone(); };
  const auto table = [&](const Tensor& rows_VH) {
    if (comm.size() == 1) return copy(rows_VH);
    return whole_of(rows_VH.to(at::kFloat), sliced(ShardAxis::kTp, {config_.vocab_size, config_.hidden}, 0, split_.vocab), comm);
  };
  std::map<std::string, Tensor> tensors;
  tensors["model.embed_tokens.weight"] = table(modules_->embedding_VH);
  if (!config_.tied_embeddings) tensors["lm_head.weight"] = table(modules_->head_VH);
  tensors["model.norm.weight"] = copy(modules_->final_norm_H);
  for (std::size_t i = 0; i < modules_->layers.size(); ++i) {
    const auto& layer = modules_->layers[i];
    const auto prefix = fmt::format("model.layers.{}.", i);
    tensors[prefix + "input_layernorm.weight"] = copy(layer.input_norm_H);
    tensors[prefix + "post_attention_layernorm.weight"] = copy(layer.attention_norm_H);
    if (config_.qkv_bias) {
      const auto bias_C = whole_of(layer.qkv_bias_C.to(at::kFloat), bias_layout(), comm);
      const auto q = config_.num_heads * config_.head_dim, kv = config_.num_kv_heads * config_.head_dim;
      tensors[prefix + "self_attn.q_proj.bias"] = copy(bias_C.narrow(0, 0, q));
      tensors[prefix + "self_attn.k_proj.bias"] = copy(bias_C.narrow(0, q, kv));
      tensors[prefix + "self_attn.v_proj.bias"] = copy(bias_C.narrow(0, q + kv, kv));
    }
    for (const auto* linear : {&layer.qkv, &layer.out, &layer.gate_up, &layer.down}) {
      for (const auto& p : linear->projections()) tensors[prefix + p.name + ".weight"] = whole_of(linear->merged_weight(p), linear->weight_layout(p), comm);
    }
  }
  return tensors;
}

namespace {

/// Fills the model from the directory's files. Local: no collective.
void read_weights(LlmImpl& llm, const fs::path& directory) {
  const auto& config = llm.config();
  const auto shapes = config.weight_shapes();
  std::set<std::string> seen;
  Tensor tied_head;
  for (const auto& file : weight_files(directory)) {
    for_each_tensor(file, [&](const std::string& name, const Tensor& tensor) {
      if (name.ends_with(".rotary_emb.inv_freq")) return;  // derived from rope_theta; old checkpoints carry it
      UQA_CHECK(seen.insert(name).second, ErrorCode::kData, "{}: tensor '{}' is also in an earlier shard, must be in one only", file.string(), name);
      const bool tied_copy = config.tied_embeddings && name == "lm_head.weight";
      const auto expected = shapes.find(tied_copy ? "model.embed_tokens.weight" : name);
      UQA_CHECK(expected != shapes.end(), ErrorCode::kData, "{}: tensor '{}' does not belong to the architecture in config.json", file.string(), name);
      UQA_CHECK(tensor.sizes() == at::IntArrayRef(expected->second), ErrorCode::kData, "{}: tensor '{}' has shape {}, config.json asks for {}",
                file.string(), name, shape_text(tensor.sizes().vec()), shape_text(expected->second));
      UQA_CHECK(at::isFloatingType(tensor.scalar_type()), ErrorCode::kData, "{}: tensor '{}' has type {}, must be F32, BF16 or F16", file.string(),
                name, c10::toString(tensor.scalar_type()));
      if (tied_copy) {
        tied_head = tensor.narrow(0, llm.split().vocab.begin, llm.split().vocab.length).clone();
      } else {
        llm.set_weight(name, tensor);
      }
    });
  }
  for (const auto& [name, shape] : shapes) {
    UQA_CHECK(seen.contains(name), ErrorCode::kData, "{}: tensor '{}' of shape {} is missing; the download may be incomplete", directory.string(), name,
              shape_text(shape));
  }
  if (tied_head.defined()) {
    UQA_CHECK(at::equal(tied_head.to(llm.head_weight().scalar_type()), llm.head_weight().detach()), ErrorCode::kData,
              "{}: lm_head.weight differs from embed_tokens although tie_word_embeddings = true; set it to false in config.json", directory.string());
  }
}

}  // namespace

Llm load_llm(const fs::path& directory, const LlmOptions& options, const TensorParallel& tp) {
  LlmConfig config;
  // Ranks agree before the model is made, which may split the group, and after their files are read.
  const auto agreed = [&](const std::function<void()>& body) {
    if (tp.size() == 1) return body();
    comm::run_agreed(tp.comm, body);
  };
  agreed([&] { config = LlmConfig::load(directory); });
  Llm llm(std::move(config), options, tp);
  agreed([&] { read_weights(*llm, directory); });
  return llm;
}

}  // namespace uqa::models
