#include <cmath>

#include "core/error.h"
#include "core/json.h"
#include "models/llm/decoder.h"

namespace uqa::models {
namespace {

constexpr std::int64_t kLargest = std::int64_t{1} << 31;  // keeps products of two sizes inside int64

class ConfigReader {
 public:
  explicit ConfigReader(const fs::path& path) : json_(read_json(path)), what_(path.string()) {
    UQA_CHECK(json_.is_object(), ErrorCode::kData, "{}: must be a JSON object", what_);
  }

  [[nodiscard]] std::int64_t positive(const std::string& key) const { return check_size(key, get<std::int64_t>(integer(key), key, what_)); }
  [[nodiscard]] std::int64_t positive_or(const std::string& key, std::int64_t fallback) const { return absent(key) ? fallback : positive(key); }
  template <typename T>
  [[nodiscard]] T value_or(const std::string& key, T fallback) const {
    return get_or<T>(json_, key, fallback, what_);
  }
  [[nodiscard]] bool absent(const std::string& key) const { return !json_.contains(key) || json_.at(key).is_null(); }
  /// Refuses `key` unless it is absent, null or equal to `only`.
  template <typename T>
  void only(const std::string& key, const T& value, const char* why) const {
    if (absent(key)) return;
    UQA_CHECK(json_.at(key) == Json(value), ErrorCode::kData, "{}: {} = {}, must be {}: {}", what_, key, json_.at(key).dump(), Json(value).dump(), why);
  }
  [[noreturn]] void refuse(const std::string& key, const std::string& rule) const {
    UQA_FAIL(ErrorCode::kData, "{}: {} = {}, {}", what_, key, json_.contains(key) ? json_.at(key).dump() : "absent", rule);
  }
  [[nodiscard]] const Json& json() const { return json_; }
  [[nodiscard]] const std::string& what() const { return what_; }

 private:
  [[nodiscard]] const Json& integer(const std::string& key) const {
    if (!json_.contains(key) || !json_.at(key).is_number_integer()) refuse(key, "must be a whole number");
    return json_;
  }
  [[nodiscard]] std::int64_t check_size(const std::string& key, std::int64_t value) const {
    if (value <= 0 || value >= kLargest) refuse(key, "must be above 0");
    return value;
  }

