// Pre-training on split layers, with and without data parallelism, against one rank; checkpoints from one layout to another.
#include <gtest/gtest.h>

#include "layouts.h"
#include "models/tensor_io.h"
#include "tests/support/weights.h"
#include "tests/unit/trainer/tiny_data.h"
#include "trainer/pretrain.h"

namespace uqa::trainer {
namespace {

using uqa::testing::dist_world;
using uqa::tests::error_of;
using uqa::tests::without_key_bias;
using uqa::testing::SharedDir;
using uqa::testing::tensor_layouts;

struct Outcome {
  std::map<std::string, Tensor> weights, gradients;  ///< whole; gradients of the last step
  TrainingResult result;
};

/// Trains on `mesh` in `path`, or goes on there.
Outcome train(PretrainConfig config, const comm::Mesh& mesh, const fs::path& path) {
  config.loop.parallel.tp = mesh.tp().size();
  PretrainTask task(config, mesh);
  const auto& world = mesh.world();
  std::optional<RunDirectory> run;
  comm::run_agreed(world, [&] {
    if (world.rank() == 0) run.emplace(path, "pretrain", "x", false, true);
  });
  if (world.rank() != 0) run.emplace(path, "pretrain", "x", false, false);
  Outcome outcome;
  outcome.result = run_training(task, config.loop, mesh, *run);
  for (const auto& p : task.parameters()) {
    outcome.weights[p.name] = whole_of(p, mesh);
    outcome.gradients[p.name] = whole_of(NamedParameter{.name = p.name, .tensor = p.tensor.grad(), .layout = p.layout}, mesh);
  }
  return outcome;
}

class TensorParallelPretrain : public ::testing::Test {
 protected:
  TensorParallelPretrain() {
    comm::run_agreed(dist_world(), [&] {
      if (dist_world().rank() == 0) static_cast<void>(test::write_tiny_data(dir_.path()));
    });
  }
  [[nodiscard]] PretrainConfig config_of(const std::string& encoder) const {
    auto config = test::tiny_config(dir_.path() / "data", encoder);
    config.model.num_heads = 4;  // of width 4
    config.model.mamba2 = {.head_dim = 8, .state_size = 8, .expand = 2, .conv_kernel = 4, .num_groups = 1, .chunk = 8};
    config.loop.optim = {.peak_lr = 0.1, .clip_norm = 0.5, .kind = "sgd"};
    config.loop.parallel.bucket_bytes = 4000;
    config.loop.train.epochs = 20;
    return config;
  }
  [[nodiscard]] comm::Mesh alone() const { return comm::Mesh(comm::Communicator(), 1, 1); }
  [[nodiscard]] fs::path own(const std::string& name) const { return dir_.path() / fmt::format("{}_{}", name, dist_world().rank()); }

