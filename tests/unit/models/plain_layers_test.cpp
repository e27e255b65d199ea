// Layers of the encoders from LibTorch's own operators, which tensors off the CPU take, called here on the CPU against the fused kernels.
#include <gtest/gtest.h>

#include "models/adapters/adapter.h"
#include "models/layers/causal_conv.h"
#include "models/layers/gated_norm.h"
#include "models/layers/norm.h"
#include "models/layers/packed_gru.h"
#include "models/layers/rope.h"
#include "models/plain/dropout.h"
#include "models/plain/feature_bags.h"
#include "models/plain/padded.h"
#include "models/plain/recurrent.h"
#include "models/plain/row_layers.h"
#include "models/plain/silu_attention.h"
#include "tests/unit/models/plain_case.h"

namespace uqa::models {
namespace {

using testing::expect_same;
using testing::layout_of_lengths;
using testing::layouts_of_all_kinds;
using testing::random_normal;
using testing::Tensors;
using testing::tolerance_of;

TEST(PlainDropout, FactorsAreTheFusedOnesBitForBit) {
  constexpr std::uint64_t kKey = 0xfedcba9876543210;
  const std::vector<DropoutRow> rows{{.sample_id = 0, .position = 0, .lane = 0},
                                     {.sample_id = (std::int64_t{1} << 40) - 1, .position = (1 << 24) - 1, .lane = 0xFFFFFFFF},
                                     {.sample_id = 123456789, .position = 77, .lane = 31}};
  for (const double p : {0.1, 0.5, 0.999}) {
    for (const std::int64_t first : {0, 3, 64, 130}) {
      for (const std::int64_t width : {1, 61, 64, 200}) {
        auto want = at::empty({3, width});
        for (std::size_t r = 0; r < rows.size(); ++r) {
          dropout_factors(kKey, rows[r], p, want.mutable_data_ptr<float>() + static_cast<std::int64_t>(r) * width, width, first);
        }
        EXPECT_TRUE(at::equal(plain::dropout_factors(kKey, rows, p, width, first, want.options()), want)) << p << " " << first << " " << width;
      }
    }
  }
  EXPECT_EQ(plain::dropout_factors(kKey, {}, 0.5, 4, 0, at::kFloat).sizes(), at::IntArrayRef({0, 4}));
}

TEST(PlainDropout, RowsTimesFactorsAreTheFusedLayerBitForBit) {
  const auto layout = layout_of_lengths({5, 0, 2});
  std::vector<DropoutRow> rows;
  for (std::int64_t t = 0; t < 5; ++t) rows.push_back({.sample_id = layout.sample_ids[0], .position = t});
  for (std::int64_t t = 0; t < 2; ++t) rows.push_back({.sample_id = layout.sample_ids[2], .position = t});
  for (const auto type : {at::kFloat, at::kDouble, at::kBFloat16}) {
    const auto x = random_normal({7, 70}, 1, type);
    EXPECT_TRUE(at::equal(x * plain::dropout_factors(9, rows, 0.3, 70, 5, x.options()), dropout(x, 0.3, 9, layout, 5))) << c10::toString(type);
  }
}

class PlainRowLayers : public ::testing::TestWithParam<at::ScalarType> {};

TEST_P(PlainRowLayers, RmsNormAndRopeEqualTheFusedOnes) {
  const auto type = GetParam(), compute = type == at::kDouble ? at::kDouble : at::kFloat;
  for (const std::int64_t rows : {100, 0}) {
    expect_same([](const Tensors& in) { return plain::rms_norm(in[0], in[1], 1e-5); }, [](const Tensors& in) { return rms_norm(in[0], in[1], 1e-5); },
                {random_normal({rows, 24}, 1, type), random_normal({24}, 2, compute)}, tolerance_of(type));
    const auto angles = rope_angles(at::arange(rows, at::kLong), 6, 10000);
    expect_same([&](const Tensors& in) { return plain::turned_halves(in[0], angles.cos_TE, angles.sin_TE); },
                [&](const Tensors& in) { return apply_rope(in[0], angles); }, {random_normal({rows, 3, 6}, 3, type)}, tolerance_of(type));
  }
}

INSTANTIATE_TEST_SUITE_P(Types, PlainRowLayers, ::testing::Values(at::kFloat, at::kDouble, at::kBFloat16));

class PlainLayers : public ::testing::TestWithParam<at::ScalarType> {};

TEST_P(PlainLayers, GatedNormEqualsTheFusedOneOnViewsToo) {
  const auto type = GetParam();
  for (const std::int64_t rows : {100, 0}) {
    for (const std::int64_t groups : {1, 3}) {
      const auto views = [&](const auto& norm, const Tensors& in) { return norm(in[0].narrow(1, 5, 24), in[1].narrow(1, 0, 24), in[2], groups, 1e-5); };
      expect_same([&](const Tensors& in) { return views(plain::gated_rms_norm, in); }, [&](const Tensors& in) { return views(gated_rms_norm, in); },
                  {random_normal({rows, 30}, 1, type), random_normal({rows, 30}, 2, type), random_normal({24}, 3, type)}, tolerance_of(type));
    }
  }
}

TEST_P(PlainLayers, FeatureBagsEqualTheFusedOnes) {
  const auto type = GetParam();
  const Tensors tables{random_normal({7, 3}, 1, type), random_normal({5, 2}, 2, type)};
  const std::vector<std::size_t> table_of_feature{0, 1, 0, 1};
  const auto longs = [](std::vector<std::int64_t> values) { return at::tensor(values, at::kLong); };
  const std::vector<FeatureTensor> features{{.values = longs({6, 0, 3, 3}), .offsets = {}},
                                            {.values = longs({4, 4, 1}), .offsets = longs({0, 0, 2, 3, 3})},
                                            {.values = longs({1, 2, 3, 6, 6, 0}), .offsets = longs({0, 3, 3, 4, 6})},
                                            {.values = longs({}), .offsets = longs({0, 0, 0, 0, 0})}};
  const auto compare = [&](const std::vector<FeatureTensor>& given, std::int64_t rows) {
    expect_same([&](const Tensors& in) { return plain::feature_bags(in, table_of_feature, given, rows); },
                [&](const Tensors& in) { return feature_bags(in, table_of_feature, given, rows); }, tables, tolerance_of(type));
  };
  compare(features, 4);
  const FeatureTensor single{.values = longs({}), .offsets = {}}, bags{.values = longs({}), .offsets = longs({0})};
  compare({single, bags, bags, single}, 0);
}

TEST_P(PlainLayers, SiluAttentionEqualsTheFusedOneWithEveryBias) {
  const auto type = GetParam();
  constexpr std::int64_t kMaxLen = 40, kHeads = 3, kKeys = 4, kValues = 5;
  for (const auto& layout : layouts_of_all_kinds()) {
    const auto rows = layout.num_rows();
    std::vector<double> scales;
    for (std::int64_t b = 0; b < layout.num_sequences(); ++b) scales.push_back(1.0 / static_cast<double>(b + 2));
    const auto buckets = time_buckets(layout);
    Tensors inputs{random_normal({rows, kHeads, kKeys}, 1, type), random_normal({rows, kHeads, kKeys}, 2, type), random_normal({rows, kHeads, kValues}, 3, type)};
    for (int num_biases = 0; num_biases <= 2; ++num_biases) {
      SCOPED_TRACE(fmt::format("{} rows, {} biases", rows, num_biases));
      if (num_biases == 1) inputs.push_back(random_normal({2 * kMaxLen - 1}, 4, type));
      if (num_biases == 2) inputs.push_back(random_normal({kLastTimeBucket + 1}, 5, type));
      const auto attend = [&](const auto& attention, const Tensors& in) {
        AttentionBias bias{.position_w = {}, .time_w = {}, .buckets = buckets};
        if (num_biases > 0) bias.position_w = in[3];
        if (num_biases > 1) bias.time_w = in[4];
        return attention(in[0], in[1], in[2], layout, scales, bias);
      };
      expect_same([&](const Tensors& in) { return attend(plain::silu_attention, in); }, [&](const Tensors& in) { return attend(silu_attention, in); }, inputs,
                  2 * tolerance_of(type));
    }
  }
}

TEST_P(PlainLayers, GruEqualsTheFusedOne) {
  const auto type = GetParam();
  constexpr std::int64_t kWidth = 20;
  for (const auto& layout : layouts_of_all_kinds()) {
    SCOPED_TRACE(layout.num_rows());
    expect_same([&](const Tensors& in) { return plain::packed_gru(in[0], in[1], layout.cu_seqlens); },
                [&](const Tensors& in) { return packed_gru(in[0], in[1], layout.cu_seqlens); },
                {random_normal({layout.num_rows(), 3 * kWidth}, 1, type), random_normal({3 * kWidth, kWidth}, 2, type) * 0.3}, 2 * tolerance_of(type));
  }
}

TEST_P(PlainLayers, CausalConvolutionEqualsTheFusedOne) {
  const auto type = GetParam();
  constexpr std::int64_t kChannels = 11;
  auto layouts = layouts_of_all_kinds();
  layouts.push_back(layout_of_lengths({2}));  // fewer rows than taps
  for (const auto& layout : layouts) {
    for (const std::int64_t taps : {1, 4, 5}) {
      SCOPED_TRACE(fmt::format("{} rows, {} taps", layout.num_rows(), taps));
      expect_same([&](const Tensors& in) { return plain::causal_conv_silu(in[0].narrow(1, 1, kChannels), in[1], in[2], layout); },
                  [&](const Tensors& in) { return causal_conv_silu(in[0].narrow(1, 1, kChannels), in[1], in[2], layout); },
                  {random_normal({layout.num_rows(), kChannels + 3}, 1, type), random_normal({kChannels, 1, taps}, 2, type), random_normal({kChannels}, 3, type)},
                  tolerance_of(type));
    }
  }
}

TEST_P(PlainLayers, StateSpaceScanEqualsTheFusedOne) {
  const auto type = GetParam();
  for (const auto& layout : layouts_of_all_kinds()) {
    for (const std::int64_t chunk : {1, 4, 16, 64}) {
      SCOPED_TRACE(fmt::format("{} rows, chunk {}", layout.num_rows(), chunk));
      const SsdSizes sizes{.num_heads = 6, .head_dim = 3, .num_groups = 2, .state_size = 5, .chunk = chunk};
      const auto rows = layout.num_rows();
      const auto strong_and_none = at::tensor({-1e4, -300.0, -20.0, -1e-6, 0.0, -1.0}, at::kDouble).to(type);
      for (const auto& decay : {(-random_normal({6}, 3).abs() - 0.1).to(type), strong_and_none}) {
        expect_same([&](const Tensors& in) { return plain::ssd_scan(in[0], in[1], in[2], in[3], layout, sizes); },
                    [&](const Tensors& in) { return ssd_scan(in[0], in[1], in[2], in[3], layout, sizes); },
                    {random_normal({rows, sizes.channels()}, 1, type), random_normal({rows, 6}, 2, type).abs() * 0.5, decay, random_normal({6}, 4, type)},
                    3 * tolerance_of(type));
      }
    }
  }
}

TEST_P(PlainLayers, MeansOfBagsAreThoseOfHistories) {
  const auto layout = layout_of_lengths({3, 1, 9});
  const auto starts = at::tensor(layout.cu_seqlens, at::kLong);
  expect_same([&](const Tensors& in) { return plain::bag_means(in[0], at::arange(13, at::kLong), starts).to(at::kFloat); },
              [&](const Tensors& in) { return history_means(in[0], layout); }, {random_normal({13, 6}, 1, GetParam())}, 1e-5);
}

INSTANTIATE_TEST_SUITE_P(Types, PlainLayers, ::testing::Values(at::kFloat, at::kDouble));

TEST(PaddedBatches, RowsComeBackInTheirOrderWhateverIsBatched) {
  const auto layout = layout_of_lengths({1, 3, 0, 9, 2, 37, 4});
  const auto x = at::arange(2 * layout.num_rows(), at::kFloat).view({-1, 2});
  for (const std::int64_t most : {1, 20, 100, 100000}) {
    const auto padded = plain::padded_batches(layout.cu_seqlens, most, [](std::int64_t length) { return length; }, at::kCPU);
    std::vector<Tensor> parts;
    for (const auto& batch : padded.batches) {
      EXPECT_TRUE(batch.sequences.size() == 1 || static_cast<std::int64_t>(batch.sequences.size()) * batch.length <= most);
      parts.push_back(batch.unpad(batch.pad(x)));
    }
    EXPECT_TRUE(at::equal(padded.packed(parts), x)) << most;
  }
  EXPECT_TRUE(plain::padded_batches({0, 0}, 1, [](std::int64_t length) { return length; }, at::kCPU).batches.empty());
}

}  // namespace
}  // namespace uqa::models
