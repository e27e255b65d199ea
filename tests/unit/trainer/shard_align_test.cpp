// Alignment with sharded data parallelism on threads: LoRA, and encoder, adapter and LLM tuned together, against one rank.
#include <cmath>
#include <mutex>
#include <optional>

#include <gtest/gtest.h>

#include "align_fixture.h"
#include "tests/support/temp_dir.h"
#include "toy_task.h"

namespace uqa::trainer {
namespace {

struct Layout {
  std::string shard = "none";
  int dp = 1, tp = 1;
  [[nodiscard]] std::string name() const { return fmt::format("{}_dp{}_tp{}", shard, dp, tp); }
};

struct Outcome {
  std::map<std::string, Tensor> tensors;  ///< as saved
  std::vector<double> losses, norms;
  Json result;
};

class ShardedAlign : public ::testing::Test {
 protected:
  [[nodiscard]] Outcome align(AlignConfig config, const Layout& layout, const std::string& name) const {
    config.loop.parallel.shard = layout.shard;
    config.loop.parallel.tp = layout.tp;
    Outcome outcome;
    std::mutex mutex;
    const auto path = dir_.path() / name;
    comm::run_ranks(layout.dp * layout.tp, [&](const comm::Communicator& world) {
      const comm::Mesh mesh(world, layout.dp, layout.tp);
      std::optional<RunDirectory> run;
      for (const bool writer : {true, false}) {
        comm::run_agreed(world, [&] {
          if (writer == (world.rank() == 0)) run.emplace(path, "align", "x", false, writer);
        });
      }
      const auto result = run_align(config, mesh, *run);
      const std::scoped_lock lock(mutex);
      outcome.result = result;
    });
    outcome.tensors = models::load_tensors(path / "model.safetensors");
    for (const auto& record : test::read_records(path, "train")) {
      outcome.losses.push_back(record["loss_nats"].get<double>());
      outcome.norms.push_back(record["grad_norm"].get<double>());
    }
    return outcome;
  }

  /// `recompute` is memory.recompute of the layouts; one rank keeps its activations.
  void check(AlignConfig config, const std::string& what, const std::vector<Layout>& layouts, double bound, const std::string& recompute = "none") {
    const auto one = align(config, {}, what + "_one");
    ASSERT_GT(one.losses.size(), 1U);
    config.loop.memory.recompute = recompute;
    for (const auto& layout : layouts) {
      const auto many = align(config, layout, what + layout.name());
      ASSERT_EQ(many.tensors.size(), one.tensors.size());
      for (const auto& [name, want] : one.tensors) {
        const double magnitude = want.abs().max().item<double>();
        EXPECT_LE((many.tensors.at(name) - want).abs().max().item<double>(), bound * (magnitude > 0 ? magnitude : 1)) << what << " " << layout.name() << " " << name;
      }
      ASSERT_EQ(many.losses.size(), one.losses.size()) << what << " " << layout.name();
      for (std::size_t i = 0; i < one.losses.size(); ++i) {
        EXPECT_NEAR(many.losses[i], one.losses[i], bound * one.losses[i]) << what << " " << layout.name() << ", step " << i + 1;
        EXPECT_NEAR(many.norms[i], one.norms[i], 10 * bound * one.norms[i]) << what << " " << layout.name() << ", step " << i + 1;
      }
      EXPECT_EQ(many.result["best_valid_metric"], one.result["best_valid_metric"]) << what << " " << layout.name();
    }
  }

  [[nodiscard]] AlignConfig config() const {
    auto config = test::world_config(world_);
    config.loop.optim = {.peak_lr = 0.02, .clip_norm = 1.0, .kind = "sgd"};
    config.loop.batch.global_users = 5;  // uneven over ranks
    config.micro_rows = 300;             // ranks need different numbers of micro-steps
    config.loop.train.epochs = 1;
    return config;
  }

  tests::TempDir dir_;
  test::AlignWorld world_ = test::write_world(dir_.path());
};

const std::vector<Layout> kLayouts{{"optimizer", 2}, {"optimizer", 2, 2}, {"full", 2}, {"full", 3}, {"full", 4}, {"full", 2, 2}};

TEST_F(ShardedAlign, LoraTakesTheStepsOfOneRank) { check(config(), "lora", kLayouts, 1e-5); }

TEST_F(ShardedAlign, TuningEverythingTakesTheStepsOfOneRank) {
  auto all = config();
  all.lora.rank = 0;
  all.freeze = "";
  check(all, "everything", kLayouts, 1e-5);
}

TEST_F(ShardedAlign, RecomputedLayersOfEncoderAndLlmTakeTheStepsOfOneRank) {
  check(config(), "lora_again", {{"full", 3}}, 1e-5, "layers");
  auto all = config();
  all.lora.rank = 0;
  all.freeze = "";
  check(all, "everything_again", {{"optimizer", 2}, {"full", 2}, {"full", 4}, {"full", 2, 2}}, 1e-5, "layers");
}

TEST_F(ShardedAlign, TuningTheEncoderOfAFrozenLlmTakesTheStepsOfOneRank) {
  auto encoder = config();
  encoder.lora.rank = 0;
  encoder.freeze = "llm,adapter";
  check(encoder, "encoder", {{"full", 3}}, 1e-5);
}

TEST_F(ShardedAlign, CoTuningWithAdamWOnFourRanksEqualsOne) {
  auto all = config();
  all.lora.rank = 0;
  all.freeze = "";
  all.loop.optim = {.peak_lr = 1e-3, .clip_norm = 1.0};
  check(all, "adamw", {{"full", 4}}, 1e-4);
}

}  // namespace
}  // namespace uqa::trainer
