// The same pre-training on the ranks of this run and on one rank: every rank also trains alone and compares.
#include <gtest/gtest.h>

#include "models/tensor_io.h"
#include "tests/dist/dist_world.h"
#include "tests/support/weights.h"
#include "tests/unit/trainer/tiny_data.h"
#include "trainer/checkpoint.h"
#include "trainer/pretrain.h"

namespace uqa::trainer {
namespace {

using testing::dist_world;
using tests::error_of;
using tests::without_key_bias;

/// A directory that all ranks see; the name differs between rank counts, which ctest may run at the same time.
class SharedDirectory {
 public:
  explicit SharedDirectory(const std::string& name) : path_(fs::temp_directory_path() / fmt::format("uqa_dist_{}_np{}", name, dist_world().size())) {
    comm::run_agreed(dist_world(), [&] {
      if (dist_world().rank() != 0) return;
      fs::remove_all(path_);
      fs::create_directories(path_);
      static_cast<void>(test::write_tiny_data(path_));
    });
  }
  ~SharedDirectory() {
    comm::barrier(dist_world());  // others may still read
    std::error_code ignored;
    if (dist_world().rank() == 0) fs::remove_all(path_, ignored);
  }
  SharedDirectory(const SharedDirectory&) = delete;
  SharedDirectory& operator=(const SharedDirectory&) = delete;
  [[nodiscard]] const fs::path& path() const { return path_; }
  [[nodiscard]] fs::path data() const { return path_ / "data"; }

