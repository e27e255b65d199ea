#include "trainer/pretrain.h"

#include <chrono>
#include <thread>

#include <gtest/gtest.h>

#include "models/tensor_io.h"
#include "tiny_data.h"
#include "toy_task.h"
#include "trainer/checkpoint.h"
#include "trainer/next_item_eval.h"

namespace uqa::trainer {
namespace {

using test::read_records;
using test::TemporaryDirectory;
using test::tiny_config;
using test::write_tiny_data;

comm::Mesh one_rank() { return comm::Mesh(comm::Communicator(), 0, 1); }

std::string refusal(const std::function<void()>& body) {
  try {
    body();
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), ErrorCode::kConfig) << e.what();
    return e.what();
  }
  return "";
}

class Pretrain : public ::testing::TestWithParam<std::string> {};

TEST_P(Pretrain, LearnsThePatternAndLeavesAModelThatLoads) {
  const TemporaryDirectory dir("pretrain_learns_" + GetParam());
  auto config = tiny_config(write_tiny_data(dir.path()), GetParam());
  config.loop.train.epochs = 60;
  config.loop.optim.peak_lr = 1e-2;
  config.model.dropout = config.model.attention_dropout = 0.1;
  const fs::path path = dir.path() / "run";
  RunDirectory run(path, "pretrain", "x", false, true);
  const Json result = run_pretrain(config, one_rank(), run);

  const auto losses = read_records(path, "train");
  EXPECT_NEAR(losses.front()["loss_nats"].get<double>(), std::log(30.0), 0.3) << "starts at the entropy of a uniform guess";
  EXPECT_LT(losses.back()["loss_nats"].get<double>(), 2.0);
  EXPECT_GT(losses.back()["flops_per_s"].get<double>(), 0);
  EXPECT_GT(result["test"]["NDCG@10"].get<double>(), 0.5) << "a guess gives about 0.16";
  EXPECT_EQ(result, read_json(path / "result.json"));
  const Json info = RunDirectory::read_run_json(path);
  EXPECT_FALSE(info["deviations"].empty());
  EXPECT_EQ(info["data"]["users"], 45);
  EXPECT_EQ(info["result"], result);

  auto loaded = load_user_model(path);
  EXPECT_FALSE(loaded.model->is_training());
  EXPECT_EQ(loaded.config.hidden, 16);
  const PretrainTask task(config, one_rank());
  EXPECT_EQ(loaded.info["data_digest"], task.dataset().digest());
  const auto again = evaluate_next_item(*loaded.model, task.dataset(), task.splits().test, {}, {.batch_users = 5});
  EXPECT_EQ(again.values.at("NDCG@10"), result["test"]["NDCG@10"].get<double>()) << "the best weights were saved";
}

struct Killed {};

/// Dies like a killed process at one step, after the checkpoint of step 5 is on disk.
class MortalTask : public PretrainTask {
 public:
  MortalTask(PretrainConfig config, fs::path checkpoints) : PretrainTask(std::move(config), one_rank()), checkpoints_(std::move(checkpoints)) {}
  [[nodiscard]] Tensor loss_sum(const TaskBatch& batch, std::int64_t micro, const models::DropoutContext& context) override {
    if (context.step == 5) {
      const fs::path committed = checkpoint_path(checkpoints_, 5);
      for (int i = 0; i < 500 && !fs::exists(committed) && !fs::exists(fs::path(committed).concat(".tmp") / rank_file(0)); ++i) {
        std::this_thread::sleep_for(std::chrono::milliseconds(10));
      }
      std::this_thread::sleep_for(std::chrono::milliseconds(200));
    }
    if (context.step == 6) throw Killed{};
    return PretrainTask::loss_sum(batch, micro, context);
  }

 private:
  fs::path checkpoints_;
};

TEST_P(Pretrain, TenStepsEqualFiveACheckpointAKillAndFiveMore) {
  const TemporaryDirectory dir("pretrain_resume_" + GetParam());
  auto config = tiny_config(write_tiny_data(dir.path()), GetParam());
  config.loop.train.max_steps = 10;
  config.loop.checkpoint.every_steps = 5;
  config.loop.batch.global_users = 6;
  config.loop.optim.clip_norm = 0.5;
  const auto train = [&](PretrainTask& task, const std::string& name) {
    RunDirectory run(dir.path() / name, "pretrain", "x", false, true);
    return run_training(task, config.loop, one_rank(), run);
  };
  PretrainTask whole(config, one_rank());
  const auto expected = train(whole, "whole");
  ASSERT_GT((whole.num_samples() + 5) / 6, 6) << "step 5 must be in the middle of an epoch";
  MortalTask killed(config, dir.path() / "parts" / "checkpoints");
  EXPECT_THROW((void)train(killed, "parts"), Killed);
  EXPECT_EQ(latest_checkpoint(dir.path() / "parts" / "checkpoints"), 5);
  PretrainTask resumed(config, one_rank());
  const auto result = train(resumed, "parts");
  EXPECT_EQ(result.steps, 10);
  EXPECT_EQ(result.best_metric, expected.best_metric);
  EXPECT_EQ(result.best_step, expected.best_step);
  for (const char* name : {"rank-0.safetensors", "manifest.json"}) {
    EXPECT_EQ(read_file(dir.path() / "whole" / "checkpoints" / "step-10" / name), read_file(dir.path() / "parts" / "checkpoints" / "step-10" / name)) << name;
  }
  const auto a = read_records(dir.path() / "whole", "train"), b = read_records(dir.path() / "parts", "train");
  ASSERT_EQ(a.size(), b.size());
  for (std::size_t i = 0; i < a.size(); ++i) {
    EXPECT_EQ(a[i]["loss_nats"], b[i]["loss_nats"]) << i;
    EXPECT_EQ(a[i]["grad_norm"], b[i]["grad_norm"]) << i;
  }
}

