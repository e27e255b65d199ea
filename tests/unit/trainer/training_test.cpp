#include "trainer/training.h"

#include <atomic>
#include <csignal>
#include <thread>

#include <gtest/gtest.h>
#include <sys/resource.h>

#include "core/signals.h"
#include "tests/support/expect_error.h"
#include "toy_task.h"
#include "trainer/checkpoint.h"
#include "trainer/run_info.h"
#include "trainer/step.h"

namespace uqa::trainer {
namespace {

using test::read_records;
using test::TemporaryDirectory;
using test::ToyTask;

LoopConfig small_config() {
  LoopConfig config;
  config.optim = {.peak_lr = 0.02, .schedule = "cosine", .warmup_fraction = 0.2, .weight_decay = 0.01, .clip_norm = 1.0};
  config.batch.global_users = 6;
  config.train = {.epochs = 4, .seed = 11, .log_every_steps = 1, .num_threads = 1};
  return config;
}

comm::Mesh one_rank() { return comm::Mesh(comm::Communicator(), 0, 1); }

TrainingResult train(ToyTask& task, const LoopConfig& config, const fs::path& path, const comm::Mesh& mesh = one_rank()) {
  comm::barrier(mesh.world());
  std::optional<RunDirectory> run;
  comm::run_agreed(mesh.world(), [&] {
    if (mesh.world().rank() == 0) run.emplace(path, "toy", "same settings\n", false, true);
  });
  if (!run) run.emplace(path, "toy", "same settings\n", false, false);
  return run_training(task, config, mesh, *run);
}

void expect_same_weights(const ToyTask& a, const ToyTask& b) {
  const auto x = a.parameters(), y = b.parameters();
  for (std::size_t i = 0; i < x.size(); ++i) EXPECT_TRUE(at::equal(x[i].tensor, y[i].tensor)) << x[i].name;
}

std::vector<double> losses_of(const fs::path& run) {
  std::vector<double> losses;
  for (const auto& record : read_records(run, "train")) losses.push_back(record["loss_nats"].get<double>());
  return losses;
}

TEST(Training, LearnsAndReportsEveryStep) {
  const TemporaryDirectory dir("training_learns");
  ToyTask task(20);
  auto config = small_config();
  config.train.epochs = 40;
  const auto result = train(task, config, dir.path());
  EXPECT_EQ(result.steps, 160);
  EXPECT_EQ(result.epochs, 40);
  const auto losses = losses_of(dir.path());
  ASSERT_EQ(losses.size(), 160U);
  EXPECT_LT(losses.back(), 0.3 * losses.front());
  const auto records = read_records(dir.path(), "train");
  for (const char* key : {"step", "epoch", "loss_nats", "lr", "grad_norm", "interactions_per_s", "tokens_per_s", "data_wait_fraction",
                          "comm_exposed_fraction", "comm_bytes", "peak_rss_bytes", "flops_per_s"}) {
    EXPECT_TRUE(records[3].contains(key)) << key;
  }
  EXPECT_GT(records[3]["interactions_per_s"].get<double>(), 0);
  EXPECT_EQ(read_records(dir.path(), "validation").size(), 40U);
  EXPECT_TRUE(fs::exists(dir.path() / "model.safetensors"));
}

TEST(Training, RecordsTheMeanOverAllLabelsSinceTheLastRecord) {
  const TemporaryDirectory every("training_every"), third("training_third");
  ToyTask a(20), b(20);
  auto config = small_config();
  (void)train(a, config, every.path());
  config.train.log_every_steps = 3;
  (void)train(b, config, third.path());
  const auto single = read_records(every.path(), "train"), grouped = read_records(third.path(), "train");
  ASSERT_EQ(single.size(), 16U);
  ASSERT_EQ(grouped.size(), 6U) << "steps 3, 6, 9, 12, 15 and the last";
  double sum = 0, labels = 0;
  for (std::size_t i = 0; i < 3; ++i) {
    sum += single[i]["loss_nats"].get<double>() * single[i]["labels"].get<double>();
    labels += single[i]["labels"].get<double>();
  }
  EXPECT_NEAR(grouped[0]["loss_nats"].get<double>(), sum / labels, 1e-12);
  expect_same_weights(a, b);
}

/// Waits until this process' part of the checkpoint of `step` is written, so that the next step's poll commits it.
void await_checkpoint(const fs::path& run, std::int64_t step) {
  const fs::path committed = checkpoint_path(run / "checkpoints", step);
  for (int i = 0; i < 500 && !fs::exists(committed) && !fs::exists(fs::path(committed).concat(".tmp") / rank_file(0)); ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  std::this_thread::sleep_for(std::chrono::milliseconds(200));  // its checksum
}

rlimit file_limit(rlim_t bytes) { return {.rlim_cur = bytes, .rlim_max = RLIM_INFINITY}; }

/// Ends a run as a kill would: nothing after this point is written.
struct Killed {};

TEST(Training, ResumesBitEquallyAfterAKillInTheMiddleOfAnEpoch) {
  const TemporaryDirectory whole("training_whole"), parts("training_parts");
  auto config = small_config();
  config.train.max_steps = 10;
  config.checkpoint.every_steps = 5;  // 4 steps an epoch: step 5 is in the middle of one
  ToyTask uninterrupted(20);
  const auto expected = train(uninterrupted, config, whole.path());

  ToyTask killed(20);
  killed.on_loss = [&](std::int64_t step) {
    if (step == 6) await_checkpoint(parts.path(), 5);
    if (step == 7) throw Killed{};
  };
  EXPECT_THROW((void)train(killed, config, parts.path()), Killed);
  EXPECT_EQ(latest_checkpoint(parts.path() / "checkpoints"), 5);
  ToyTask resumed(20);
  std::int64_t first_step = -1;
  resumed.on_loss = [&](std::int64_t step) { first_step = first_step < 0 ? step : first_step; };
  const auto result = train(resumed, config, parts.path());
  EXPECT_EQ(first_step, 5);
  expect_same_weights(uninterrupted, resumed);
  EXPECT_EQ(losses_of(whole.path()), losses_of(parts.path()));
  EXPECT_EQ(result.best_step, expected.best_step);
  EXPECT_EQ(result.best_metric, expected.best_metric);
  EXPECT_EQ(result.last_loss_nats, expected.last_loss_nats);
  for (const char* name : {"rank-0.safetensors", "manifest.json"}) {
    EXPECT_EQ(read_file(whole.path() / "checkpoints" / "step-10" / name), read_file(parts.path() / "checkpoints" / "step-10" / name)) << name;
  }
}

TEST(Training, ADeterministicRunGoesOnUnderTheSameConditionsOnly) {
  const TemporaryDirectory dir("training_deterministic");
  auto config = small_config();
  config.train.deterministic = true;
  config.train.epochs = 1;
  ToyTask first(20), more_threads(20), again(20);
  (void)train(first, config, dir.path());
  EXPECT_TRUE(at::globalContext().deterministicAlgorithms());
  config.train.num_threads = 2;
  EXPECT_UQA_ERROR((void)train(more_threads, config, dir.path()), ErrorCode::kConfig, "\"threads\":1");
  config.train.num_threads = 1;
  (void)train(again, config, dir.path());
  expect_same_weights(first, again);
  config.train.num_threads = 0;
  EXPECT_UQA_ERROR(config.validate(), ErrorCode::kConfig, "give --train.num_threads");
  set_deterministic(false);
}

TEST(Training, ARunThatIsDoneStaysDone) {
  const TemporaryDirectory dir("training_done");
  ToyTask first(20), again(20);
  const auto result = train(first, small_config(), dir.path());
  again.on_loss = [](std::int64_t) { FAIL() << "no step is left"; };
  const auto repeated = train(again, small_config(), dir.path());
  EXPECT_EQ(repeated.steps, result.steps);
  EXPECT_EQ(repeated.best_metric, result.best_metric);
  expect_same_weights(first, again);
}

TEST(Training, StopsEarlyAndLeavesTheBestWeights) {
  const TemporaryDirectory dir("training_early"), reference_dir("training_early_reference");
  auto config = small_config();
  config.train.epochs = 30;
  config.train.patience = 3;
  ToyTask task(20), reference(20);
  task.metric_of = [](std::int64_t n) { return n == 1 ? 1.0 : 0.5; };  // the second epoch is the best
  const auto result = train(task, config, dir.path());
  EXPECT_TRUE(result.stopped_early);
  EXPECT_EQ(result.epochs, 5);
  EXPECT_EQ(result.best_step, 8);
  EXPECT_EQ(result.best_metric, 1.0);
  reference.validates = false;
  reference.on_loss = [](std::int64_t step) {
    if (step == 8) throw Killed{};
  };
  EXPECT_THROW((void)train(reference, config, reference_dir.path()), Killed);
  expect_same_weights(task, reference);

  // Patience and the best metric survive a restart.
  ToyTask again(20);
  again.on_loss = [](std::int64_t) { FAIL() << "stopped for good"; };
  EXPECT_TRUE(train(again, config, dir.path()).stopped_early);
}

TEST(Training, CountsPatienceAcrossARestart) {
  const TemporaryDirectory dir("training_patience");
  auto config = small_config();
  config.train.epochs = 30;
  config.train.patience = 3;
  ToyTask killed(20), resumed(20);
  killed.metric_of = [](std::int64_t n) { return n == 0 ? 1.0 : 0.5; };
  killed.on_loss = [](std::int64_t step) {
    if (step == 13) throw Killed{};  // after the third of the epochs, two of them without gain
  };
  EXPECT_THROW((void)train(killed, config, dir.path()), Killed);
  resumed.metric_of = [](std::int64_t) { return 0.5; };
  const auto result = train(resumed, config, dir.path());
  EXPECT_TRUE(result.stopped_early);
  EXPECT_EQ(result.epochs, 4);
  EXPECT_EQ(result.best_step, 4);
}

TEST(Training, WithoutValidationLeavesTheLastWeights) {
  const TemporaryDirectory dir("training_last");
  ToyTask task(20);
  task.validates = false;
  const auto result = train(task, small_config(), dir.path());
  EXPECT_FALSE(result.best_metric.has_value());
  EXPECT_EQ(result.best_step, result.steps);
}

TEST(Training, MicroBatchesChangeNothingButRounding) {
  const TemporaryDirectory one("training_micro_one"), many("training_micro_many");
  ToyTask whole(20), split(20, /*micro_users=*/2);
  (void)train(whole, small_config(), one.path());
  (void)train(split, small_config(), many.path());
  const auto a = losses_of(one.path()), b = losses_of(many.path());
  ASSERT_EQ(a.size(), b.size());
  for (std::size_t i = 0; i < a.size(); ++i) EXPECT_NEAR(a[i], b[i], 1e-5 * std::abs(a[0])) << i;
}

TEST(Training, AgreesBetweenOneAndThreeRanksWithARankThatHasNoSample) {
  const TemporaryDirectory one("training_rank_one"), three("training_rank_three");
  auto config = small_config();
  config.batch.global_users = 2;  // fewer than ranks
  config.optim.kind = "sgd";
  ToyTask alone(21);
  (void)train(alone, config, one.path());
  std::vector<std::unique_ptr<ToyTask>> tasks;
  for (int r = 0; r < 3; ++r) tasks.push_back(std::make_unique<ToyTask>(21, /*micro_users=*/1));
  comm::run_ranks(3, [&](const comm::Communicator& comm) {
    (void)train(*tasks[static_cast<std::size_t>(comm.rank())], config, three.path(), comm::Mesh(comm, 0, 1));
  });
  for (const auto& task : tasks) {
    for (std::size_t i = 0; i < 3; ++i) {
      const auto x = alone.parameters()[i].tensor, y = task->parameters()[i].tensor;
      EXPECT_LT((x - y).abs().max().item<float>(), 1e-5 * x.abs().max().item<float>()) << alone.parameters()[i].name;
    }
    expect_same_weights(*task, *tasks[0]);
  }
  const auto a = losses_of(one.path()), b = losses_of(three.path());
  ASSERT_EQ(a.size(), b.size());
  for (std::size_t i = 0; i < a.size(); ++i) EXPECT_NEAR(a[i], b[i], 1e-5 * std::abs(a[0])) << i;
}

TEST(Training, RefusesALossThatIsNotANumberOnEveryRank) {
  const TemporaryDirectory dir("training_nan");
  std::atomic<int> refused = 0;
  comm::run_ranks(2, [&](const comm::Communicator& comm) {
    ToyTask task(20);
    if (comm.rank() == 1) task.poisoned_step = 6;
    task.on_loss = [&](std::int64_t step) {
      if (step == 5) await_checkpoint(dir.path(), 4);
    };
    try {
      (void)train(task, small_config(), dir.path(), comm::Mesh(comm, 0, 1));
    } catch (const Error& e) {
      EXPECT_EQ(e.code(), ErrorCode::kNumeric) << e.what();
      EXPECT_NE(std::string(e.what()).find("step 7"), std::string::npos) << e.what();
      ++refused;
    }
  });
  EXPECT_EQ(refused, 2);
  EXPECT_EQ(latest_checkpoint(dir.path() / "checkpoints"), 4) << "the last one before it";
}

TEST(Training, AnErrorOfOneLoaderThreadEndsEveryRank) {
  const TemporaryDirectory dir("training_loader");
  std::atomic<int> ended = 0;
  comm::run_ranks(2, [&](const comm::Communicator& comm) {
    ToyTask task(20);
    if (comm.rank() == 1) {
      task.on_load = [] { UQA_FAIL(ErrorCode::kData, "shard 3 is cut"); };
    }
    try {
      (void)train(task, small_config(), dir.path(), comm::Mesh(comm, 0, 1));
    } catch (const Error& e) {
      EXPECT_EQ(e.code(), ErrorCode::kData);
      EXPECT_NE(std::string(e.what()).find("shard 3 is cut"), std::string::npos) << e.what();
      ++ended;
    }
  });
  EXPECT_EQ(ended, 2);
}

TEST(Training, TimeLimitSavesAndAsksToBeRequeued) {
  const TemporaryDirectory dir("training_limit"), whole("training_limit_whole");
  auto config = small_config();
  ToyTask uninterrupted(20);
  (void)train(uninterrupted, config, whole.path());
  auto limited = config;
  limited.checkpoint.time_limit_s = 1e-9;
  int restarts = 0;
  ToyTask last(20);
  try {
    (void)train(last, limited, dir.path());
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), ErrorCode::kRequeue);
    ++restarts;
  }
  EXPECT_EQ(restarts, 1);
  EXPECT_EQ(latest_checkpoint(dir.path() / "checkpoints"), 0) << "before the first step";
  ToyTask resumed(20);
  (void)train(resumed, config, dir.path());
  expect_same_weights(uninterrupted, resumed);
}

TEST(TrainingDeathTest, SignalSavesAndTheNextRunGoesOnBitEqually) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  const TemporaryDirectory dir("training_signal"), whole("training_signal_whole");
  auto config = small_config();
  config.train.epochs = 3;
  EXPECT_EXIT(
      {
        install_stop_handlers();
        ToyTask task(20);
        task.on_loss = [](std::int64_t step) {
          if (step == 5) std::raise(SIGUSR1);
        };
        int code = 0;
        try {
          (void)train(task, config, dir.path());
        } catch (const Error& e) {
          std::fputs(e.what(), stderr);
          code = static_cast<int>(e.code());
        }
        std::_Exit(code);
      },
      ::testing::ExitedWithCode(75), "stopped on request at step 6 of 12");
  EXPECT_EQ(latest_checkpoint(dir.path() / "checkpoints"), 6);
  ToyTask uninterrupted(20), resumed(20);
  (void)train(uninterrupted, config, whole.path());
  (void)train(resumed, config, dir.path());
  expect_same_weights(uninterrupted, resumed);
  EXPECT_EQ(losses_of(whole.path()), losses_of(dir.path()));
}