 private:
  fs::path path_;
};

struct Trained {
  std::map<std::string, Tensor> weights, gradients;  ///< whole ones, at the end; gradients of the last step
  TrainingResult result;
};

/// The whole of which `part` is this rank's. Collective over the table group where the parameter is cut.
Tensor whole_of(const Tensor& part, const models::ParameterLayout& layout, const comm::Mesh& mesh) {
  return layout.sharded() ? comm::all_gather(part, mesh.table()) : part.clone();
}

/// Trains on `world` in `path`.
Trained train(const PretrainConfig& config, const comm::Communicator& world, const fs::path& path) {
  const comm::Mesh mesh(world, 0, 1, world.size() == 1 ? 0 : static_cast<int>(config.loop.parallel.table_group));
  PretrainTask task(config, mesh);
  Trained trained;
  const bool writer = world.rank() == 0;
  std::optional<RunDirectory> run;
  comm::run_agreed(world, [&] {
    if (writer) run.emplace(path, "pretrain", "x", false, true);
  });
  if (!writer) run.emplace(path, "pretrain", "x", false, false);
  trained.result = run_training(task, config.loop, mesh, *run);
  for (const auto& p : task.parameters()) {
    trained.weights[p.name] = whole_of(p.tensor.detach(), p.layout, mesh);
    if (config.loop.parallel.shard != "full") trained.gradients[p.name] = whole_of(p.tensor.grad(), p.layout, mesh);  // else parts of them, in the loop
    if (world.size() > 1 && config.loop.parallel.tables == "sharded" && p.name.starts_with("ebc.")) {
      EXPECT_EQ(p.layout.sharded(), trained.weights[p.name].size(0) >= config.loop.parallel.table_min_rows) << p.name;
    }
  }
  comm::barrier(world);
  return trained;
}

struct Case {
  std::string encoder;
  std::int64_t global_users;  ///< 8: uneven; 2: fewer than three ranks
  std::int64_t micro_users;
  std::string tables;            ///< "sharded": the item table and its softmax, and the tags (7 rows)
  std::int64_t min_rows = 0;     ///< 20: the item table only
  std::int64_t table_group = 0;  ///< 2: several groups hold the tables
  std::string shard = "none";    ///< parallel.shard
};

class PretrainParity : public ::testing::TestWithParam<Case> {
 protected:
  [[nodiscard]] PretrainConfig config_for(const SharedDirectory& dir) const {
    auto config = test::tiny_config(dir.data(), GetParam().encoder);
    config.model.mamba2 = {.head_dim = 16, .state_size = 8};
    config.loop.batch.global_users = GetParam().global_users;
    config.loop.batch.micro_users = GetParam().micro_users;
    config.loop.parallel.bucket_bytes = 4000;  // several buckets
    config.loop.parallel.tables = GetParam().tables;
    config.loop.parallel.table_min_rows = GetParam().min_rows;
    config.loop.parallel.shard = GetParam().shard;
    const auto group = GetParam().table_group;
    config.loop.parallel.table_group = group > 0 && dist_world().size() % group == 0 ? group : 0;  // else one group
    config.loop.train.epochs = 20;
    return config;
  }
  /// Every rank trains with the others and alone.
  [[nodiscard]] std::pair<Trained, Trained> train_both(PretrainConfig config, const SharedDirectory& dir, const std::string& name) const {
    auto together = train(config, dist_world(), dir.path() / (name + "_together"));
    config.loop.batch.micro_users = 0;
    config.loop.parallel.shard = "none";
    auto alone = train(config, comm::Communicator(), dir.path() / fmt::format("{}_alone_{}", name, dist_world().rank()));
    return {std::move(together), std::move(alone)};
  }
};

TEST_P(PretrainParity, FirstStepGradientsAndTwentySgdStepsAreThoseOfOneRank) {
  const SharedDirectory dir("parity_sgd");
  auto config = config_for(dir);
  config.loop.optim = {.peak_lr = 0.1, .kind = "sgd"};
  config.loop.train.max_steps = 1;
  const auto [one_step, one_step_alone] = train_both(config, dir, "first");
  for (const auto& [name, gradient] : one_step_alone.gradients) {
    if (name.ends_with("_ts_w") || name.ends_with("_pos_w")) continue;  // hstu's bias is off: no gradient reaches it
    EXPECT_GT(gradient.abs().max().item<double>(), 0) << name;
  }
  if (!one_step.gradients.empty()) {
    EXPECT_LE(error_of(one_step.gradients, one_step_alone.gradients), 1e-5);
  }
  EXPECT_LE(error_of(one_step.weights, one_step_alone.weights), 1e-5);

  config.loop.train.max_steps = 20;
  const auto [steps, steps_alone] = train_both(config, dir, "sgd");
  EXPECT_EQ(steps.result.steps, 20);
  EXPECT_LE(error_of(steps.weights, steps_alone.weights), 1e-5);
  EXPECT_NEAR(steps.result.last_loss_nats, steps_alone.result.last_loss_nats, 1e-5 * steps_alone.result.last_loss_nats);
}

TEST_P(PretrainParity, TwentyAdamWStepsAreThoseOfOneRank) {
  const SharedDirectory dir("parity_adamw");
  auto config = config_for(dir);
  config.loop.optim.clip_norm = 1.0;
  config.loop.train.max_steps = 20;
  const auto [together, alone] = train_both(config, dir, "adamw");
  EXPECT_LE(error_of(without_key_bias(together.weights), without_key_bias(alone.weights)), 1e-4);
  EXPECT_NEAR(together.result.last_loss_nats, alone.result.last_loss_nats, 1e-4 * alone.result.last_loss_nats);
  EXPECT_EQ(together.result.best_step, alone.result.best_step);
  EXPECT_NEAR(together.result.best_metric.value_or(0), alone.result.best_metric.value_or(1), 1e-3);
}

INSTANTIATE_TEST_SUITE_P(Cases, PretrainParity,
                         ::testing::Values(Case{"sasrec", 8, 3, "replicated"}, Case{"trm_plus", 2, 1, "replicated"}, Case{"sasrec", 8, 3, "sharded"},
                                           Case{"sasrec", 2, 1, "sharded", 20}, Case{"hstu", 8, 3, "sharded"}, Case{"gru4rec", 8, 3, "sharded"}, Case{"mamba2", 8, 3, "sharded"},
                                           Case{"trm_plus", 8, 3, "sharded"}, Case{"trm_plus", 2, 0, "sharded"}, Case{"trm_plus", 8, 3, "sharded", 0, 2},
                                           Case{"gru4rec", 8, 3, "replicated"}, Case{"hstu", 8, 3, "replicated"}, Case{"mamba2", 8, 3, "replicated"},
                                           Case{"sasrec", 8, 3, "sharded", 20, 0, "optimizer"}, Case{"mamba2", 2, 1, "replicated", 0, 0, "optimizer"},
                                           Case{"sasrec", 8, 3, "sharded", 20, 0, "full"}, Case{"trm_plus", 2, 1, "replicated", 0, 0, "full"}, Case{"hstu", 8, 3, "sharded", 0, 2, "full"},
                                           Case{"gru4rec", 8, 3, "replicated", 0, 0, "full"}, Case{"mamba2", 2, 1, "sharded", 0, 0, "full"}),
                         [](const auto& test) {
                           const auto& p = test.param;
                           return fmt::format("{}_{}_users_micro_{}_{}_rows_{}_group_{}_shard_{}", p.encoder, p.global_users, p.micro_users, p.tables, p.min_rows, p.table_group, p.shard);
                         });

/// Copies the run directory `from` as it was at its checkpoint of step 5.
void copy_run_at_step_5(const fs::path& from, const fs::path& to) {
  fs::copy(from, to, fs::copy_options::recursive);
  write_file_atomic(to / "checkpoints" / "latest", "step-5\n");
}

TEST(PretrainCheckpoint, GoesOnAtEveryLayoutAndBitForBitAtItsOwn) {
  const SharedDirectory dir("parity_checkpoint");
  struct At {
    std::string name, tables;
    std::int64_t table_group;
    bool alone;
    std::string shard = "none";
  };
  const std::vector<At> layouts{{"replicated", "replicated", 0, false},
                                {"sharded", "sharded", 0, false},
                                {"groups", "sharded", 2, false},
                                {"alone", "replicated", 0, true},
                                {"optimizer", "sharded", 0, false, "optimizer"},
                                {"full", "replicated", 0, false, "full"}};
  const auto possible = [](const At& at) { return at.table_group == 0 || dist_world().size() % at.table_group == 0; };
  const auto config_at = [&](const At& at) {
    auto config = test::tiny_config(dir.data(), "sasrec");
    config.loop.train.max_steps = 10;
    config.loop.checkpoint.every_steps = 5;
    config.loop.checkpoint.keep = 10;
    config.loop.parallel.tables = at.tables;
    config.loop.parallel.table_min_rows = 0;
    config.loop.parallel.table_group = at.table_group;
    config.loop.parallel.shard = at.shard;
    return config;
  };
  for (const auto& from : layouts) {
    if (from.alone || !possible(from)) continue;
    const auto whole = train(config_at(from), dist_world(), dir.path() / from.name);
    for (const auto& to : layouts) {
      if (!possible(to)) continue;
      fs::path path = dir.path() / fmt::format("{}_to_{}", from.name, to.name);
      if (to.alone) path += fmt::format("_{}", dist_world().rank());
      if (to.alone || dist_world().rank() == 0) copy_run_at_step_5(dir.path() / from.name, path);
      comm::barrier(dist_world());
      const auto on = train(config_at(to), to.alone ? comm::Communicator() : dist_world(), path);
      EXPECT_EQ(on.result.steps, 10);
      EXPECT_LE(error_of(without_key_bias(on.weights), without_key_bias(whole.weights)), 1e-4) << from.name << " to " << to.name;
      EXPECT_NEAR(on.result.last_loss_nats, whole.result.last_loss_nats, 1e-4 * whole.result.last_loss_nats);
      if (from.name == to.name) {
        for (const auto& [name, tensor] : whole.weights) EXPECT_TRUE(at::equal(on.weights.at(name), tensor)) << name << " of " << from.name;
        EXPECT_EQ(on.result.last_loss_nats, whole.result.last_loss_nats);
      }
      comm::barrier(dist_world());
    }
  }
}

TEST(PretrainModel, IsWrittenWholeWhateverTheLayout) {
  const SharedDirectory dir("parity_model");
  auto config = test::tiny_config(dir.data(), "trm_plus");
  config.loop.train.max_steps = 3;
  config.loop.parallel.table_min_rows = 0;
  config.loop.parallel.tables = "sharded";
  const auto trained = train(config, dist_world(), dir.path() / "sharded");
  const auto written = models::load_tensors(dir.path() / "sharded" / "model.safetensors");
  EXPECT_EQ(written.size(), trained.weights.size());
  for (const auto& [name, tensor] : trained.weights) EXPECT_TRUE(at::equal(written.at(name), tensor)) << name;
  comm::barrier(dist_world());
}

TEST(PretrainStage, WritesTheSameResultOnAnyRankCount) {
  const SharedDirectory dir("parity_stage");
  auto config = test::tiny_config(dir.data(), "trm_plus");
  config.loop.train.max_steps = 6;
  const auto stage = [&](const comm::Communicator& world, const fs::path& path) {
    std::optional<RunDirectory> run;
    comm::run_agreed(world, [&] {
      if (world.rank() == 0) run.emplace(path, "pretrain", "x", false, true);
    });
    if (world.rank() != 0) run.emplace(path, "pretrain", "x", false, false);
    return run_pretrain(config, comm::Mesh(world, 0, 1), *run);
  };
  const Json together = stage(dist_world(), dir.path() / "together");
  const Json alone = stage(comm::Communicator(), dir.path() / fmt::format("alone_{}", dist_world().rank()));
  EXPECT_EQ(together["test"]["users"], alone["test"]["users"]);
  EXPECT_NEAR(together["test"]["NDCG@10"].get<double>(), alone["test"]["NDCG@10"].get<double>(), 1e-3);
  comm::barrier(dist_world());
  if (dist_world().rank() == 0) {
    EXPECT_EQ(read_json(dir.path() / "together" / "result.json"), together);
    EXPECT_EQ(RunDirectory::read_run_json(dir.path() / "together")["mesh"]["dp"], dist_world().size());
  }
  comm::barrier(dist_world());
}

}  // namespace
}  // namespace uqa::trainer
