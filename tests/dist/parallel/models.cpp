// Encoders and decoder over MPI, all ranks on one layer: states, losses, gradients, generated tokens are those of one rank.
#include <gtest/gtest.h>

#include "tests/dist/dist_world.h"
#include "tests/unit/models/parallel_llm_case.h"

namespace uqa::models {
namespace {

using uqa::testing::dist_world;
using namespace uqa::models::testing;

TEST(TensorParallelModels, EncodersAreThoseOfOneRank) {
  for (const auto& [name, config] : encoder_cases()) {
    const auto input = packed_input(config.hidden, 90);
    const auto full = run_encoder(config, input, {});
    const auto parts = run_encoder(config, input, {.comm = dist_world()});
    std::string where;
    EXPECT_EQ(worst_error(parts.weights, full.weights, &where), 0) << name << " " << where;
    EXPECT_LE(relative_error(parts.states_TH, full.states_TH), 1e-5) << name;
    EXPECT_LE(relative_error(parts.dx_TH, full.dx_TH), 1e-5) << name;
    EXPECT_LE(worst_error(parts.gradients, full.gradients, &where), 1e-5) << name << " " << where;
  }
}

TEST(TensorParallelModels, DecodersAreThoseOfOneRank) {
  const std::vector<std::pair<std::string, LlmOptions>> cases{{"qwen2", {.lora = {.rank = 3}, .seed = 4}}, {"llama", {.trainable = true}}, {"qwen2", {.trainable = true}}};
  for (const auto& [type, options] : cases) {
    const auto config = parallel_llm_config(type);
    const auto make = [&, &options = options](const TensorParallel& tp) {
      Llm llm(config, options, tp);
      for (const auto& [name, tensor] : tiny_weights(config)) llm->set_weight(name, tensor);
      return llm;
    };
    auto one = make({});
    fill_lora_b(one);
    std::map<std::string, Tensor> trained;
    for (const auto& [name, tensor] : one->trainable_parameters()) trained[name] = tensor.detach().clone();
    const auto full = run_llm(*one, {5, 9, 1, 40, 52});
    auto llm = make({.comm = dist_world()});
    copy_trained(*llm, trained);
    const auto parts = run_llm(*llm, {5, 9, 1, 40, 52});
    std::string where;
    EXPECT_LE(relative_error(parts.loss, full.loss), 1e-5) << type;
    EXPECT_LE(relative_error(parts.dsoft_TH, full.dsoft_TH), 1e-5) << type;
    EXPECT_LE(worst_error(parts.gradients, full.gradients, &where), 1e-5) << type << " " << where;
    EXPECT_EQ(parts.generated, full.generated) << type;
  }
}

}  // namespace
}  // namespace uqa::models
