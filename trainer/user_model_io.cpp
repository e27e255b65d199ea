// The trained user encoder on disk, and packed batches as its input.
#include "core/log.h"
#include "models/tensor_io.h"
#include "trainer/pretrain.h"

namespace uqa::trainer {
namespace {

/// A tensor over `values` that keeps `owner` alive.
Tensor wrap(const std::vector<std::int64_t>& values, const std::shared_ptr<const data::PackedBatch>& owner) {
  const auto size = static_cast<std::int64_t>(values.size());
  if (size == 0) return at::empty({0}, at::kLong);
  // from_blob takes a mutable pointer; models do not write to their inputs.
  return at::from_blob(const_cast<std::int64_t*>(values.data()), {size}, [owner](void*) {}, at::kLong);
}

}  // namespace

models::UserBatch wrap_user_batch(const std::shared_ptr<const data::PackedBatch>& batch) {
  models::UserBatch result;
  result.layout = {.cu_seqlens = batch->cu_seqlens, .sample_ids = batch->sample_ids, .timestamps = batch->timestamps};
  for (const auto& column : batch->features) {
    result.features.push_back({.values = wrap(column.values, batch), .offsets = column.offsets.empty() ? Tensor() : wrap(column.offsets, batch)});
  }
  return result;
}

Tensor wrap_targets(const std::shared_ptr<const data::PackedBatch>& batch) { return wrap(batch->targets, batch); }

Json to_json(const models::UserModelConfig& config) {
  Json tables = Json::array(), features = Json::array();
  for (const auto& table : config.tables) tables.push_back({{"name", table.name}, {"rows", table.rows}, {"dim", table.dim}});
  for (const auto& feature : config.features) features.push_back({{"name", feature.name}, {"table", feature.table}});
  Json json{{"encoder", config.encoder},
          {"tables", tables},
          {"features", features},
          {"hidden", config.hidden},
          {"num_layers", config.num_layers},
          {"num_heads", config.num_heads},
          {"inner", config.inner},
          {"ffn_multiple_of", config.ffn_multiple_of},
          {"max_len", config.max_len},
          {"norm_eps", config.norm_eps},
          {"rope_base", config.rope_base},
          {"dropout", config.dropout},
          {"attention_dropout", config.attention_dropout}};
  if (config.encoder == "hstu") {
    json["hstu"] = {{"linear_dim", config.hstu.linear_dim}, {"attention_dim", config.hstu.attention_dim}, {"norm", config.hstu.norm}, {"bias", config.hstu.bias}};
  }
  if (config.encoder == "mamba2") {
    const auto& m = config.mamba2;
    json["mamba2"] = {{"head_dim", m.head_dim}, {"state_size", m.state_size}, {"expand", m.expand}, {"conv_kernel", m.conv_kernel},
                      {"num_groups", m.num_groups}, {"chunk", m.chunk}};
  }
  return json;
}

models::UserModelConfig user_model_config_from_json(const Json& json, const std::string& what) {
  models::UserModelConfig config;
  config.encoder = get<std::string>(json, "encoder", what);
  for (const auto& table : get<Json>(json, "tables", what)) {
    config.tables.push_back({.name = get<std::string>(table, "name", what),
                             .rows = get<std::int64_t>(table, "rows", what),
                             .dim = get<std::int64_t>(table, "dim", what)});
  }
  for (const auto& feature : get<Json>(json, "features", what)) {
    config.features.push_back({.name = get<std::string>(feature, "name", what), .table = get<std::string>(feature, "table", what)});
  }
  config.hidden = get<std::int64_t>(json, "hidden", what);
  config.num_layers = get<std::int64_t>(json, "num_layers", what);
  config.num_heads = get<std::int64_t>(json, "num_heads", what);
  config.inner = get<std::int64_t>(json, "inner", what);
  config.ffn_multiple_of = get<std::int64_t>(json, "ffn_multiple_of", what);
  config.max_len = get<std::int64_t>(json, "max_len", what);
  config.norm_eps = get<double>(json, "norm_eps", what);
  config.rope_base = get<double>(json, "rope_base", what);
  config.dropout = get<double>(json, "dropout", what);
  config.attention_dropout = get<double>(json, "attention_dropout", what);
  if (config.encoder == "hstu") {
    const auto hstu = get<Json>(json, "hstu", what);
    config.hstu = {.linear_dim = get<std::int64_t>(hstu, "linear_dim", what),
                   .attention_dim = get<std::int64_t>(hstu, "attention_dim", what),
                   .norm = get<std::string>(hstu, "norm", what),
                   .bias = get<std::string>(hstu, "bias", what)};
  }
  if (config.encoder == "mamba2") {
    const auto mamba2 = get<Json>(json, "mamba2", what);
    config.mamba2 = {.head_dim = get<std::int64_t>(mamba2, "head_dim", what),
                     .state_size = get<std::int64_t>(mamba2, "state_size", what),
                     .expand = get<std::int64_t>(mamba2, "expand", what),
                     .conv_kernel = get<std::int64_t>(mamba2, "conv_kernel", what),
                     .num_groups = get<std::int64_t>(mamba2, "num_groups", what),
                     .chunk = get<std::int64_t>(mamba2, "chunk", what)};
  }
  config.validate();
  return config;
}

LoadedUserModel load_user_model(const fs::path& run_directory) {
  const fs::path json_path = run_directory / "model.json";
  const fs::path weights_path = run_directory / "model.safetensors";
  LoadedUserModel loaded;
  loaded.info = read_json(json_path);
  loaded.config = user_model_config_from_json(get<Json>(loaded.info, "model", json_path.string()), json_path.string());
  loaded.model = models::UserModel(loaded.config);
  models::load_state_dict(*loaded.model, models::load_tensors(weights_path), weights_path.string());
  loaded.model->eval();
  return loaded;
}

void split_over(LoadedUserModel& loaded, const models::TensorParallel& tp) {
  if (tp.size() == 1) return;
  models::UserModel part(loaded.config, models::TableSharding{}, tp);
  models::load_full_state(*part, models::state_dict(*loaded.model), "encoder");
  part->eval();
  loaded.model = part;
}

Json describe_split(const std::string& encoder, const models::TensorParallel& tp) {
  const bool split = tp.size() > 1 && models::splits_over_ranks(encoder);
  if (tp.size() > 1 && !split) {
    log::info("trainer", "{} is computed whole by each of the {} tensor-parallel ranks: split, its recurrence would need a collective at every time step", encoder,
              tp.size());
  }
  return {{"tp", tp.size()}, {"split", split}};
}

}  // namespace uqa::trainer
