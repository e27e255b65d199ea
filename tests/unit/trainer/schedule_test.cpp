#include "trainer/schedule.h"

#include <gtest/gtest.h>

#include "core/error.h"

namespace uqa::trainer {
namespace {

TEST(Schedule, ConstantIsThePeakAtEveryStep) {
  const OptimConfig config{.peak_lr = 0.5};
  for (std::int64_t step = 0; step < 7; ++step) EXPECT_EQ(learning_rate(config, step, 7), 0.5);
}

TEST(Schedule, WarmupRisesLinearlyAndReachesThePeakWithItsLastStep) {
  const OptimConfig config{.peak_lr = 1.0, .warmup_fraction = 0.4};
  EXPECT_DOUBLE_EQ(learning_rate(config, 0, 10), 0.25);
  EXPECT_DOUBLE_EQ(learning_rate(config, 1, 10), 0.5);
  EXPECT_DOUBLE_EQ(learning_rate(config, 3, 10), 1.0);
  EXPECT_DOUBLE_EQ(learning_rate(config, 4, 10), 1.0);
}

TEST(Schedule, CosineFallsMonotonicallyToItsFloorAtTheLastStep) {
  const OptimConfig config{.peak_lr = 2.0, .schedule = "cosine", .warmup_fraction = 0.1, .min_lr_fraction = 0.25};
  double before = 2.0;
  for (std::int64_t step = 2; step < 20; ++step) {
    const double lr = learning_rate(config, step, 20);
    EXPECT_LT(lr, before) << step;
    before = lr;
  }
  EXPECT_DOUBLE_EQ(before, 0.5);
  EXPECT_NEAR(learning_rate(config, 10, 20), 2.0 * (0.25 + 0.75 * 0.5), 1e-12) << "half way down at the middle of the wave";
}

TEST(Schedule, RefusesAStepOutsideTheRun) {
  EXPECT_THROW((void)learning_rate({}, 5, 5), Error);
  EXPECT_THROW((void)learning_rate({}, -1, 5), Error);
}

TEST(LoopConfig, NamesTheFieldThatIsWrong) {
  const auto message_of = [](auto change) {
    LoopConfig config;
    change(config);
    try {
      config.validate();
    } catch (const Error& e) {
      EXPECT_EQ(e.code(), ErrorCode::kConfig);
      return std::string(e.what());
    }
    return std::string("accepted");
  };
  EXPECT_NE(message_of([](LoopConfig& c) { c.optim.peak_lr = 0; }).find("optim.peak_lr = 0"), std::string::npos);
  EXPECT_NE(message_of([](LoopConfig& c) { c.optim.schedule = "step"; }).find("optim.schedule = step"), std::string::npos);
  EXPECT_NE(message_of([](LoopConfig& c) { c.optim.warmup_fraction = 1; }).find("optim.warmup_fraction = 1"), std::string::npos);
  EXPECT_NE(message_of([](LoopConfig& c) { c.batch.global_users = 0; }).find("batch.global_users = 0"), std::string::npos);
  EXPECT_NE(message_of([](LoopConfig& c) { c.parallel.tp = 0; }).find("parallel.tp = 0"), std::string::npos);
  EXPECT_NE(message_of([](LoopConfig& c) { c.parallel.llm_tp = 3, c.parallel.encoder_tp = 2; }).find("parallel.llm_tp = 3 and parallel.encoder_tp = 2"), std::string::npos);
  EXPECT_NE(message_of([](LoopConfig& c) { c.checkpoint.keep = 0; }).find("checkpoint.keep = 0"), std::string::npos);
  EXPECT_NE(message_of([](LoopConfig& c) { c.train.dtype = "fp8"; }).find("train.dtype = fp8"), std::string::npos);
  EXPECT_NE(message_of([](LoopConfig& c) { c.memory.recompute = "all"; }).find("memory.recompute = all"), std::string::npos);
  EXPECT_EQ(message_of([](LoopConfig&) {}), "accepted");
}

}  // namespace
}  // namespace uqa::trainer
