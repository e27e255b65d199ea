#include "core/random.h"

#include <array>
#include <cmath>
#include <set>
#include <vector>

#include <gtest/gtest.h>

#include "tests/support/expect_error.h"

namespace uqa {
namespace {

using Words = std::array<std::uint32_t, 4>;

TEST(Philox, GivesTheKnownAnswersOfItsPaper) {
  EXPECT_EQ(philox(0, 0, 0), (Words{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  constexpr std::uint64_t kOnes = ~std::uint64_t{0};
  EXPECT_EQ(philox(kOnes, kOnes, kOnes), (Words{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  // Digits of pi: counter 243f6a88 85a308d3 13198a2e 03707344, key a4093822 299f31d0.
  EXPECT_EQ(philox(0x299f31d0a4093822, 0x85a308d3243f6a88, 0x0370734413198a2e), (Words{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

TEST(Uniform, CoversZeroToBelowOne) {
  EXPECT_EQ(uniform(0), 0.0f);
  EXPECT_LT(uniform(0xFFFFFFFFu), 1.0f);
  EXPECT_GT(uniform(0xFFFFFFFFu), 0.9999f);
}

TEST(StreamKey, DependsOnSeedAndName) {
  EXPECT_EQ(stream_key(1, "init/a"), stream_key(1, "init/a"));
  EXPECT_NE(stream_key(1, "init/a"), stream_key(2, "init/a"));
  EXPECT_NE(stream_key(1, "init/a"), stream_key(1, "init/b"));
  EXPECT_NE(mix_key(7, 0), mix_key(7, 1));
  EXPECT_NE(mix_key(7, 0), mix_key(8, 0));
}

TEST(PhiloxStream, ContinuesTheCounterAndRepeatsForTheSameKey) {
  PhiloxStream a(5), b(5);
  const auto first = philox(5, 0), second = philox(5, 1);
  for (const std::uint32_t word : first) EXPECT_EQ(a(), word);
  for (const std::uint32_t word : second) EXPECT_EQ(a(), word);
  EXPECT_EQ(b(), first[0]);
}

TEST(PhiloxStream, DrawsIntegersBelowNEvenly) {
  PhiloxStream stream(stream_key(3, "below"));
  constexpr int kDraws = 60'000;
  std::array<int, 6> counts{};
  for (int i = 0; i < kDraws; ++i) ++counts[stream.below(counts.size())];
  double chi_square = 0;
  for (const int count : counts) chi_square += std::pow(count - kDraws / 6.0, 2) / (kDraws / 6.0);
  EXPECT_LT(chi_square, 20.5);  // 5 degrees of freedom, p = 0.001
  for (int i = 0; i < 100; ++i) EXPECT_EQ(stream.below(1), 0u);
  EXPECT_UQA_ERROR(stream.below(0), ErrorCode::kInternal, "n > 0");
}

TEST(PhiloxStream, DrawsDoublesWithMeanOneHalf) {
  PhiloxStream stream(9);
  double sum = 0;
  constexpr int kDraws = 40'000;
  for (int i = 0; i < kDraws; ++i) {
    const double value = stream.uniform_double();
    ASSERT_GE(value, 0.0);
    ASSERT_LT(value, 1.0);
    sum += value;
  }
  EXPECT_NEAR(sum / kDraws, 0.5, 5 / std::sqrt(12.0 * kDraws));
}

TEST(Permutation, IsABijectionForManySizes) {
  for (const std::uint64_t n : {1, 2, 3, 4, 5, 15, 16, 17, 63, 64, 65, 100, 255, 256, 257, 1000, 4095, 4096, 4097, 10'007}) {
    const Permutation permutation(n, 42);
    EXPECT_EQ(permutation.size(), n);
    std::vector<bool> seen(n, false);
    for (std::uint64_t i = 0; i < n; ++i) {
      const std::uint64_t at = permutation(i);
      ASSERT_LT(at, n);
      ASSERT_FALSE(seen[at]) << "n " << n << ", index " << i;
      seen[at] = true;
    }
  }
}

TEST(Permutation, DiffersByKeyAndIsNotTheIdentity) {
  constexpr std::uint64_t kSize = 1000;
  const Permutation a(kSize, 1), b(kSize, 2), again(kSize, 1);
  int equal_to_b = 0, fixed_points = 0;
  for (std::uint64_t i = 0; i < kSize; ++i) {
    EXPECT_EQ(a(i), again(i));
    equal_to_b += a(i) == b(i);
    fixed_points += a(i) == i;
  }
  EXPECT_LT(equal_to_b, 12);  // one is expected of random permutations
  EXPECT_LT(fixed_points, 12);
}

TEST(Permutation, SpreadsEveryElementOverEveryPlace) {
  constexpr std::uint64_t kSize = 5;
  constexpr int kKeys = 10'000;
  std::array<std::array<int, kSize>, kSize> counts{};
  for (int key = 0; key < kKeys; ++key) {
    const Permutation permutation(kSize, mix_key(77, static_cast<std::uint64_t>(key)));
    for (std::uint64_t i = 0; i < kSize; ++i) ++counts[i][permutation(i)];
  }
  for (const auto& row : counts) {
    for (const int count : row) EXPECT_NEAR(count, kKeys / 5.0, 5 * std::sqrt(kKeys * 0.2 * 0.8));
  }
}

TEST(Permutation, WorksForTheLargestSizesAndRefusesIndicesBeyond) {
  constexpr std::uint64_t kHuge = (std::uint64_t{1} << 63) + 12'345;
  const Permutation permutation(kHuge, 3);
  std::set<std::uint64_t> seen;
  for (std::uint64_t i = 0; i < 1000; ++i) {
    const auto at = permutation(i);
    EXPECT_LT(at, kHuge);
    EXPECT_TRUE(seen.insert(at).second);
  }
  EXPECT_UQA_ERROR(permutation(kHuge), ErrorCode::kInternal, "is not below");
  EXPECT_UQA_ERROR(Permutation(0, 1)(0), ErrorCode::kInternal, "is not below");
}

}  // namespace
}  // namespace uqa
