// Hugging Face directories: what is read, and what is refused with which words.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <functional>

#include "core/json.h"
#include "models/tensor_io.h"
#include "tests/unit/models/llm_tiny.h"

namespace uqa::models {
namespace {

using testing::relative_error;
using testing::tiny_config;
using testing::tiny_weights;
using ::testing::HasSubstr;

class LlmDirectory : public ::testing::Test {
 protected:
  void SetUp() override {
    directory_ = fs::temp_directory_path() / fmt::format("uqa_llm_{}_{}", ::getpid(), ::testing::UnitTest::GetInstance()->current_test_info()->name());
    fs::create_directories(directory_);
    write_config([](Json&) {});
  }
  void TearDown() override { fs::remove_all(directory_); }

  void write_config(const std::function<void(Json&)>& change) {
    const auto c = tiny_config();
    Json json = {{"model_type", "qwen2"}, {"hidden_size", c.hidden}, {"num_hidden_layers", c.num_layers}, {"num_attention_heads", c.num_heads},
                 {"num_key_value_heads", c.num_kv_heads}, {"intermediate_size", c.intermediate}, {"vocab_size", c.vocab_size},
                 {"max_position_embeddings", c.max_positions}, {"rms_norm_eps", 1e-6}, {"rope_theta", c.rope_theta}, {"hidden_act", "silu"},
                 {"tie_word_embeddings", true}, {"use_sliding_window", false}, {"sliding_window", 32}, {"eos_token_id", 2}};
    change(json);
    std::ofstream(directory_ / "config.json") << json.dump();
  }

  /// What load_llm says; its error must be a data error.
  std::string refusal() {
    try {
      (void)load_llm(directory_, {});
    } catch (const Error& e) {
      EXPECT_EQ(e.code(), ErrorCode::kData) << e.what();
      return e.what();
    }
    return "loaded";
  }

  /// Logits of a fixed input.
  static Tensor logits(Llm llm) {
    const at::NoGradGuard no_grad;
    const auto ids_T = testing::random_ids(tiny_config(), 6, 3);
    return llm->logits(llm->forward(llm->embed(ids_T), at::arange(6, at::kLong), {{.begin = 0, .end = 6}}));
  }

  void write_weights(const std::map<std::string, Tensor>& weights, const std::string& file = "model.safetensors") { save_tensors(directory_ / file, weights); }

  /// Two shards by layer parity, with their index.
  void write_shards(std::map<std::string, Tensor> weights) {
    std::map<std::string, Tensor> parts[2];
    Json map = Json::object();
    for (const auto& [name, tensor] : weights) {
      const int part = name.find(".1.") != std::string::npos ? 1 : 0;
      parts[part][name] = tensor;
      map[name] = fmt::format("model-0000{}-of-00002.safetensors", part + 1);
    }
    write_weights(parts[0], "model-00001-of-00002.safetensors");
    write_weights(parts[1], "model-00002-of-00002.safetensors");
    std::ofstream(directory_ / "model.safetensors.index.json") << Json{{"weight_map", map}}.dump();
  }