  SharedDir dir_;
};

TEST_F(TensorParallelPretrain, FiveEncodersTakeTheStepsOfOneRank) {
  for (const char* encoder : {"sasrec", "trm_plus", "hstu", "mamba2", "gru4rec"}) {
    auto config = config_of(encoder);
    const auto run = [&](std::int64_t steps, const comm::Mesh& mesh, const fs::path& path) {
      config.loop.train.max_steps = steps;
      return train(config, mesh, path);
    };
    const auto first = run(1, alone(), own(std::string(encoder) + "_first")), many = run(20, alone(), own(std::string(encoder) + "_many"));
    for (const auto& layout : tensor_layouts()) {
      const comm::Mesh mesh(dist_world(), layout.dp, layout.tp);
      const auto name = fmt::format("{}_{}", encoder, layout.name());
      std::string where;
      const auto one_step = run(1, mesh, dir_.path() / (name + "_first"));
      EXPECT_LE(error_of(without_key_bias(one_step.gradients), without_key_bias(first.gradients), &where), 1e-5) << name << " " << where;
      const auto steps = run(20, mesh, dir_.path() / (name + "_many"));
      EXPECT_EQ(steps.result.steps, 20) << name;
      EXPECT_LE(error_of(without_key_bias(steps.weights), without_key_bias(many.weights), &where), 1e-5) << name << " " << where;
      EXPECT_NEAR(steps.result.last_loss_nats, many.result.last_loss_nats, 1e-5 * many.result.last_loss_nats) << name;
      EXPECT_NEAR(steps.result.best_metric.value_or(0), many.result.best_metric.value_or(1), 1e-3) << name;
    }
  }
}

/// Collectives of recomputed layers, gradient buckets and cut tables in one backward pass; ranks with fewer micro-steps run empty ones.
TEST_F(TensorParallelPretrain, RecomputedLayersTakeTheStepsOfOneRank) {
  for (const char* encoder : {"sasrec", "hstu", "mamba2"}) {
    auto config = config_of(encoder);
    config.loop.train.max_steps = 5;
    const auto one = train(config, alone(), own(std::string(encoder) + "_kept"));
    config.loop.memory.recompute = "layers";
    config.loop.batch.micro_users = 3;
    config.loop.parallel.table_min_rows = 0;
    for (const auto& layout : tensor_layouts()) {
      const auto name = fmt::format("{}_{}_again", encoder, layout.name());
      const auto many = train(config, comm::Mesh(dist_world(), layout.dp, layout.tp), dir_.path() / name);
      std::string where;
      EXPECT_EQ(many.result.steps, 5) << name;
      EXPECT_LE(error_of(without_key_bias(many.gradients), without_key_bias(one.gradients), &where), 1e-4) << name << " " << where;
      EXPECT_LE(error_of(without_key_bias(many.weights), without_key_bias(one.weights), &where), 1e-5) << name << " " << where;
      EXPECT_NEAR(many.result.last_loss_nats, one.result.last_loss_nats, 1e-5 * one.result.last_loss_nats) << name;
    }
  }
}

TEST_F(TensorParallelPretrain, AdamWTakesTheStepsOfOneRank) {
  auto config = config_of("mamba2");
  config.loop.optim = {.peak_lr = 5e-3, .clip_norm = 1.0};
  config.loop.train.max_steps = 20;
  const auto one = train(config, alone(), own("adamw"));
  for (const auto& layout : tensor_layouts()) {
    const auto many = train(config, comm::Mesh(dist_world(), layout.dp, layout.tp), dir_.path() / ("adamw_" + layout.name()));
    std::string where;
    EXPECT_LE(error_of(many.weights, one.weights, &where), 1e-4) << layout.name() << " " << where;
  }
}

TEST_F(TensorParallelPretrain, ACheckpointGoesOnAtAnyLayout) {
  auto config = config_of("sasrec");
  config.loop.train.max_steps = 10;
  config.loop.checkpoint.every_steps = 5;
  config.loop.checkpoint.keep = 10;
  const auto layout = tensor_layouts().back();
  const comm::Mesh mesh(dist_world(), layout.dp, layout.tp);
  const auto whole = train(config, mesh, dir_.path() / "whole");
  const auto take_back = [&](const fs::path& path) {
    fs::copy(dir_.path() / "whole", path, fs::copy_options::recursive);
    write_file_atomic(path / "checkpoints" / "latest", "step-5\n");
  };
  comm::barrier(dist_world());
  // On one rank, on all ranks data-parallel, and at the layout that wrote it: there the bits are the same.
  comm::run_agreed(dist_world(), [&] { take_back(own("alone")); });
  const auto one = train(config, alone(), own("alone"));
  EXPECT_EQ(one.result.steps, 10);
  EXPECT_LE(error_of(without_key_bias(one.weights), without_key_bias(whole.weights)), 1e-5);
  for (const auto& [name, other] : std::vector<std::pair<std::string, comm::Mesh>>{{"dp", comm::Mesh(dist_world(), dist_world().size(), 1)}, {"same", mesh}}) {
    comm::run_agreed(dist_world(), [&] {
      if (dist_world().rank() == 0) take_back(dir_.path() / name);
    });
    const auto again = train(config, other, dir_.path() / name);
    EXPECT_EQ(again.result.steps, 10) << name;
    EXPECT_LE(error_of(without_key_bias(again.weights), without_key_bias(whole.weights)), name == "same" ? 0 : 1e-5) << name;
  }
}

TEST_F(TensorParallelPretrain, SavesWholeTensorsAndRefusesWhatDoesNotFit) {
  auto config = config_of("trm_plus");
  config.loop.train.max_steps = 3;
  const auto layout = tensor_layouts().front();
  const comm::Mesh mesh(dist_world(), layout.dp, layout.tp);
  const auto trained = train(config, mesh, dir_.path() / "saved");
  comm::barrier(dist_world());
  std::map<std::string, Tensor> loaded;
  comm::run_agreed(dist_world(), [&] { loaded = models::state_dict(*load_user_model(dir_.path() / "saved").model); });
  EXPECT_EQ(error_of(loaded, trained.weights), 0);
  config.model.num_heads = 1;
  config.loop.parallel.tp = layout.tp;
  try {
    PretrainTask task(config, mesh);
    ADD_FAILURE() << "one head was split";
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), ErrorCode::kConfig);
    EXPECT_NE(std::string(e.what()).find("model.num_heads = 1"), std::string::npos) << e.what();
    EXPECT_NE(std::string(e.what()).find(fmt::format("degree {}", layout.tp)), std::string::npos) << e.what();
  }
}

}  // namespace
}  // namespace uqa::trainer