  Json json_;
  std::string what_;
};

RopeScaling read_llama3(const ConfigReader& reader, const char* key, const Json& rope, const std::string& where) {
  const RopeScaling scaling{.factor = get<double>(rope, "factor", where),
                            .low_factor = get<double>(rope, "low_freq_factor", where),
                            .high_factor = get<double>(rope, "high_freq_factor", where),
                            .original_positions = get<std::int64_t>(rope, "original_max_position_embeddings", where)};
  if (!(scaling.factor >= 1) || !std::isfinite(scaling.factor)) reader.refuse(key, "its factor must be 1 or above");
  if (!(scaling.low_factor > 0) || !(scaling.high_factor > scaling.low_factor) || !std::isfinite(scaling.high_factor)) {
    reader.refuse(key, "must have 0 < low_freq_factor < high_freq_factor");
  }
  if (scaling.original_positions <= 0 || scaling.original_positions >= kLargest) reader.refuse(key, "its original_max_position_embeddings must be above 0");
  return scaling;
}

/// New files have rope_parameters {rope_theta, rope_type, ...}, old ones rope_theta beside rope_scaling.
void read_rope(const ConfigReader& reader, LlmConfig& config) {
  config.rope_theta = reader.value_or<double>("rope_theta", 10000.0);
  for (const char* key : {"rope_parameters", "rope_scaling"}) {
    if (reader.absent(key)) continue;
    const auto& rope = reader.json().at(key);
    const auto where = fmt::format("{}: {}", reader.what(), key);
    const auto type = get_or<std::string>(rope, "rope_type", get_or<std::string>(rope, "type", "default", where), where);
    if (type != "default" && type != "llama3") reader.refuse(key, "only rope_type 'default' (plain RoPE) and 'llama3' are supported");
    if (type == "llama3") config.rope_scaling = read_llama3(reader, key, rope, where);
    if (type == "default" && get_or<double>(rope, "factor", 1.0, where) != 1.0) reader.refuse(key, "factor other than 1 needs rope_type 'llama3'");
    if (get_or<double>(rope, "partial_rotary_factor", 1.0, where) != 1.0) reader.refuse(key, "partial_rotary_factor other than 1 is not supported");
    config.rope_theta = get_or<double>(rope, "rope_theta", config.rope_theta, where);
  }
  if (!(config.rope_theta > 0) || !std::isfinite(config.rope_theta)) reader.refuse("rope_theta", "must be above 0");
}

std::vector<std::int64_t> read_token_ids(const Json& json, const std::string& key, const std::string& what) {
  if (!json.contains(key) || json.at(key).is_null()) return {};
  if (json.at(key).is_array()) return get<std::vector<std::int64_t>>(json, key, what);
  return {get<std::int64_t>(json, key, what)};
}

}  // namespace

LlmConfig LlmConfig::load(const fs::path& directory) {
  const ConfigReader reader(directory / "config.json");
  LlmConfig config;
  config.model_type = get<std::string>(reader.json(), "model_type", reader.what());
  const bool qwen2 = config.model_type == "qwen2";
  if (!qwen2 && config.model_type != "llama") reader.refuse("model_type", "must be llama or qwen2; other architectures are not supported");

  config.hidden = reader.positive("hidden_size");
  config.num_layers = reader.positive("num_hidden_layers");
  config.num_heads = reader.positive("num_attention_heads");
  config.num_kv_heads = qwen2 ? reader.positive("num_key_value_heads") : reader.positive_or("num_key_value_heads", config.num_heads);
  config.intermediate = reader.positive("intermediate_size");
  config.vocab_size = reader.positive("vocab_size");
  config.max_positions = reader.positive("max_position_embeddings");
  if (reader.absent("head_dim") && config.hidden % config.num_heads != 0) {
    reader.refuse("num_attention_heads", fmt::format("must divide hidden_size = {} where head_dim is absent", config.hidden));
  }
  config.head_dim = reader.positive_or("head_dim", config.hidden / config.num_heads);
  if (config.head_dim % 2 != 0) reader.refuse("head_dim", fmt::format("resolved to {}, must be even: RoPE turns pairs", config.head_dim));
  if (config.num_heads % config.num_kv_heads != 0) {
    reader.refuse("num_key_value_heads", fmt::format("must divide num_attention_heads = {}", config.num_heads));
  }
  config.norm_eps = reader.value_or<double>("rms_norm_eps", 1e-6);
  if (!(config.norm_eps >= 0) || !std::isfinite(config.norm_eps)) reader.refuse("rms_norm_eps", "must be 0 or above");
  read_rope(reader, config);
  config.tied_embeddings = reader.value_or<bool>("tie_word_embeddings", false);
  config.qkv_bias = qwen2;

  reader.only("hidden_act", "silu", "other activations are not supported");
  reader.only("mlp_bias", false, "MLP biases are not supported");
  reader.only("attention_bias", false, "attention biases other than qwen2's are not supported");
  reader.only("use_sliding_window", false, "sliding-window attention is not supported");
  reader.only("pretraining_tp", 1, "sliced projections are not supported");
  reader.only("partial_rotary_factor", 1.0, "partial RoPE is not supported");
  if (!qwen2 && !reader.absent("sliding_window")) reader.refuse("sliding_window", "sliding-window attention is not supported");
  if (!reader.absent("layer_types")) {
    for (const auto& type : get<std::vector<std::string>>(reader.json(), "layer_types", reader.what())) {
      if (type != "full_attention") reader.refuse("layer_types", "every layer must be full_attention");
    }
  }

  config.eos_ids = read_token_ids(reader.json(), "eos_token_id", reader.what());
  if (const auto generation = directory / "generation_config.json"; fs::exists(generation)) {
    const auto ids = read_token_ids(read_json(generation), "eos_token_id", generation.string());
    if (!ids.empty()) config.eos_ids = ids;
  }
  for (const auto id : config.eos_ids) {
    if (id < 0 || id >= config.vocab_size) reader.refuse("eos_token_id", fmt::format("has {}, must be below vocab_size = {}", id, config.vocab_size));
  }
  return config;
}

}  // namespace uqa::models