TEST(TrainingDeathTest, FullDiskEndsTheRunAndTheEarlierCheckpointLoads) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  const TemporaryDirectory dir("training_full_disk"), whole("training_full_disk_whole");
  EXPECT_EXIT(
      {
        std::signal(SIGXFSZ, SIG_IGN);
        ToyTask task(20);
        task.on_loss = [&](std::int64_t step) {
          if (step == 5) await_checkpoint(dir.path(), 4);
          const rlimit limit = file_limit(step == 6 ? fs::file_size(dir.path() / "metrics.jsonl") + 50 : 0);
          if (step == 6) ::setrlimit(RLIMIT_FSIZE, &limit);
        };
        int code = 0;
        try {
          (void)train(task, small_config(), dir.path());
        } catch (const Error& e) {
          std::fputs(e.what(), stderr);
          code = static_cast<int>(e.code());
        }
        std::_Exit(code);
      },
      ::testing::ExitedWithCode(3), "free some space");
  EXPECT_EQ(latest_checkpoint(dir.path() / "checkpoints"), 4);
  ToyTask uninterrupted(20), resumed(20);
  (void)train(uninterrupted, small_config(), whole.path());
  (void)train(resumed, small_config(), dir.path());
  expect_same_weights(uninterrupted, resumed);
  EXPECT_EQ(losses_of(whole.path()), losses_of(dir.path())) << "a record that was cut short is dropped";
}

