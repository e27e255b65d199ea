#include "models/user_model.h"

#include <algorithm>
#include <array>
#include <set>

#include "core/error.h"
#include "models/encoders/gru4rec.h"
#include "models/encoders/hstu.h"
#include "models/encoders/mamba2.h"
#include "models/encoders/sasrec.h"
#include "models/encoders/trm_plus.h"
#include "models/init.h"
#include "models/layers/dropout.h"
#include "models/layers/feature_bags.h"
#include "models/layers/linear.h"

namespace uqa::models {
namespace {

void require_positive(const char* field, std::int64_t value) {
  UQA_CHECK(value > 0, ErrorCode::kConfig, "model.{} = {}, must be > 0", field, value);
}
void require_positive(const char* field, double value) {
  UQA_CHECK(value > 0, ErrorCode::kConfig, "model.{} = {}, must be > 0", field, value);  // false for NaN, too
}
void require_rate(const char* field, double value) {
  UQA_CHECK(value >= 0 && value <= kMostDropped, ErrorCode::kConfig, "model.{} = {}, must be in [0, {}]", field, value, kMostDropped);
}

/// Only there to give parameters the reference's names.
struct Names : torch::nn::Module {};

std::string table_parameter(const TableConfig& table) { return "ebc.bags." + table.name + ".weight"; }

/// The rows of a table that this rank holds.
SliceRange rows_here(const TableConfig& table, const TableSharding& sharding) {
  if (!sharding.cuts(table.rows)) return {.begin = 0, .length = table.rows};
  return even_range(table.rows, sharding.table.rank(), sharding.table.size());
}

ParameterLayout layout_of(const TableConfig& table, const TableSharding& sharding) {
  if (!sharding.cuts(table.rows)) return {};
  return sliced(ShardAxis::kTable, {table.rows, table.dim}, 0, rows_here(table, sharding));
}

}  // namespace

void UserModelConfig::validate() const {
  constexpr std::array kEncoders{"sasrec", "hstu", "gru4rec", "mamba2", "trm_plus"};
  UQA_CHECK(std::ranges::find(kEncoders, encoder) != kEncoders.end(), ErrorCode::kConfig, "encoder = {}, must be {}", encoder, kKnownEncoders);
  require_positive("hidden", hidden);
  require_positive("num_layers", num_layers);
  require_positive("num_heads", num_heads);
  const bool splits_width = encoder == "sasrec" || encoder == "trm_plus" || (encoder == "hstu" && (hstu.linear_dim == 0 || hstu.attention_dim == 0));
  UQA_CHECK(!splits_width || hidden % num_heads == 0, ErrorCode::kConfig, "model.hidden = {}, must be divisible by model.num_heads = {}; change one of them", hidden,
            num_heads);
  UQA_CHECK(encoder != "trm_plus" || hidden / num_heads % 2 == 0, ErrorCode::kConfig,
            "model.hidden / model.num_heads = {}, must be even for the rotary positions of trm_plus; change one of them", hidden / num_heads);
  UQA_CHECK(hstu.linear_dim >= 0, ErrorCode::kConfig, "model.hstu.linear_dim = {}, must be >= 0 (0: hidden / num_heads)", hstu.linear_dim);
  UQA_CHECK(hstu.attention_dim >= 0, ErrorCode::kConfig, "model.hstu.attention_dim = {}, must be >= 0 (0: hidden / num_heads)", hstu.attention_dim);
  UQA_CHECK(hstu.norm == "max_len" || hstu.norm == "true_len", ErrorCode::kConfig, "model.hstu.norm = {}, must be max_len or true_len", hstu.norm);
  UQA_CHECK(hstu.bias == "none" || hstu.bias == "position" || hstu.bias == "position_time", ErrorCode::kConfig,
            "model.hstu.bias = {}, must be none, position or position_time", hstu.bias);
  require_positive("mamba2.head_dim", mamba2.head_dim);
  require_positive("mamba2.state_size", mamba2.state_size);
  require_positive("mamba2.expand", mamba2.expand);
  require_positive("mamba2.conv_kernel", mamba2.conv_kernel);
  require_positive("mamba2.num_groups", mamba2.num_groups);
  require_positive("mamba2.chunk", mamba2.chunk);
  if (encoder == "mamba2") {
    const auto inner_width = mamba2.expand * hidden;
    UQA_CHECK(inner_width % mamba2.head_dim == 0, ErrorCode::kConfig,
              "model.mamba2.head_dim = {}, must divide mamba2.expand * hidden = {}; change one of them", mamba2.head_dim, inner_width);
    UQA_CHECK(inner_width / mamba2.head_dim % mamba2.num_groups == 0, ErrorCode::kConfig,
              "model.mamba2.num_groups = {}, must divide the {} heads (expand * hidden / head_dim); change one of them", mamba2.num_groups,
              inner_width / mamba2.head_dim);
  }
  UQA_CHECK(inner >= 0, ErrorCode::kConfig, "model.inner = {}, must be >= 0", inner);
  require_positive("ffn_multiple_of", ffn_multiple_of);
  require_positive("max_len", max_len);
  require_positive("norm_eps", norm_eps);
  require_positive("rope_base", rope_base);
  require_rate("dropout", dropout);
  require_rate("attention_dropout", attention_dropout);
  UQA_CHECK(!features.empty(), ErrorCode::kConfig, "model.features is empty, at least the item feature is required");
  std::set<std::string> names;
  for (const auto& t : tables) {
    UQA_CHECK(!t.name.empty() && t.name.find('.') == std::string::npos, ErrorCode::kConfig,
              "table name = '{}', must not be empty nor hold a dot; rename it in the schema", t.name);
    UQA_CHECK(names.insert(t.name).second, ErrorCode::kConfig, "table {} is given twice; table names must differ", t.name);
    UQA_CHECK(t.rows > 0, ErrorCode::kConfig, "table {}: rows = {}, must be > 0", t.name, t.rows);
    UQA_CHECK(t.dim > 0, ErrorCode::kConfig, "table {}: dim = {}, must be > 0", t.name, t.dim);
    UQA_CHECK(std::ranges::any_of(features, [&](const auto& f) { return f.table == t.name; }), ErrorCode::kConfig,
              "table {} is used by no feature; remove it", t.name);
  }
  for (const auto& feature : features) static_cast<void>(table(feature.table));
}

const TableConfig& UserModelConfig::table(const std::string& table_name) const {
  const auto found = std::ranges::find_if(tables, [&](const auto& t) { return t.name == table_name; });
  UQA_CHECK(found != tables.end(), ErrorCode::kConfig, "table {} is named by a feature, but is not among the model's {} tables", table_name,
            tables.size());
  return *found;
}

std::int64_t UserModelConfig::feature_width() const {
  std::int64_t width = 0;
  for (const auto& feature : features) width += table(feature.table).dim;
  return width;
}

std::int64_t UserModelConfig::item_dim() const { return table(features.front().table).dim; }

std::int64_t UserModelConfig::resolved_inner() const {
  if (inner > 0) return inner;
  if (encoder == "sasrec") return 4 * hidden;
  if (encoder == "gru4rec") return 2 * hidden;
  const auto width = 8 * hidden / 3;
  return (width + ffn_multiple_of - 1) / ffn_multiple_of * ffn_multiple_of;
}

bool splits_over_ranks(const std::string& encoder) { return encoder != "gru4rec"; }

std::shared_ptr<EncoderImpl> make_encoder(const UserModelConfig& config, const TensorParallel& tp) {
  if (config.encoder == "sasrec") return std::make_shared<SasrecImpl>(config, tp);
  if (config.encoder == "hstu") return std::make_shared<HstuImpl>(config, tp);
  if (config.encoder == "gru4rec") return std::make_shared<Gru4RecImpl>(config);
  if (config.encoder == "mamba2") return std::make_shared<Mamba2Impl>(config, tp);
  if (config.encoder == "trm_plus") return std::make_shared<TrmPlusImpl>(config, tp);
  UQA_FAIL(ErrorCode::kConfig, "encoder = {}, must be {}", config.encoder, kKnownEncoders);
}

struct UserModelImpl::Modules {
  std::vector<Tensor> tables;                  ///< config.tables order
  std::vector<std::size_t> table_of_feature;   ///< index into tables
  Linear proj1{nullptr}, proj2{nullptr};
  std::shared_ptr<EncoderImpl> backbone;
};

UserModelImpl::UserModelImpl(UserModelConfig config, TableSharding sharding, const TensorParallel& tp)
    : config_(std::move(config)), sharding_(std::move(sharding)), modules_(std::make_shared<Modules>()) {
  config_.validate();
  const auto ebc = register_module("ebc", std::make_shared<Names>());
  const auto bags = ebc->register_module("bags", std::make_shared<Names>());
  for (const auto& table : config_.tables) {
    const auto bag = bags->register_module(table.name, std::make_shared<Names>());
    modules_->tables.push_back(bag->register_parameter("weight", at::zeros({rows_here(table, sharding_).length, table.dim})));
  }
  for (const auto& feature : config_.features) {
    const auto found = std::ranges::find_if(config_.tables, [&](const auto& table) { return table.name == feature.table; });
    modules_->table_of_feature.push_back(static_cast<std::size_t>(found - config_.tables.begin()));
  }
  modules_->proj1 = register_module("proj1", Linear(config_.feature_width(), config_.hidden, Bias::kYes));
  modules_->backbone = register_module("backbone", make_encoder(config_, tp));
  modules_->proj2 = register_module("proj2", Linear(config_.hidden, config_.item_dim(), Bias::kYes));
}

void UserModelImpl::init_weights(std::uint64_t seed) {
  constexpr double kTableStd = 0.02;
  const at::NoGradGuard no_grad;
  for (std::size_t i = 0; i < modules_->tables.size(); ++i) {
    init_truncated_normal_(modules_->tables[i], seed, table_parameter(config_.tables[i]), kTableStd, layout_of(config_.tables[i], sharding_));
  }
  init_linear_default_(modules_->proj1->weight, modules_->proj1->bias, seed, "proj1");
  init_linear_default_(modules_->proj2->weight, modules_->proj2->bias, seed, "proj2");
  modules_->backbone->init_weights(seed, "backbone.");
}

Tensor UserModelImpl::embed(const UserBatch& batch) const {
  if (!shards_tables()) return feature_bags(modules_->tables, modules_->table_of_feature, batch.features, batch.layout.num_rows());
  // Where a table is cut, the rows that the batch uses are fetched into a small table of their own, and ids become places in it.
  UQA_CHECK(batch.features.size() == config_.features.size(), ErrorCode::kData, "{} features in the batch, the model has {}", batch.features.size(),
            config_.features.size());
  std::vector<std::size_t> cut;
  std::vector<Tensor> cut_tables;
  std::vector<RowRequest> requests;
  auto features = batch.features;
  for (std::size_t t = 0; t < config_.tables.size(); ++t) {
    if (!sharding_.cuts(config_.tables[t].rows)) continue;
    std::vector<Tensor> ids;
    for (std::size_t f = 0; f < features.size(); ++f) {
      if (modules_->table_of_feature[f] == t) ids.push_back(features[f].values);
    }
    const auto [unique_U, place_N] = at::_unique(at::cat(ids), /*sorted=*/true, /*return_inverse=*/true);
    std::int64_t begin = 0;
    for (std::size_t f = 0; f < features.size(); ++f) {
      if (modules_->table_of_feature[f] != t) continue;
      const auto count = features[f].values.numel();
      features[f].values = place_N.narrow(0, begin, count);
      begin += count;
    }
    cut.push_back(t);
    cut_tables.push_back(modules_->tables[t]);
    requests.push_back({.ids_U = unique_U, .num_rows = config_.tables[t].rows});
  }
  auto tables = modules_->tables;
  const auto rows = sharded_rows(cut_tables, requests, sharding_);
  for (std::size_t i = 0; i < cut.size(); ++i) tables[cut[i]] = rows[i];
  return feature_bags(tables, modules_->table_of_feature, features, batch.layout.num_rows());
}

Tensor UserModelImpl::forward(const UserBatch& batch, const DropoutContext& context) {
  const auto& starts = batch.layout.cu_seqlens;
  for (std::size_t b = 0; b + 1 < starts.size(); ++b) {
    UQA_CHECK(starts[b + 1] - starts[b] <= config_.max_len, ErrorCode::kData,
              "history of {} interactions in the batch, at most model.max_len = {} fit; shorten it or raise max_len", starts[b + 1] - starts[b],
              config_.max_len);
  }
  // Under bf16 autocast the projection's output is bfloat16; the residual stream stays float32.
  const auto x_TH = modules_->proj1->forward(embed(batch)).to(at::kFloat);
  return modules_->backbone->forward(x_TH, batch.layout, context);
}

Tensor UserModelImpl::item_hiddens(const Tensor& states_TH) { return modules_->proj2->forward(states_TH).to(at::kFloat); }

Tensor UserModelImpl::item_table() const { return modules_->tables[modules_->table_of_feature.front()]; }

ItemShards UserModelImpl::item_shards() const {
  const auto rows = config_.table(config_.features.front().table).rows;
  if (!sharding_.cuts(rows)) return {};
  return {.table = sharding_.table, .tp = sharding_.tp, .num_rows = rows};
}

bool UserModelImpl::shards_tables() const {
  return std::ranges::any_of(config_.tables, [&](const auto& table) { return sharding_.cuts(table.rows); });
}

std::map<std::string, ParameterLayout> UserModelImpl::own_layouts() const {
  std::map<std::string, ParameterLayout> layouts;
  for (const auto& table : config_.tables) {
    if (auto layout = layout_of(table, sharding_); layout.sharded()) layouts.emplace(table_parameter(table), std::move(layout));
  }
  return layouts;
}

Layered& UserModelImpl::layers() const { return *modules_->backbone; }

UserBatch UserModelImpl::empty_batch() const {
  UserBatch batch;
  for (std::size_t f = 0; f < config_.features.size(); ++f) batch.features.push_back({.values = at::empty({0}, at::kLong), .offsets = {}});
  return batch;
}

}  // namespace uqa::models
