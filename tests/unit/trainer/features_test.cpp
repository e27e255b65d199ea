// An encoder that sees some of the data's features, from pre-training to export.

#include <algorithm>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "align_fixture.h"
#include "one_rank.h"
#include "tests/support/expect_error.h"
#include "tests/support/temp_dir.h"
#include "tiny_data.h"
#include "trainer/evaluate.h"
#include "trainer/export.h"

namespace uqa::trainer {
namespace {

using test::one_rank;

/// Imports `log` with the features `names`; all but the first are bags of words of their own column.
data::Dataset import_log(const fs::path& log, const std::vector<std::string>& names, const fs::path& output) {
  Json features = Json::array();
  for (const auto& name : names) {
    Json feature{{"name", name}, {"table", name}};
    if (name != names.front()) feature.update({{"column", name}, {"separator", " "}});
    features.push_back(feature);
  }
  data::import::ImportOptions options;
  options.inputs = {log};
  options.output = output;
  options.overwrite = true;
  const Json schema{{"name", "x"}, {"layout", "events"}, {"format", "csv"}, {"interactions", {{"user", "user"}, {"item", "item"}, {"time", "time"}}}, {"features", features}};
  static_cast<void>(data::import::run_import(data::SourceSchema::from_json(schema, "schema"), options));
  return data::Dataset::open(output);
}

class Features : public ::testing::Test {
 protected:
  Json pretrain(const PretrainConfig& config, const std::string& name) {
    RunDirectory run(dir_.path() / name, "pretrain", "x", false, true);
    return run_pretrain(config, one_rank(), run);
  }
  tests::TempDir dir_;
};

TEST_F(Features, AViewHoldsTheChosenOnesInSchemaOrder) {
  const auto all = data::Dataset::open(test::write_tiny_data(dir_.path()));
  const auto wide = import_log(dir_.path() / "log.csv", {"item_id", "tags", "time"}, dir_.path() / "wide");
  const auto view = wide.with_features({"time", "item"});
  ASSERT_EQ(view.schema().features.size(), 2u);
  EXPECT_EQ(view.schema().features[0].name, "item_id");
  EXPECT_EQ(view.schema().features[1].name, "time");
  EXPECT_EQ(view.schema().tables.size(), 2u);
  EXPECT_EQ(view.digest(), wide.digest());
  for (std::int64_t user = 0; user < 5; ++user) {
    const auto length = view.length(user);
    EXPECT_EQ(view.item(user, 1), wide.item(user, 1));
    EXPECT_TRUE(std::ranges::equal(view.values(1, user, 0, length), wide.values(2, user, 0, length)));
    EXPECT_TRUE(std::ranges::equal(view.offsets(1, user, 0, length), wide.offsets(2, user, 0, length)));
  }
  // A view of a view.
  EXPECT_EQ(view.with_features({"item_id"}).schema().features.size(), 1u);
  EXPECT_UQA_ERROR(view.with_features({"item_id", "tags"}), ErrorCode::kConfig, "'tags' is not a feature of the data set, which has item_id, time");
  EXPECT_UQA_ERROR(wide.with_features({"item_id", "tgas"}), ErrorCode::kConfig, "did you mean 'tags'?");
  EXPECT_UQA_ERROR(wide.with_features({"tags"}), ErrorCode::kConfig, "leaves out the item feature 'item_id', which is predicted; give --features item_id,tags");
  EXPECT_UQA_ERROR(wide.with_features({"item", "item_id"}), ErrorCode::kConfig, "'item_id' is given twice");
}

TEST_F(Features, ASubsetTrainsTheSameModelAsDataWithoutTheOthers) {
  const auto both = test::write_tiny_data(dir_.path());
  const auto alone = dir_.path() / "alone";
  static_cast<void>(import_log(dir_.path() / "log.csv", {"item_id"}, alone));
  auto config = test::tiny_config(both, "trm_plus");
  config.loop.train.epochs = 2;
  const auto with = pretrain(config, "with");
  config.features = {"item"};
  const auto subset = pretrain(config, "subset");
  config.data = alone.string();
  config.features.clear();
  const auto expected = pretrain(config, "expected");
  EXPECT_EQ(subset["test"], expected["test"]);
  EXPECT_NE(subset["last_loss_nats"], with["last_loss_nats"]);
  const auto a = models::load_tensors(dir_.path() / "subset" / "model.safetensors"), b = models::load_tensors(dir_.path() / "expected" / "model.safetensors");
  ASSERT_EQ(a.size(), b.size());
  EXPECT_FALSE(a.contains("ebc.bags.tag.weight"));
  for (const auto& [name, tensor] : b) EXPECT_TRUE(at::equal(a.at(name), tensor)) << name;
  EXPECT_EQ(read_json(dir_.path() / "subset" / "model.json")["model"], read_json(dir_.path() / "expected" / "model.json")["model"]);
  EXPECT_EQ(load_user_model(dir_.path() / "subset").config.features.size(), 1u);

  config.features = {"item", "tgas"};
  config.data = both.string();
  EXPECT_UQA_ERROR(PretrainTask(config), ErrorCode::kConfig, "did you mean 'tags'?");
  config.features = {"item", "tags"};
  EXPECT_EQ(pretrain(config, "all")["last_loss_nats"], with["last_loss_nats"]);
}

TEST_F(Features, AlignmentEvaluationAndExportSeeWhatTheEncoderWasTrainedOn) {
  const auto world = test::write_world(dir_.path() / "plain");
  // The same histories with a feature that this encoder never saw.
  std::istringstream lines(read_file(dir_.path() / "plain" / "log.csv"));
  std::string log;
  std::int64_t row = 0;
  for (std::string line; std::getline(lines, line); ++row) log += line + (row == 0 ? ",color" : fmt::format(",c{}", row % 5)) + "\n";
  write_file_atomic(dir_.path() / "log.csv", log);
  const auto colored = import_log(dir_.path() / "log.csv", {"item_id", "color"}, dir_.path() / "colored");
  auto other = world;
  other.data = dir_.path() / "colored";
  other.questions = dir_.path() / "questions";
  const auto set = data::read_questions(world.questions);
  test::write_question_set(other.questions, set.train, set.test, colored.digest());

  const auto losses_of = [&](const test::AlignWorld& own, const std::string& name) {
    auto config = test::world_config(own);
    config.adapter.init = "plain";
    config.loop.train.epochs = 1;
    RunDirectory run(dir_.path() / name, "align", "x", false, true);
    const auto result = run_align(config, one_rank(), run);
    EvaluateConfig evaluate;
    evaluate.run = (dir_.path() / name).string();
    evaluate.data = own.data.string();
    evaluate.num_threads = 1;
    const auto evaluated = run_evaluate(evaluate, comm::Communicator());
    static_cast<void>(run_export({.run = evaluate.run, .output = (dir_.path() / (name + "-export")).string(), .data = own.data.string()}));
    const auto soft = models::load_tensors(dir_.path() / (name + "-export") / "soft_prompts.safetensors").at("soft_prompts");
    return std::tuple(result["last_loss_nats"].get<double>(), evaluated.rules.at(Rule::kText).all.value(), soft);
  };
  const auto [plain_loss, plain_accuracy, plain_soft] = losses_of(world, "a");
  const auto [loss, accuracy, soft] = losses_of(other, "b");
  EXPECT_EQ(loss, plain_loss);
  EXPECT_EQ(accuracy, plain_accuracy);
  EXPECT_TRUE(at::equal(soft, plain_soft));

  // An encoder that was trained with the feature needs it.
  test::write_encoder(dir_.path() / "colored-encoder", colored, 3);
  auto lacking = world;
  lacking.encoder_run = dir_.path() / "colored-encoder";
  EXPECT_UQA_ERROR(AlignTask(test::world_config(lacking), one_rank()), ErrorCode::kConfig, "the encoder was trained on feature color, the data set has item_id");
}

}  // namespace
}  // namespace uqa::trainer
