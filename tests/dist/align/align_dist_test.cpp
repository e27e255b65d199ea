// Alignment and evaluation give the same answers on any number of ranks. Rank 0 makes the world; the one-rank answer is computed by each
// rank for itself, on a communicator of one.
#include <gtest/gtest.h>

#include "tests/dist/dist_world.h"
#include "tests/support/temp_dir.h"
#include "tests/unit/trainer/align_fixture.h"
#include "trainer/evaluate.h"

namespace uqa::trainer {
namespace {

class AlignDist : public ::testing::Test {
 protected:
  AlignDist() : world_(uqa::testing::dist_world()) {
    if (world_.rank() == 0) {
      dir_ = std::make_unique<tests::TempDir>();
      static_cast<void>(test::write_world(dir_->path()));
    }
    path_ = comm::broadcast_text(dir_ ? dir_->path().string() : "", 0, world_);
    setting_ = {.data = path_ / "data", .questions = path_ / "questions", .encoder_run = path_ / "encoder", .llm = tests::fixtures() / "llm" / "qwen2-tiny"};
  }
  ~AlignDist() override { comm::barrier(world_); }

  /// Aligns into path_ / name with all ranks.
  Json align(const AlignConfig& config, const std::string& name) {
    RunDirectory run(path_ / name, "align", "x", false, world_.rank() == 0);
    return run_align(config, comm::Mesh(world_, 0, 1), run);
  }

  const comm::Communicator& world_;
  std::unique_ptr<tests::TempDir> dir_;
  fs::path path_;
  test::AlignWorld setting_;
};

TEST_F(AlignDist, UserStatesAreTheSameBits) {
  const auto set = data::read_questions(setting_.questions);
  const auto data = data::Dataset::open(setting_.data);
  const auto encoder = load_user_model(setting_.encoder_run);
  const auto spans = encoder_spans(set.train, encoder.config.max_len);
  for (const auto view : {models::StateView::kMean, models::StateView::kLast, models::StateView::kAll}) {
    const auto together = compute_user_states(encoder.model, data, spans, view, world_);
    const auto alone = compute_user_states(encoder.model, data, spans, view, comm::Communicator());
    EXPECT_GT(alone.rows_RH.abs().max().item<double>(), 0.1);
    EXPECT_TRUE(at::equal(together.rows_RH, alone.rows_RH)) << models::name_of(view);
  }
}

TEST_F(AlignDist, TrainingAndEvaluationAgreeWithOneRank) {
  auto config = test::world_config(setting_);
  config.calibrate = true;
  config.objective = "contrast";
  config.adapter.init = "words";
  config.loop.optim.kind = "sgd";
  config.loop.optim.peak_lr = 0.05;
  const auto together = align(config, "together");
  Json alone;
  {
    // Every rank alone, each in a directory of its own.
    RunDirectory run(path_ / fmt::format("alone{}", world_.rank()), "align", "x", false, true);
    alone = run_align(config, comm::Mesh(comm::Communicator(), 0, 1), run);
  }
  EXPECT_EQ(together["steps"], alone["steps"]);
  EXPECT_NEAR(together["last_loss_nats"].get<double>(), alone["last_loss_nats"].get<double>(), 1e-5 * alone["last_loss_nats"].get<double>());

  struct Case {
    const char* prompt;
    std::int64_t max_new_tokens = 1;
    double temperature = 0;
  };
  for (const auto& [prompt, max_new_tokens, temperature] : {Case{"soft"}, Case{"none"}, Case{"shuffled"}, Case{"soft", 6}, Case{"soft", 6, 1.2}}) {
    EvaluateConfig evaluate{.run = (path_ / "together").string(), .data = config.data, .prompt = prompt};
    evaluate.max_new_tokens = max_new_tokens;
    evaluate.temperature = temperature;
    const auto name = fmt::format("{}-{}-{}", prompt, max_new_tokens, temperature);
    evaluate.batch_rows = 700;  // several batches, also for three ranks
    evaluate.num_threads = 1;
    evaluate.cache_responses = false;
    evaluate.output = (path_ / "eval" / ("together-" + name)).string();
    const auto many = run_evaluate(evaluate, world_);
    evaluate.output = (path_ / "eval" / fmt::format("alone{}-{}", world_.rank(), name)).string();
    const auto one = run_evaluate(evaluate, comm::Communicator());
    comm::barrier(world_);
    for (const Rule rule : kRules) {
      EXPECT_EQ(many.rules.at(rule).all.correct, one.rules.at(rule).all.correct) << name;
      EXPECT_EQ(many.rules.at(rule).all.n, one.rules.at(rule).all.n);
    }
    const auto a = read_predictions(path_ / "eval" / ("together-" + name)), b = read_predictions(evaluate.output);
    EXPECT_EQ(a.size(), b.size());
    for (std::size_t i = 0; i < std::min(a.size(), b.size()); ++i) {
      EXPECT_EQ(to_json(a[i]), to_json(b[i])) << name << " question " << i;
    }
  }
}

TEST_F(AlignDist, HeldOutUsersAnswerTheSameOnAnyNumberOfRanks) {
  auto config = test::world_config(setting_);
  config.eval.every = 1;
  config.micro_rows = 300;  // several batches, also for three ranks
  AlignTask together(config, comm::Mesh(world_, 0, 1)), alone(config, comm::Mesh(comm::Communicator(), 0, 1));
  together.set_training(false);
  alone.set_training(false);
  const auto many = together.evaluate(comm::Mesh(world_, 0, 1)), one = alone.evaluate(comm::Mesh(comm::Communicator(), 0, 1));
  EXPECT_EQ(many, one);
  EXPECT_EQ(one.at("questions"), 16);
  EXPECT_EQ(one.size(), 1 + kRules.size());
}

TEST_F(AlignDist, ARefusalReachesEveryRank) {
  auto config = test::world_config(setting_);
  // Only the last rank looks for data that is not there: all must stop, none may wait.
  if (world_.rank() == world_.size() - 1) config.data = "/nowhere";
  EXPECT_THROW(AlignTask(config, comm::Mesh(world_, 0, 1)), Error);
  EvaluateConfig evaluate{.run = "/nowhere", .data = config.data};
  EXPECT_THROW(static_cast<void>(run_evaluate(evaluate, world_)), Error);
}

}  // namespace
}  // namespace uqa::trainer
