// The faithful preset of alignment against the reference's computation, written down plainly: padded texts, every logit, one label list.

#include <algorithm>
#include <cmath>
#include <functional>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "align_fixture.h"
#include "models/format/chat.h"
#include "one_rank.h"
#include "tests/support/expect_error.h"
#include "tests/support/temp_dir.h"
#include "trainer/align_users.h"

namespace uqa::trainer {
namespace {

using test::one_rank;

class Faithful : public ::testing::Test {
 protected:
  [[nodiscard]] AlignConfig config() const {
    auto config = align_preset("faithful");
    config.data = world_.data.string();
    config.questions = world_.questions.string();
    config.encoder_run = world_.encoder_run.string();
    config.llm = world_.llm.string();
    config.loop.train.num_threads = 1;
    config.loop.train.log_every_steps = 1;
    config.loop.train.dtype = "float32";
    return config;
  }
  [[nodiscard]] static std::unique_ptr<TaskBatch> whole_batch(const AlignTask& task) {
    std::vector<std::int64_t> samples;
    for (std::int64_t i = 0; i < task.num_samples(); ++i) samples.push_back(i);
    return task.load(samples);
  }
  [[nodiscard]] static double loss_of(AlignTask& task, const models::DropoutContext& context = {}) {
    const auto batch = whole_batch(task);
    double sum = 0;
    for (std::int64_t m = 0; m < batch->num_micro_batches; ++m) sum += task.loss_sum(*batch, m, context).item<double>();
    return sum / static_cast<double>(batch->num_labels);
  }
  [[nodiscard]] static Tensor parameter(const AlignTask& task, const std::string& name) {
    for (const auto& parameter : task.parameters()) {
      if (parameter.name == name) return parameter.tensor;
    }
    throw std::runtime_error("no parameter " + name);
  }
  [[nodiscard]] format::ReferenceExample text_of(const data::Question& question, std::int64_t max_len) const {
    const auto tokenizer = format::Tokenizer::load(world_.llm / "tokenizer.json");
    return format::reference_training_example(tokenizer, "You are Qwen, created by Alibaba Cloud. You are a helpful assistant.",
                                              {{"user", question.text}, {"assistant", question.answer}}, max_len, tokenizer.token_id("<|endoftext|>"));
  }
  /// The reference's loss of all training questions: every text padded or cut to `max_len`, a soft token before it, logits of every row.
  [[nodiscard]] double plain_loss(const AlignTask& task, std::int64_t max_len) const {
    const at::NoGradGuard no_grad;
    const auto weight_LH = parameter(task, "adapter.up_proj.weight"), bias_L = parameter(task, "adapter.up_proj.bias");
    auto encoder = load_user_model(world_.encoder_run);
    auto llm = models::load_llm(world_.llm, {});
    const auto data = data::Dataset::open(world_.data);
    double sum = 0;
    std::int64_t labels = 0;
    for (const auto& question : data::read_questions(world_.questions).train) {
      const auto begin = std::max(question.begin, question.end - encoder.config.max_len);
      const auto history = std::make_shared<const data::PackedBatch>(
          data::pack(data, {{.user = question.user, .begin = begin, .end = question.end}}, {0}, data::Targets::kNone));
      const auto states_TH = encoder.model->forward(wrap_user_batch(history), {});
      const auto soft_L = (at::mm(states_TH, weight_LH.t()) + bias_L).sum(0) / static_cast<double>(states_TH.size(0));  // linear on every position, then mean
      const auto text = text_of(question, max_len);
      const auto x_TL = at::cat({soft_L.unsqueeze(0), llm->embed(at::tensor(text.ids, at::kLong))});
      const auto out_TL = llm->forward(x_TL, at::arange(max_len + 1, at::kLong), {{.begin = 0, .end = max_len + 1}});
      const auto logits_SV = llm->logits(out_TL).narrow(0, 1, max_len);  // of the text's own rows
      const auto target_S = at::tensor(text.labels, at::kLong).narrow(0, 1, max_len - 1);
      sum += at::cross_entropy_loss(logits_SV.narrow(0, 0, max_len - 1), target_S, {}, at::Reduction::Sum, -100).item<double>();
      labels += (target_S != -100).sum().item<std::int64_t>();
    }
    return sum / static_cast<double>(labels);
  }