  fs::path directory_;
};

TEST_F(LlmDirectory, SingleAndShardedFilesGiveTheSameModel) {
  const auto expected = logits(testing::tiny_llm(tiny_config()));
  write_weights(tiny_weights(tiny_config()));
  EXPECT_TRUE(at::equal(logits(load_llm(directory_, {})), expected));
  fs::remove(directory_ / "model.safetensors");
  write_shards(tiny_weights(tiny_config()));
  EXPECT_TRUE(at::equal(logits(load_llm(directory_, {})), expected));
}

TEST_F(LlmDirectory, HalfPrecisionFilesAreWidened) {
  for (const auto type : {at::kBFloat16, at::kHalf}) {
    auto weights = tiny_weights(tiny_config());
    Llm expected(tiny_config(), LlmOptions{});
    for (auto& [name, tensor] : weights) {
      tensor = tensor.to(type);
      expected->set_weight(name, tensor.to(at::kFloat));
    }
    write_weights(weights);
    EXPECT_TRUE(at::equal(logits(load_llm(directory_, {})), logits(expected)));
  }
}

TEST_F(LlmDirectory, ATiedHeadMayBeStoredTwiceButNotDiffer) {
  auto weights = tiny_weights(tiny_config());
  weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone();
  write_weights(weights);
  EXPECT_EQ(refusal(), "loaded");
  weights["lm_head.weight"] += 1;
  write_weights(weights);
  EXPECT_THAT(refusal(), HasSubstr("lm_head.weight differs"));
}

TEST_F(LlmDirectory, RefusesMissingLeftOverAndMisshapenTensors) {
  const auto whole = tiny_weights(tiny_config());
  auto weights = whole;
  weights.erase("model.layers.1.mlp.up_proj.weight");
  write_weights(weights);
  EXPECT_THAT(refusal(), HasSubstr("'model.layers.1.mlp.up_proj.weight' of shape [40, 24] is missing"));
  weights = whole;
  weights["model.layers.2.mlp.up_proj.weight"] = at::zeros({40, 24});
  write_weights(weights);
  EXPECT_THAT(refusal(), HasSubstr("'model.layers.2.mlp.up_proj.weight' does not belong"));
  weights = whole;
  weights["model.norm.weight"] = at::ones({25});
  write_weights(weights);
  EXPECT_THAT(refusal(), HasSubstr("'model.norm.weight' has shape [25], config.json asks for [24]"));
  weights = whole;
  weights["model.norm.weight"] = at::ones({24}, at::kLong);
  write_weights(weights);
  EXPECT_THAT(refusal(), HasSubstr("must be F32, BF16 or F16"));
}

TEST_F(LlmDirectory, RefusesTruncatedAndAbsentFiles) {
  EXPECT_THAT(refusal(), HasSubstr("neither model.safetensors nor model.safetensors.index.json"));
  write_weights(tiny_weights(tiny_config()));
  const auto size = fs::file_size(directory_ / "model.safetensors");
  for (const auto kept : {size - 1, size / 2, std::uintmax_t{100}, std::uintmax_t{4}, std::uintmax_t{0}}) {
    fs::resize_file(directory_ / "model.safetensors", kept);
    EXPECT_THAT(refusal(), HasSubstr("model.safetensors")) << kept << " bytes";
  }
  fs::remove(directory_ / "model.safetensors");
  write_shards(tiny_weights(tiny_config()));
  fs::remove(directory_ / "model-00002-of-00002.safetensors");
  EXPECT_THAT(refusal(), HasSubstr("model-00002-of-00002.safetensors"));
  std::ofstream(directory_ / "model.safetensors.index.json") << R"({"weight_map": {"model.norm.weight": "../elsewhere.safetensors"}})";
  EXPECT_THAT(refusal(), HasSubstr("must be a file name in the same directory"));
}

TEST_F(LlmDirectory, RefusesArchitecturesThatItDoesNotCompute) {
  write_weights(tiny_weights(tiny_config()));
  const std::vector<std::pair<std::string, std::function<void(Json&)>>> cases = {
      {"model_type", [](Json& j) { j["model_type"] = "mistral"; }},
      {"rope_scaling", [](Json& j) { j["rope_scaling"] = {{"rope_type", "llama3"}, {"factor", 8.0}}; }},
      {"rope_scaling", [](Json& j) { j["rope_scaling"] = {{"type", "linear"}, {"factor", 2.0}}; }},
      {"rope_parameters", [](Json& j) { j["rope_parameters"] = {{"rope_type", "yarn"}, {"rope_theta", 1e4}}; }},
      {"rope_theta", [](Json& j) { j["rope_theta"] = -1.0; }},
      {"use_sliding_window", [](Json& j) { j["use_sliding_window"] = true; }},
      {"layer_types", [](Json& j) { j["layer_types"] = {"full_attention", "sliding_attention"}; }},
      {"hidden_act", [](Json& j) { j["hidden_act"] = "gelu"; }},
      {"mlp_bias", [](Json& j) { j["mlp_bias"] = true; }},
      {"num_attention_heads", [](Json& j) { j["num_attention_heads"] = 5; }},
      {"num_key_value_heads", [](Json& j) { j["num_key_value_heads"] = 4; }},
      {"head_dim", [](Json& j) { j["head_dim"] = 5; }},
      {"hidden_size", [](Json& j) { j["hidden_size"] = 0; }},
      {"hidden_size", [](Json& j) { j["hidden_size"] = "24"; }},
      {"vocab_size", [](Json& j) { j.erase("vocab_size"); }},
      {"eos_token_id", [](Json& j) { j["eos_token_id"] = 53; }},
  };
  for (const auto& [key, change] : cases) {
    write_config(change);
    EXPECT_THAT(refusal(), ::testing::AllOf(HasSubstr("config.json"), HasSubstr(key)));
  }
  std::ofstream(directory_ / "config.json") << "{";
  EXPECT_THAT(refusal(), HasSubstr("config.json"));
}

TEST_F(LlmDirectory, ReadsLlama3Scaling) {
  const Json scaling{{"rope_type", "llama3"}, {"factor", 8.0}, {"low_freq_factor", 1.0}, {"high_freq_factor", 4.0}, {"original_max_position_embeddings", 32}};
  write_config([&](Json& j) { j["rope_scaling"] = scaling; });
  const auto config = LlmConfig::load(directory_);
  ASSERT_TRUE(config.rope_scaling.has_value());
  EXPECT_EQ(config.rope_scaling->factor, 8);
  EXPECT_EQ(config.rope_scaling->original_positions, 32);
  EXPECT_EQ(config.rope_theta, 1000);
  for (const auto& [key, value] : std::vector<std::pair<std::string, double>>{{"factor", 0.5}, {"low_freq_factor", 5.0}, {"original_max_position_embeddings", 0}}) {
    write_config([&, k = key, v = value](Json& j) {
      j["rope_scaling"] = scaling;
      j["rope_scaling"][k] = v;
      if (k == "original_max_position_embeddings") j["rope_scaling"][k] = static_cast<std::int64_t>(v);
    });
    EXPECT_THAT(refusal(), ::testing::AllOf(HasSubstr("rope_scaling"), HasSubstr(key))) << key;
  }
}

TEST_F(LlmDirectory, ReadsOldAndNewRopeKeysAndEndTokens) {
  EXPECT_EQ(LlmConfig::load(directory_).rope_theta, 1000);
  EXPECT_EQ(LlmConfig::load(directory_).eos_ids, std::vector<std::int64_t>{2});
  write_config([](Json& j) {
    j.erase("rope_theta");
    j["rope_parameters"] = {{"rope_type", "default"}, {"rope_theta", 5e5}};
    j["eos_token_id"] = nullptr;
  });
  EXPECT_EQ(LlmConfig::load(directory_).rope_theta, 5e5);
  EXPECT_TRUE(LlmConfig::load(directory_).eos_ids.empty());
  std::ofstream(directory_ / "generation_config.json") << R"({"eos_token_id": [3, 4]})";
  EXPECT_EQ(LlmConfig::load(directory_).eos_ids, (std::vector<std::int64_t>{3, 4}));
}

}  // namespace
}  // namespace uqa::models