TEST_P(Pretrain, DropoutDoesNotDependOnMicroBatches) {
  const TemporaryDirectory dir("pretrain_micro_" + GetParam());
  auto config = tiny_config(write_tiny_data(dir.path()), GetParam());
  const auto loss_of = [&](std::int64_t micro_users) {
    config.loop.batch.micro_users = micro_users;
    PretrainTask task(config, one_rank());
    task.set_training(true);
    const auto batch = task.load({3, 9, 1, 20, 7});
    double sum = 0;
    for (std::int64_t m = 0; m < batch->num_micro_batches + 1; ++m) {
      sum += task.loss_sum(*batch, m, {.seed = 1, .step = 4, .micro_step = 0}).item<double>();
    }
    return std::pair(sum, batch->num_micro_batches);
  };
  const auto [whole, one] = loss_of(0);
  const auto [parts, three] = loss_of(2);
  EXPECT_EQ(one, 1);
  EXPECT_EQ(three, 3);
  EXPECT_GT(whole, 10);
  EXPECT_NEAR(whole, parts, 1e-5 * whole);
}

TEST_P(Pretrain, Bf16FollowsFloat32AndKeepsFloat32Masters) {
  const TemporaryDirectory dir("pretrain_bf16_" + GetParam());
  auto config = tiny_config(write_tiny_data(dir.path()), GetParam());
  config.loop.train.max_steps = 10;
  const auto losses_in = [&](const std::string& dtype) {
    config.loop.train.dtype = dtype;
    PretrainTask task(config, one_rank());
    RunDirectory run(dir.path() / dtype, "pretrain", "x", false, true);
    (void)run_training(task, config.loop, one_rank(), run);
    for (const auto& parameter : task.parameters()) EXPECT_EQ(parameter.tensor.scalar_type(), at::kFloat) << parameter.name;
    return read_records(dir.path() / dtype, "train");
  };
  const auto full = losses_in("float32"), half = losses_in("bf16");
  double largest = 0;
  for (std::size_t i = 0; i < full.size(); ++i) {
    const double difference = std::abs(full[i]["loss_nats"].get<double>() - half[i]["loss_nats"].get<double>());
    EXPECT_LT(difference, 0.02) << i;
    largest = std::max(largest, difference);
  }
  EXPECT_GT(largest, 0) << "bf16 must have been used";
}

INSTANTIATE_TEST_SUITE_P(Encoders, Pretrain, ::testing::Values("sasrec", "trm_plus"), [](const auto& test) { return test.param; });

TEST(NextItemEval, DoesNotDependOnRanksOrBatches) {
  const TemporaryDirectory dir("pretrain_eval");
  const auto config = tiny_config(write_tiny_data(dir.path()), "sasrec");
  PretrainTask task(config, one_rank());
  auto model = task.model();
  model->eval();
  const auto alone = evaluate_next_item(*model, task.dataset(), task.splits().valid, {}, {.batch_users = 1000});
  EXPECT_EQ(alone.num_users, static_cast<std::int64_t>(task.splits().valid.size()));
  EXPECT_GT(alone.values.at("NDCG@50"), 0.1);
  EXPECT_EQ(alone.values.at("Recall@50"), 1.0) << "30 items";
  comm::run_ranks(3, [&](const comm::Communicator& comm) {
    const auto shared = evaluate_next_item(*model, task.dataset(), task.splits().valid, comm, {.batch_users = 4});
    EXPECT_EQ(shared.num_users, alone.num_users);
    EXPECT_EQ(shared.values, alone.values);
  });
  // More ranks than users: some have nothing to do.
  const std::vector<data::Span> two(task.splits().valid.begin(), task.splits().valid.begin() + 2);
  const auto few = evaluate_next_item(*model, task.dataset(), two, {}, {});
  comm::run_ranks(3, [&](const comm::Communicator& comm) { EXPECT_EQ(evaluate_next_item(*model, task.dataset(), two, comm, {}).values, few.values); });
}

