#include "trainer/import_checkpoint.h"

#include "core/error.h"
#include "core/hash.h"
#include "core/log.h"
#include "models/cost.h"
#include "models/tensor_io.h"
#include "trainer/align_parts.h"
#include "trainer/run_info.h"

namespace uqa::trainer {
namespace {

using Tensors = std::map<std::string, Tensor>;

constexpr const char* kScoreHead = "score_head_weight";  // the reference saves its tied item table twice

std::string table_weight(const std::string& table) { return "ebc.bags." + table + ".weight"; }

/// Takes out the second copy of the item table, which must equal the first. True when it was there.
bool drop_score_head(Tensors& tensors, const std::string& item_table, const std::string& what) {
  const auto head = tensors.find(kScoreHead);
  if (head == tensors.end()) return false;
  const auto table = tensors.find(table_weight(item_table));
  if (table == tensors.end()) return false;  // reported with what else is missing and left over
  UQA_CHECK(head->second.scalar_type() == table->second.scalar_type() && at::equal(head->second, table->second), ErrorCode::kData,
            "{}: {} [{}] differs from {} [{}], the reference ties them; an encoder with two item tables cannot be imported", what, kScoreHead,
            fmt::join(head->second.sizes(), ", "), table->first, fmt::join(table->second.sizes(), ", "));
  tensors.erase(head);
  return true;
}

void drop_ignored(Tensors& tensors, const std::vector<std::string>& ignore, const models::UserModelImpl& model, const std::string& what) {
  const auto own = models::state_dict(model);
  for (const auto& name : ignore) {
    UQA_CHECK(!own.contains(name), ErrorCode::kConfig, "--ignore {}: the encoder needs this tensor; leave it out of --ignore", name);
    UQA_CHECK(tensors.erase(name) == 1, ErrorCode::kConfig, "--ignore {}: {} holds no such tensor; leave it out of --ignore", name, what);
  }
}

/// Rows come from the data set and not from an option, so their message leads to the schema.
void check_tables(const Tensors& tensors, const models::UserModelConfig& config, const std::string& data, const std::string& what) {
  for (const auto& table : config.tables) {
    const auto found = tensors.find(table_weight(table.name));
    if (found == tensors.end() || found->second.dim() != 2) continue;  // reported with the other tensors
    UQA_CHECK(found->second.size(0) == table.rows, ErrorCode::kData,
              "{}: {} is [{}], table {} of data set {} has {} rows; import the data with the table sizes that the weights were trained on", what, found->first,
              fmt::join(found->second.sizes(), ", "), table.name, data, table.rows);
  }
}

void check_values(const Tensors& tensors, const std::string& what) {
  for (const auto& [name, tensor] : tensors) {
    UQA_CHECK(at::isFloatingType(tensor.scalar_type()), ErrorCode::kData, "{}: {} is {}, must be a floating-point type; convert the checkpoint again", what,
              name, c10::toString(tensor.scalar_type()));
    UQA_CHECK(tensor.isfinite().all().item<bool>(), ErrorCode::kData, "{}: {} holds a value that is not finite; give a checkpoint of an earlier epoch", what,
              name);
  }
}

/// The reference's adapter: one linear layer on the mean state, one token.
models::Adapter read_adapter(const std::string& file, std::int64_t encoder_hidden) {
  const auto tensors = models::load_tensors(file);
  const auto weight = tensors.find("up_proj.weight");
  UQA_CHECK(weight != tensors.end() && weight->second.dim() == 2, ErrorCode::kData,
            "{}: holds no matrix up_proj.weight; take the adapter out of the checkpoint with scripts/convert_checkpoint.py --prefix (see its --list)", file);
  UQA_CHECK(weight->second.size(1) == encoder_hidden, ErrorCode::kData, "{}: up_proj.weight is [{}], the encoder's width is {}; give the adapter that was trained with these weights", file,
            fmt::join(weight->second.sizes(), ", "), encoder_hidden);
  auto adapter = models::make_adapter({.kind = "linear", .encoder_hidden = encoder_hidden, .llm_hidden = weight->second.size(0)});
  models::load_state_dict(*adapter, tensors, file);
  check_values(tensors, file);
  return adapter;
}

}  // namespace

void ImportCheckpointConfig::validate() const {
  UQA_CHECK(!weights.empty(), ErrorCode::kConfig, "weights is missing; give --weights FILE.safetensors");
  UQA_CHECK(!weights.ends_with(".pt") && !weights.ends_with(".pth"), ErrorCode::kConfig,
            "weights = {}, must be a safetensors file; make one with scripts/convert_checkpoint.py {} FILE.safetensors", weights, weights);
  UQA_CHECK(!adapter.ends_with(".pt") && !adapter.ends_with(".pth"), ErrorCode::kConfig,
            "adapter = {}, must be a safetensors file; make one with scripts/convert_checkpoint.py {} FILE.safetensors --prefix NAME.", adapter, adapter);
  UQA_CHECK(!run.empty(), ErrorCode::kConfig, "run is missing; give --run DIR");
  auto as_pretraining = pretrain_preset(preset, model.encoder);  // the model's settings are checked as pre-training checks them
  as_pretraining.data = data;
  as_pretraining.model = model;
  as_pretraining.validate();
}

Json run_import_checkpoint(const ImportCheckpointConfig& config) {
  config.validate();
  const auto data = data::Dataset::open(config.data);
  const auto structure = resolve(config.model, data.schema());
  models::UserModel model(structure);
  auto tensors = models::load_tensors(config.weights);
  const bool head_twice = drop_score_head(tensors, structure.features.front().table, config.weights);
  drop_ignored(tensors, config.ignore, *model, config.weights);
  check_tables(tensors, structure, config.data, config.weights);
  models::load_state_dict(*model, tensors, config.weights);
  check_values(tensors, config.weights);

  const auto adapter = config.adapter.empty() ? models::Adapter() : read_adapter(config.adapter, structure.hidden);
  const auto counts = models::count_parameters(structure);
  const Json source{{"weights", fs::absolute(config.weights).string()},
                    {"hash", hash_file(config.weights)},
                    {"tensors", tensors.size()},
                    {"score_head_weight", head_twice},
                    {"ignored", config.ignore}};
  Json info = describe_run(comm::Mesh(comm::Communicator(), /*dp=*/0, /*tp=*/1));
  info["stage"] = "import-checkpoint";
  info["source"] = source;
  info["data"] = {{"path", config.data}, {"digest", data.digest()}, {"users", data.num_users()}, {"interactions", data.num_interactions()}};
  info["parameters"] = {{"tables", counts.tables}, {"projections", counts.projections}, {"backbone", counts.backbone}, {"total", counts.total()}};
  info["encoder_digest"] = digest_of(*model);
  const Json description{{"format", "uqa.user_model"}, {"version", 1},
                         {"stage", "import-checkpoint"}, {"model", to_json(structure)},
                         {"schema", data.schema().to_json()}, {"data_digest", data.digest()},
                         {"preset", config.preset}, {"source", source}};

  OutputDir output(config.run, {.kind = "uqa.run", .overwrite = config.overwrite});
  models::save_tensors(output.path() / "model.safetensors", models::state_dict(*model));
  write_file_atomic(output.path() / "model.json", description.dump(2) + "\n");
  if (adapter) {
    write_adapter(output.path(), *adapter);
    write_file_atomic(output.path() / "export.json", Json{{"format", "uqa.export"}, {"version", 1}, {"encoder_digest", info["encoder_digest"]}}.dump(2) + "\n");
  }
  write_file_atomic(output.path() / "config.ini", config.ini);
  write_file_atomic(output.path() / "run.json", info.dump(2) + "\n");
  output.commit();
  log::info("import", "{}: {} tensors of {} are those of the encoder, {} parameters", structure.encoder, tensors.size(), config.weights, counts.total());
  return info;
}

}  // namespace uqa::trainer
