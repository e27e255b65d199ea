// The reference's weights through `uqa import-checkpoint`, over its inputs through the published Arrow layout: hiddens and loss are the
// reference's, and what `uqa export` writes is what was imported.
#include <arrow/api.h>
#include <arrow/io/api.h>
#include <arrow/ipc/api.h>
#include <gtest/gtest.h>

#include "data/import/import.h"
#include "fixtures.h"
#include "models/adapters/adapter.h"
#include "models/loss/item_softmax.h"
#include "models/tensor_io.h"
#include "tests/support/expect_error.h"
#include "tests/support/temp_dir.h"
#include "trainer/align_parts.h"
#include "trainer/export.h"
#include "trainer/import_checkpoint.h"

namespace uqa::trainer {
namespace {

using models::testing::fixtures;
using models::testing::relative_error;
using Tensors = std::map<std::string, Tensor>;

/// Settings that `resolve` turns into `config` again.
UserModelSettings settings_of(const models::UserModelConfig& config) {
  UserModelSettings settings{.encoder = config.encoder, .hidden = config.hidden, .num_layers = config.num_layers, .num_heads = config.num_heads};
  settings.inner = config.inner;
  settings.ffn_multiple_of = config.ffn_multiple_of;
  settings.max_len = config.max_len;
  settings.norm_eps = config.norm_eps;
  settings.rope_base = config.rope_base;
  settings.hstu = config.hstu;
  settings.mamba2 = config.mamba2;
  std::vector<std::string> dims;
  for (const auto& table : config.tables) dims.push_back(fmt::format("{}={}", table.name, table.dim));
  settings.dims = fmt::format("{}", fmt::join(dims, ","));
  return settings;
}

/// One column of the published layout: a list of clicks a user, a list of ids a click.
std::shared_ptr<arrow::Array> clicks_of(const Tensors& tensors, const std::string& feature) {
  const auto values = tensors.at("input." + feature + ".values").to(at::kLong), offsets = tensors.at("input." + feature + ".offsets").to(at::kLong);
  const auto lengths_B = tensors.at("input.lengths").to(at::kLong);
  const auto max_len = tensors.at("input.labels").size(1);
  auto ids = std::make_shared<arrow::Int64Builder>();
  auto clicks = std::make_shared<arrow::ListBuilder>(arrow::default_memory_pool(), ids);
  arrow::ListBuilder users(arrow::default_memory_pool(), clicks);
  for (std::int64_t b = 0; b < lengths_B.size(0); ++b) {
    EXPECT_TRUE(users.Append().ok());
    for (std::int64_t t = 0; t < lengths_B[b].item<std::int64_t>(); ++t) {
      EXPECT_TRUE(clicks->Append().ok());
      const auto begin = offsets[b * max_len + t].item<std::int64_t>(), end = offsets[b * max_len + t + 1].item<std::int64_t>();
      for (auto i = begin; i < end; ++i) EXPECT_TRUE(ids->Append(values[i].item<std::int64_t>()).ok());
    }
  }
  return users.Finish().ValueOrDie();
}

class ImportCheckpoint : public ::testing::TestWithParam<const char*> {
 protected:
  ImportCheckpoint() {
    const auto json_path = fixtures() / "encoders" / (std::string(GetParam()) + ".json");
    structure_ = models::testing::config_from(read_json(json_path), json_path.string());
    tensors_ = models::load_tensors(fs::path(json_path).replace_extension(".safetensors"));
    for (const auto& [name, tensor] : tensors_) {
      if (name.starts_with("weight.")) weights_.emplace(name.substr(7), tensor);
    }
    write_data();
    config_ = {.weights = (dir_.path() / "weights.safetensors").string(), .data = (dir_.path() / "data").string(), .run = (dir_.path() / "run").string()};
    config_.model = settings_of(structure_);
    config_.ini = "x";
  }

