#include "trainer/align.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <set>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "align_fixture.h"
#include "core/hash.h"
#include "tests/support/expect_error.h"
#include "tests/support/temp_dir.h"
#include "trainer/align_questions.h"
#include "trainer/evaluate.h"

namespace uqa::trainer {
namespace {

using test::world_config;

comm::Mesh one_rank() { return comm::Mesh(comm::Communicator(), 0, 1); }

class Align : public ::testing::Test {
 protected:
  Json train(const AlignConfig& config, const std::string& name) {
    RunDirectory run(dir_.path() / name, "align", "x", false, true);
    return run_align(config, one_rank(), run);
  }
  [[nodiscard]] std::vector<Json> records(const std::string& name, const std::string& key) const {
    std::vector<Json> found;
    std::istringstream lines(read_file(dir_.path() / name / "metrics.jsonl"));
    for (std::string line; std::getline(lines, line);) {
      if (const auto record = Json::parse(line); record.contains(key)) found.push_back(record);
    }
    return found;
  }
  /// Loss of all training questions in one batch.
  static double loss_of(AlignTask& task) {
    std::vector<std::int64_t> samples;
    for (std::int64_t i = 0; i < task.num_samples(); ++i) samples.push_back(i);
    const auto batch = task.load(samples);
    double sum = 0;
    for (std::int64_t m = 0; m < batch->num_micro_batches; ++m) sum += task.loss_sum(*batch, m, {}).item<double>();
    return sum / static_cast<double>(batch->num_labels);
  }

