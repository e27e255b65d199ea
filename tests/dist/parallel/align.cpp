// Alignment and evaluation with a split LLM and encoder, equal and different degrees, against one rank.
#include <gtest/gtest.h>

#include "layouts.h"
#include "models/tensor_io.h"
#include "tests/support/weights.h"
#include "tests/unit/trainer/align_fixture.h"
#include "trainer/evaluate.h"

namespace uqa::trainer {
namespace {

using uqa::testing::dist_world;
using uqa::tests::error_of;
using uqa::testing::SharedDir;

struct Degrees {
  int dp, llm, encoder;
  [[nodiscard]] std::string name() const { return fmt::format("dp{}_llm{}_encoder{}", dp, llm, encoder); }
};

std::vector<Degrees> degrees() {
  if (dist_world().size() == 4) return {{1, 4, 2}, {2, 2, 2}, {2, 2, 1}};
  return {{1, 2, 2}, {1, 1, 2}};
}

class TensorParallelAlign : public ::testing::Test {
 protected:
  TensorParallelAlign() {
    comm::run_agreed(dist_world(), [&] {
      if (dist_world().rank() == 0) static_cast<void>(test::write_world(dir_.path()));
    });
    setting_ = {.data = dir_.path() / "data", .questions = dir_.path() / "questions", .encoder_run = dir_.path() / "encoder",
                .llm = tests::fixtures() / "llm" / "qwen2-tiny"};
  }
  [[nodiscard]] AlignConfig config() const {
    auto config = test::world_config(setting_);
    config.loop.optim = {.peak_lr = 0.02, .clip_norm = 1.0, .kind = "sgd"};
    config.loop.train.epochs = 1;
    return config;
  }
  /// The stage on a mesh, in dir / name. -> the tensors that it saved.
  std::map<std::string, Tensor> align(AlignConfig config, const comm::Mesh& mesh, const std::string& name, Json* result = nullptr) {
    const auto& world = mesh.world();
    std::optional<RunDirectory> run;
    comm::run_agreed(world, [&] {
      if (world.rank() == 0) run.emplace(dir_.path() / name, "align", "x", false, true);
    });
    if (world.rank() != 0) run.emplace(dir_.path() / name, "align", "x", false, false);
    const auto outcome = run_align(config, mesh, *run);
    if (result != nullptr) *result = outcome;
    comm::barrier(world);
    return models::load_tensors(dir_.path() / name / "model.safetensors");
  }
  [[nodiscard]] static comm::Mesh alone() { return comm::Mesh(comm::Communicator(), 1, 1); }
  [[nodiscard]] static std::string own(const std::string& name) { return fmt::format("{}_{}", name, dist_world().rank()); }

  void check(const AlignConfig& config, const std::string& what) {
    Json one;
    const auto expected = align(config, alone(), own(what), &one);
    for (const auto& d : degrees()) {
      auto split = config;
      split.loop.parallel.llm_tp = d.llm;
      split.loop.parallel.encoder_tp = d.encoder;
      Json many;
      const comm::Mesh mesh(dist_world(), d.dp, static_cast<int>(split.loop.parallel.tp_axis()));
      const auto tensors = align(split, mesh, what + d.name(), &many);
      std::string where;
      EXPECT_LE(error_of(tensors, expected, &where), 1e-5) << what << " " << d.name() << " " << where;
      EXPECT_EQ(many["steps"], one["steps"]);
      EXPECT_NEAR(many["last_loss_nats"].get<double>(), one["last_loss_nats"].get<double>(), 1e-5 * one["last_loss_nats"].get<double>()) << d.name();
      EXPECT_EQ(many["best_valid_metric"], one["best_valid_metric"]) << d.name();
    }
  }