  void write_data() const {
    std::vector<std::shared_ptr<arrow::Field>> fields;
    std::vector<std::shared_ptr<arrow::Array>> columns;
    Json schema{{"name", "fixture"}, {"layout", "user_rows"}, {"format", "arrow"}, {"tables", Json::object()}, {"features", Json::array()}};
    for (const auto& table : structure_.tables) schema["tables"][table.name] = table.rows;
    for (const auto& feature : structure_.features) {
      columns.push_back(clicks_of(tensors_, feature.name));
      fields.push_back(arrow::field(feature.name, columns.back()->type()));
      Json entry{{"name", feature.name}, {"table", feature.table}};
      if (&feature != &structure_.features.front()) entry["multi_valued"] = true;
      schema["features"].push_back(entry);
    }
    const auto table = arrow::Table::Make(arrow::schema(fields), columns);
    const auto path = dir_.path() / "users.arrow";
    const auto out = arrow::io::FileOutputStream::Open(path.string()).ValueOrDie();
    const auto writer = arrow::ipc::MakeFileWriter(out, table->schema()).ValueOrDie();
    ASSERT_TRUE(writer->WriteTable(*table).ok() && writer->Close().ok() && out->Close().ok());
    static_cast<void>(data::import::run_import(data::SourceSchema::from_json(schema, "fixture schema"), {.inputs = {path}, .output = dir_.path() / "data"}));
  }

  void write_weights(const Tensors& weights) const { models::save_tensors(config_.weights, weights); }

