// Which parts of an alignment are trained, and what a frozen one costs: every combination with a tiny LLM. Adapters that were trained before.

#include <algorithm>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "align_fixture.h"
#include "one_rank.h"
#include "tests/support/expect_error.h"
#include "tests/support/temp_dir.h"
#include "trainer/align_parts.h"
#include "trainer/checkpoint_manifest.h"
#include "trainer/export.h"
#include "trainer/optimizer.h"

namespace uqa::trainer {
namespace {

using test::one_rank;

class AlignParts : public ::testing::Test {
 protected:
  [[nodiscard]] AlignConfig config() const {
    auto config = test::world_config(world_);
    config.lora.rank = 0;
    config.loop.train.max_steps = 2;
    config.loop.optim.peak_lr = 1e-3;
    return config;
  }
  Json train(const AlignConfig& config, const std::string& name) {
    RunDirectory run(dir_.path() / name, "align", "x", false, true);
    return run_align(config, one_rank(), run);
  }

  tests::TempDir dir_;
  test::AlignWorld world_ = test::write_world(dir_.path());
};

TEST_F(AlignParts, EveryCombinationTrainsItsPartsAloneOrIsRefused) {
  std::size_t trained_runs = 0, refused = 0;
  for (int mask = 0; mask < 8; ++mask) {
    for (const std::int64_t rank : {0, 2}) {
      const bool encoder = (mask & 1) != 0, adapter = (mask & 2) != 0, llm = (mask & 4) != 0;  // frozen
      std::string freeze;
      for (const auto& [frozen, name] : {std::pair(encoder, "encoder"), std::pair(adapter, "adapter"), std::pair(llm, "llm")}) {
        if (frozen) freeze += std::string(freeze.empty() ? "" : ",") + name;
      }
      SCOPED_TRACE("freeze " + freeze + " lora " + std::to_string(rank));
      auto own = config();
      own.freeze = freeze;
      own.lora.rank = rank;
      if (!llm && rank > 0) {
        EXPECT_UQA_ERROR(AlignTask(own, one_rank()), ErrorCode::kConfig, "lora.rank = 2 while the whole LLM is trained");
        ++refused;
        continue;
      }
      if (mask == 7 && rank == 0) {
        EXPECT_UQA_ERROR(AlignTask(own, one_rank()), ErrorCode::kConfig, "nothing to train");
        ++refused;
        continue;
      }
      const std::map<std::string, bool> trained{{"encoder", !encoder}, {"adapter", !adapter}, {"llm", !llm || rank > 0}};
      AlignTask task(own, one_rank());
      task.set_training(true);
      const auto batch = task.load({0, 1, 2});
      task.loss_sum(*batch, 0, {.seed = 1, .step = 1}).backward();
      for (const auto& [part, bytes] : task.gradient_bytes()) {
        EXPECT_EQ(bytes > 0, trained.at(part)) << part;
      }
      Optimizer optimizer(task.parameters(), own.loop.optim);
      std::map<std::string, std::int64_t> state;
      for (const auto& moment : optimizer.state()) {
        for (const auto& [part, on] : trained) {
          if (moment.name.starts_with("optim.exp_avg." + part + ".") || moment.name.starts_with("optim.exp_avg_sq." + part + ".")) state[part] += moment.tensor.numel();
        }
      }
      std::map<std::string, std::int64_t> weights;
      for (const auto& parameter : task.parameters()) weights[parameter.name.substr(0, parameter.name.find('.'))] += parameter.tensor.numel();
      for (const auto& [part, on] : trained) {
        EXPECT_EQ(weights.contains(part), on) << part;
        EXPECT_EQ(state[part], 2 * (on ? weights[part] : 0)) << part;
      }
      const auto name = "run-" + std::to_string(mask) + "-" + std::to_string(rank);
      EXPECT_EQ(train(own, name)["steps"], 2);
      const auto aligned = load_aligned(dir_.path() / name);
      EXPECT_TRUE(aligned.encoder && aligned.adapter);
      const auto stored = models::load_tensors(dir_.path() / name / "model.safetensors");
      const auto holds = [&](const std::string& prefix) {
        return std::any_of(stored.begin(), stored.end(), [&](const auto& entry) { return entry.first.starts_with(prefix); });
      };
      EXPECT_EQ(holds("encoder."), !encoder);
      EXPECT_EQ(holds("llm."), trained.at("llm"));
      EXPECT_TRUE(holds("adapter."));
      ++trained_runs;
    }
  }
  EXPECT_EQ(trained_runs, 11u);
  EXPECT_EQ(refused, 5u);
}

TEST_F(AlignParts, StartsFromAnAdapterOfARunOrAnExport) {
  auto first = config();
  first.freeze = "encoder,llm";
  static_cast<void>(train(first, "first"));
  static_cast<void>(run_export({.run = (dir_.path() / "first").string(), .output = (dir_.path() / "export").string(), .data = ""}));
  const auto expected = models::load_tensors(dir_.path() / "first" / "model.safetensors");
  for (const char* from : {"first", "export"}) {
    auto own = config();
    own.adapter.from = (dir_.path() / from).string();
    own.freeze = "encoder,adapter,llm";
    own.lora.rank = 2;
    const auto name = std::string("from-") + from;
    static_cast<void>(train(own, name));
    const auto stored = models::load_tensors(dir_.path() / name / "model.safetensors");
    for (const char* tensor : {"adapter.up_proj.weight", "adapter.up_proj.bias"}) EXPECT_TRUE(at::equal(stored.at(tensor), expected.at(tensor))) << from << tensor;
  }
}

TEST_F(AlignParts, RefusesAnAdapterThatDoesNotFit) {
  auto first = config();
  first.freeze = "encoder,llm";
  static_cast<void>(train(first, "first"));
  const auto refused = [&](const std::function<void(AlignConfig&)>& change, const std::string& part) {
    auto own = config();
    own.adapter.from = (dir_.path() / "first").string();
    change(own);
    EXPECT_UQA_ERROR(train(own, "refused"), ErrorCode::kConfig, part);
    fs::remove_all(dir_.path() / "refused");
  };
  refused([](auto& c) { c.adapter.kind = "mlp"; }, "has adapter.kind = linear, this run has mlp");
  refused([](auto& c) { c.adapter.init = "whitened"; }, "the adapter's start is read");
  refused([&](auto& c) { c.adapter.from = world_.data.string(); }, "holds neither export.json nor model.json");
  refused([&](auto& c) { c.adapter.from = world_.encoder_run.string(); }, "is a run without an adapter");
  // Another encoder: of other weights, and of another width.
  const auto other = dir_.path() / "other-encoder";
  test::write_encoder(other, data::Dataset::open(world_.data), 77);
  refused([&](auto& c) { c.encoder_run = other.string(); }, "was made for an encoder with digest");
  auto model = load_user_model(other);
  model.config.hidden = 24;
  models::UserModel wide(model.config);
  wide->init_weights(1);
  models::save_tensors(other / "model.safetensors", models::state_dict(*wide));
  auto info = read_json(other / "model.json");
  info["model"] = to_json(model.config);
  write_file_atomic(other / "model.json", info.dump());
  refused([&](auto& c) { c.encoder_run = other.string(); }, "was made for an encoder of width 16, --encoder-run has width 24");
  // A run that trained its encoder.
  auto tuned = config();
  tuned.freeze = "llm";
  static_cast<void>(train(tuned, "tuned"));
  refused([&](auto& c) { c.adapter.from = (dir_.path() / "tuned").string(); }, "was trained together with its encoder");
}

TEST_F(AlignParts, RefusesBeforeAnyWork) {
  const auto refused = [&](const std::function<void(AlignConfig&)>& change, const std::string& part) {
    auto own = config();
    own.data = "/nowhere";  // were it opened, that would be the error
    change(own);
    EXPECT_UQA_ERROR((own.validate(), own.check_inputs()), ErrorCode::kConfig, part);
  };
  refused([](auto& c) { c.adapter.kind = "qformer"; c.adapter.tokens = 0; }, "adapter.tokens = 0, must be between 1 and 64");
  refused([](auto& c) { c.adapter.kind = "qformer"; c.adapter.heads = 3; }, "adapter.heads = 3, must divide the encoder's width 16");
  refused([](auto& c) { c.freeze = "encoder,adapter,llm"; }, "lora.rank = 0");
  refused([](auto& c) { c.lora.alpha = 8; }, "lora.alpha = 8 with lora.rank = 0");
  refused([](auto& c) { c.encoder_run = "/nowhere"; }, "encoder-run = /nowhere, holds no model.json");
  refused([](auto& c) { c.llm = "/nowhere"; }, "llm = /nowhere");
  refused([](auto& c) { c.objective = "contrast"; c.group_by_text = false; }, "group_by_text = false");
}

}  // namespace
}  // namespace uqa::trainer
