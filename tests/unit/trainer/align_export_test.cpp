#include "trainer/export.h"

#include <gtest/gtest.h>

#include "align_fixture.h"
#include "tests/support/expect_error.h"
#include "tests/support/temp_dir.h"
#include "trainer/align_parts.h"
#include "trainer/user_states.h"

namespace uqa::trainer {
namespace {

class Export : public ::testing::Test {
 protected:
  Export() {
    auto config = test::world_config(world_);
    config.adapter.kind = "attention";
    config.adapter.tokens = 3;
    config.loop.train.epochs = 2;
    RunDirectory run(dir_.path() / "run", "align", "x", false, true);
    static_cast<void>(run_align(config, comm::Mesh(comm::Communicator(), 0, 1), run));
  }
  [[nodiscard]] ExportConfig config() const {
    return {.run = (dir_.path() / "run").string(), .output = (dir_.path() / "out").string(), .data = world_.data.string()};
  }

  tests::TempDir dir_;
  test::AlignWorld world_ = test::write_world(dir_.path());
};

TEST_F(Export, TheMergedLlmGivesTheSameLogits) {
  static_cast<void>(run_export(config()));
  const at::NoGradGuard no_grad;
  auto aligned = load_aligned(dir_.path() / "run", at::kFloat);
  auto exported = models::load_llm(dir_.path() / "out" / "llm", {});
  const auto ids = at::tensor({5, 9, 13, 2, 40}, at::kLong), positions = at::arange(5);
  const std::vector<models::AttentionBlock> blocks{{.begin = 0, .end = 5}};
  const auto logits = [&](models::Llm& llm) { return llm->logits(llm->forward(llm->embed(ids).clone(), positions, blocks)); };
  auto base = models::load_llm(world_.llm, {});
  const auto expected = logits(aligned.llm), got = logits(exported);
  EXPECT_LT((expected - got).abs().max().item<double>(), 1e-4);
  EXPECT_GT((expected - logits(base)).abs().max().item<double>(), 1e-3) << "LoRA must have changed something";
  EXPECT_TRUE(fs::exists(dir_.path() / "out" / "llm" / "tokenizer.json"));
}

TEST_F(Export, EncoderAdapterAndSoftPromptsAreThoseOfTheRun) {
  const auto written = run_export(config());
  const auto out = dir_.path() / "out";
  const auto encoder = load_user_model(world_.encoder_run);
  const auto stored = models::load_tensors(out / "encoder.safetensors");
  for (const auto& [name, tensor] : models::state_dict(*encoder.model)) EXPECT_TRUE(at::equal(stored.at(name), tensor)) << name;
  const auto soft_UKL = models::load_tensors(out / "soft_prompts.safetensors").at("soft_prompts");
  const auto data = data::Dataset::open(world_.data);
  auto aligned = load_aligned(dir_.path() / "run", at::kFloat);
  EXPECT_EQ(soft_UKL.sizes(), at::IntArrayRef({data.num_users(), 3, aligned.llm->config().hidden}));
  EXPECT_EQ(written.at("soft_prompts"), Json({data.num_users(), 3, aligned.llm->config().hidden}));
  // User 5 alone, from the exported adapter.
  auto adapter = models::make_adapter(adapter_config_from_json(read_json(out / "adapter.json"), "adapter.json"));
  models::load_state_dict(*adapter, models::load_tensors(out / "adapter.safetensors"), "adapter");
  const auto begin = std::max<std::int64_t>(0, data.length(5) - encoder.config.max_len);
  const auto states = compute_user_states(encoder.model, data, {{.user = 5, .begin = begin, .end = data.length(5)}}, adapter->view(), comm::Communicator());
  const at::NoGradGuard no_grad;
  const std::vector<std::int64_t> only{0};
  const auto [states_TH, layout] = states.select(only);
  EXPECT_LT((adapter->forward(states_TH, layout)[0] - soft_UKL[5]).abs().max().item<double>(), 1e-5);
  const auto users = read_file(out / "users.txt");
  EXPECT_EQ(std::count(users.begin(), users.end(), '\n'), data.num_users());
}

TEST_F(Export, ARunOfFrozenPartsAnswersAsTheRunThatTheyComeFrom) {
  auto config = test::world_config(world_);
  config.adapter.kind = "linear";
  config.lora.rank = 0;
  config.loop.train.epochs = 2;
  const auto align = [&](const AlignConfig& c, const std::string& name) {
    RunDirectory run(dir_.path() / name, "align", name, false, true);
    return run_align(c, comm::Mesh(comm::Communicator(), 0, 1), run);
  };
  EXPECT_GT(align(config, "trained").at("steps").get<std::int64_t>(), 0);
  static_cast<void>(run_export({.run = (dir_.path() / "trained").string(), .output = (dir_.path() / "parts").string()}));
  config.freeze = "encoder,adapter,llm";
  EXPECT_UQA_ERROR(config.validate(), ErrorCode::kConfig, "leave nothing to train");
  config.adapter.from = (dir_.path() / "parts").string();
  EXPECT_EQ(align(config, "assembled").at("steps").get<std::int64_t>(), 0);
  auto trained = load_aligned(dir_.path() / "trained", at::kFloat), assembled = load_aligned(dir_.path() / "assembled", at::kFloat);
  for (const auto& [name, tensor] : models::state_dict(*trained.adapter)) EXPECT_TRUE(at::equal(models::state_dict(*assembled.adapter).at(name), tensor)) << name;
  // Training used whitened coordinates, the parts are plain: the same map to rounding.
  EXPECT_LT((assembled.average_user_KL - trained.average_user_KL).abs().max().item<double>(), 1e-4 * trained.average_user_KL.abs().max().item<double>());
}

TEST_F(Export, RefusesWhatCannotBeExported) {
  auto bad = config();
  bad.run = world_.data.string();
  EXPECT_UQA_ERROR(run_export(bad), ErrorCode::kConfig, "holds no model.json");
  bad = config();
  bad.run = world_.encoder_run.string();
  EXPECT_UQA_ERROR(run_export(bad), ErrorCode::kConfig, "soft prompts need an adapter");
  bad.data = "";
  EXPECT_EQ(run_export(bad).at("format"), "uqa.export");
  EXPECT_UQA_ERROR(run_export(bad), ErrorCode::kConfig, "overwrite");
  bad.dtype = "fp8";
  EXPECT_UQA_ERROR(run_export(bad), ErrorCode::kConfig, "dtype = fp8");
}

}  // namespace
}  // namespace uqa::trainer
