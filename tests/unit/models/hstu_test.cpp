#include "models/encoders/hstu.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <set>

#include <ATen/autocast_mode.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/error.h"
#include "models/layers/silu_attention.h"
#include "numeric.h"

namespace uqa::models {
namespace {

using testing::gradient_error;
using testing::max_abs;
using testing::random_normal;
using testing::relative_error;

/// Timestamps that jump back now and then, repeat, and are seconds to years apart.
PackedLayout layout_of(const std::vector<std::int64_t>& lengths) {
  PackedLayout layout;
  for (const auto length : lengths) {
    layout.sample_ids.push_back(10 + layout.num_sequences());
    layout.cu_seqlens.push_back(layout.num_rows() + length);
  }
  std::int64_t now = 1'600'000'000;
  for (std::int64_t row = 0; row < layout.num_rows(); ++row) {
    layout.timestamps.push_back(now);
    now += row % 7 == 3 ? -40 : row % 5 == 0 ? 0 : std::int64_t{1} << row % 27;
  }
  return layout;
}

/// The bucket by its definition.
std::int64_t bucket_of(std::int64_t difference) {
  return std::min<std::int64_t>(128, static_cast<std::int64_t>(std::floor(std::log(std::max(1.0, std::abs(static_cast<double>(difference)))) / 0.301)));
}

/// Bias [L, L] of one user by its definition; entries of later keys are of no account.
Tensor dense_bias(const PackedLayout& layout, std::int64_t begin, std::int64_t length, const Tensor& position_w, const Tensor& time_w) {
  std::vector<std::int64_t> distance(static_cast<std::size_t>(length * length)), bucket = distance;
  for (std::int64_t t = 0; t < length; ++t) {
    const auto next = layout.timestamps[static_cast<std::size_t>(begin + std::min(t + 1, length - 1))];
    for (std::int64_t s = 0; s <= t; ++s) {
      distance[static_cast<std::size_t>(t * length + s)] = t - s;
      bucket[static_cast<std::size_t>(t * length + s)] = bucket_of(next - layout.timestamps[static_cast<std::size_t>(begin + s)]);
    }
  }
  auto bias = at::zeros({length, length}, at::kDouble);
  const auto pick = [&](const Tensor& w, const Tensor& index) { return w.index_select(0, index).view({length, length}); };
  if (position_w.defined()) bias = bias + pick(position_w, (position_w.size(0) - 1) / 2 - at::tensor(at::ArrayRef<std::int64_t>(distance), at::kLong));
  if (time_w.defined()) bias = bias + pick(time_w, at::tensor(at::ArrayRef<std::int64_t>(bucket), at::kLong));
  return bias;
}

/// silu_attention by its definition, differentiable by autograd.
Tensor dense_attention(const Tensor& q_TNA, const Tensor& k_TNA, const Tensor& v_TNL, const PackedLayout& layout, const std::vector<double>& scales,
                       const Tensor& position_w = {}, const Tensor& time_w = {}) {
  std::vector<Tensor> rows{at::empty({0, v_TNL.size(1), v_TNL.size(2)}, at::kDouble)};
  for (std::size_t b = 0; b < scales.size(); ++b) {
    const auto begin = layout.cu_seqlens[b], length = layout.cu_seqlens[b + 1] - begin;
    const auto of_user = [&](const Tensor& x) { return x.narrow(0, begin, length); };
    const auto scores = at::einsum("tna,sna->nts", {of_user(q_TNA), of_user(k_TNA)}) + dense_bias(layout, begin, length, position_w, time_w);
    const auto weights = (scores / (1 + (-scores).exp())).tril() * scales[b];
    rows.push_back(at::einsum("nts,snl->tnl", {weights, of_user(v_TNL)}));
  }
  return at::cat(rows);
}

struct AttentionCase {
  Tensor q, k, v, position_w = random_normal({2 * 9 - 1}, 4), time_w = random_normal({129}, 5);
  PackedLayout layout;
  std::vector<double> scales;