  SharedDir dir_;
  test::AlignWorld setting_;
};

TEST_F(TensorParallelAlign, LoraTakesTheStepsOfOneRank) { check(config(), "lora"); }

TEST_F(TensorParallelAlign, TuningEverythingTakesTheStepsOfOneRank) {
  auto all = config();
  all.lora.rank = 0;
  all.freeze = "";
  check(all, "everything");
}

TEST_F(TensorParallelAlign, RecomputedLayersTakeTheStepsOfOneRank) {
  auto all = config();
  all.lora.rank = 0;
  all.freeze = "";
  const auto expected = align(all, alone(), own("kept"));
  all.loop.memory.recompute = "layers";
  for (const auto& d : degrees()) {
    all.loop.parallel.llm_tp = d.llm;
    all.loop.parallel.encoder_tp = d.encoder;
    const comm::Mesh mesh(dist_world(), d.dp, static_cast<int>(all.loop.parallel.tp_axis()));
    std::string where;
    EXPECT_LE(error_of(align(all, mesh, "again" + d.name()), expected, &where), 1e-5) << d.name() << " " << where;
  }
}

TEST_F(TensorParallelAlign, CoTuningWithShardedParametersTakesTheStepsOfOneRank) {
  auto all = config();
  all.lora.rank = 0;
  all.freeze = "";
  all.micro_rows = 300;  // several micro-steps, not as many on each rank
  Json one;
  const auto expected = align(all, alone(), own("cotune"), &one);
  for (const char* shard : {"optimizer", "full"}) {
    for (const int tp : {1, 2}) {
      if (tp == dist_world().size()) continue;
      auto sharded = all;
      sharded.loop.parallel.shard = shard;
      sharded.loop.parallel.tp = tp;
      const auto what = fmt::format("cotune_{}_tp{}", shard, tp);
      Json many;
      const auto tensors = align(sharded, comm::Mesh(dist_world(), 0, tp), what, &many);
      std::string where;
      EXPECT_LE(error_of(tensors, expected, &where), 1e-5) << what << " " << where;
      EXPECT_NEAR(many["last_loss_nats"].get<double>(), one["last_loss_nats"].get<double>(), 1e-5 * one["last_loss_nats"].get<double>()) << what;
      EXPECT_EQ(many["best_valid_metric"], one["best_valid_metric"]) << what;
    }
  }
}

TEST_F(TensorParallelAlign, EvaluationDoesNotDependOnTheLayout) {
  static_cast<void>(align(config(), comm::Mesh(dist_world(), 0, 1), "run"));
  for (const char* prompt : {"soft", "shuffled"}) {
    EvaluateConfig evaluate{.run = (dir_.path() / "run").string(), .data = setting_.data.string(), .prompt = prompt};
    evaluate.batch_rows = 700;
    evaluate.num_threads = 1;
    evaluate.cache_responses = false;
    evaluate.output = (dir_.path() / own(std::string("one_") + prompt)).string();
    const auto one = run_evaluate(evaluate, comm::Communicator());
    const auto expected = read_predictions(evaluate.output);
    for (const auto& d : degrees()) {
      evaluate.llm_tp = d.llm;
      evaluate.encoder_tp = d.encoder;
      evaluate.output = (dir_.path() / (prompt + d.name())).string();
      const auto many = run_evaluate(evaluate, dist_world());
      comm::barrier(dist_world());
      for (const Rule rule : kRules) {
        EXPECT_EQ(many.rules.at(rule).all.correct, one.rules.at(rule).all.correct) << prompt << d.name();
        EXPECT_EQ(many.rules.at(rule).all.n, one.rules.at(rule).all.n);
      }
      const auto predictions = read_predictions(evaluate.output);
      EXPECT_EQ(predictions.size(), expected.size());
      for (std::size_t i = 0; i < std::min(predictions.size(), expected.size()); ++i) {
        EXPECT_EQ(predictions[i].prediction, expected[i].prediction) << prompt << d.name() << " question " << i;
        for (std::size_t o = 0; o < std::min(predictions[i].text_nats.size(), expected[i].text_nats.size()); ++o) {
          EXPECT_NEAR(predictions[i].text_nats[o], expected[i].text_nats[o], 1e-4) << prompt << d.name() << " question " << i;
        }
      }
    }
  }
}

TEST_F(TensorParallelAlign, RefusesHeadsThatDoNotDivide) {
  if (dist_world().size() != 4) return;  // the encoder has two heads
  auto split = config();
  split.loop.parallel.tp = 4;
  try {
    AlignTask task(split, comm::Mesh(dist_world(), 1, 4));
    ADD_FAILURE() << "two heads were split over four ranks";
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), ErrorCode::kConfig);
    EXPECT_NE(std::string(e.what()).find("model.num_heads = 2"), std::string::npos) << e.what();
  }
}

}  // namespace
}  // namespace uqa::trainer
