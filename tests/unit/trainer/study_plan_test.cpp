#include <set>

#include <gtest/gtest.h>

#include "comm/communicator.h"
#include "tests/support/expect_error.h"
#include "tests/support/source_dir.h"
#include "tests/support/temp_dir.h"
#include "tiny_data.h"
#include "trainer/grad_reducer.h"
#include "trainer/run_directory.h"
#include "trainer/study/plan.h"
#include "trainer/study/points.h"

namespace uqa::trainer::study {
namespace {

Hardware plain_hardware() {
  Hardware hw;
  hw.name = "test";
  hw.ranks_per_node = 8;
  hw.memory_bytes = 80e9;
  hw.flops_per_s = 4e14;
  hw.memory_bytes_per_s = 3e12;
  hw.node_bytes_per_s = 3e11;
  hw.network_bytes_per_s = 4e10;
  hw.latency_s = 1e-5;
  return hw;
}

PretrainConfig published_config(const std::string& encoder) {
  auto config = pretrain_preset("faithful", encoder);
  config.data = "not-here";
  config.loop.batch.global_users = 4096;
  return config;
}

DataShape published_shape(const PretrainConfig& config) {
  const auto schema = (tests::source_dir() / "recipes" / "uqabench.schema.json").string();
  return shape_of(Options{{"schema", schema}, {"users", "184520"}, {"interactions", "31317087"}}, config, "study.ini");
}

/// Trains a small run and returns its directory.
class PlannedRunTest : public ::testing::TestWithParam<const char*> {
 protected:
  tests::TempDir dir_;
};

TEST_P(PlannedRunTest, ParametersStepsInteractionsAndFlopsAreThoseOfTheRun) {
  const auto data = test::write_tiny_data(dir_.path());
  for (const std::int64_t max_steps : {0, 4}) {
    auto config = test::tiny_config(data, GetParam());
    config.model.mamba2.head_dim = 8;
    config.model.mamba2.state_size = 4;
    config.split = "ratio:0.8";
    config.fraction = 0.7;
    config.loop.train.epochs = 2;
    config.loop.train.max_steps = max_steps;
    const auto plan = plan_pretrain(config, shape_of(config), plain_hardware(), 1);

    const comm::Mesh mesh(comm::Communicator(), 0, 1);
    RunDirectory run(dir_.path() / fmt::format("run{}", max_steps), "pretrain", "", false, true);
    const Json result = run_pretrain(config, mesh, run);
    const Json info = RunDirectory::read_run_json(run.path());
    EXPECT_EQ(plan.parameters.tables, info["parameters"]["tables"].get<std::int64_t>());
    EXPECT_EQ(plan.parameters.projections, info["parameters"]["projections"].get<std::int64_t>());
    EXPECT_EQ(plan.parameters.backbone, info["parameters"]["backbone"].get<std::int64_t>());
    EXPECT_EQ(plan.parameters.total(), info["parameters"]["total"].get<std::int64_t>());
    EXPECT_EQ(plan.steps, result["steps"].get<std::int64_t>());
    EXPECT_EQ(plan.interactions, result["interactions"].get<double>());
    EXPECT_EQ(plan.labels, result["labels"].get<double>());
    const double flops = result["flops"];
    EXPECT_GT(flops, 1e6);
    EXPECT_NEAR(plan.flops.total() / flops, 1, 1e-12);
    const double per_interaction = info["flops"]["training_per_interaction"], per_label = info["flops"]["training_per_label"];
    EXPECT_NEAR((per_interaction * plan.interactions + per_label * plan.labels) / flops, 1, 1e-12);
    EXPECT_TRUE(plan.exact);

    // The same figures are in points.csv, and the loss of users who did not train.
    const study::Run entry{.name = "r", .values = {{"seed", "1"}}, .stages = {{.stage = "pretrain", .argv = {}, .directory = run.path()}}};
    const auto csv = points_csv({entry});
    EXPECT_NE(csv.find(fmt::format(",{},", flops)), std::string::npos) << csv;
    EXPECT_NE(csv.find(fmt::format("{}", result["test"]["loss_nats"].get<double>())), std::string::npos) << csv;
    const double bare = flops - plan.flops.item_softmax;
    const auto comma = csv.find(fmt::format(",{},", flops)) + fmt::format(",{},", flops).size();
    EXPECT_NEAR(std::stod(csv.substr(comma)) / bare, 1, 1e-9) << csv;
  }
}

INSTANTIATE_TEST_SUITE_P(Encoders, PlannedRunTest, ::testing::Values("sasrec", "hstu", "gru4rec", "mamba2", "trm_plus"));

TEST(Plan, TheHeldOutLossIsThatOfTheModelAtEveryPosition) {
  const tests::TempDir dir;
  auto config = test::tiny_config(test::write_tiny_data(dir.path()), "trm_plus");
  config.split = "ratio:0.6";
  PretrainTask task(config);
  const comm::Mesh mesh(comm::Communicator(), 0, 1);
  const auto& spans = task.splits().valid;
  // Plain: one user at a time, a softmax over all items.
  double sum = 0, count = 0;
  for (std::size_t i = 0; i < spans.size(); ++i) {
    const auto batch = std::make_shared<const data::PackedBatch>(data::pack(task.dataset(), {spans[i]}, {0}, data::Targets::kNext));
    const at::NoGradGuard no_grad;
    auto model = task.model();
    model->eval();
    const auto logits = model->item_hiddens(model->forward(wrap_user_batch(batch), {})).mm(model->item_table().t());
    sum -= at::log_softmax(logits, 1).gather(1, wrap_targets(batch).unsqueeze(1)).sum().item<double>();
    count += static_cast<double>(batch->targets.size());
  }
  EXPECT_NEAR(task.held_out_loss(spans, mesh), sum / count, 1e-5);
  EXPECT_GT(sum / count, 1);
}

TEST(Plan, BytesOnTheWireAreThoseThatTwoRanksSend) {
  const tests::TempDir dir;
  auto config = test::tiny_config(test::write_tiny_data(dir.path()), "trm_plus");
  config.loop.train.epochs = 1;
  config.split = "ratio:0.8";
  const Layout replicated{.ranks = 2, .dp = 2, .tp = 1, .table_group = 1};
  const auto plan = plan_pretrain(config, shape_of(config), plain_hardware(), 2, &replicated);
  EXPECT_DOUBLE_EQ(plan.wire_bytes_per_step, 4.0 * static_cast<double>(plan.parameters.total()));  // a ring of two sends the payload once
  comm::run_ranks(2, [&](const comm::Communicator& world) {
    const comm::Mesh mesh(world, 2, 1);
    PretrainTask task(config);
    std::vector<Tensor> tensors;
    for (const auto& parameter : task.parameters()) tensors.push_back(parameter.tensor);
    GradReducer reducer(tensors, mesh.dp(), static_cast<std::int64_t>(config.loop.parallel.bucket_bytes));
    const auto before = mesh.dp().bytes_sent();
    reducer.begin_step();
    reducer.arm();
    const auto batch = task.load({world.rank()});
    task.loss_sum(*batch, 0, {}).backward();
    static_cast<void>(reducer.finish(1));
    // A gradient begins at a cache line of its bucket: at most 15 floats of zeros travel with each.
    const double sent = static_cast<double>(mesh.dp().bytes_sent() - before);
    EXPECT_GE(sent, plan.wire_bytes_per_step) << "gradients of what is replicated";
    EXPECT_LE(sent, plan.wire_bytes_per_step + 15 * 4 * static_cast<double>(tensors.size()));
  });
}

TEST(Plan, ShardingSharesOutMemoryAndSendsMore) {
  auto config = published_config("trm_plus");
  const Layout layout{.ranks = 4, .dp = 4, .tp = 1, .table_group = 4};
  const auto plan_with = [&](const char* shard) {
    config.loop.parallel.shard = shard;
    return plan_pretrain(config, published_shape(config), plain_hardware(), 4, &layout);
  };
  const auto none = plan_with("none"), optimizer = plan_with("optimizer"), full = plan_with("full");
  const auto dense = static_cast<double>(none.parameters.projections + none.parameters.backbone), tables = static_cast<double>(none.parameters.tables);
  EXPECT_DOUBLE_EQ(none.memory.optimizer, 8 * (dense + tables / 4));
  EXPECT_DOUBLE_EQ(optimizer.memory.optimizer, 8 * (dense / 4 + tables / 4));
  EXPECT_DOUBLE_EQ(full.memory.optimizer, optimizer.memory.optimizer);
  EXPECT_DOUBLE_EQ(optimizer.memory.weights, none.memory.weights);
  EXPECT_LT(full.memory.gradients - tables, 0.6 * (none.memory.gradients - tables)) << "4 bytes of a quarter of the tables are one of each element";
  EXPECT_LT(full.memory.total(), optimizer.memory.total());
  EXPECT_LT(optimizer.memory.total(), none.memory.total());
  const double ring = 2 * 3.0 / 4 * 4 * dense;
  EXPECT_NEAR(optimizer.wire_bytes_per_step - none.wire_bytes_per_step, ring / 2, 1);
  EXPECT_GT(full.wire_bytes_per_step, optimizer.wire_bytes_per_step - ring / 2);
}

TEST(Plan, RecomputedLayersTakeLessMemoryAndMoreTime) {
  for (const char* encoder : {"sasrec", "hstu", "gru4rec", "mamba2", "trm_plus"}) {
    auto config = published_config(encoder);
    config.model.num_layers = 8;
    config.loop.batch.micro_users = 64;
    const auto plan_with = [&](const char* recompute, std::int64_t tp) {
      config.loop.memory.recompute = recompute;
      const Layout layout{.ranks = 4, .dp = 4 / tp, .tp = tp, .table_group = 4};
      return plan_pretrain(config, published_shape(config), plain_hardware(), 4, &layout);
    };
    const auto kept = plan_with("none", 1), again = plan_with("layers", 1);
    EXPECT_LT(again.memory.activations, 0.7 * kept.memory.activations) << encoder;
    EXPECT_DOUBLE_EQ(again.memory.gradients, kept.memory.gradients) << encoder;
    EXPECT_DOUBLE_EQ(again.wire_bytes_per_step, kept.wire_bytes_per_step) << encoder;
    EXPECT_EQ(again.flops.total(), kept.flops.total()) << "FLOPs do not count recomputation, " << encoder;
    EXPECT_GT(again.compute_s, kept.compute_s) << encoder;
    EXPECT_LT(again.compute_s, 4.0 / 3 * kept.compute_s) << encoder;
    EXPECT_GT(plan_with("layers", 2).wire_bytes_per_step, plan_with("none", 2).wire_bytes_per_step) << encoder << ": sums of a layer are made again";
  }
}

TEST(Plan, SmallerFractionsAreSubsetsOfLargerOnes) {
  const tests::TempDir dir;
  auto config = test::tiny_config(test::write_tiny_data(dir.path()), "trm_plus");
  std::set<std::int64_t> larger;
  for (const double fraction : {1.0, 0.6, 0.3}) {
    config.fraction = fraction;
    std::set<std::int64_t> users;
    const PretrainTask task(config);
    for (const auto& span : task.splits().train) users.insert(span.user);
    if (!larger.empty()) {
      EXPECT_LT(users.size(), larger.size());
      EXPECT_TRUE(std::ranges::includes(larger, users)) << fraction;
    }
    larger = users;
  }
  config.loop.train.seed = 2;
  std::set<std::int64_t> other;
  const PretrainTask task(config);
  for (const auto& span : task.splits().train) other.insert(span.user);
  EXPECT_NE(other, larger);
  EXPECT_EQ(other.size(), larger.size());
  config.fraction = 0;
  EXPECT_UQA_ERROR(PretrainTask{config}, ErrorCode::kConfig, "data.fraction = 0");
}

TEST(Plan, PublishedSizesOnMachinesThatAreNotHere) {
  const auto config = published_config("trm_plus");
  const auto shape = published_shape(config);
  EXPECT_FALSE(shape.exact);
  const auto one = plan_pretrain(config, shape, plain_hardware(), 1);
  EXPECT_EQ(one.parameters.tables, 181'555'328);
  EXPECT_EQ(one.parameters.backbone, 13'635'584);
  EXPECT_NEAR(one.flops.item_softmax / one.flops.backbone, 9.3, 0.1);
  EXPECT_GT(one.full_attention_flops, 1.9 * one.flops.attention);
  EXPECT_EQ(one.wire_bytes_per_step, 0);
  // Many ranks: the tables lie in rows, what one rank sends is far below a gradient of the tables, and time falls.
  const auto many = plan_pretrain(config, shape, plain_hardware(), 2048);
  EXPECT_EQ(many.layout.dp * many.layout.tp, 2048);
  EXPECT_GT(many.layout.table_group, 1);
  EXPECT_LT(many.wire_bytes_per_step, 2 * 4.0 * 181'555'328);
  EXPECT_LT(many.seconds, one.seconds / 50);
  EXPECT_EQ(many.parameters.total(), one.parameters.total());
  EXPECT_NEAR(many.flops.total() / one.flops.total(), 1, 1e-12);
  // Memory of one rank by its parts.
  EXPECT_DOUBLE_EQ(one.memory.weights, 4.0 * static_cast<double>(one.parameters.total()));
  EXPECT_DOUBLE_EQ(one.memory.optimizer, 2 * one.memory.weights);
}

TEST(Plan, WhatDoesNotFitIsSaidWithALayoutThatWould) {
  auto hw = plain_hardware();
  hw.memory_bytes = 2e9;
  auto config = published_config("sasrec");
  config.loop.batch.micro_users = 4;
  const auto plan = plan_pretrain(config, published_shape(config), hw, 1);
  EXPECT_FALSE(plan.fits);
  EXPECT_NE(plan.advice.find("ranks would do: dp"), std::string::npos) << plan.advice;
  EXPECT_NE(plan.advice.find("in rows over groups of"), std::string::npos) << plan.advice;
  // And that layout does.
  const auto ranks = std::stoll(plan.advice.substr(plan.advice.find("; ") + 2));
  EXPECT_TRUE(plan_pretrain(config, published_shape(config), hw, ranks).fits) << plan.advice;
}

TEST(Plan, ADataSetThatIsNotHereMustBeDescribed) {
  const auto config = published_config("trm_plus");
  EXPECT_UQA_ERROR(shape_of(Options{}, config, "s.ini"), ErrorCode::kConfig, "schema, users and interactions");
  EXPECT_UQA_ERROR(shape_of(Options{{"user", "3"}}, config, "s.ini"), ErrorCode::kConfig, "did you mean 'users'");
}

}  // namespace
}  // namespace uqa::trainer::study