  explicit AttentionCase(const std::vector<std::int64_t>& lengths, std::int64_t heads = 2, std::int64_t width = 3) : layout(layout_of(lengths)) {
    const auto rows = layout.num_rows();
    q = random_normal({rows, heads, width}, 1);
    k = random_normal({rows, heads, width}, 2);
    v = random_normal({rows, heads, width + 2}, 3);
    for (std::size_t b = 0; b < lengths.size(); ++b) scales.push_back(1.0 / static_cast<double>(b + 2));
    const auto longest = *std::ranges::max_element(lengths);
    if (longest > 9) position_w = random_normal({2 * longest - 1}, 4);
  }
  [[nodiscard]] AttentionBias bias() const { return {.position_w = position_w, .time_w = time_w, .buckets = time_buckets(layout)}; }
};

TEST(SiluAttention, EqualsItsDefinitionWithAndWithoutBias) {
  // Three tiles, one row, no row, one tile and a row.
  const AttentionCase c({300, 1, 0, 129, 4});
  const auto plain = dense_attention(c.q, c.k, c.v, c.layout, c.scales), position = dense_attention(c.q, c.k, c.v, c.layout, c.scales, c.position_w),
             both = dense_attention(c.q, c.k, c.v, c.layout, c.scales, c.position_w, c.time_w);
  EXPECT_GT(relative_error(position, plain), 0.1);
  EXPECT_GT(relative_error(both, position), 0.1);
  EXPECT_LT(relative_error(silu_attention(c.q, c.k, c.v, c.layout, c.scales), plain), 1e-12);
  EXPECT_LT(relative_error(silu_attention(c.q, c.k, c.v, c.layout, c.scales, {.position_w = c.position_w}), position), 1e-12);
  EXPECT_LT(relative_error(silu_attention(c.q, c.k, c.v, c.layout, c.scales, c.bias()), both), 1e-12);
  auto time_only = c.bias();
  time_only.position_w = Tensor();
  EXPECT_LT(relative_error(silu_attention(c.q, c.k, c.v, c.layout, c.scales, time_only), dense_attention(c.q, c.k, c.v, c.layout, c.scales, {}, c.time_w)),
            1e-12);
}

TEST(SiluAttention, GradientsEqualFiniteDifferences) {
  const AttentionCase c({9, 1, 4});
  const auto plain = gradient_error({c.q, c.k, c.v}, [&] { return silu_attention(c.q, c.k, c.v, c.layout, c.scales); });
  EXPECT_LT(plain, 1e-6);
  const auto biased = gradient_error({c.q, c.k, c.v, c.position_w, c.time_w}, [&] { return silu_attention(c.q, c.k, c.v, c.layout, c.scales, c.bias()); });
  EXPECT_LT(biased, 1e-6);
}

TEST(SiluAttention, GradientsOfLongSequencesEqualTheDefinitions) {
  AttentionCase c({300, 1, 131}, 3, 5);
  const std::vector<Tensor> inputs{c.q, c.k, c.v, c.position_w, c.time_w};
  for (const auto& x : inputs) const_cast<Tensor&>(x).requires_grad_(true);
  const auto expected = dense_attention(c.q, c.k, c.v, c.layout, c.scales, c.position_w, c.time_w);
  const auto weights = random_normal(expected.sizes(), 6);
  const auto expected_grads = torch::autograd::grad({(expected * weights).sum()}, inputs);
  const auto grads = torch::autograd::grad({(silu_attention(c.q, c.k, c.v, c.layout, c.scales, c.bias()) * weights).sum()}, inputs);
  for (std::size_t i = 0; i < inputs.size(); ++i) EXPECT_LT(relative_error(grads[i], expected_grads[i]), 1e-10) << i;
}

TEST(SiluAttention, Float32CostsRoundingOnlyAlsoForLargeScores) {
  AttentionCase c({40, 3});
  c.q = c.q * 40;  // SiLU from about -300 to 300
  const std::vector<Tensor> exact{c.q, c.k, c.v, c.position_w, c.time_w};
  std::vector<Tensor> single;
  for (const auto& x : exact) {
    single.push_back(x.detach().to(at::kFloat).requires_grad_(true));
    const_cast<Tensor&>(x).requires_grad_(true);
  }
  const auto expected = dense_attention(exact[0], exact[1], exact[2], c.layout, c.scales, exact[3], exact[4]);
  const auto out = silu_attention(single[0], single[1], single[2], c.layout, c.scales,
                                  {.position_w = single[3], .time_w = single[4], .buckets = time_buckets(c.layout)});
  EXPECT_EQ(out.scalar_type(), at::kFloat);
  EXPECT_LT(relative_error(out, expected), 1e-5);
  const auto weights = random_normal(expected.sizes(), 9);
  const auto expected_grads = torch::autograd::grad({(expected * weights).sum()}, exact);
  const auto grads = torch::autograd::grad({(out * weights.to(at::kFloat)).sum()}, single);
  for (std::size_t i = 0; i < exact.size(); ++i) EXPECT_LT(relative_error(grads[i], expected_grads[i]), 1e-5) << i;
}

TEST(SiluAttention, TheNumberOfThreadsChangesNothingButSpeed) {
  AttentionCase c({150, 3, 150, 9}, 4);
  const std::vector<Tensor> inputs{c.q, c.k, c.v, c.position_w, c.time_w};
  for (const auto& x : inputs) const_cast<Tensor&>(x).requires_grad_(true);
  const auto weights = random_normal(c.v.sizes(), 6);
  const auto run = [&] {
    const auto out = silu_attention(c.q, c.k, c.v, c.layout, c.scales, c.bias());
    auto all = torch::autograd::grad({(out * weights).sum()}, inputs);
    all.push_back(out);
    return all;
  };
  const auto threads = at::get_num_threads();
  at::set_num_threads(1);
  const auto one = run();
  at::set_num_threads(3);
  const auto three = run();
  at::set_num_threads(threads);
  for (std::size_t i = 0; i < one.size(); ++i) EXPECT_LT(relative_error(three[i], one[i]), 1e-14) << i;
}

TEST(SiluAttention, TakesViewsIntoOneProjection) {
  const auto layout = layout_of({9});
  const auto parts = random_normal({9, 3, 2, 4}, 5).unbind(1);
  EXPECT_TRUE(at::equal(silu_attention(parts[0], parts[1], parts[2], layout, {0.3}),
                        silu_attention(parts[0].contiguous(), parts[1].contiguous(), parts[2].contiguous(), layout, {0.3})));
}

TEST(SiluAttention, RefusesWhatDoesNotFit) {
  const AttentionCase c({9, 2});
  const auto refuses = [&](const auto& change) {
    auto changed = c;
    auto bias = c.bias();
    change(changed, bias);
    try {
      static_cast<void>(silu_attention(changed.q, changed.k, changed.v, changed.layout, changed.scales, bias));
    } catch (const Error& error) {
      return error.code() == ErrorCode::kInternal;
    }
    return false;
  };
  EXPECT_FALSE(refuses([](auto&, auto&) {}));
  EXPECT_TRUE(refuses([](auto& x, auto&) { x.k = x.k.narrow(1, 0, 1); }));
  EXPECT_TRUE(refuses([](auto& x, auto&) { x.v = x.v.to(at::kFloat); }));
  EXPECT_TRUE(refuses([](auto& x, auto&) { x.layout.cu_seqlens.back() = 12; }));
  EXPECT_TRUE(refuses([](auto& x, auto&) { x.scales.pop_back(); }));
  EXPECT_TRUE(refuses([](auto&, auto& bias) { bias.position_w = random_normal({2 * 8 - 1}, 4); }));
  EXPECT_TRUE(refuses([](auto&, auto& bias) { bias.time_w = random_normal({128}, 4); }));
  EXPECT_TRUE(refuses([](auto&, auto& bias) { bias.buckets = nullptr; }));
}

TEST(TimeBuckets, AreThoseOfTheDefinitionForAnyTimestamps) {
  const auto layout = layout_of({60, 0, 1, 33});
  const auto buckets = time_buckets(layout);
  std::set<std::int64_t> seen;
  std::size_t next = 0;
  for (std::size_t b = 0; b + 1 < layout.cu_seqlens.size(); ++b) {
    const auto begin = layout.cu_seqlens[b], end = layout.cu_seqlens[b + 1];
    for (auto t = begin; t < end; ++t) {
      for (auto s = begin; s <= t; ++s, ++next) {
        const auto time = [&](std::int64_t row) { return layout.timestamps[static_cast<std::size_t>(row)]; };
        ASSERT_LT(next, buckets->size());
        EXPECT_EQ((*buckets)[next], bucket_of(time(std::min(t + 1, end - 1)) - time(s))) << t << " " << s;
        seen.insert((*buckets)[next]);
      }
    }
  }
  EXPECT_EQ(next, buckets->size());
  EXPECT_GT(seen.size(), 20U);
}

TEST(TimeBuckets, StartAtOneSecondAndEndAtTheLast) {
  constexpr auto kMost = std::numeric_limits<std::int64_t>::max(), kLeast = std::numeric_limits<std::int64_t>::min();
  const auto of_pair = [](std::int64_t first, std::int64_t second) {
    const auto buckets = time_buckets({.cu_seqlens = {0, 2}, .sample_ids = {0}, .timestamps = {first, second}});
    return std::vector<int>(buckets->begin(), buckets->end());
  };
  EXPECT_EQ(of_pair(5, 5), (std::vector{0, 0, 0}));
  EXPECT_EQ(of_pair(5, 6), (std::vector{0, 0, 0}));  // to the next; to its own; to itself
  EXPECT_EQ(of_pair(5, 7), (std::vector{2, 2, 0}));
  EXPECT_EQ(of_pair(7, 5), (std::vector{2, 2, 0}));
  EXPECT_EQ(of_pair(0, 86400), (std::vector{37, 37, 0}));
  EXPECT_EQ(of_pair(kLeast, kMost), (std::vector{128, 128, 0}));
  EXPECT_THROW(static_cast<void>(time_buckets({.cu_seqlens = {0, 2}, .sample_ids = {0}, .timestamps = {5}})), Error);
}

UserModelConfig config_of(const std::string& bias = "none", const std::string& norm = "true_len") {
  return {.encoder = "hstu",
          .hidden = 12,
          .num_layers = 2,
          .num_heads = 3,
          .max_len = 140,
          .dropout = 0,
          .hstu = {.linear_dim = 5, .attention_dim = 7, .norm = norm, .bias = bias}};
}

/// Larger weights than at the start, so that attention, gates and biases matter.
std::shared_ptr<HstuImpl> make_hstu(const UserModelConfig& config) {
  auto hstu = std::make_shared<HstuImpl>(config);
  hstu->init_weights(1, "backbone.");
  const at::NoGradGuard no_grad;
  for (auto& item : hstu->named_parameters()) item.value().mul_(item.value().dim() == 2 ? 10 : 40);
  return hstu;
}

/// The encoder by its definition, one user after another; dropout 0.
Tensor plain_hstu(const torch::nn::Module& weights, const UserModelConfig& config, const Tensor& x_TH, const PackedLayout& layout) {
  const auto parameters = weights.named_parameters();
  const auto norm = [](const Tensor& x) { return (x - x.mean(-1, true)) / (x.var(-1, false, true) + 1e-6).sqrt(); };
  const auto num_heads = config.num_heads, values = num_heads * config.hstu.linear_dim, keys = num_heads * config.hstu.attention_dim;
  std::vector<Tensor> users;
  for (std::size_t b = 0; b + 1 < layout.cu_seqlens.size(); ++b) {
    const auto begin = layout.cu_seqlens[b], length = layout.cu_seqlens[b + 1] - begin;
    PackedLayout alone{.cu_seqlens = {0, length}, .sample_ids = {layout.sample_ids[b]}};
    if (!layout.timestamps.empty()) alone.timestamps.assign(layout.timestamps.begin() + begin, layout.timestamps.begin() + begin + length);
    auto x = x_TH.narrow(0, begin, length);
    for (std::int64_t i = 0; i < config.num_layers; ++i) {
      const auto weight = [&](const std::string& name) { return parameters["_hstu._attention_layers." + std::to_string(i) + "." + name]; };
      const auto projected = at::matmul(norm(x), weight("_uvqk"));
      const auto gates = projected / (1 + (-projected).exp());
      const auto heads = [&](std::int64_t first, std::int64_t width) { return gates.narrow(1, first, width).view({length, num_heads, -1}); };
      const auto position_w = config.hstu.bias == "none" ? Tensor() : weight("_rel_attn_bias._pos_w");
      const auto time_w = config.hstu.bias == "position_time" ? weight("_rel_attn_bias._ts_w") : Tensor();
      const auto attended = dense_attention(heads(2 * values, keys), heads(2 * values + keys, keys), heads(values, values), alone,
                                            {1.0 / static_cast<double>(config.hstu.norm == "max_len" ? config.max_len : length)}, position_w, time_w);
      x = x + at::matmul(gates.narrow(1, 0, values) * norm(attended.reshape({length, values})), weight("_o.weight").t()) + weight("_o.bias");
    }
    users.push_back(x);
  }
  return at::cat(users);
}

TEST(Hstu, EqualsAPlainImplementationForwardAndInEveryGradient) {
  const auto layout = layout_of({1, 137, 6, 2});
  const auto x_TH = random_normal({layout.num_rows(), 12}, 3).requires_grad_(true);
  const auto weights_TH = random_normal({layout.num_rows(), 12}, 4);
  Tensor of_another_setting;
  for (const auto* norm : {"true_len", "max_len"}) {
    for (const auto* bias : {"none", "position", "position_time"}) {
      SCOPED_TRACE(std::string(norm) + " " + bias);
      const auto config = config_of(bias, norm);
      const auto hstu = make_hstu(config);
      const auto single = hstu->forward(x_TH.to(at::kFloat), layout, {});
      hstu->to(at::kDouble);
      const auto expected = plain_hstu(*hstu, config, x_TH, layout), actual = hstu->forward(x_TH, layout, {});
      EXPECT_GT(relative_error(expected, x_TH), 0.1);
      EXPECT_TRUE(!of_another_setting.defined() || relative_error(expected, of_another_setting) > 1e-4) << "the setting must matter";
      of_another_setting = expected.detach();
      EXPECT_LT(relative_error(actual, expected), 1e-12);
      EXPECT_LT(relative_error(single, expected), 1e-5);

      std::vector<Tensor> inputs{x_TH};
      std::vector<std::string> names{"x"};
      for (const auto& item : hstu->named_parameters()) {
        inputs.push_back(item.value());
        names.push_back(item.key());
      }
      const auto gradients = [&](const Tensor& y) { return torch::autograd::grad({(y * weights_TH).sum()}, inputs, {}, true, false, /*allow_unused=*/true); };
      const auto expected_grads = gradients(expected), grads = gradients(actual);
      std::int64_t num_dead = 0;
      for (std::size_t i = 0; i < inputs.size(); ++i) {
        ASSERT_EQ(grads[i].defined(), expected_grads[i].defined()) << names[i];
        if (grads[i].defined()) {
          EXPECT_LT(relative_error(grads[i], expected_grads[i]), 1e-9) << names[i];
        } else {
          ++num_dead;
        }
      }
      EXPECT_EQ(num_dead, bias == std::string("none") ? 4 : bias == std::string("position") ? 2 : 0);
    }
  }
}

TEST(Hstu, ALaterRowNeverChangesAnEarlierOne) {
  const auto layout = layout_of({4, 135});
  const auto x_TH = random_normal({layout.num_rows(), 12}, 3, at::kFloat);
  for (const auto* bias : {"none", "position", "position_time"}) {
    const auto hstu = make_hstu(config_of(bias));
    for (const std::int64_t row : {5, 60, 133}) {
      auto changed_TH = x_TH.clone();
      changed_TH[row] = 3 * random_normal({12}, 5, at::kFloat);
      const auto before = hstu->forward(x_TH, layout, {}), after = hstu->forward(changed_TH, layout, {});
      EXPECT_TRUE(at::equal(after.narrow(0, 0, row), before.narrow(0, 0, row))) << bias << " " << row;
      EXPECT_GT(max_abs(after[138] - before[138]), 1e-4) << "later rows must see the change";
    }
  }
}

TEST(Hstu, AUserDoesNotDependOnWhoSharesTheBatch) {
  const auto layout = layout_of({30, 130, 1, 5}), reordered = layout_of({130, 7});
  const auto x_TH = random_normal({layout.num_rows(), 12}, 3, at::kFloat);
  const auto hstu = make_hstu(config_of("position"));
  const auto together = hstu->forward(x_TH, layout, {});
  const auto among_others = hstu->forward(at::cat({x_TH.narrow(0, 30, 130), random_normal({7, 12}, 8, at::kFloat)}), reordered, {});
  EXPECT_LT(relative_error(among_others.narrow(0, 0, 130), together.narrow(0, 30, 130)), 1e-6);
  const auto alone = hstu->forward(x_TH.narrow(0, 160, 1), layout_of({1}), {});
  EXPECT_LT(relative_error(alone, together.narrow(0, 160, 1)), 1e-6);
}

TEST(Hstu, DropoutFollowsTheSampleAndComesBeforeTheOutputProjection) {
  auto config = config_of();
  config.dropout = 0.4;
  const auto hstu = make_hstu(config);
  hstu->train();
  const auto layout = layout_of({3, 8});
  const auto x_TH = random_normal({11, 12}, 3, at::kFloat);
  const DropoutContext context{.seed = 4, .step = 2};
  const auto together = hstu->forward(x_TH, layout, context);
  auto alone = layout_of({8});
  alone.sample_ids = {layout.sample_ids[1]};
  const auto user = x_TH.narrow(0, 3, 8);
  EXPECT_LT(relative_error(hstu->forward(user, alone, context), together.narrow(0, 3, 8)), 1e-6);
  EXPECT_GT(max_abs(hstu->forward(user, alone, {.seed = 4, .step = 3}) - together.narrow(0, 3, 8)), 1e-2);
  alone.sample_ids = {99};
  EXPECT_GT(max_abs(hstu->forward(user, alone, context) - together.narrow(0, 3, 8)), 1e-2);
  hstu->eval();
  EXPECT_TRUE(at::equal(hstu->forward(x_TH, layout, context), hstu->forward(x_TH, layout, {.seed = 5})));

  // Neither the residual stream nor the projection's output is dropped.
  hstu->train();
  const at::NoGradGuard no_grad;
  auto biases_H = at::zeros({12});
  for (auto& item : hstu->named_parameters()) {
    if (item.key().ends_with("_o.weight")) item.value().zero_();
    if (item.key().ends_with("_o.bias")) biases_H = biases_H + item.value();
  }
  EXPECT_LT(relative_error(hstu->forward(x_TH, layout, context), x_TH + biases_H), 1e-6);
}

TEST(Hstu, HasTheReferencesParametersAndPublishedSize) {
  const auto hstu = make_hstu(config_of());
  std::set<std::string> names;
  for (const auto& item : hstu->named_parameters()) names.insert(item.key());
  std::set<std::string> expected;
  for (const auto* layer : {"0", "1"}) {
    for (const auto* name : {"_uvqk", "_o.weight", "_o.bias", "_rel_attn_bias._ts_w", "_rel_attn_bias._pos_w"}) {
      expected.insert(std::string("_hstu._attention_layers.") + layer + "." + name);
    }
  }
  EXPECT_EQ(names, expected);
  const HstuImpl published({.encoder = "hstu", .hidden = 512, .num_layers = 4, .num_heads = 8, .max_len = 512, .hstu = {.linear_dim = 256, .attention_dim = 256}});
  std::int64_t count = 0;
  for (const auto& weight : published.parameters()) count += weight.numel();
  EXPECT_EQ(count, 4 * (512 * 2 * 8 * (256 + 256) + 8 * 256 * 512 + 512 + 129 + 2 * 512 - 1));
  EXPECT_EQ(count, 20978176);
}

TEST(Hstu, HeadWidthsFollowTheHiddenWidthUnlessGiven) {
  auto config = config_of();
  config.hstu.linear_dim = config.hstu.attention_dim = 0;
  const HstuImpl hstu(config);
  EXPECT_EQ(hstu.named_parameters()["_hstu._attention_layers.0._uvqk"].sizes(), at::IntArrayRef({12, 4 * 12}));
  EXPECT_EQ(hstu.named_parameters()["_hstu._attention_layers.0._o.weight"].sizes(), at::IntArrayRef({12, 12}));
}

TEST(Hstu, InitialWeightsAreTheReferences) {
  const auto init = [](std::uint64_t seed) {
    auto hstu = std::make_shared<HstuImpl>(UserModelConfig{.encoder = "hstu", .hidden = 64, .num_heads = 2, .max_len = 200, .hstu = {.linear_dim = 48}});
    hstu->init_weights(seed, "backbone.");
    return hstu;
  };
  const auto hstu = init(1), other = init(2);
  const auto of = [](const auto& module, const std::string& name) { return module->named_parameters()["_hstu._attention_layers." + name]; };
  EXPECT_NEAR(of(hstu, "0._uvqk").std().template item<double>(), 0.02, 0.001);
  for (const auto* name : {"1._rel_attn_bias._ts_w", "1._rel_attn_bias._pos_w"}) EXPECT_NEAR(of(hstu, name).std().template item<double>(), 0.02, 0.004) << name;
  const double xavier = std::sqrt(6.0 / (96 + 64)), bias = 1 / std::sqrt(96.0);
  EXPECT_LE(max_abs(of(hstu, "0._o.weight")), xavier);
  EXPECT_GT(max_abs(of(hstu, "0._o.weight")), 0.98 * xavier);
  EXPECT_LE(max_abs(of(hstu, "0._o.bias")), bias);
  EXPECT_GT(max_abs(of(hstu, "0._o.bias")), 0.85 * bias);
  EXPECT_FALSE(at::equal(of(hstu, "0._uvqk"), of(hstu, "1._uvqk")));
  EXPECT_FALSE(at::equal(of(hstu, "0._uvqk"), of(other, "0._uvqk")));
  EXPECT_TRUE(at::equal(of(hstu, "0._uvqk"), of(init(1), "0._uvqk")));
}

TEST(Hstu, TheTimeBiasRefusesABatchWithoutTimestamps) {
  const auto hstu = make_hstu(config_of("position_time"));
  auto layout = layout_of({3, 2});
  const auto x_TH = random_normal({5, 12}, 3, at::kFloat);
  const auto refusal = [&] {
    try {
      static_cast<void>(hstu->forward(x_TH, layout, {}));
    } catch (const Error& error) {
      return std::pair{error.code(), std::string(error.what())};
    }
    return std::pair{ErrorCode::kInternal, std::string("accepted")};
  };
  EXPECT_EQ(refusal().second, "accepted");
  layout.timestamps.pop_back();
  EXPECT_EQ(refusal().first, ErrorCode::kData);
  layout.timestamps.clear();
  const auto [code, text] = refusal();
  EXPECT_EQ(code, ErrorCode::kConfig);
  EXPECT_THAT(text, ::testing::HasSubstr("set model.hstu.bias to position or none"));
  EXPECT_EQ(hstu->forward(at::empty({0, 12}), layout_of({}), {}).size(0), 0) << "a rank without users has none to give";
}

TEST(Hstu, Bf16AutocastStaysCloseAndKeepsMastersInFloat32) {
  const auto hstu = make_hstu(config_of("position_time"));
  const auto layout = layout_of({1, 20, 7});
  const auto x_TH = random_normal({28, 12}, 3, at::kFloat);
  const auto exact = hstu->forward(x_TH, layout, {}).detach();
  at::autocast::set_autocast_enabled(at::kCPU, true);
  at::autocast::set_autocast_dtype(at::kCPU, at::kBFloat16);
  const auto half = hstu->forward(x_TH, layout, {});
  at::autocast::clear_cache();
  at::autocast::set_autocast_enabled(at::kCPU, false);
  half.sum().backward();
  EXPECT_EQ(half.scalar_type(), at::kFloat);
  EXPECT_GT(relative_error(half, exact), 1e-5) << "nothing was computed in bfloat16";
  EXPECT_LT(relative_error(half, exact), 0.05);
  for (const auto& item : hstu->named_parameters()) EXPECT_EQ(item.value().grad().scalar_type(), at::kFloat) << item.key();
}

}  // namespace
}  // namespace uqa::models
