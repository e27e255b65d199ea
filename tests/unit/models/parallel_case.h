// tests/unit/models/parallel_case.h - a layer or model on one rank as the oracle of the same on several: small configurations and comparisons
// that the unit tests (ranks as threads) and the tests under mpirun share.
#pragma once

#include <gtest/gtest.h>

#include <map>
#include <string>
#include <vector>

#include "models/parallel/linear.h"
#include "models/recompute.h"
#include "models/user_model.h"
#include "tests/unit/models/numeric.h"

namespace uqa::models::testing {

/// Gradients of all parameters that have one, by name, as full tensors. Collective.
inline std::map<std::string, Tensor> full_gradients(const torch::nn::Module& module, const comm::Communicator& tp) {
  const auto layouts = layouts_of(module);
  std::map<std::string, Tensor> gradients;
  for (const auto& item : module.named_parameters()) {
    if (!item.value().grad().defined()) continue;
    const auto layout = layouts.find(item.key());
    gradients[item.key()] = whole_of(item.value().grad(), layout == layouts.end() ? ParameterLayout{} : layout->second, tp);
  }
  return gradients;
}

/// Largest error of any element over the largest magnitude of its tensor; infinite where names differ. Tensors that are all zero count with 1.
inline double worst_error(const std::map<std::string, Tensor>& actual, const std::map<std::string, Tensor>& expected, std::string* where = nullptr) {
  double worst = actual.size() == expected.size() ? 0 : INFINITY;
  for (const auto& [name, want] : expected) {
    const auto found = actual.find(name);
    double error = INFINITY;
    if (found != actual.end() && found->second.sizes() == want.sizes()) {
      const double magnitude = max_abs(want);
      error = max_abs(found->second.to(at::kDouble) - want.to(at::kDouble)) / (magnitude > 0 ? magnitude : 1);
    }
    if (!(error <= worst) && where != nullptr) *where = name;
    worst = std::max(worst, error);
  }
  return worst;
}

struct EncoderCase {
  std::string name;
  UserModelConfig config;
};

/// One for every way in which an encoder is split; all sizes divide by 4, no range of features is a multiple of what dropout draws at once.
inline std::vector<EncoderCase> encoder_cases() {
  std::vector<EncoderCase> cases;
  const auto add = [&](const std::string& name, const std::string& encoder, const std::function<void(UserModelConfig&)>& change = {}) {
    UserModelConfig config;
    config.encoder = encoder;
    config.tables = {{.name = "item", .rows = 50, .dim = 8}};
    config.features = {{.name = "item", .table = "item"}};
    config.hidden = 32, config.num_heads = 4, config.inner = 72, config.max_len = 40;
    config.mamba2 = {.head_dim = 8, .state_size = 6, .expand = 2, .conv_kernel = 3, .num_groups = 1, .chunk = 8};
    if (change) change(config);
    cases.push_back({name, config});
  };
  add("sasrec", "sasrec");
  add("trm_plus", "trm_plus");
  add("hstu", "hstu", [](auto& c) { c.hstu.linear_dim = 6, c.hstu.attention_dim = 5; });
  add("hstu_with_times", "hstu", [](auto& c) { c.hstu.bias = "position_time"; });
  add("mamba2_one_group", "mamba2");
  add("mamba2_two_groups", "mamba2", [](auto& c) { c.mamba2.num_groups = 2; });
  add("mamba2_four_groups", "mamba2", [](auto& c) { c.mamba2.num_groups = 4; });
  add("gru4rec", "gru4rec");
  return cases;
}

struct PackedInput {
  PackedLayout layout;
  Tensor x_TH;
};
inline PackedInput packed_input(std::int64_t hidden, std::uint64_t seed) {
  PackedInput input;
  for (const std::int64_t length : {11, 1, 30, 7}) {
    input.layout.sample_ids.push_back(100 + input.layout.num_rows());
    for (std::int64_t t = 0; t < length; ++t) input.layout.timestamps.push_back(1000 + 37 * t * t);
    input.layout.cu_seqlens.push_back(input.layout.num_rows() + length);
  }
  input.x_TH = random_normal({input.layout.num_rows(), hidden}, seed, at::kFloat);
  return input;
}

/// What is compared of one training pass of an encoder.
struct EncoderResult {
  Tensor states_TH, dx_TH;
  std::map<std::string, Tensor> weights, gradients;  ///< full tensors
};
/// Initial weights of `seed`, a training pass with dropout over `input`, backward. Collective over tp.comm.
inline EncoderResult run_encoder(const UserModelConfig& config, const PackedInput& input, const TensorParallel& tp, bool recompute = false, std::uint64_t seed = 5) {
  const RecomputeLayers layers(recompute);
  const auto encoder = make_encoder(config, tp);
  encoder->init_weights(seed, "backbone.");
  encoder->train();
  const auto x_TH = input.x_TH.clone().requires_grad_(true);
  const auto states_TH = encoder->forward(x_TH, input.layout, {.seed = 3, .step = 2, .micro_step = 0});
  (states_TH * random_normal(states_TH.sizes(), 17, at::kFloat)).sum().backward();
  return {.states_TH = states_TH.detach(), .dx_TH = x_TH.grad(), .weights = full_state(*encoder, tp.comm), .gradients = full_gradients(*encoder, tp.comm)};
}

}  // namespace uqa::models::testing
