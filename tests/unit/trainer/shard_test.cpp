// parallel.shard on threads: gradients, steps and checkpoints of sharded data parallelism against one rank.
#include <cmath>
#include <mutex>
#include <optional>

#include <gtest/gtest.h>

#include "models/cost.h"
#include "models/tensor_io.h"
#include "tests/support/expect_error.h"
#include "tests/support/temp_dir.h"
#include "tests/support/weights.h"
#include "tiny_data.h"
#include "toy_task.h"
#include "trainer/optimizer.h"
#include "trainer/pretrain.h"
#include "trainer/trained_parameters.h"

namespace uqa::trainer {
namespace {

using tests::error_of;
using tests::without_key_bias;

struct ShardLayout {
  std::string shard = "none";
  int dp = 1, tp = 1;
  std::string tables = "replicated";
  [[nodiscard]] int ranks() const { return dp * tp; }
  [[nodiscard]] std::string name() const { return fmt::format("{}_dp{}_tp{}_{}", shard, dp, tp, tables); }
};

void apply(const ShardLayout& layout, ParallelConfig& parallel) {
  parallel.shard = layout.shard;
  parallel.tp = layout.tp;
  parallel.tables = layout.tables;
  parallel.table_min_rows = 20;  // the items, not the tags
  parallel.bucket_bytes = 4000;  // several messages
}

struct Outcome {
  std::map<std::string, Tensor> weights;  ///< whole, at the end
  std::vector<double> losses, norms;      ///< one a step
  TrainingResult result;
};

/// Trains on threads in `path`, or goes on there.
Outcome train(PretrainConfig config, const ShardLayout& layout, const fs::path& path) {
  apply(layout, config.loop.parallel);
  Outcome outcome;
  std::mutex mutex;
  comm::run_ranks(layout.ranks(), [&](const comm::Communicator& world) {
    const comm::Mesh mesh(world, layout.dp, layout.tp);
    PretrainTask task(config, mesh);
    std::optional<RunDirectory> run;
    for (const bool writer : {true, false}) {
      comm::run_agreed(world, [&] {
        if (writer == (world.rank() == 0)) run.emplace(path, "pretrain", "x", false, writer);
      });
    }
    const auto result = run_training(task, config.loop, mesh, *run);
    std::map<std::string, Tensor> weights;
    for (const auto& parameter : task.parameters()) weights[parameter.name] = whole_of(parameter, mesh);
    const std::scoped_lock lock(mutex);
    if (outcome.weights.empty()) outcome.weights = weights;
    for (const auto& [name, weight] : weights) EXPECT_TRUE(at::equal(weight, outcome.weights.at(name))) << name << " differs between ranks, " << layout.name();
    if (world.rank() == 0) outcome.result = result;
  });
  for (const auto& record : test::read_records(path, "train")) {
    outcome.losses.push_back(record["loss_nats"].get<double>());
    outcome.norms.push_back(record["grad_norm"].get<double>());
  }
  return outcome;
}

void expect_near(const std::vector<double>& ours, const std::vector<double>& reference, double bound, const std::string& what) {
  ASSERT_EQ(ours.size(), reference.size()) << what;
  for (std::size_t i = 0; i < ours.size(); ++i) EXPECT_NEAR(ours[i], reference[i], bound * std::abs(reference[i])) << what << ", step " << i + 1;
}

class ShardedPretrain : public ::testing::TestWithParam<std::string> {
 protected:
  [[nodiscard]] PretrainConfig config_of(const std::string& encoder) const {
    auto config = test::tiny_config(dir_.path() / "data", encoder);
    config.model.num_heads = 4;
    config.model.mamba2 = {.head_dim = 8, .state_size = 8, .expand = 2, .conv_kernel = 4, .num_groups = 1, .chunk = 8};
    config.loop.batch.micro_users = 3;  // several micro-steps, and ranks that run out of samples
    config.loop.train.epochs = 20;
    config.loop.train.max_steps = 20;
    return config;
  }
  [[nodiscard]] fs::path path(const std::string& name) const { return dir_.path() / name; }
  [[nodiscard]] static std::vector<ShardLayout> layouts() {
    std::vector<ShardLayout> all{{.shard = "none", .dp = 3}};  // others without sharding: pretrain_parity, tensor_parallel
    for (const char* shard : {"optimizer", "full"}) {
      for (const int dp : {2, 3, 4}) all.push_back({.shard = shard, .dp = dp});
      all.push_back({.shard = shard, .dp = 2, .tp = 2});
      all.push_back({.shard = shard, .dp = 2, .tables = "sharded"});
      all.push_back({.shard = shard, .dp = 2, .tp = 2, .tables = "sharded"});
    }
    return all;
  }