  tests::TempDir dir_;
  test::AlignWorld world_ = test::write_world(dir_.path());
};

TEST_F(Faithful, LossEqualsThePaddedComputation) {
  const auto questions = data::read_questions(world_.questions).train;
  const auto whole = text_of(questions.front(), 400);
  const auto length = std::find(whole.ids.begin() + 1, whole.ids.end(), whole.ids.back()) - whole.ids.begin();
  ASSERT_GT(length, 60);
  ASSERT_LT(length, 300);
  std::vector<double> losses;
  for (const std::int64_t max_tokens : {std::int64_t{300}, length - 1, length - 3}) {
    auto own = config();
    own.prompt_format.max_tokens = max_tokens;
    AlignTask task(own, one_rank());
    task.set_training(false);
    const double expected = plain_loss(task, max_tokens);
    EXPECT_NEAR(loss_of(task), expected, 2e-5 * expected) << max_tokens;
    losses.push_back(expected);
    const auto batch = whole_batch(task);
    const std::int64_t lost = max_tokens < length ? length - max_tokens : 0;  // the newline; or the answer, its marker and the newline
    EXPECT_EQ(batch->num_labels, static_cast<std::int64_t>(questions.size()) * (9 - lost)) << "1 of 9 learned tokens is the answer";
    const auto texts = task.describe()["questions"]["texts"];
    EXPECT_EQ(texts["cut"], lost > 0 ? questions.size() : 0);
    EXPECT_EQ(texts["answer_lost"], lost == 3 ? questions.size() : 0);
  }
  EXPECT_GT(std::abs(losses[0] - losses[1]), 1e-3);
  EXPECT_GT(std::abs(losses[0] - losses[2]), 1e-3);
}

TEST_F(Faithful, TrainsTheAdapterAloneOnSingleQuestionsOfEveryUser) {
  auto own = config();
  own.loop.batch.global_users = 16;
  AlignTask task(own, one_rank());
  EXPECT_EQ(task.num_samples(), static_cast<std::int64_t>(data::read_questions(world_.questions).train.size()));
  for (const auto& parameter : task.parameters()) EXPECT_THAT(parameter.name, ::testing::StartsWith("adapter."));
  RunDirectory run(dir_.path() / "run", "align", "x", false, true);
  own.loop.optim.peak_lr = 1e-2;
  static_cast<void>(run_align(own, one_rank(), run));
  std::vector<double> losses;
  std::istringstream lines(read_file(dir_.path() / "run" / "metrics.jsonl"));
  for (std::string line; std::getline(lines, line);) {
    if (const auto record = Json::parse(line); record.contains("loss_nats")) losses.push_back(record["loss_nats"].get<double>());
  }
  EXPECT_LT(losses.back(), 0.95 * losses.front());
  auto aligned = load_aligned(dir_.path() / "run");
  EXPECT_EQ(aligned.prompt_options.system, "You are Qwen, created by Alibaba Cloud. You are a helpful assistant.");
}

TEST_F(Faithful, EvaluationAsksWhatWasTrained) {
  const auto question = data::read_questions(world_.questions).train.front();
  const auto own = config();
  const PromptEncoder encoder(world_.llm, "en", own.prompt_options());
  const auto asked = encoder.encode(question, Prompt::kSoft);
  const auto trained = ChatExamples(encoder, {.max_tokens = 0, .soft = true}).make(question.id, question.text, question.answer);
  ASSERT_EQ(asked.soft_index, 0);
  ASSERT_EQ(trained.soft_index, 0);
  ASSERT_LT(asked.prompt.size(), trained.ids.size());
  EXPECT_TRUE(std::equal(asked.prompt.begin(), asked.prompt.end(), trained.ids.begin()));
  EXPECT_EQ(trained.targets[asked.prompt.size() - 1], asked.answer.front()) << "the prompt's last row predicts the answer";
}

TEST_F(Faithful, SoftTokensStandWhereThePromptPutsThem) {
  const auto question = data::read_questions(world_.questions).train.front();
  for (const char* place : {"before", "user", "user_end", "assistant"}) {
    SCOPED_TRACE(place);
    auto own = config();
    own.prompt_format.place = place;
    own.adapter.kind = "attention";
    own.adapter.tokens = 3;
    const PromptEncoder encoder(world_.llm, "en", own.prompt_options());
    const auto asked = encoder.encode(question, Prompt::kSoft);
    const auto trained = ChatExamples(encoder, {.max_tokens = 0, .soft = true}).make(question.id, question.text, question.answer);
    EXPECT_EQ(trained.soft_index, asked.soft_index);
    EXPECT_EQ(trained.num_soft, 3);
    EXPECT_TRUE(std::equal(asked.prompt.begin(), asked.prompt.end(), trained.ids.begin()));
    // Taking the soft rows out leaves the text, and every row behind them predicts what it did.
    auto plain = ChatExamples(encoder, {.max_tokens = 0, .soft = false}).make(question.id, question.text, question.answer);
    auto without = trained;
    const auto count = [](const std::vector<std::int64_t>& targets) { return std::count_if(targets.begin(), targets.end(), [](auto t) { return t >= 0; }); };
    EXPECT_EQ(count(trained.targets), count(plain.targets));
    without.ids.erase(without.ids.begin() + trained.soft_index, without.ids.begin() + trained.soft_index + 3);
    EXPECT_EQ(without.ids, plain.ids);
    for (std::size_t t = 0; t + 1 < trained.ids.size(); ++t) {
      if (trained.targets[t] >= 0) {
        EXPECT_EQ(trained.targets[t], trained.ids[t + 1]) << t;
      }
    }
  }
}

TEST_F(Faithful, TheFrozenEncoderKeepsItsDropout) {
  const auto soft_of = [&](const AlignConfig& own, bool training, std::int64_t step, const std::vector<std::size_t>& which) {
    const auto data = data::Dataset::open(own.data);
    const AlignQuestions questions(own, data);
    AlignUsers users(own, parse_freeze(own.freeze), data, questions, 32, {}, at::kCPU);
    users.encoder()->train(training);
    const at::NoGradGuard no_grad;
    return users.soft_tokens(users.load(which, 0), {.seed = 1, .step = step}, false);
  };
  const auto own = config();
  const auto eval = soft_of(own, false, 1, {0, 2}), first = soft_of(own, true, 1, {0, 2}), second = soft_of(own, true, 2, {0, 2});
  const auto apart = [](const Tensor& a, const Tensor& b) { return (a - b).norm().item<double>() / a.norm().item<double>(); };
  EXPECT_GT(apart(eval, first), 1e-3);
  EXPECT_GT(apart(first, second), 1e-3);
  EXPECT_EQ(apart(first, soft_of(own, true, 1, {0, 2})), 0);
  // Questions 0 and 2 show the same history: equal without dropout, each with a mask of its own in training.
  EXPECT_EQ(apart(eval[0], eval[1]), 0);
  EXPECT_GT(apart(first[0], first[1]), 1e-3);
  // The mask belongs to the question, not to its company.
  EXPECT_LT(apart(first[1], soft_of(own, true, 1, {2})[0]), 1e-6);

  // The task puts the encoder into training mode only where it is asked to.
  for (const bool eval_when_frozen : {false, true}) {
    auto other = config();
    other.encoder.eval_when_frozen = eval_when_frozen;
    AlignTask task(other, one_rank());
    const at::NoGradGuard no_grad;
    parameter(task, "adapter.up_proj.weight").mul_(30);  // so that the LLM's output depends on the token visibly
    task.set_training(true);
    const double one = loss_of(task, {.seed = 1, .step = 1}), two = loss_of(task, {.seed = 1, .step = 2});
    if (eval_when_frozen) {
      EXPECT_EQ(one, two);
    } else {
      EXPECT_GT(std::abs(one - two), 1e-6);  // the tiny encoder's dropout hardly reaches the loss; without it they are equal to the bit
    }
    task.set_training(false);
    EXPECT_EQ(loss_of(task, {.seed = 1, .step = 1}), loss_of(task, {.seed = 1, .step = 2}));
  }
}

TEST_F(Faithful, WhatIsTrainedBesideTheAdapterHasARateOfItsOwn) {
  auto own = config();
  own.freeze = "";
  own.loop.train.max_steps = 1;
  const auto encoder_before = models::state_dict(*load_user_model(world_.encoder_run).model);
  const auto llm_before = models::load_llm(world_.llm, {})->merge_lora();
  AlignTask task(own, one_rank());
  const auto adapter_before = parameter(task, "adapter.up_proj.weight").detach().clone();
  RunDirectory run(dir_.path() / "run", "align", "x", false, true);
  static_cast<void>(run_align(own, one_rank(), run));
  const auto after = models::load_tensors(dir_.path() / "run" / "model.safetensors");
  const auto moved = [&](const std::string& name, const Tensor& before) { return (after.at(name) - before).abs().max().item<double>(); };
  // AdamW's first step is the learning rate times the gradient's sign.
  EXPECT_NEAR(moved("adapter.up_proj.weight", adapter_before), 1e-4, 2e-6);
  EXPECT_NEAR(moved("encoder.proj1.weight", encoder_before.at("proj1.weight")), 1e-6, 2e-7);
  EXPECT_NEAR(moved("llm.model.norm.weight", llm_before.at("model.norm.weight")), 1e-6, 2e-7);
}

TEST_F(Faithful, RefusesWhatDoesNotGoTogether) {
  const auto refused = [&](const std::function<void(AlignConfig&)>& change, const std::string& part) {
    auto own = config();
    change(own);
    EXPECT_UQA_ERROR(AlignTask(own, one_rank()), ErrorCode::kConfig, part);
  };
  refused([](auto& c) { c.cache.users = "memory"; }, "dropout stays on");
  refused([](auto& c) { c.cache.users = "users.h5"; }, "give --cache.users off, or --encoder.eval_when_frozen");
  refused([](auto& c) { c.answer = "both"; }, "one answer in a text");
  refused([](auto& c) { c.calibrate = true; }, "calibrate = true");
  refused([](auto& c) { c.adapter.init = "words"; }, "objective = chat");
  refused([](auto& c) { c.objective = "lm"; }, "prompt.max_tokens = 512");
  refused([](auto& c) { c.prompt_format.max_tokens = 60; c.prompt_format.allow_lost_answers = false; }, "cuts the answer off 64 of 64 questions");
  refused([](auto& c) { c.prompt_format.max_tokens = 20; }, "without a token to learn");
  refused([](auto& c) { c.prompt_format.max_tokens = -1; }, "prompt.max_tokens = -1");
  refused([](auto& c) { c.preset = "exact"; }, "preset = exact");
  refused([](auto& c) { c.other_lr = -1; }, "optim.other_lr = -1");
  EXPECT_UQA_ERROR(align_preset("exact"), ErrorCode::kConfig, "must be default or faithful");
}

TEST_F(Faithful, RefusesATextLongerThanTheLlmTakes) {
  auto set = data::read_questions(world_.questions);
  for (int i = 0; i < 300; ++i) set.train.front().text += " and more";
  test::write_question_set(dir_.path() / "long", set.train, set.test, set.data_digest);
  auto own = config();
  own.questions = (dir_.path() / "long").string();
  EXPECT_UQA_ERROR(AlignTask(own, one_rank()), ErrorCode::kConfig, "a training text has 513 rows with its soft token, the LLM takes 512");
  own.prompt_format.max_tokens = 511;
  AlignTask task(own, one_rank());
  task.set_training(false);
  EXPECT_GT(loss_of(task), 0);
  EXPECT_EQ(task.describe()["questions"]["texts"]["answer_lost"], 1);
}

}  // namespace
}  // namespace uqa::trainer