TEST(Training, RefusesACheckpointOfOtherData) {
  const TemporaryDirectory dir("training_other");
  ToyTask task(20), other(21);
  (void)train(task, small_config(), dir.path());
  try {
    (void)train(other, small_config(), dir.path());
    FAIL() << "accepted";
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), ErrorCode::kData);
    EXPECT_NE(std::string(e.what()).find("num_samples = 20 in the checkpoint and 21"), std::string::npos) << e.what();
  }
}

TEST(StepAgreement, SumsCountsAndTakesTheMostMicroSteps) {
  comm::run_ranks(3, [](const comm::Communicator& comm) {
    const comm::Mesh mesh(comm, 0, 1);
    const auto agreed = agree_on_step({.num_labels = 10 * (comm.rank() + 1),
                                       .num_interactions = comm.rank(),
                                       .num_tokens = 1,
                                       .num_micro_batches = comm.rank() == 1 ? 5 : 2,
                                       .stop = comm.rank() == 2,
                                       .checkpoint_written = comm.rank() != 0,
                                       .failed = false},
                                      mesh);
    EXPECT_EQ(agreed.num_labels, 60);
    EXPECT_EQ(agreed.num_interactions, 3);
    EXPECT_EQ(agreed.num_tokens, 3);
    EXPECT_EQ(agreed.num_micro_batches, 5);
    EXPECT_TRUE(agreed.stop);
    EXPECT_FALSE(agreed.checkpoint_written) << "one rank is not done";
    EXPECT_FALSE(agreed.failed);
    EXPECT_NEAR(agree_on_loss(0.25 + comm.rank(), 1.0, 1, mesh), 3.75, 1e-9);
    EXPECT_THROW((void)agree_on_loss(1.0, comm.rank() == 0 ? INFINITY : 1.0, 1, mesh), Error);
  });
}

}  // namespace
}  // namespace uqa::trainer