TEST(PretrainConfigTest, ResolvesWidthsOfTables) {
  data::Schema schema;
  schema.tables = {{.name = "item", .rows = 10}, {.name = "brand", .rows = 5}, {.name = "word", .rows = 7}};
  schema.features = {{.name = "i", .table = "item", .multi_valued = false}, {.name = "b", .table = "brand", .multi_valued = false},
                     {.name = "w", .table = "word", .multi_valued = true}};
  schema.tables.push_back({.name = "nobody", .rows = 3});
  UserModelSettings settings;
  settings.item_dim = 12;
  settings.feature_dim = 3;
  settings.dims = "word=9";
  const auto config = resolve(settings, schema);
  ASSERT_EQ(config.tables.size(), 3U) << "a table without a feature is left out";
  EXPECT_EQ(config.tables[0].dim, 12);
  EXPECT_EQ(config.tables[1].dim, 3);
  EXPECT_EQ(config.tables[2].dim, 9);
  EXPECT_EQ(config.features[1].table, "brand");
  const auto copy = user_model_config_from_json(to_json(config), "test");
  EXPECT_EQ(to_json(copy), to_json(config));
  settings.dims = "shop=9";
  EXPECT_NE(refusal([&] { (void)resolve(settings, schema); }).find("'shop'"), std::string::npos);
  for (const char* bad : {"word", "word=", "word=x", "word=0", "=3", "word=3,word=4"}) {
    settings.dims = bad;
    EXPECT_NE(refusal([&] { (void)resolve(settings, schema); }).find("model.dims"), std::string::npos) << bad;
  }
}

TEST(PretrainConfigTest, NamesTheFieldThatIsWrong) {
  PretrainConfig config;
  EXPECT_NE(refusal([&] { config.validate(); }).find("data is not set"), std::string::npos);
  config.data = "somewhere";
  EXPECT_EQ(refusal([&] { config.validate(); }), "");
  config.metric = "NDCG@11";
  EXPECT_NE(refusal([&] { config.validate(); }).find("metric = NDCG@11"), std::string::npos);
  config.metric = "Recall@20";
  config.read = "mmap";
  EXPECT_NE(refusal([&] { config.validate(); }).find("read = mmap"), std::string::npos);
}

TEST(PretrainConfigTest, FaithfulPresetHasThePublishedSizes) {
  const auto sasrec = pretrain_preset("faithful", "sasrec"), trm = pretrain_preset("faithful", "trm_plus");
  EXPECT_EQ(sasrec.model.num_layers, 6);
  EXPECT_EQ(sasrec.model.num_heads, 8);
  EXPECT_EQ(trm.model.num_layers, 4);
  EXPECT_EQ(trm.model.num_heads, 4);
  for (const auto& config : {sasrec, trm}) {
    EXPECT_EQ(config.model.hidden, 512);
    EXPECT_EQ(config.model.max_len, 512);
    EXPECT_EQ(config.model.inner, 1536);
    EXPECT_EQ(config.loop.optim.peak_lr, 4e-4);
  }
  EXPECT_NE(refusal([] { (void)pretrain_preset("best", "sasrec"); }).find("preset = best"), std::string::npos);
}

TEST(UserBatch, WrapsWithoutCopyingAndKeepsTheBatchAlive) {
  auto packed = std::make_shared<data::PackedBatch>();
  packed->cu_seqlens = {0, 2, 3};
  packed->users = {4, 5};
  packed->sample_ids = {8, 9};
  packed->features = {{.values = {1, 2, 3}, .offsets = {}}, {.values = {}, .offsets = {0, 0, 0, 0}}};
  packed->targets = {2, -1, 1};
  const std::weak_ptr<data::PackedBatch> alive = packed;
  const auto* const first_value = packed->features[0].values.data();
  {
    auto batch = wrap_user_batch(packed);
    const auto targets = wrap_targets(packed);
    packed.reset();
    EXPECT_FALSE(alive.expired());
    EXPECT_EQ(batch.features[0].values.const_data_ptr<std::int64_t>(), first_value);
    EXPECT_TRUE(at::equal(batch.features[0].values, at::tensor({1, 2, 3}, at::kLong)));
    EXPECT_FALSE(batch.features[0].offsets.defined());
    EXPECT_EQ(batch.features[1].values.numel(), 0);
    EXPECT_EQ(batch.features[1].offsets.numel(), 4);
    EXPECT_EQ(batch.layout.sample_ids, (std::vector<std::int64_t>{8, 9}));
    EXPECT_TRUE(at::equal(targets, at::tensor({2, -1, 1}, at::kLong)));
  }
  EXPECT_TRUE(alive.expired());
}

}  // namespace
}  // namespace uqa::trainer
