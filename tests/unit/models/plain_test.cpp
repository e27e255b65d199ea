// The paths from LibTorch's own operators, which tensors off the CPU take, called here on the CPU against the fused kernels: forward and gradients.
#include <gtest/gtest.h>

#include "core/error.h"
#include "models/layers/packed_attention.h"
#include "models/llm/decode_attention.h"
#include "models/llm/kernels.h"
#include "models/loss/item_softmax.h"
#include "models/plain/attention.h"
#include "models/plain/decode_attention.h"
#include "models/plain/llm_kernels.h"
#include "tests/unit/models/plain_case.h"

namespace uqa::models {
namespace {

using testing::expect_near;
using testing::random_normal;
using testing::tolerance_of;

TEST(PlainAttention, EqualsTheFusedKernelForwardAndBackward) {
  // Two sequences, a row of no block between them, a prefix tree with two branches; grouped heads; with and without dropout.
  const std::vector<AttentionBlock> blocks{{.begin = 0, .end = 9}, {.begin = 9, .end = 9}, {.begin = 10, .end = 16}, {.begin = 16, .end = 20, .parent = 2}, {.begin = 20, .end = 27, .parent = 2}};
  for (const auto type : {at::kDouble, at::kFloat, at::kBFloat16}) {
    for (const double p : {0.0, 0.3}) {
      SCOPED_TRACE(fmt::format("{} dropout {}", c10::toString(type), p));
      const PackedDropout dropout{.p = p, .key = 77, .sample_ids = {3, 9, 4, 12, 13}, .first_head = 4};  // as on the second of several ranks
      const auto run = [&](auto&& attention) {
        std::vector<Tensor> inputs{random_normal({28, 4, 6}, 1, type), random_normal({28, 2, 6}, 2, type), random_normal({28, 2, 6}, 3, type)};
        for (auto& x : inputs) x = x.detach().requires_grad_();
        const auto out = attention(inputs[0], inputs[1], inputs[2], blocks, 0.4, dropout);
        out.backward(random_normal({28, 4, 6}, 4, type));
        return std::vector<Tensor>{out.detach(), inputs[0].grad(), inputs[1].grad(), inputs[2].grad()};
      };
      const auto fused = run(packed_attention), plain = run(plain::packed_attention);
      for (std::size_t i = 0; i < fused.size(); ++i) expect_near(plain[i], fused[i], tolerance_of(type), fmt::format("result {}", i));
      EXPECT_EQ(plain[0].narrow(0, 9, 1).abs().max().item<double>(), 0);
    }
  }
}

TEST(PlainAttention, WithoutBlocksIsZeroAndHasZeroGradients) {
  const auto zeros_and_gradient = [](auto&& attention) {
    const auto x = random_normal({3, 2, 4}, 1, at::kFloat).detach().requires_grad_();
    const auto out = attention(x, x, x, std::vector<AttentionBlock>{}, 0.5, PackedDropout{});
    out.sum().backward();
    return std::vector<Tensor>{out.detach(), x.grad()};
  };
  for (const auto& results : {zeros_and_gradient(packed_attention), zeros_and_gradient(plain::packed_attention)}) {
    EXPECT_TRUE(at::equal(results[0], at::zeros({3, 2, 4})));
    EXPECT_TRUE(at::equal(results[1], at::zeros({3, 2, 4})));
  }
}

TEST(PlainItemSoftmax, EqualsTheFusedKernelForwardAndBackward) {
  const auto targets = at::tensor({3, 0, 40, -1, 17, 17, 8}, at::kLong);
  for (const bool bf16 : {false, true}) {
    for (const std::int64_t block : {1, 7, 41, 100}) {
      SCOPED_TRACE(fmt::format("bf16 {} block {}", bf16, block));
      const auto run = [&](auto&& loss) {
        auto h = random_normal({7, 5}, 1, at::kFloat).detach().requires_grad_(), w = random_normal({41, 5}, 2, at::kFloat).detach().requires_grad_();
        const auto value = loss(h, w);
        (value * 0.5).backward();
        return std::vector<Tensor>{value.detach(), h.grad(), w.grad()};
      };
      const auto fused = run([&](const Tensor& h, const Tensor& w) { return item_softmax_loss(h, w, targets, {.bf16 = bf16}); });
      const ItemSoftmaxOptions options{.block_bytes = 4 * 6 * block, .bf16 = bf16, .plain = true};  // six rows
      const auto plain = run([&](const Tensor& h, const Tensor& w) { return item_softmax_loss(h, w, targets, options); });
      for (std::size_t i = 0; i < fused.size(); ++i) expect_near(plain[i], fused[i], bf16 ? 2e-2 : 1e-5, fmt::format("result {}", i));
      const auto h = random_normal({6, 5}, 1, at::kFloat), w = random_normal({41, 5}, 2, at::kFloat).mul(2).round();  // with ties
      const auto all = at::tensor({3, 0, 40, 17, 17, 8}, at::kLong);
      EXPECT_TRUE(at::equal(item_ranks(h.round(), w, all, options), item_ranks(h.round(), w, all)));
    }
  }
  auto w = at::zeros({3, 2});
  w[1][0] = std::numeric_limits<float>::infinity();
  EXPECT_THROW(static_cast<void>(item_ranks(at::ones({1, 2}), w, at::zeros({1}, at::kLong), {.plain = true})), Error);
}

TEST(PlainDecodeAttention, EqualsTheFusedOneForSharedPrefixesAndEndedSequences) {
  for (const auto type : {at::kFloat, at::kBFloat16}) {
    for (const std::int64_t length : {1, 4}) {
      // Sequences 0 and 2 share their first rows, sequence 1 has ended, sequence 3 sees one row.
      const GrowingSequences sequences{.context = nullptr,
                                       .seen = {{{0, 6}, {6, 9}}, {{0, 3}}, {{0, 6}, {9, 20}}, {{20, 21}}},
                                       .active = {0, 2, 3},
                                       .length = length,
                                       .capacity = 5,
                                       .k_BSKD = {},
                                       .v_BSKD = {}};
      const auto q = random_normal({3, 4, 6}, 1, type), k = random_normal({21, 2, 6}, 2, type), v = random_normal({21, 2, 6}, 3, type);
      const auto own_k = random_normal({4, 5, 2, 6}, 4, type), own_v = random_normal({4, 5, 2, 6}, 5, type);
      expect_near(llm::plain::decode_attention(q, k, v, own_k, own_v, sequences, 0.4), llm::decode_attention(q, k, v, own_k, own_v, sequences, 0.4),
                  tolerance_of(type), fmt::format("{} length {}", c10::toString(type), length));
    }
  }
}

class PlainLlmKernels : public ::testing::TestWithParam<at::ScalarType> {};

TEST_P(PlainLlmKernels, NormSwiGluRopeAndCrossEntropyEqualTheFusedOnes) {
  const auto type = GetParam();
  const double tolerance = tolerance_of(type);
  constexpr std::int64_t kRows = 5, kWidth = 8, kSpare = 3;
  const auto h = random_normal({kRows, kWidth}, 1, at::kFloat), weight = random_normal({kWidth}, 2, at::kFloat), delta = random_normal({kRows, kWidth}, 3, type);
  for (const bool with_delta : {true, false}) {
    std::vector<std::vector<Tensor>> results;
    for (const bool is_plain : {false, true}) {
      auto sum = with_delta ? at::empty_like(h) : h.clone(), out = at::full({kRows, kWidth + kSpare}, 7.0, type), rstd = at::empty({kRows});
      (is_plain ? llm::plain::add_rms_norm : llm::add_rms_norm)(h, with_delta ? delta : Tensor(), weight, 1e-5, sum, out, rstd);
      auto dh = at::empty_like(h), ddelta = at::empty({kRows, kWidth}, type);
      (is_plain ? llm::plain::add_rms_norm_backward : llm::add_rms_norm_backward)(sum, rstd, weight, random_normal({kRows, kWidth + kSpare}, 4, type),
                                                                                   with_delta ? random_normal({kRows, kWidth}, 5, at::kFloat) : Tensor(), dh, ddelta);
      results.push_back({sum, out, rstd, dh, ddelta});
    }
    for (std::size_t i = 0; i < results[0].size(); ++i) expect_near(results[1][i], results[0][i], tolerance, fmt::format("norm result {}", i));
  }

  std::vector<std::vector<Tensor>> results;
  for (const bool is_plain : {false, true}) {
    const auto gate_up = random_normal({kRows, 2 * kWidth}, 6, type);
    auto out = at::full({kRows, kWidth + kSpare}, 7.0, type), dgate_up = at::empty_like(gate_up);
    (is_plain ? llm::plain::swiglu : llm::swiglu)(gate_up, out);
    (is_plain ? llm::plain::swiglu_backward : llm::swiglu_backward)(gate_up, random_normal({kRows, kWidth + kSpare}, 7, type), dgate_up);

    const std::int64_t heads = 4, kv = 2, width = 6;
    const auto qkv = random_normal({kRows, (heads + 2 * kv) * width}, 8, type), bias = random_normal({(heads + 2 * kv) * width}, 9, at::kFloat);
    const auto angles = random_normal({kRows, width / 2}, 10, at::kFloat), cos = angles.cos(), sin = angles.sin();
    auto q = at::empty({kRows, heads, width}, type), k = at::empty({kRows, kv, width}, type), v = at::empty_like(k), dqkv = at::empty_like(qkv);
    (is_plain ? llm::plain::rope_split : llm::rope_split)(qkv, bias, cos, sin, q, k, v);
    (is_plain ? llm::plain::rope_split_backward : llm::rope_split_backward)(q, k, v, cos, sin, dqkv);

    auto logits = random_normal({kRows, 13}, 11, type), scaled = logits.clone();
    const auto labels = at::tensor({0, 12, 5, 5, 1}, at::kLong);
    const auto log_sum = is_plain ? llm::plain::log_sum_exp_rows(logits) : llm::log_sum_exp_rows(logits);
    const auto scale = random_normal({kRows}, 12, at::kFloat);
    (is_plain ? llm::plain::scaled_softmax_rows_ : llm::scaled_softmax_rows_)(scaled, log_sum, scale);
    const auto losses = is_plain ? llm::plain::cross_entropy_rows_(logits, labels, true) : llm::cross_entropy_rows_(logits, labels, true);
    results.push_back({out, dgate_up, q, k, v, dqkv, log_sum, scaled, losses, logits});
  }
  for (std::size_t i = 0; i < results[0].size(); ++i) expect_near(results[1][i], results[0][i], tolerance, fmt::format("result {}", i));

  auto broken = at::zeros({2, 4}, type);
  broken[1][2] = -std::numeric_limits<float>::infinity();
  const auto log_sum = llm::plain::log_sum_exp_rows(broken);
  EXPECT_FALSE(std::isnan(log_sum[0].item<float>()));
  EXPECT_TRUE(std::isnan(log_sum[1].item<float>()));
}

INSTANTIATE_TEST_SUITE_P(Types, PlainLlmKernels, ::testing::Values(at::kFloat, at::kBFloat16));

}  // namespace
}  // namespace uqa::models