  tests::TempDir dir_;
  models::UserModelConfig structure_;
  Tensors tensors_, weights_;
  ImportCheckpointConfig config_;
};

TEST_P(ImportCheckpoint, GivesTheReferencesHiddensAndLossAndExportsTheSameTensors) {
  auto stored = weights_;
  stored["score_head_weight"] = weights_.at("ebc.bags." + structure_.features.front().table + ".weight");  // as the reference saves it
  stored["backbone.mask"] = at::ones({3, 3}, at::kBool);
  write_weights(stored);
  EXPECT_UQA_ERROR(run_import_checkpoint(config_), ErrorCode::kData, "left over: backbone.mask");
  config_.ignore = {"backbone.mask"};
  const auto info = run_import_checkpoint(config_);
  EXPECT_EQ(info.at("source").at("tensors"), weights_.size());
  EXPECT_EQ(info.at("source").at("score_head_weight"), true);
  EXPECT_EQ(read_file(dir_.path() / "run" / "config.ini"), "x");

  const auto loaded = load_user_model(config_.run);
  const auto data = data::Dataset::open(config_.data);
  const at::NoGradGuard no_grad;
  const auto lengths_B = tensors_.at("input.lengths").to(at::kLong);
  const auto labels_BL = tensors_.at("input.labels").to(at::kLong);
  double loss = 0;
  std::int64_t num_labels = 0;
  ASSERT_GE(data.num_users(), 1);
  for (std::int64_t user = 0; user < data.num_users(); ++user) {
    const auto row = std::stoll(std::string(data.raw_user_id(user)));
    ASSERT_EQ(data.length(user), lengths_B[row].item<std::int64_t>());
    const auto packed = std::make_shared<const data::PackedBatch>(data::pack(data, {{.user = user, .begin = 0, .end = data.length(user)}}, {row}, data::Targets::kNone));
    auto model = loaded.model;
    const auto h_TD = model->item_hiddens(model->forward(wrap_user_batch(packed), {}));
    EXPECT_LT(relative_error(h_TD, tensors_.at("output.hiddens")[row].narrow(0, 0, data.length(user))), 1e-5) << "row " << row;
    const auto labels_T = labels_BL[row].narrow(0, 0, data.length(user));
    loss += models::item_softmax_loss(h_TD, model->item_table(), labels_T.masked_fill(labels_T < 0, -1)).item<double>();
    num_labels += (labels_T >= 0).sum().item<std::int64_t>();
  }
  if (data.num_users() == lengths_B.size(0)) {  // users with one interaction are left out by the import
    EXPECT_LT(relative_error(at::tensor(loss / static_cast<double>(num_labels), at::kDouble), tensors_.at("output.loss")), 1e-5);
  }

  static_cast<void>(run_export({.run = config_.run, .output = (dir_.path() / "out").string(), .data = ""}));
  const auto exported = models::load_tensors(dir_.path() / "out" / "encoder.safetensors");
  EXPECT_EQ(exported.size(), weights_.size());
  for (const auto& [name, tensor] : weights_) {
    ASSERT_TRUE(exported.contains(name)) << name << " is not among the exported tensors";
    EXPECT_TRUE(at::equal(exported.at(name), tensor)) << name;
  }
}

TEST_P(ImportCheckpoint, TakesTheAdapterAlong) {
  write_weights(weights_);
  const auto weight = at::rand({12, structure_.hidden}), bias = at::rand({12});
  const auto file = dir_.path() / "adapter.safetensors";
  config_.adapter = file.string();
  models::save_tensors(file, {{"up_proj.weight", at::rand({12, structure_.hidden + 1})}, {"up_proj.bias", bias}});
  EXPECT_UQA_ERROR(run_import_checkpoint(config_), ErrorCode::kData, fmt::format("the encoder's width is {}", structure_.hidden));
  models::save_tensors(file, {{"weight", weight}, {"bias", bias}});
  EXPECT_UQA_ERROR(run_import_checkpoint(config_), ErrorCode::kData, "no matrix up_proj.weight");
  EXPECT_FALSE(fs::exists(config_.run));
  models::save_tensors(file, {{"up_proj.weight", weight}, {"up_proj.bias", bias}});
  const auto info = run_import_checkpoint(config_);
  const models::AdapterConfig linear{.kind = "linear", .encoder_hidden = structure_.hidden, .llm_hidden = 12};
  const auto given = read_given_adapter(config_.run, linear);
  EXPECT_EQ(given.encoder_digest, info.at("encoder_digest"));
  const auto adapter = models::make_adapter(linear);
  start_from_given(*adapter, given, given.encoder_digest);
  EXPECT_TRUE(at::equal(models::state_dict(*adapter).at("up_proj.weight"), weight));
  EXPECT_TRUE(at::equal(models::state_dict(*adapter).at("up_proj.bias"), bias));
}

TEST_P(ImportCheckpoint, RefusesWhatDoesNotFitAndLeavesNothing) {
  const auto& item_table = structure_.table(structure_.features.front().table);
  const auto item_weight = "ebc.bags." + item_table.name + ".weight";
  const auto refuse = [&](const Tensors& weights, ErrorCode code, const std::string& part) {
    write_weights(weights);
    EXPECT_UQA_ERROR(run_import_checkpoint(config_), code, part);
    EXPECT_FALSE(fs::exists(config_.run)) << part;
  };
  auto weights = weights_;
  weights.erase("proj2.bias");
  refuse(weights, ErrorCode::kData, "missing: proj2.bias");
  weights = weights_;
  weights["proj1.weight"] = at::zeros({structure_.hidden + 1, structure_.feature_width()});
  refuse(weights, ErrorCode::kData,
         fmt::format("proj1.weight [{}, {}] instead of [{}, {}]", structure_.hidden + 1, structure_.feature_width(), structure_.hidden, structure_.feature_width()));
  weights = weights_;
  weights[item_weight] = at::zeros({item_table.rows + 7, item_table.dim});
  refuse(weights, ErrorCode::kData, fmt::format("[{}, {}], table {} of data set {} has {} rows", item_table.rows + 7, item_table.dim, item_table.name, config_.data, item_table.rows));
  weights = weights_;
  weights["score_head_weight"] = weights_.at(item_weight) + 1;
  refuse(weights, ErrorCode::kData, "score_head_weight");
  weights = weights_;
  weights["proj1.bias"] = weights_.at("proj1.bias").clone();
  weights["proj1.bias"][0] = std::numeric_limits<float>::quiet_NaN();
  refuse(weights, ErrorCode::kData, "proj1.bias holds a value that is not finite");
  weights["proj1.bias"] = at::zeros({structure_.hidden}, at::kLong);
  refuse(weights, ErrorCode::kData, "proj1.bias is Long");
  config_.ignore = {"proj1.bias"};
  refuse(weights_, ErrorCode::kConfig, "--ignore proj1.bias: the encoder needs");
  config_.ignore = {"nothing"};
  refuse(weights_, ErrorCode::kConfig, "--ignore nothing");
  config_.ignore = {};
  write_file_atomic(config_.weights, "PK not safetensors");
  EXPECT_UQA_ERROR(run_import_checkpoint(config_), ErrorCode::kData, "weights.safetensors");
  config_.weights = "epoch_3.pt";
  EXPECT_UQA_ERROR(run_import_checkpoint(config_), ErrorCode::kConfig, "convert_checkpoint.py");
}

INSTANTIATE_TEST_SUITE_P(Encoders, ImportCheckpoint, ::testing::Values("sasrec", "hstu", "gru4rec", "mamba2", "trm_plus"),
                         [](const auto& instance) { return std::string(instance.param); });

}  // namespace
}  // namespace uqa::trainer
