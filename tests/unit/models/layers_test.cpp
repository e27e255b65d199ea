#include <gtest/gtest.h>

#include "core/error.h"
#include "models/layers/feature_bags.h"
#include "models/layers/norm.h"
#include "models/layers/rope.h"
#include "numeric.h"

namespace uqa::models {
namespace {

using testing::gradient_error;
using testing::random_normal;
using testing::relative_error;

TEST(RmsNorm, EqualsItsDefinitionInEveryDtype) {
  const auto x = random_normal({130, 24}, 1), weight = random_normal({24}, 2);
  const auto expected = x / (x.square().mean(1, true) + 1e-5).sqrt() * weight;
  EXPECT_LT(relative_error(rms_norm(x, weight, 1e-5), expected), 1e-12);
  EXPECT_LT(relative_error(rms_norm(x.to(at::kFloat), weight.to(at::kFloat), 1e-5), expected), 1e-6);
  const auto half = rms_norm(x.to(at::kBFloat16), weight.to(at::kFloat), 1e-5);
  EXPECT_EQ(half.scalar_type(), at::kBFloat16);
  EXPECT_LT(relative_error(half, expected), 0.01);
}

TEST(RmsNorm, GradientsEqualFiniteDifferences) {
  const auto x = random_normal({70, 6}, 1), weight = random_normal({6}, 2);
  EXPECT_LT(gradient_error({x, weight}, [&] { return rms_norm(x, weight, 1e-5); }), 1e-6);
}

TEST(Rope, TurnsFeaturePairsByPositionTimesFrequency) {
  constexpr std::int64_t kHead = 6;
  const auto x = random_normal({4, 2, kHead}, 3);
  const auto positions = at::tensor({0, 1, 7, 100}, at::kLong);
  const auto y = apply_rope(x, rope_angles(positions, kHead, 10000));
  for (std::int64_t t = 0; t < 4; ++t) {
    for (std::int64_t d = 0; d < kHead / 2; ++d) {
      const double angle = static_cast<double>(positions[t].item<std::int64_t>()) * std::pow(10000.0, -2.0 * static_cast<double>(d) / kHead);
      const double a = x[t][1][d].item<double>(), b = x[t][1][d + kHead / 2].item<double>();
      EXPECT_NEAR(y[t][1][d].item<double>(), a * std::cos(angle) - b * std::sin(angle), 1e-4);
      EXPECT_NEAR(y[t][1][d + kHead / 2].item<double>(), b * std::cos(angle) + a * std::sin(angle), 1e-4);
    }
  }
}

TEST(Rope, ScoresDependOnDistanceOnly) {
  const auto q = random_normal({1, 1, 8}, 3), k = random_normal({1, 1, 8}, 4);
  const auto score = [&](std::int64_t i, std::int64_t j) {
    const auto turned_q = apply_rope(q, rope_angles(at::tensor({i}, at::kLong), 8, 10000));
    return (turned_q * apply_rope(k, rope_angles(at::tensor({j}, at::kLong), 8, 10000))).sum().item<double>();
  };
  EXPECT_NEAR(score(9, 4), score(25, 20), 1e-5);
  EXPECT_GT(std::abs(score(9, 4) - score(9, 8)), 1e-3);
}

TEST(Rope, GradientsEqualFiniteDifferences) {
  const auto x = random_normal({5, 2, 4}, 3);
  const auto angles = rope_angles(at::arange(5, at::kLong), 4, 100);
  EXPECT_LT(gradient_error({x}, [&] { return apply_rope(x, angles); }), 1e-6);
}

class FeatureBagsTest : public ::testing::Test {
 protected:
  Tensor items_ = random_normal({6, 3}, 1), tokens_ = random_normal({5, 2}, 2);
  // Row 2 has an empty bag; token 4 comes twice in one bag and in both features.
  std::vector<FeatureTensor> features_{{.values = at::tensor({5, 0, 5}, at::kLong)},
                                       {.values = at::tensor({4, 4, 1, 0}, at::kLong), .offsets = at::tensor({0, 3, 4, 4}, at::kLong)},
                                       {.values = at::tensor({4, 2}, at::kLong), .offsets = at::tensor({0, 0, 1, 2}, at::kLong)}};
  std::vector<std::size_t> table_of_feature_{0, 1, 1};
};

TEST_F(FeatureBagsTest, RowsAreMeansSideBySideAndEmptyBagsZeros) {
  const auto out = feature_bags({items_, tokens_}, table_of_feature_, features_, 3);
  const auto zero = at::zeros({2}, at::kDouble);
  const auto expected = at::stack({at::cat({items_[5], (2 * tokens_[4] + tokens_[1]) / 3, zero}), at::cat({items_[0], tokens_[0], tokens_[4]}),
                                   at::cat({items_[5], zero, tokens_[2]})});
  EXPECT_LT(relative_error(out, expected), 1e-12);
}

TEST_F(FeatureBagsTest, GradientsOfSharedTablesEqualFiniteDifferences) {
  EXPECT_LT(gradient_error({items_, tokens_}, [&] { return feature_bags({items_, tokens_}, table_of_feature_, features_, 3); }), 1e-6);
}

TEST_F(FeatureBagsTest, GradientsDoNotDependOnTheThreadCount) {
  const auto ids = at::arange(500, at::kLong).remainder(6);
  const auto weights = random_normal({500, 3}, 9, at::kFloat);
  const auto gradient = [&] {
    const auto table = items_.detach().to(at::kFloat).requires_grad_(true);
    (feature_bags({table}, {0}, {{.values = ids}}, 500) * weights).sum().backward();
    return table.grad();
  };
  const auto threads = at::get_num_threads();
  at::set_num_threads(1);
  const auto one = gradient();
  at::set_num_threads(4);
  const auto four = gradient();
  at::set_num_threads(threads);
  EXPECT_TRUE(at::equal(one, four));
}

TEST_F(FeatureBagsTest, TakesNoRowsAtAll) {
  items_.requires_grad_(true);
  const FeatureTensor single{.values = at::empty({0}, at::kLong)}, bag{.values = at::empty({0}, at::kLong), .offsets = at::zeros({1}, at::kLong)};
  const auto out = feature_bags({items_, tokens_}, table_of_feature_, {single, bag, bag}, 0);
  EXPECT_EQ(out.sizes(), at::IntArrayRef({0, 7}));
  out.sum().backward();
  EXPECT_EQ(testing::max_abs(items_.grad()), 0);
}

TEST_F(FeatureBagsTest, RefusesIdsOutsideTheTableAndOffsetsThatDoNotFit) {
  const auto fails = [&] {
    try {
      static_cast<void>(feature_bags({items_, tokens_}, table_of_feature_, features_, 3));
    } catch (const Error& error) {
      return error.code() == ErrorCode::kData;
    }
    return false;
  };
  EXPECT_FALSE(fails());
  features_[0].values = at::tensor({5, 6, 5}, at::kLong);
  EXPECT_TRUE(fails());
  features_[0].values = at::tensor({5, -1, 5}, at::kLong);
  EXPECT_TRUE(fails());
  features_[0].values = at::tensor({5, 0}, at::kLong);
  EXPECT_TRUE(fails());
  features_[0].values = at::tensor({5, 0, 5}, at::kLong);
  features_[1].offsets = at::tensor({0, 3, 2, 4}, at::kLong);
  EXPECT_TRUE(fails());
}

}  // namespace
}  // namespace uqa::models