  tests::TempDir dir_;
  test::AlignWorld world_ = test::write_world(dir_.path());
};

TEST_F(Align, LearnsWhatOnlyTheUserDecides) {
  auto config = world_config(world_);
  config.loop.train.epochs = 12;
  const auto result = train(config, "run");
  const auto losses = records("run", "loss_nats");
  EXPECT_LT(losses.back()["loss_nats"].get<double>(), 0.5 * losses.front()["loss_nats"].get<double>());
  EXPECT_GT(result["best_valid_metric"].get<double>(), 0.8) << "a guess gives 0.25; the held-out users are as easy as the others";
  EXPECT_GT(losses.back()["flops_per_s"].get<double>(), 0);
  EXPECT_EQ(result, read_json(dir_.path() / "run" / "result.json"));
  const auto info = RunDirectory::read_run_json(dir_.path() / "run");
  EXPECT_EQ(info["questions"]["train"], 48);
  EXPECT_EQ(info["questions"]["valid"], 16);
  EXPECT_FALSE(info["deviations"].empty());
}

TEST_F(Align, WithoutTheTokenItCannotBeLearned) {
  auto config = world_config(world_);
  config.prompt = "none";
  config.encoder_run = "";
  config.loop.train.epochs = 6;
  const auto result = train(config, "run");
  EXPECT_LT(result["best_valid_metric"].get<double>(), 0.6);
  const auto aligned = load_aligned(dir_.path() / "run");
  EXPECT_EQ(aligned.prompt, "none");
  EXPECT_EQ(aligned.adapter, nullptr);
}

TEST_F(Align, EveryObjectiveAndAnswerLowersItsLoss) {
  for (const char* objective : {"choice", "contrast", "lm"}) {
    for (const char* answer : {"letter", "text", "both"}) {
      auto config = world_config(world_);
      config.objective = objective;
      config.answer = answer;
      config.loop.train.epochs = 6;
      const std::string name = std::string(objective) + answer;
      static_cast<void>(train(config, name));
      const auto losses = records(name, "loss_nats");
      EXPECT_LT(losses.back()["loss_nats"].get<double>(), 0.9 * losses.front()["loss_nats"].get<double>()) << name;
      const auto valid = records(name, "valid_loss_nats");
      ASSERT_FALSE(valid.empty());
      EXPECT_EQ(valid.front().contains("valid_text_accuracy"), config.objective != "lm" && config.answer != "letter") << name;
    }
  }
}

TEST_F(Align, ContrastAddsTheUsersWhoAreAskedTheSame) {
  // Without a token all users fit an option equally well, so the part over users is the log of how many there are for each right one.
  auto config = world_config(world_);
  config.prompt = "none";
  config.encoder_run = "";
  config.validation_fraction = 0;
  AlignTask choice(config, one_rank());
  config.objective = "contrast";
  AlignTask contrast(config, one_rank());
  const auto set = data::read_questions(world_.questions);
  std::vector<std::size_t> all(set.train.size());
  std::iota(all.begin(), all.end(), std::size_t{0});
  double users = 0;
  for (const auto& group : groups_by_text(set.train, all)) {
    for (const auto q : group) {
      const auto right = std::count_if(group.begin(), group.end(), [&](std::size_t other) { return set.train[other].answer == set.train[q].answer; });
      users += std::log(static_cast<double>(group.size()) / static_cast<double>(right));
    }
  }
  users /= static_cast<double>(set.train.size());
  EXPECT_GT(users, 0.1);
  EXPECT_NEAR(loss_of(contrast), (loss_of(choice) + users) / 2, 1e-5);
}

TEST_F(Align, CalibratedScoresOfEqualUsersAreZero) {
  // With one state for all, everybody is the average user: no option gains anything, whatever the LLM likes.
  auto config = world_config(world_);
  config.validation_fraction = 0;
  config.calibrate = true;
  const auto weights = world_.encoder_run / "model.safetensors";
  auto tensors = models::load_tensors(weights);
  AlignTask task(config, one_rank());
  EXPECT_GT(std::abs(loss_of(task) - std::log(4)), 1e-3);
  for (auto& [name, tensor] : tensors) tensor = at::zeros_like(tensor);
  models::save_tensors(weights, tensors);
  AlignTask equal(config, one_rank());
  EXPECT_NEAR(loss_of(equal), std::log(4), 1e-5);
  config.calibrate = false;
  AlignTask plain(config, one_rank());
  EXPECT_GT(std::abs(loss_of(plain) - std::log(4)), 1e-3);
}

TEST_F(Align, CalibratedTrainingLearnsWhatOnlyTheUserDecides) {
  for (const char* init : {"whitened", "words"}) {
    auto config = world_config(world_);
    config.calibrate = true;
    config.objective = "contrast";
    config.adapter.init = init;
    config.loop.train.epochs = 12;
    const auto result = train(config, init);
    EXPECT_GT(result["best_valid_metric"].get<double>(), 0.8) << init;
    const auto aligned = load_aligned(dir_.path() / init);
    EXPECT_EQ(aligned.average_user_KL.sizes(), at::IntArrayRef({1, aligned.llm->config().hidden}));
  }
}

TEST_F(Align, EveryAdapterLearns) {
  for (const auto& [kind, tokens] : {std::pair("mlp", 1), std::pair("last", 1), std::pair("attention", 3), std::pair("qformer", 2)}) {
    auto config = world_config(world_);
    config.adapter.kind = kind;
    config.adapter.tokens = tokens;
    config.prompt_format.place = "user_end";
    config.calibrate = true;
    config.loop.train.epochs = 16;
    const auto result = train(config, kind);
    EXPECT_GT(result["best_valid_metric"].get<double>(), 0.6) << kind;
    const auto aligned = load_aligned(dir_.path() / kind);
    EXPECT_EQ(aligned.adapter->config().kind, kind);
    EXPECT_EQ(aligned.average_user_KL.sizes(), at::IntArrayRef({tokens, aligned.llm->config().hidden}));
    EXPECT_EQ(aligned.prompt_options.soft_tokens, tokens);
  }
}

TEST_F(Align, CachedTrainingEqualsAnEncoderThatRunsInEveryStep) {
  for (const auto& [kind, bound] : {std::pair("linear", 1e-5), std::pair("last", 1e-5), std::pair("qformer", 1e-3)}) {
    auto config = world_config(world_);
    config.adapter.kind = kind;
    config.loop.optim.kind = "sgd";
    config.loop.optim.peak_lr = 0.05;
    const std::string name = kind;
    config.cache.users = "off";
    static_cast<void>(train(config, name + "-off"));
    config.cache.users = (dir_.path() / (name + ".h5")).string();
    static_cast<void>(train(config, name + "-made"));
    static_cast<void>(train(config, name + "-read"));
    const auto off = records(name + "-off", "loss_nats"), made = records(name + "-made", "loss_nats"), read = records(name + "-read", "loss_nats");
    ASSERT_EQ(off.size(), made.size());
    for (std::size_t i = 0; i < off.size(); ++i) {
      EXPECT_NEAR(off[i]["loss_nats"].get<double>(), made[i]["loss_nats"].get<double>(), bound) << kind << " step " << i;
      EXPECT_EQ(made[i]["loss_nats"], read[i]["loss_nats"]);
    }
    EXPECT_GT(off.back()["encoder_s"].get<double>(), 0) << kind;
    EXPECT_EQ(made.back()["encoder_s"].get<double>(), 0) << kind;
    // The file is for this encoder, these questions and this view only.
    auto other = config;
    other.adapter.kind = name == "last" ? "linear" : "last";
    EXPECT_UQA_ERROR(train(other, name + "-view"), ErrorCode::kConfig, "holds states of another view");
    other = config;
    const auto weights = world_.encoder_run / "model.safetensors";
    const auto before = read_file(weights);
    test::write_encoder(world_.encoder_run, data::Dataset::open(world_.data), 77);
    EXPECT_UQA_ERROR(train(other, name + "-encoder"), ErrorCode::kConfig, "holds states of another encoder");
    write_file_atomic(weights, before);
  }
}

TEST_F(Align, RefusesACacheThatCannotBe) {
  auto config = world_config(world_);
  config.cache.max_bytes = 100;
  EXPECT_UQA_ERROR(train(config, "small"), ErrorCode::kConfig, "cache.max_bytes = 100");
  config = world_config(world_);
  config.cache.users = (dir_.path() / "users.h5").string();
  config.freeze = "llm";
  EXPECT_UQA_ERROR(config.validate(), ErrorCode::kConfig, "while the encoder is trained");
  config = world_config(world_);
  config.adapter.kind = "mlp";
  config.adapter.init = "words";
  EXPECT_UQA_ERROR(config.validate(), ErrorCode::kConfig, "adapter.init = words with adapter.kind = mlp");
}

TEST_F(Align, RefusesACalibrationWithoutAnAverageUser) {
  auto config = world_config(world_);
  config.calibrate = true;
  config.prompt = "none";
  EXPECT_UQA_ERROR(config.validate(), ErrorCode::kConfig, "calibrate = true with prompt = none");
  config.prompt = "soft";
  config.freeze = "llm";
  EXPECT_UQA_ERROR(config.validate(), ErrorCode::kConfig, "a frozen encoder");
  config.freeze = "encoder,llm";
  config.objective = "lm";
  EXPECT_UQA_ERROR(config.validate(), ErrorCode::kConfig, "objective choice or contrast");
  config.calibrate = false;
  config.adapter.init = "words";
  EXPECT_UQA_ERROR(config.validate(), ErrorCode::kConfig, "adapter.init = words");
}

TEST_F(Align, LossDoesNotDependOnHowABatchIsCut) {
  auto config = world_config(world_);
  config.objective = "contrast";
  config.calibrate = true;
  AlignTask whole(config, one_rank());
  config.loop.batch.micro_users = 3;
  config.micro_rows = 100000;
  AlignTask by_count(config, one_rank());
  config.loop.batch.micro_users = 0;
  config.micro_rows = 400;
  AlignTask by_rows(config, one_rank());
  const double loss = loss_of(whole);
  EXPECT_GT(loss, 0.1);
  EXPECT_NEAR(loss_of(by_count), loss, 1e-5);
  EXPECT_NEAR(loss_of(by_rows), loss, 1e-5);
  const auto batch = by_count.load({0, 1, 2, 3, 4, 5, 6});
  EXPECT_EQ(batch->num_micro_batches, 3);
  EXPECT_EQ(by_count.load({})->num_micro_batches, 0);
  EXPECT_FALSE(by_count.loss_sum(*by_count.load({}), 0, {}).requires_grad());
}

TEST_F(Align, CachedStatesEqualAnEncoderThatRunsInTheGraph) {
  auto config = world_config(world_);
  AlignTask cached(config, one_rank());
  config.freeze = "llm";
  AlignTask in_graph(config, one_rank());
  in_graph.set_training(false);  // no dropout
  EXPECT_NEAR(loss_of(cached), loss_of(in_graph), 1e-5);
  bool encoder_trained = false;
  for (const auto& parameter : in_graph.parameters()) encoder_trained = encoder_trained || parameter.name.starts_with("encoder.");
  EXPECT_TRUE(encoder_trained);
  for (const auto& parameter : cached.parameters()) EXPECT_FALSE(parameter.name.starts_with("encoder.")) << parameter.name;
}

TEST_F(Align, TunesEncoderAndWholeLlm) {
  auto config = world_config(world_);
  config.freeze = "";
  config.lora.rank = 0;
  config.loop.optim.peak_lr = 2e-3;
  config.loop.train.epochs = 1;
  const auto before = digest_of(*load_user_model(world_.encoder_run).model);
  static_cast<void>(train(config, "run"));
  const auto aligned = load_aligned(dir_.path() / "run");
  EXPECT_NE(digest_of(*aligned.encoder), before);
  const auto embedding = models::load_llm(world_.llm, {})->head_weight();
  EXPECT_GT((aligned.llm->head_weight() - embedding).abs().max().item<double>(), 1e-4);
}

TEST_F(Align, StopAndResumeGiveTheSameBits) {
  auto config = world_config(world_);
  config.validation_fraction = 0;  // else the first part's extra validation could choose another best step
  config.loop.checkpoint.every_steps = 2;
  config.loop.train.epochs = 2;
  const auto whole = train(config, "whole");
  auto first = config;
  first.loop.train.max_steps = 2;
  static_cast<void>(train(first, "parts"));
  const auto resumed = train(config, "parts");
  EXPECT_EQ(resumed["steps"], whole["steps"]);
  EXPECT_EQ(hash_file(dir_.path() / "parts" / "model.safetensors"), hash_file(dir_.path() / "whole" / "model.safetensors"));
  EXPECT_EQ(records("parts", "loss_nats").back()["loss_nats"], records("whole", "loss_nats").back()["loss_nats"]);
}

TEST_F(Align, RefusesSettingsThatMakeNoSense) {
  const auto refused = [&](const std::function<void(AlignConfig&)>& change, const std::string& part) {
    auto config = world_config(world_);
    change(config);
    EXPECT_UQA_ERROR(AlignTask(config, one_rank()), ErrorCode::kConfig, part);
  };
  refused([](auto& c) { c.lora.rank = -1; }, "lora.rank = -1");
  refused([](auto& c) { c.answer = "word"; }, "answer = word");
  refused([](auto& c) { c.objective = "rank"; }, "objective = rank");
  refused([](auto& c) { c.prompt = "zero"; }, "prompt = zero");
  refused([](auto& c) { c.freeze = "llm,head"; }, "freeze = llm,head");
  refused([](auto& c) { c.freeze = "encoder,adapter,llm"; c.lora.rank = 0; }, "nothing to train");
  refused([](auto& c) { c.freeze = "encoder"; }, "lora.rank = 4 while the whole LLM is trained");
  refused([](auto& c) { c.validation_fraction = 1; }, "validation_fraction");
  refused([](auto& c) { c.encoder_run = ""; }, "--encoder-run");
  refused([](auto& c) { c.llm = "/nowhere"; }, "llm = /nowhere");
  refused([](auto& c) { c.micro_rows = 0; }, "micro_rows = 0");
}

TEST_F(Align, RefusesQuestionsOfAnotherDataSetAndFreeFormChoice) {
  auto config = world_config(world_);
  const auto set = data::read_questions(world_.questions);
  test::write_question_set(dir_.path() / "foreign", set.train, set.test, "another digest");
  config.questions = (dir_.path() / "foreign").string();
  EXPECT_UQA_ERROR(AlignTask(config, one_rank()), ErrorCode::kConfig, "another data set");

  auto train = set.train;
  for (auto& question : train) question.options.clear();
  test::write_question_set(dir_.path() / "free", train, set.test, set.data_digest);
  config.questions = (dir_.path() / "free").string();
  EXPECT_UQA_ERROR(AlignTask(config, one_rank()), ErrorCode::kConfig, "free-form");
  config.objective = "lm";
  config.loop.train.epochs = 1;
  AlignTask task(config, one_rank());
  EXPECT_GT(loss_of(task), 0);

  config.questions = (dir_.path() / "absent").string();
  EXPECT_UQA_ERROR(AlignTask(config, one_rank()), ErrorCode::kData, "absent");
}

TEST_F(Align, RefusesADataSetWithOtherTables) {
  auto encoder = load_user_model(world_.encoder_run);
  const auto data = data::Dataset::open(world_.data);
  check_same_schema(encoder.config, data.schema());
  encoder.config.tables[0].rows += 1;
  EXPECT_UQA_ERROR(check_same_schema(encoder.config, data.schema()), ErrorCode::kConfig, "the encoder's has 5");
}

TEST_F(Align, AsksHeldOutUsersWhileItLearns) {
  auto config = world_config(world_);
  config.loop.train.epochs = 4;
  config.validation_questions = 0;  // the last weights stay
  config.calibrate = true;
  static_cast<void>(train(config, "silent"));
  config.eval.every = 3;
  config.eval.max_questions = 9;
  static_cast<void>(train(config, "asking"));
  const auto losses = records("asking", "loss_nats"), silent = records("silent", "loss_nats");
  ASSERT_EQ(losses.size(), silent.size());
  for (std::size_t i = 0; i < losses.size(); ++i) EXPECT_EQ(losses[i]["loss_nats"], silent[i]["loss_nats"]) << "asking changes nothing";
  const auto asked = records("asking", "calibrated_accuracy");
  const auto last_step = losses.back()["step"].get<std::int64_t>();
  ASSERT_EQ(asked.size(), static_cast<std::size_t>(last_step / 3 + (last_step % 3 != 0 ? 1 : 0)));
  EXPECT_EQ(asked.front()["step"], 3);
  EXPECT_EQ(asked.back()["step"], last_step);
  EXPECT_TRUE(records("silent", "calibrated_accuracy").empty());

  // The last record is what `uqa evaluate` says about the same questions.
  const auto data = data::Dataset::open(world_.data);
  const AlignQuestions questions(config, data);
  const auto set = data::read_questions(world_.questions);
  std::vector<data::Question> held_out;
  for (const auto q : members_of(questions.asked(), {0, questions.asked().size()})) held_out.push_back(set.train[q]);
  ASSERT_EQ(held_out.size(), 9U);
  std::set<std::int64_t> trained;
  for (const auto q : members_of(questions.train(), {0, questions.train().size()})) trained.insert(set.train[q].user);
  for (const auto& question : held_out) EXPECT_FALSE(trained.contains(question.user));
  auto others = set.train;
  std::erase_if(others, [&](const auto& question) { return !trained.contains(question.user); });
  test::write_question_set(dir_.path() / "held-out", others, held_out, set.data_digest);
  const auto result = run_evaluate({.run = (dir_.path() / "asking").string(), .data = config.data, .questions = (dir_.path() / "held-out").string(), .num_threads = 1},
                                   comm::Communicator());
  EXPECT_EQ(asked.back()["questions"], 9.0);
  for (const Rule rule : kRules) {
    EXPECT_DOUBLE_EQ(asked.back()[std::string(name_of(rule)) + "_accuracy"].get<double>(), result.rules.at(rule).all.value()) << name_of(rule);
  }
  EXPECT_EQ(result.rules.at(Rule::kCalibrated).all.n, 9);
}

TEST_F(Align, RefusesToAskNobody) {
  auto config = world_config(world_);
  config.eval.every = -1;
  EXPECT_UQA_ERROR(config.validate(), ErrorCode::kConfig, "eval.every = -1, must be >= 0");
  config.eval.every = 5;
  config.eval.max_questions = 0;
  EXPECT_UQA_ERROR(config.validate(), ErrorCode::kConfig, "eval.max_questions = 0, must be > 0");
  config.eval.max_questions = 10;
  config.validation_fraction = 0;
  EXPECT_UQA_ERROR(config.validate(), ErrorCode::kConfig, "eval.every = 5 with validation_fraction = 0");
  config.validation_fraction = 1e-6;
  EXPECT_UQA_ERROR(AlignTask(config, one_rank()), ErrorCode::kConfig, "holds out no user");
}

}  // namespace
}  // namespace uqa::trainer