  tests::TempDir dir_;
  fs::path data_ = test::write_tiny_data(dir_.path());
};

TEST_P(ShardedPretrain, SgdTakesTheStepsOfOneRank) {
  auto config = config_of(GetParam());
  config.loop.optim = {.peak_lr = 0.1, .clip_norm = 0.05, .kind = "sgd"};
  const auto one = train(config, {}, path("one"));
  ASSERT_EQ(one.losses.size(), 20U);
  EXPECT_GT(one.norms.front(), 0.05) << "clipping must matter";
  for (const auto& layout : layouts()) {
    const auto many = train(config, layout, path(layout.name()));
    std::string where;
    EXPECT_LE(error_of(without_key_bias(many.weights), without_key_bias(one.weights), &where), 1e-5) << layout.name() << " " << where;
    expect_near(many.losses, one.losses, 1e-5, layout.name());
    expect_near(many.norms, one.norms, 1e-5, layout.name());
  }
}

TEST_P(ShardedPretrain, RecomputedLayersTakeTheStepsOfThoseThatKeepTheirActivations) {
  auto config = config_of(GetParam());
  config.loop.optim = {.peak_lr = 0.1, .clip_norm = 0.05, .kind = "sgd"};
  config.loop.train.max_steps = 5;
  for (const ShardLayout& layout : {ShardLayout{.shard = "optimizer", .dp = 2}, ShardLayout{.shard = "full", .dp = 3}, ShardLayout{.shard = "full", .dp = 2, .tp = 2},
                                  ShardLayout{.shard = "full", .dp = 2, .tp = 2, .tables = "sharded"}}) {
    config.loop.memory.recompute = "none";
    const auto kept = train(config, layout, path(layout.name() + "_kept"));
    config.loop.memory.recompute = "layers";
    const auto again = train(config, layout, path(layout.name() + "_again"));
    ASSERT_EQ(again.losses.size(), 5U);
    std::string where;
    EXPECT_LE(error_of(without_key_bias(again.weights), without_key_bias(kept.weights), &where), 1e-6) << layout.name() << " " << where;
    expect_near(again.losses, kept.losses, 1e-6, layout.name());
    expect_near(again.norms, kept.norms, 1e-6, layout.name());
  }
}

TEST_P(ShardedPretrain, AdamWTakesTheStepsOfOneRank) {
  auto config = config_of(GetParam());
  config.loop.optim = {.peak_lr = 5e-3, .weight_decay = 0.01, .clip_norm = 1.0};
  const auto one = train(config, {}, path("one"));
  for (const ShardLayout& layout : {ShardLayout{.shard = "optimizer"}, ShardLayout{.shard = "optimizer", .dp = 4}, ShardLayout{.shard = "optimizer", .dp = 2, .tp = 2, .tables = "sharded"}, ShardLayout{.shard = "full", .dp = 4},
                                  ShardLayout{.shard = "full", .dp = 2, .tp = 2, .tables = "sharded"}}) {
    const auto many = train(config, layout, path(layout.name()));
    std::string where;
    EXPECT_LE(error_of(without_key_bias(many.weights), without_key_bias(one.weights), &where), 1e-4) << layout.name() << " " << where;
    expect_near(many.losses, one.losses, 1e-4, layout.name());
    EXPECT_EQ(many.result.best_step, one.result.best_step) << layout.name();
  }
}

INSTANTIATE_TEST_SUITE_P(Encoders, ShardedPretrain, ::testing::Values("sasrec", "trm_plus", "hstu", "mamba2", "gru4rec"), [](const auto& test) { return test.param; });

using ShardedCheckpoint = ShardedPretrain;

TEST_P(ShardedCheckpoint, GoesOnAtAnyLayoutAndBitForBitAtItsOwn) {
  auto config = config_of(GetParam());
  config.loop.optim = {.peak_lr = 5e-3, .clip_norm = 1.0};
  config.loop.train.max_steps = 10;
  config.loop.checkpoint.every_steps = 5;
  config.loop.checkpoint.keep = 10;
  const std::vector<ShardLayout> from{{.shard = "optimizer", .dp = 2, .tp = 2, .tables = "sharded"}, {.shard = "full", .dp = 2, .tp = 2}, {.shard = "none", .dp = 3}};
  const std::vector<ShardLayout> to{{}, {.tp = 4}, {.shard = "optimizer", .dp = 4}, {.shard = "full", .dp = 4}, {.shard = "full", .dp = 2, .tp = 2, .tables = "sharded"}};
  for (const auto& first : from) {
    const auto whole = train(config, first, path(first.name()));
    const auto go_on = [&](const ShardLayout& second) {
      const auto where = path(first.name() + "_to_" + second.name());
      fs::copy(path(first.name()), where, fs::copy_options::recursive);
      write_file_atomic(where / "checkpoints" / "latest", "step-5\n");
      return train(config, second, where);
    };
    for (const auto& second : to) {
      const auto on = go_on(second);
      const auto what = first.name() + " to " + second.name();
      EXPECT_EQ(on.result.steps, 10) << what;
      std::string where;
      EXPECT_LE(error_of(without_key_bias(on.weights), without_key_bias(whole.weights), &where), 1e-4) << what << " " << where;
      expect_near(on.losses, whole.losses, 1e-4, what);
    }
    const auto same = go_on(first);
    EXPECT_EQ(error_of(same.weights, whole.weights), 0) << first.name();
    EXPECT_EQ(same.losses, whole.losses) << first.name();
  }
}

INSTANTIATE_TEST_SUITE_P(Encoders, ShardedCheckpoint, ::testing::Values("sasrec", "mamba2"), [](const auto& test) { return test.param; });

/// Whole gradients of one batch, and what each rank's optimizer has.
struct Gradients {
  std::map<std::string, Tensor> whole;
  std::int64_t updated_elements = 0;  ///< of this rank
  double norm = 0;
};
Gradients gradients_on(const PretrainConfig& config, const comm::Mesh& mesh, const std::vector<std::int64_t>& samples) {
  PretrainTask task(config, mesh);
  task.set_training(true);
  TrainedParameters trained(task.parameters(), task.layered_models(), mesh, config.loop.parallel);
  const auto batch = task.load(samples);
  trained.begin_step();
  trained.arm();
  trained.begin_micro_step();
  const auto loss = task.loss_sum(*batch, 0, {.seed = 3, .step = 1, .micro_step = 0});
  if (loss.requires_grad()) loss.backward();
  trained.end_micro_step();
  static_cast<void>(trained.finish(0.25));
  Gradients gradients{.whole = {}, .updated_elements = 0, .norm = trained.global_norm()};
  trained.before_update(1);
  for (const auto& parameter : trained.updated()) {
    gradients.updated_elements += parameter.tensor.numel();
    gradients.whole[parameter.name] = whole_of({.name = parameter.name, .tensor = parameter.tensor.grad(), .layout = parameter.layout}, mesh);
  }
  return gradients;
}

TEST_P(ShardedPretrain, GradientsOfOneStepAreThoseOfOneRank) {
  auto config = config_of(GetParam());
  config.loop.batch.micro_users = 0;
  const std::vector<std::int64_t> samples{4, 9, 11, 17, 20};
  const auto one = gradients_on(config, comm::Mesh(comm::Communicator(), 1, 1), samples);
  EXPECT_GT(one.norm, 0.1);
  for (const auto& layout : layouts()) {
    apply(layout, config.loop.parallel);
    comm::run_ranks(layout.ranks(), [&](const comm::Communicator& world) {
      const comm::Mesh mesh(world, layout.dp, layout.tp);
      // The last rank has no samples.
      std::vector<std::int64_t> mine;
      const int busy = layout.dp > 1 ? layout.dp - 1 : 1;
      for (std::size_t i = 0; i < samples.size(); ++i) {
        if (static_cast<int>(i) % busy == mesh.dp().rank()) mine.push_back(samples[i]);
      }
      const auto many = gradients_on(config, mesh, mine);
      std::string where;
      EXPECT_LE(error_of(without_key_bias(many.whole), without_key_bias(one.whole), &where), 1e-5) << layout.name() << " " << where;
      EXPECT_NEAR(many.norm, one.norm, 1e-5 * one.norm) << layout.name();
      const auto norms = comm::all_gather(at::full({1}, std::bit_cast<std::int64_t>(many.norm), at::kLong), world);
      EXPECT_TRUE(at::equal(norms, norms[0].expand_as(norms))) << "one norm on all ranks, " << layout.name();
      if (layout.tp == 1 && layout.tables == "replicated") {
        const auto all = comm::all_reduce(many.updated_elements, comm::ReduceOp::kSum, world);
        EXPECT_EQ(all, one.updated_elements * (layout.shard == "none" ? layout.dp : 1)) << "each element is updated once, " << layout.name();
        if (layout.shard != "none") {
          EXPECT_LT(many.updated_elements, 1.3 * static_cast<double>(one.updated_elements) / layout.dp) << layout.name();
        }
      }
    });
  }
}

TEST_P(ShardedPretrain, GradientsOfOneMicroStepAreThoseOfReplicatedParametersBitForBit) {
  auto config = config_of(GetParam());
  config.loop.batch.micro_users = 0;
  for (const char* recompute : {"none", "layers"}) {
    config.loop.memory.recompute = recompute;
    std::map<std::string, Tensor> reference;
    for (const char* shard : {"none", "full"}) {
      apply({.shard = shard, .dp = 3}, config.loop.parallel);
      std::mutex mutex;
      std::map<std::string, Tensor> whole;
      comm::run_ranks(3, [&](const comm::Communicator& world) {
        const comm::Mesh mesh(world, 3, 1);
        const std::vector<std::vector<std::int64_t>> samples{{4, 9, 20}, {11, 17}, {}};
        const auto gradients = gradients_on(config, mesh, samples[static_cast<std::size_t>(world.rank())]).whole;
        const std::scoped_lock lock(mutex);
        if (world.rank() == 0) whole = gradients;
      });
      if (reference.empty()) reference = whole;
      ASSERT_EQ(whole.size(), reference.size());
      for (const auto& [name, gradient] : whole) EXPECT_TRUE(at::equal(gradient, reference.at(name))) << name << ", shard " << shard << ", recompute " << recompute;
    }
  }
}

TEST(Shard, AParameterWithoutDimensionsAndAnUnusedOneKeepTheirValues) {
  const auto steps = [](const comm::Communicator& world, const std::string& shard) {
    const auto leaf = [](const Tensor& x) { return x.clone().requires_grad_(true); };
    const auto scale = leaf(at::full({}, 2.0)), used = leaf(at::sin(at::arange(10, at::kFloat)).view({5, 2})), unused = leaf(at::ones({3}));
    const std::vector<NamedParameter> parameters{{"scale", scale}, {"used", used, 0.5}, {"unused", unused}};
    const comm::Mesh mesh(world, 0, 1);
    TrainedParameters trained(parameters, {}, mesh, {.shard = shard});
    Optimizer optimizer(trained.updated(), {});
    for (int step = 0; step < 3; ++step) {
      trained.begin_step();
      trained.arm();
      trained.begin_micro_step();
      (used.square().sum() * scale * (1.0 / world.size())).backward();
      trained.end_micro_step();
      static_cast<void>(trained.finish(1));
      trained.before_update(0.5);
      optimizer.step(0.1);
      static_cast<void>(trained.after_update());
    }
    trained.make_whole();
    return std::map<std::string, Tensor>{{"scale", scale.detach()}, {"used", used.detach()}, {"unused", unused.detach()}};
  };
  const auto one = steps(comm::Communicator(), "optimizer");
  EXPECT_LT(one.at("scale").item<float>(), 1.8F);
  for (const char* shard : {"none", "optimizer", "full"}) {
    comm::run_ranks(3, [&](const comm::Communicator& world) { EXPECT_LE(error_of(steps(world, shard), one), 1e-5) << shard; });
  }
}

TEST(Shard, BytesOnTheWireAreThoseOfTheFormula) {
  const tests::TempDir dir;
  auto config = test::tiny_config(test::write_tiny_data(dir.path()), "trm_plus");
  config.loop.batch.micro_users = 0;
  for (const char* shard : {"none", "optimizer", "full", "full recomputed"}) {
    const bool recompute = shard == std::string("full recomputed");  // no gather more
    if (recompute) shard = "full";
    config.loop.memory.recompute = recompute ? "layers" : "none";
    config.loop.parallel.shard = shard;
    config.loop.parallel.tables = "replicated";
    comm::run_ranks(4, [&](const comm::Communicator& world) {
      const comm::Mesh mesh(world, 4, 1);
      PretrainTask task(config, mesh);
      TrainedParameters trained(task.parameters(), task.layered_models(), mesh, config.loop.parallel);
      const auto model = resolve(config.model, task.dataset().schema());
      const auto formula = models::wire_bytes(model, {.ranks = 4, .sharded = false, .shard = parse_shard(shard), .micro_steps = 2}).dense;
      const auto batch = task.load({world.rank()});
      const auto before = mesh.dp().bytes_sent();
      trained.begin_step();
      for (int micro = 0; micro < 2; ++micro) {
        if (micro == 1) trained.arm();
        trained.begin_micro_step();
        task.loss_sum(*batch, 0, {}).backward();
        trained.end_micro_step();
      }
      static_cast<void>(trained.finish(1));
      trained.before_update(1);
      static_cast<void>(trained.after_update());
      const double counted = comm::sum_in_order(static_cast<double>(mesh.dp().bytes_sent() - before), world) / 4;
      // Gradients begin at cache lines of their buckets.
      EXPECT_GE(counted, formula - 1) << shard;
      EXPECT_LE(counted, formula + (shard == std::string("full") ? 1 : 2 * 15 * 4 * static_cast<double>(task.parameters().size()))) << shard;
      EXPECT_GT(formula, 10'000) << shard;
    });
  }
}

TEST(Shard, RefusesAnUnknownMode) {
  LoopConfig config;
  config.parallel.shard = "params";
  EXPECT_UQA_ERROR(config.validate(), ErrorCode::kConfig, "parallel.shard = params, must be none");
  EXPECT_UQA_ERROR(parse_shard("params"), ErrorCode::kConfig, "--parallel.shard");
}

}  // namespace
}  // namespace uqa::trainer
