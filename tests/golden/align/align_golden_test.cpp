// Adapter-only alignment against the reference: encoder -> linear + mean -> soft token -> frozen LLM, five AdamW steps.

#include <gtest/gtest.h>

#include "core/json.h"
#include "models/adapters/adapter.h"
#include "models/llm/decoder.h"
#include "models/tensor_io.h"
#include "models/user_model.h"
#include "tests/golden/encoders/fixtures.h"
#include "tests/golden/llm/packed_cases.h"

namespace uqa::models {
namespace {

using golden::fixtures;
using golden::relative_error;

UserModelConfig encoder_config(const fs::path& path) { return testing::config_from(read_json(path), path.string()); }

std::map<std::string, Tensor> with_prefix(const std::map<std::string, Tensor>& tensors, const std::string& prefix) {
  std::map<std::string, Tensor> found;
  for (const auto& [name, tensor] : tensors) {
    if (name.starts_with(prefix)) found[name.substr(prefix.size())] = tensor;
  }
  return found;
}

/// The padded bags [B, max_len] of the file as packed rows.
UserBatch packed_users(const std::map<std::string, Tensor>& tensors, const UserModelConfig& config) {
  UserBatch batch;
  const auto lengths_B = tensors.at("input.lengths").to(at::kLong);
  std::vector<std::int64_t> bags;  // of the padded batch, in packed order
  for (std::int64_t b = 0; b < lengths_B.numel(); ++b) {
    const auto length = lengths_B[b].item<std::int64_t>();
    for (std::int64_t t = 0; t < length; ++t) bags.push_back(b * config.max_len + t);
    batch.layout.cu_seqlens.push_back(batch.layout.cu_seqlens.back() + length);
    batch.layout.sample_ids.push_back(b);
  }
  for (const auto& feature : config.features) {
    const auto values = tensors.at("input." + feature.name + ".values").to(at::kLong);
    const auto offsets = tensors.at("input." + feature.name + ".offsets").to(at::kLong);
    std::vector<std::int64_t> packed_values, packed_offsets{0};
    for (const auto bag : bags) {
      for (auto i = offsets[bag].item<std::int64_t>(); i < offsets[bag + 1].item<std::int64_t>(); ++i) {
        packed_values.push_back(values[i].item<std::int64_t>());
      }
      packed_offsets.push_back(static_cast<std::int64_t>(packed_values.size()));
    }
    batch.features.push_back({at::tensor(packed_values, at::kLong), at::tensor(packed_offsets, at::kLong)});
  }
  return batch;
}

void check_case(const std::string& name) {
  SCOPED_TRACE(name);
  const auto plus = name.find('+');
  ASSERT_NE(plus, std::string::npos) << "align files are named <encoder>+<llm>";
  const auto tensors = load_tensors(fixtures() / "align" / (name + ".safetensors"));
  const auto config = encoder_config(fixtures() / "encoders" / (name.substr(0, plus) + ".json"));
  auto llm = load_llm(fixtures() / "llm" / name.substr(plus + 1), {});

  UserModel encoder(config);
  encoder->eval();
  load_state_dict(*encoder, with_prefix(tensors, "weight."), name);
  const auto users = packed_users(tensors, config);
  Tensor states_TH;
  {
    const at::NoGradGuard no_grad;
    states_TH = encoder->forward(users, {});
  }
  const auto adapter = make_adapter({.kind = "linear", .encoder_hidden = states_TH.size(1), .llm_hidden = llm->config().hidden});
  load_state_dict(*adapter, with_prefix(tensors, "adapter."), name);

  const auto& ids_BS = tensors.at("input.ids");
  const auto text_BSH = llm->embed(ids_BS.flatten()).view({ids_BS.size(0), ids_BS.size(1), -1});
  const auto& expected_soft = tensors.at("output.soft_prompt");
  const auto packed = golden::pack_text(tensors.at("input.labels"), expected_soft.size(1));
  const auto num_labels = (packed.labels_T != -100).sum().item<double>();
  ASSERT_GT(num_labels, 0);

  torch::optim::AdamW optimizer(adapter->parameters(), torch::optim::AdamWOptions(1e-2).betas({0.9, 0.98}).weight_decay(0));
  const auto& expected_losses = tensors.at("output.losses");
  std::vector<double> losses;
  for (std::int64_t step = 0; step < expected_losses.numel(); ++step) {
    optimizer.zero_grad();
    const auto soft_BkH = adapter->forward(states_TH, users.layout);
    const auto x_TH = at::cat({soft_BkH, text_BSH}, 1).flatten(0, 1);
    const auto loss = next_token_loss(*llm, llm->forward(x_TH, packed.positions_T, packed.blocks), packed.labels_T) / num_labels;
    loss.backward();
    losses.push_back(loss.item<double>());
    if (step == 0) {
      EXPECT_LT(relative_error(soft_BkH, expected_soft), 1e-5);
      for (const auto& parameter : adapter->named_parameters()) {
        EXPECT_LT(relative_error(parameter.value().grad(), tensors.at("grad." + parameter.key())), 1e-4) << parameter.key();
      }
    }
    torch::nn::utils::clip_grad_norm_(adapter->parameters(), 1.5);
    optimizer.step();
  }
  EXPECT_LT(relative_error(at::tensor(losses, at::kDouble), expected_losses.to(at::kDouble)), 1e-4);
}

TEST(AlignGolden, SoftPromptGradientsAndAdamWLossesMatchTheReference) {
  const auto names = golden::names_ending(fixtures() / "align", ".safetensors");
  ASSERT_FALSE(names.empty()) << "no align/*.safetensors in " << fixtures();
  for (const auto& name : names) check_case(name);
}

}  // namespace
}  // namespace uqa::models
