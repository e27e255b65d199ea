#include "models/encoders/mamba2.h"

#include <functional>

#include <ATen/Parallel.h>
#include <ATen/autocast_mode.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/error.h"
#include "models/layers/causal_conv.h"
#include "models/layers/gated_norm.h"
#include "models/layers/ssd_scan.h"
#include "numeric.h"

namespace uqa::models {
namespace {

using testing::gradient_error;
using testing::max_abs;
using testing::random_normal;
using testing::relative_error;

PackedLayout layout_of(const std::vector<std::int64_t>& lengths) {
  PackedLayout layout;
  for (std::size_t b = 0; b < lengths.size(); ++b) {
    layout.cu_seqlens.push_back(layout.cu_seqlens.back() + lengths[b]);
    layout.sample_ids.push_back(static_cast<std::int64_t>(10 + b));
  }
  return layout;
}

using Inputs = std::vector<Tensor>;
using Function = std::function<Tensor(const Inputs&)>;

/// f(inputs) and the gradients of its weighted sum.
Inputs output_and_gradients(const Inputs& values, const Function& f) {
  Inputs leaves;
  for (const auto& value : values) leaves.push_back(value.detach().clone().requires_grad_(true));
  const auto out = f(leaves);
  (out * random_normal(out.sizes(), 77, out.scalar_type())).sum().backward();
  Inputs results{out.detach()};
  for (const auto& leaf : leaves) results.push_back(leaf.grad());
  return results;
}

/// Largest relative error among output and gradients of `actual` (run in `type`) against `expected` (run in float64).
double worst_error(const Inputs& values, const Function& actual, const Function& expected, at::ScalarType type = at::kDouble) {
  Inputs narrow;
  for (const auto& value : values) narrow.push_back(value.to(type));
  const auto right = output_and_gradients(values, expected), ours = output_and_gradients(narrow, actual);
  double worst = 0;
  for (std::size_t i = 0; i < right.size(); ++i) {
    EXPECT_EQ(ours[i].scalar_type(), type);
    EXPECT_GT(max_abs(right[i]), 1e-3) << "nothing to compare in " << i;
    EXPECT_TRUE(ours[i].isfinite().all().item<bool>()) << "not finite: " << i;
    worst = std::max(worst, relative_error(ours[i], right[i]));
  }
  return worst;
}

/// The recurrence, one row of one sequence at a time, differentiable by autograd. Inputs as of ssd_scan.
Tensor recurrence(const Inputs& in, const PackedLayout& layout, const SsdSizes& sizes) {
  const auto &xbc_TC = in[0], &dt_TM = in[1], &a_M = in[2], &skip_M = in[3];
  const auto parts = xbc_TC.split_with_sizes({sizes.inner(), sizes.num_groups * sizes.state_size, sizes.num_groups * sizes.state_size}, 1);
  const auto of_heads = [&](const Tensor& row) { return row.view({sizes.num_groups, -1}).repeat_interleave(sizes.num_heads / sizes.num_groups, 0); };
  std::vector<Tensor> rows;
  for (std::size_t b = 0; b + 1 < layout.cu_seqlens.size(); ++b) {
    auto state_MPN = at::zeros({sizes.num_heads, sizes.head_dim, sizes.state_size}, xbc_TC.options());
    for (auto t = layout.cu_seqlens[b]; t < layout.cu_seqlens[b + 1]; ++t) {
      const auto x_MP = parts[0][t].view({sizes.num_heads, sizes.head_dim});
      const auto b_MN = of_heads(parts[1][t]), c_MN = of_heads(parts[2][t]);
      state_MPN = (dt_TM[t] * a_M).exp().view({-1, 1, 1}) * state_MPN + (dt_TM[t].unsqueeze(1) * x_MP).unsqueeze(2) * b_MN.unsqueeze(1);
      rows.push_back((at::bmm(state_MPN, c_MN.unsqueeze(2)).squeeze(2) + skip_M.unsqueeze(1) * x_MP).flatten());
    }
  }
  return at::stack(rows);
}

Inputs scan_inputs(const PackedLayout& layout, const SsdSizes& sizes) {
  const auto num_rows = layout.num_rows();
  return {random_normal({num_rows, sizes.channels()}, 1), random_normal({num_rows, sizes.num_heads}, 2).abs() * 0.5,
          -random_normal({sizes.num_heads}, 3).abs() - 0.1, random_normal({sizes.num_heads}, 4)};
}

Function scan_of(const PackedLayout& layout, const SsdSizes& sizes) {
  return [=](const Inputs& in) { return ssd_scan(in[0], in[1], in[2], in[3], layout, sizes); };
}

/// Sequences that share tiles, fill them exactly, span several, and empty ones.
const PackedLayout kLayout = layout_of({1, 3, 0, 9, 2, 2, 1, 37, 4, 16, 16, 1, 0, 5});
constexpr SsdSizes kSizes{.num_heads = 6, .head_dim = 3, .num_groups = 2, .state_size = 5, .chunk = 16};

TEST(SsdScan, EqualsTheRecurrenceWithAllGradientsForEveryChunk) {
  const auto inputs = scan_inputs(kLayout, kSizes);
  for (const std::int64_t chunk : {1, 2, 5, 16, 36, 37, 64, 200}) {
    auto sizes = kSizes;
    sizes.chunk = chunk;
    const Function plain = [&](const Inputs& in) { return recurrence(in, kLayout, sizes); };
    EXPECT_LT(worst_error(inputs, scan_of(kLayout, sizes), plain), 1e-12) << chunk;
    EXPECT_LT(worst_error(inputs, scan_of(kLayout, sizes), plain, at::kFloat), 3e-6) << chunk;
  }
}

TEST(SsdScan, HeadsOfOneGroupMayBeComputedInSeveralBlocks) {
  constexpr SsdSizes kWide{.num_heads = 10, .head_dim = 200, .num_groups = 2, .state_size = 4, .chunk = 4};
  const auto layout = layout_of({3, 11, 1});
  const Function plain = [&](const Inputs& in) { return recurrence(in, layout, kWide); };
  EXPECT_LT(worst_error(scan_inputs(layout, kWide), scan_of(layout, kWide), plain), 1e-12);
}

TEST(SsdScan, StrongAndMissingDecayStayFiniteAndExact) {
  auto inputs = scan_inputs(kLayout, kSizes);
  inputs[2] = at::tensor({-1e4, -300.0, -20.0, -1e-6, 0.0, -1.0}, at::kDouble);
  for (const std::int64_t chunk : {4, 64}) {
    auto sizes = kSizes;
    sizes.chunk = chunk;
    const Function plain = [&](const Inputs& in) { return recurrence(in, kLayout, sizes); };
    EXPECT_LT(worst_error(inputs, scan_of(kLayout, sizes), plain), 1e-12);
    EXPECT_LT(worst_error(inputs, scan_of(kLayout, sizes), plain, at::kFloat), 3e-6);
  }
}

TEST(SsdScan, GradientsEqualFiniteDifferences) {
  const auto layout = layout_of({1, 2, 7, 1});
  constexpr SsdSizes kSmall{.num_heads = 4, .head_dim = 2, .num_groups = 2, .state_size = 3, .chunk = 3};
  const auto in = scan_inputs(layout, kSmall);
  EXPECT_LT(gradient_error(in, [&] { return ssd_scan(in[0], in[1], in[2], in[3], layout, kSmall); }), 1e-6);
}

TEST(SsdScan, ALaterRowNeverChangesAnEarlierOne) {
  const auto layout = layout_of({9, 40});
  const auto run = [&](const Inputs& in) { return scan_of(layout, kSizes)(in); };
  auto inputs = scan_inputs(layout, kSizes);
  for (auto& input : inputs) input = input.to(at::kFloat);
  const auto before = run(inputs);
  for (const std::int64_t row : {3, 12, 25, 48}) {
    auto changed = inputs;
    for (std::size_t i = 0; i < 2; ++i) {
      changed[i] = inputs[i].clone();
      changed[i][row] += 1;
    }
    const auto after = run(changed);
    EXPECT_TRUE(at::equal(after.narrow(0, 0, row), before.narrow(0, 0, row))) << row;
    EXPECT_GT(max_abs(after[row] - before[row]), 1e-2) << row;
  }
}

TEST(SsdScan, ASequenceDoesNotDependOnItsNeighbours) {
  auto all = scan_inputs(kLayout, kSizes);
  for (auto& input : all) input = input.to(at::kFloat);
  const auto together = output_and_gradients(all, scan_of(kLayout, kSizes));
  for (std::size_t b = 0; b + 1 < kLayout.cu_seqlens.size(); ++b) {
    const auto begin = kLayout.cu_seqlens[b], length = kLayout.cu_seqlens[b + 1] - begin;
    if (length == 0) continue;
    const auto own = [&](const Tensor& x) { return x.narrow(0, begin, length); };
    const auto alone = ssd_scan(own(all[0]), own(all[1]), all[2], all[3], layout_of({length}), kSizes);
    EXPECT_LT(relative_error(own(together[0]), alone), 1e-6) << b;
    if (length > kSizes.chunk) {
      EXPECT_TRUE(at::equal(own(together[0]), alone)) << "sequences longer than a tile have their own tiles";
    }
  }
}

TEST(SsdScan, DoesNotDependOnTheThreadCount) {
  constexpr SsdSizes kWide{.num_heads = 8, .head_dim = 128, .num_groups = 1, .state_size = 32, .chunk = 16};
  const auto layout = layout_of({5, 100, 3, 40, 17, 17, 9});
  auto inputs = scan_inputs(layout, kWide);
  for (auto& input : inputs) input = input.to(at::kFloat);
  const auto threads = at::get_num_threads();
  at::set_num_threads(1);
  const auto one = output_and_gradients(inputs, scan_of(layout, kWide));
  at::set_num_threads(3);
  const auto three = output_and_gradients(inputs, scan_of(layout, kWide));
  at::set_num_threads(threads);
  for (std::size_t i = 0; i < one.size(); ++i) EXPECT_TRUE(at::equal(one[i], three[i])) << i;
}

TEST(SsdScan, RefusesInputsThatDoNotFit) {
  const auto in = scan_inputs(kLayout, kSizes);
  const auto message = [&](const Inputs& x, const SsdSizes& sizes) -> std::string {
    try {
      static_cast<void>(ssd_scan(x[0], x[1], x[2], x[3], kLayout, sizes));
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kInternal);
      return error.what();
    }
    return "";
  };
  EXPECT_EQ(message(in, kSizes), "");
  auto sizes = kSizes;
  sizes.num_groups = 4;
  EXPECT_THAT(message(in, sizes), ::testing::HasSubstr("6 heads of 3 features, 4 groups"));
  sizes = kSizes;
  sizes.state_size = 6;
  EXPECT_THAT(message(in, sizes), ::testing::HasSubstr("do not fit 97 rows of 42 channels"));
  EXPECT_THAT(message({in[0].narrow(0, 0, 96), in[1], in[2], in[3]}, kSizes), ::testing::HasSubstr("[96, 38]"));
  EXPECT_THAT(message({in[0], in[1].to(at::kFloat), in[2], in[3]}, kSizes), ::testing::HasSubstr("one dtype"));
}

/// torch's convolution of every sequence by itself.
Tensor plain_conv(const Inputs& in, const PackedLayout& layout) {
  const auto num_channels = in[1].size(0), num_taps = in[1].size(2);
  std::vector<Tensor> sequences;
  for (std::size_t b = 0; b + 1 < layout.cu_seqlens.size(); ++b) {
    const auto begin = layout.cu_seqlens[b], length = layout.cu_seqlens[b + 1] - begin;
    if (length == 0) continue;
    const auto x_1CT = at::constant_pad_nd(in[0].narrow(0, begin, length).t().unsqueeze(0), {num_taps - 1, 0});
    sequences.push_back(at::silu(at::conv1d(x_1CT, in[1], in[2], {1}, at::IntArrayRef{0}, {1}, num_channels).squeeze(0).t()));
  }
  return at::cat(sequences);
}

TEST(CausalConv, EqualsTorchWithAllGradients) {
  const auto layout = layout_of({1, 3, 0, 150, 2, 300, 7, 1});
  for (const std::int64_t num_taps : {1, 2, 4, 7}) {
    const Inputs inputs{random_normal({layout.num_rows(), 270}, 1), random_normal({270, 1, num_taps}, 2), random_normal({270}, 3)};
    const Function ours = [&](const Inputs& in) {
      // A view into wider rows, as a projection gives it.
      return causal_conv_silu(at::cat({in[0], in[0]}, 1).narrow(1, 270, 270), in[1], in[2], layout);
    };
    const Function plain = [&](const Inputs& in) { return plain_conv(in, layout); };
    EXPECT_LT(worst_error(inputs, ours, plain), 1e-12) << num_taps;
    EXPECT_LT(worst_error(inputs, ours, plain, at::kFloat), 3e-6) << num_taps;
  }
}

TEST(CausalConv, GradientsEqualFiniteDifferences) {
  const auto layout = layout_of({1, 6, 2});
  const Inputs in{random_normal({9, 5}, 1), random_normal({5, 1, 4}, 2), random_normal({5}, 3)};
  EXPECT_LT(gradient_error(in, [&] { return causal_conv_silu(in[0], in[1], in[2], layout); }), 1e-6);
}

TEST(CausalConv, RefusesInputsThatDoNotFit) {
  const auto layout = layout_of({4});
  const auto x = random_normal({4, 3}, 1), bias = random_normal({3}, 2);
  EXPECT_THROW(static_cast<void>(causal_conv_silu(x, random_normal({4, 1, 2}, 3), bias, layout)), Error);
  EXPECT_THROW(static_cast<void>(causal_conv_silu(x, random_normal({3, 1, 2}, 3, at::kFloat), bias, layout)), Error);
  EXPECT_THROW(static_cast<void>(causal_conv_silu(x, random_normal({3, 1, 2}, 3), bias, layout_of({5}))), Error);
}

TEST(GatedRmsNorm, EqualsItsDefinitionWithAllGradients) {
  const Inputs inputs{random_normal({130, 24}, 1), random_normal({130, 24}, 2) * 3, random_normal({24}, 3)};
  for (const std::int64_t num_groups : {1, 3}) {
    const Function ours = [&](const Inputs& in) { return gated_rms_norm(in[0], at::cat({in[1], in[1]}, 1).narrow(1, 24, 24), in[2], num_groups, 1e-5); };
    const Function plain = [&](const Inputs& in) {
      const auto gated_TGF = (in[0] * at::silu(in[1])).view({130, num_groups, -1});
      return (gated_TGF / (gated_TGF.square().mean(2, true) + 1e-5).sqrt()).flatten(1) * in[2];
    };
    EXPECT_LT(worst_error(inputs, ours, plain), 1e-12) << num_groups;
    EXPECT_LT(worst_error(inputs, ours, plain, at::kFloat), 3e-6) << num_groups;
  }
  EXPECT_THROW(static_cast<void>(gated_rms_norm(inputs[0], inputs[1], inputs[2], 5, 1e-5)), Error);
}

TEST(GatedRmsNorm, GradientsEqualFiniteDifferences) {
  const auto y = random_normal({70, 6}, 1), z = random_normal({70, 6}, 2), weight = random_normal({6}, 3);
  EXPECT_LT(gradient_error({y, z, weight}, [&] { return gated_rms_norm(y, z, weight, 2, 1e-5); }), 1e-6);
}

UserModelConfig small_config() {
  return {.encoder = "mamba2",
          .hidden = 12,
          .num_layers = 3,
          .norm_eps = 1e-4,
          .dropout = 0,
          .mamba2 = {.head_dim = 4, .state_size = 6, .expand = 2, .conv_kernel = 3, .num_groups = 3, .chunk = 8}};
}

/// With weights away from their special initial values.
std::shared_ptr<Mamba2Impl> scaled_encoder(const UserModelConfig& config) {
  auto encoder = std::make_shared<Mamba2Impl>(config);
  encoder->init_weights(3, "backbone.");
  const at::NoGradGuard no_grad;
  std::uint64_t seed = 50;
  for (auto& item : encoder->named_parameters()) {
    if (item.value().dim() == 1) item.value().add_(random_normal(item.value().sizes(), ++seed, at::kFloat) * 0.3);
    if (item.value().dim() == 2) item.value().mul_(2);
  }
  return encoder;
}

/// The whole encoder by its definition, in float64; `in` is x and then the parameters in the encoder's order.
Tensor plain_encoder(const Mamba2Impl& encoder, const UserModelConfig& config, const Inputs& in, const PackedLayout& layout) {
  std::map<std::string, Tensor> parameters;
  std::size_t next = 1;
  for (const auto& item : encoder.named_parameters()) parameters[item.key()] = in[next++];
  const auto& mamba = config.mamba2;
  const auto inner = mamba.expand * config.hidden;
  const SsdSizes sizes{.num_heads = inner / mamba.head_dim, .head_dim = mamba.head_dim, .num_groups = mamba.num_groups, .state_size = mamba.state_size};
  const auto norm = [&](const Tensor& x_TGF) { return x_TGF / (x_TGF.square().mean(-1, true) + config.norm_eps).sqrt(); };
  auto state_TH = in[0];
  for (std::int64_t i = 0; i < config.num_layers; ++i) {
    const auto of = [&](const std::string& name) { return parameters.at("layers." + std::to_string(i) + "." + name); };
    const auto projected = at::linear(norm(state_TH) * of("norm.weight"), of("mixer.in_proj.weight"));
    const auto parts = projected.split_with_sizes({inner, sizes.channels(), sizes.num_heads}, 1);
    const auto xbc = plain_conv({parts[1], of("mixer.conv1d.weight"), of("mixer.conv1d.bias")}, layout);
    const auto dt = (1 + (parts[2] + of("mixer.dt_bias")).exp()).log();
    const auto y = recurrence({xbc, dt, -of("mixer.A_log").exp(), of("mixer.D")}, layout, sizes);
    const auto gated = norm((y * at::silu(parts[0])).view({y.size(0), mamba.num_groups, -1})).flatten(1) * of("mixer.norm.weight");
    state_TH = state_TH + at::linear(gated, of("mixer.out_proj.weight"));
  }
  return state_TH;
}

class Mamba2Test : public ::testing::Test {
 protected:
  UserModelConfig config_ = small_config();
  std::shared_ptr<Mamba2Impl> encoder_ = scaled_encoder(config_);
  PackedLayout layout_ = layout_of({1, 19, 3, 2, 8});
  Tensor x_TH_ = random_normal({33, 12}, 1, at::kFloat);
};

TEST_F(Mamba2Test, EqualsThePlainEncoderWithAllGradients) {
  const auto x = x_TH_.clone().requires_grad_(true);
  const auto weights = random_normal(x.sizes(), 9, at::kFloat);
  const auto states = encoder_->forward(x, layout_, {});
  (states * weights).sum().backward();
  Inputs plain{x_TH_.to(at::kDouble).requires_grad_(true)};
  for (const auto& parameter : encoder_->parameters()) plain.push_back(parameter.detach().to(at::kDouble).requires_grad_(true));
  const auto expected = plain_encoder(*encoder_, config_, plain, layout_);
  (expected * weights).sum().backward();
  EXPECT_GT(max_abs(expected - plain[0]), 0.5) << "the blocks must matter";
  EXPECT_LT(relative_error(states, expected), 1e-5);
  EXPECT_LT(relative_error(x.grad(), plain[0].grad()), 1e-5);
  std::size_t next = 1;
  for (const auto& item : encoder_->named_parameters()) {
    EXPECT_GT(max_abs(plain[next].grad()), 1e-2) << item.key();
    EXPECT_LT(relative_error(item.value().grad(), plain[next++].grad()), 1e-5) << item.key();
  }
}

TEST_F(Mamba2Test, ALaterRowNeverChangesAnEarlierState) {
  const auto before = encoder_->forward(x_TH_, layout_, {});
  for (const std::int64_t row : {5, 14, 21}) {
    auto changed = x_TH_.clone();
    changed[row] += 1;
    const auto after = encoder_->forward(changed, layout_, {});
    EXPECT_TRUE(at::equal(after.narrow(0, 0, row), before.narrow(0, 0, row))) << row;
    EXPECT_GT(max_abs(after[row + 1] - before[row + 1]), 1e-3) << "later states must see the change";
  }
}

TEST_F(Mamba2Test, AUserDoesNotDependOnWhoSharesTheBatch) {
  const auto together = encoder_->forward(x_TH_, layout_, {});
  for (std::size_t b = 0; b + 1 < layout_.cu_seqlens.size(); ++b) {
    const auto begin = layout_.cu_seqlens[b], length = layout_.cu_seqlens[b + 1] - begin;
    EXPECT_LT(relative_error(encoder_->forward(x_TH_.narrow(0, begin, length), layout_of({length}), {}), together.narrow(0, begin, length)), 1e-6) << b;
  }
}

TEST_F(Mamba2Test, DropoutFollowsTheSampleNotTheBatch) {
  auto config = config_;
  config.dropout = 0.3;
  const auto encoder = scaled_encoder(config);
  const DropoutContext context{.seed = 4, .step = 2};
  const auto together = encoder->forward(x_TH_, layout_, context);
  const auto user = x_TH_.narrow(0, 1, 19);
  auto alone = layout_of({19});
  alone.sample_ids[0] = layout_.sample_ids[1];
  EXPECT_LT(relative_error(encoder->forward(user, alone, context), together.narrow(0, 1, 19)), 1e-6);
  EXPECT_GT(max_abs(encoder->forward(user, layout_of({19}), context) - together.narrow(0, 1, 19)), 1e-2) << "another sample, another mask";
  encoder->eval();
  EXPECT_TRUE(at::equal(encoder->forward(x_TH_, layout_, context), encoder_->forward(x_TH_, layout_, {})));
}

TEST_F(Mamba2Test, Bf16AutocastStaysCloseAndTheResidualStreamInFloat32) {
  const auto exact = encoder_->forward(x_TH_, layout_, {});
  at::autocast::set_autocast_enabled(at::kCPU, true);
  at::autocast::set_autocast_dtype(at::kCPU, at::kBFloat16);
  const auto states = encoder_->forward(x_TH_, layout_, {});
  at::autocast::clear_cache();
  at::autocast::set_autocast_enabled(at::kCPU, false);
  states.sum().backward();
  EXPECT_EQ(states.scalar_type(), at::kFloat);
  EXPECT_GT(relative_error(states, exact), 1e-5) << "nothing was computed in bfloat16";
  EXPECT_LT(relative_error(states, exact), 0.05);
  for (const auto& item : encoder_->named_parameters()) EXPECT_EQ(item.value().grad().scalar_type(), at::kFloat) << item.key();
}

TEST_F(Mamba2Test, AnEmptyBatchGivesZeroGradients) {
  encoder_->forward(at::empty({0, 12}), {}, {}).sum().backward();
  for (const auto& item : encoder_->named_parameters()) EXPECT_EQ(max_abs(item.value().grad()), 0) << item.key();
}

TEST_F(Mamba2Test, AsManyParametersAsTheReference) {
  const UserModelConfig published{.encoder = "mamba2", .hidden = 512, .num_layers = 4, .dropout = 0};
  std::int64_t count = 0;
  for (const auto& parameter : Mamba2Impl(published).parameters()) count += parameter.numel();
  EXPECT_EQ(count, 6'880'448);
}

TEST_F(Mamba2Test, InitialWeightsFollowMambaSsm) {
  const UserModelConfig config{.encoder = "mamba2", .hidden = 128, .num_layers = 4, .mamba2 = {.head_dim = 4, .state_size = 16}};
  Mamba2Impl encoder(config), again(config);
  encoder.init_weights(5, "backbone.");
  again.init_weights(5, "backbone.");
  const auto parameters = encoder.named_parameters();
  const auto check_uniform = [&](const std::string& name, const Tensor& x, double least, double most) {
    const double range = most - least;
    EXPECT_GE(x.min().item<double>(), least - 1e-5 * range) << name;
    EXPECT_LE(x.max().item<double>(), most + 1e-5 * range) << name;
    EXPECT_NEAR(x.mean().item<double>(), (least + most) / 2, 0.15 * range) << name;
    EXPECT_GT(x.max().item<double>() - x.min().item<double>(), 0.8 * range) << name;
  };
  for (int i = 0; i < 4; ++i) {
    const auto name = "layers." + std::to_string(i) + ".mixer.";
    const auto symmetric = [&](const char* part, double bound) { check_uniform(name + part, parameters[name + part], -bound, bound); };
    symmetric("in_proj.weight", 1 / std::sqrt(128.0));
    symmetric("conv1d.weight", 0.5);
    symmetric("conv1d.bias", 0.5);
    symmetric("out_proj.weight", 1 / std::sqrt(256.0) / 2);
    check_uniform("A", parameters[name + "A_log"].exp(), 1, 16);
    check_uniform("log dt", at::softplus(parameters[name + "dt_bias"]).log(), std::log(1e-3), std::log(1e-1));
    for (const auto* part : {"D", "norm.weight"}) EXPECT_TRUE(parameters[name + part].eq(1).all().item<bool>()) << part;
    EXPECT_TRUE(parameters["layers." + std::to_string(i) + ".norm.weight"].eq(1).all().item<bool>());
  }
  EXPECT_FALSE(at::equal(parameters["layers.0.mixer.in_proj.weight"], parameters["layers.1.mixer.in_proj.weight"]));
  for (const auto& item : again.named_parameters()) EXPECT_TRUE(at::equal(item.value(), parameters[item.key()])) << item.key();
}

}  // namespace
}  // namespace uqa::models
