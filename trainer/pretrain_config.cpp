// Settings of pre-training: checks, presets, and what they mean for a given data set.
#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <map>
#include <sstream>

#include "trainer/next_item_eval.h"
#include "trainer/pretrain.h"

namespace uqa::trainer {
namespace {

/// "brand=32,shop=32" -> widths by table name.
std::map<std::string, std::int64_t> parse_dims(const std::string& text) {
  std::map<std::string, std::int64_t> dims;
  std::istringstream parts(text);
  for (std::string part; std::getline(parts, part, ',');) {
    const auto equals = part.find('=');
    std::int64_t width = 0;
    const char* const end = part.data() + part.size();
    const bool named = equals != std::string::npos && equals > 0;
    const auto parsed = named ? std::from_chars(part.data() + equals + 1, end, width) : std::from_chars_result{end, std::errc::invalid_argument};
    UQA_CHECK(parsed.ec == std::errc() && parsed.ptr == end && width > 0, ErrorCode::kConfig,
              "model.dims: '{}', each part must be TABLE=WIDTH with a width > 0", part);
    UQA_CHECK(dims.emplace(part.substr(0, equals), width).second, ErrorCode::kConfig, "model.dims: table '{}' is named twice", part.substr(0, equals));
  }
  return dims;
}

void require_one_of(const char* field, const std::string& value, std::initializer_list<const char*> known) {
  const bool found = std::any_of(known.begin(), known.end(), [&](const char* name) { return value == name; });
  UQA_CHECK(found, ErrorCode::kConfig, "{} = {}, must be one of {}", field, value, fmt::join(known.begin(), known.end(), ", "));
}

}  // namespace

void PretrainConfig::validate() const {
  // The structure is checked on a schema of one table, so that a wrong setting is refused before any data is opened.
  auto structure = model;
  structure.dims.clear();
  resolve(structure, {.tables = {{"item", 1}}, .features = {{"item", "item", false}}}).validate();
  UQA_CHECK(!data.empty(), ErrorCode::kConfig, "data is not set; give the directory that `uqa import` wrote");
  static_cast<void>(data::parse_split(split));
  UQA_CHECK(fraction > 0 && fraction <= 1, ErrorCode::kConfig, "data.fraction = {}, must be in (0, 1]", fraction);
  require_one_of("read", read, {"map", "read"});
  require_one_of("preset", preset, {"default", "faithful"});
  const auto metrics = next_item_metric_names();
  UQA_CHECK(std::find(metrics.begin(), metrics.end(), metric) != metrics.end(), ErrorCode::kConfig, "metric = {}, must be one of {}", metric,
            fmt::join(metrics, ", "));
  UQA_CHECK(eval_users > 0, ErrorCode::kConfig, "eval_users = {}, must be > 0", eval_users);
  UQA_CHECK(model.item_dim > 0, ErrorCode::kConfig, "model.item_dim = {}, must be > 0", model.item_dim);
  UQA_CHECK(model.feature_dim > 0, ErrorCode::kConfig, "model.feature_dim = {}, must be > 0", model.feature_dim);
  UQA_CHECK(model.max_len > 0, ErrorCode::kConfig, "model.max_len = {}, must be > 0", model.max_len);
  static_cast<void>(parse_dims(model.dims));
  UQA_CHECK(!model.sasrec_same_start || model.encoder == "sasrec", ErrorCode::kConfig,
            "model.sasrec.same_start = true with encoder = {}, works for sasrec; drop it or give --encoder sasrec", model.encoder);
  loop.validate();
}

PretrainConfig pretrain_preset(const std::string& preset, const std::string& encoder) {
  require_one_of("preset", preset, {"default", "faithful"});
  PretrainConfig config;
  config.preset = preset;
  config.model.encoder = encoder;
  if (preset == "default") return config;
  require_one_of("encoder", encoder, {"sasrec", "hstu", "gru4rec", "mamba2", "trm_plus"});
  // reference: run_pretrain_ddp.py's script values and the published encoder settings
  config.split = "ratio:0.9";
  config.model.hidden = 512;
  config.model.num_layers = 4;
  config.model.num_heads = 4;
  if (encoder == "sasrec") config.model.num_layers = 6;
  if (encoder == "gru4rec") config.model.num_layers = 2;
  if (encoder == "sasrec" || encoder == "hstu") config.model.num_heads = 8;
  if (encoder == "sasrec" || encoder == "trm_plus") config.model.inner = 1536;
  if (encoder == "gru4rec") config.model.inner = 1024;
  if (encoder == "hstu") config.model.hstu = {.linear_dim = 256, .attention_dim = 256, .norm = "max_len", .bias = "none"};
  config.model.sasrec_same_start = encoder == "sasrec";
  config.model.max_len = 512;
  config.model.dropout = encoder == "mamba2" ? 0 : 0.1;
  config.model.attention_dropout = encoder == "sasrec" || encoder == "trm_plus" ? 0.1 : 0;
  config.model.item_dim = 128;
  config.model.feature_dim = 64;
  config.loop.train.epochs = 3;
  config.loop.optim.peak_lr = 4e-4;
  config.loop.batch.global_users = 32;
  return config;
}

models::UserModelConfig resolve(const UserModelSettings& settings, const data::Schema& schema) {
  auto dims = parse_dims(settings.dims);
  const std::string& item_table = schema.features.front().table;
  models::UserModelConfig config;
  config.encoder = settings.encoder;
  for (const auto& table : schema.tables) {
    const auto own = dims.find(table.name);
    const std::int64_t usual = table.name == item_table ? settings.item_dim : settings.feature_dim;
    config.tables.push_back({.name = table.name, .rows = table.rows, .dim = own == dims.end() ? usual : own->second});
    if (own != dims.end()) dims.erase(own);
    if (std::none_of(schema.features.begin(), schema.features.end(), [&](const auto& f) { return f.table == table.name; })) config.tables.pop_back();
  }
  UQA_CHECK(dims.empty(), ErrorCode::kConfig, "model.dims names table '{}', the data set has no such table; look at `uqa inspect`",
            dims.begin()->first);
  for (const auto& feature : schema.features) config.features.push_back({.name = feature.name, .table = feature.table});
  config.hidden = settings.hidden;
  config.num_layers = settings.num_layers;
  config.num_heads = settings.num_heads;
  config.inner = settings.inner;
  config.ffn_multiple_of = settings.ffn_multiple_of;
  config.max_len = settings.max_len;
  config.norm_eps = settings.norm_eps;
  config.rope_base = settings.rope_base;
  config.dropout = settings.dropout;
  config.attention_dropout = settings.attention_dropout;
  config.hstu = settings.hstu;
  config.mamba2 = settings.mamba2;
  config.validate();
  return config;
}

}  // namespace uqa::trainer
