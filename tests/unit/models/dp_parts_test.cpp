// Parts of tensors over data-parallel ranks: which positions they are, and that parts of all ranks give the whole.
#include "models/parallel/dp_parts.h"
#include "models/parallel/sliced.h"

#include <gtest/gtest.h>

#include "tests/support/expect_error.h"

namespace uqa::models {
namespace {

Tensor values(std::vector<std::int64_t> shape) { return at::sin(at::arange(c10::multiply_integers(shape), at::kFloat)).view(shape); }

TEST(DpParts, OfAWholeTensorAreItsRows) {
  const auto whole = values({7, 3});
  std::int64_t next = 0;
  for (int rank = 0; rank < 4; ++rank) {
    const auto layout = dp_part_layout(whole, {}, rank, 4);
    EXPECT_EQ(layout.axis, ShardAxis::kDp);
    EXPECT_EQ(layout.global_shape, (std::vector<std::int64_t>{7, 3}));
    ASSERT_EQ(layout.ranges.size(), 1U);
    EXPECT_EQ(layout.ranges[0].begin, next);
    next += layout.ranges[0].length;
    const auto range = dp_range(whole, {}, rank, 4);
    check_layout("part", whole.narrow(0, range.begin, range.length), layout);
    EXPECT_TRUE(at::equal(whole.narrow(0, range.begin, range.length), part_of(whole, layout)));
  }
  EXPECT_EQ(next, 7);
}

TEST(DpParts, OfATensorParallelSliceAreRangesOfTheSameDimension) {
  // Tensor-parallel rank 1 of 2 holds columns [2, 4), [6, 8), [10, 12) of twelve, the last ones together with its peer.
  const auto whole = values({5, 12});
  const ParameterLayout slice{.axis = ShardAxis::kTp, .global_shape = {5, 12}, .dim = 1, .ranges = {{2, 2, 1}, {6, 2, 1}, {10, 2, 2}}};
  const auto local = part_of(whole, slice);
  std::int64_t elements = 0;
  for (int rank = 0; rank < 4; ++rank) {
    const auto layout = dp_part_layout(local, slice, rank, 4);
    EXPECT_EQ(layout.axis, ShardAxis::kDpTp);
    EXPECT_EQ(layout.dim, 1);
    const auto range = dp_range(local, slice, rank, 4);
    const auto part = local.narrow(1, range.begin, range.length);
    check_layout("part", part, layout);
    EXPECT_TRUE(at::equal(part, part_of(whole, layout))) << rank;
    for (const auto& r : layout.ranges) EXPECT_EQ(r.copies, r.begin >= 10 ? 2 : 1);
    elements += part.numel();
  }
  EXPECT_EQ(elements, local.numel());
  EXPECT_EQ(dp_part_layout(local, slice, 0, 7).ranges.size(), 0U) << "a rank without any position";
}

TEST(DpParts, TablesOfAGroupAndNumbersAreNotCut) {
  const auto number = at::zeros({});
  const auto rows = sliced(ShardAxis::kTable, {8, 2}, 0, {0, 4});
  EXPECT_FALSE(can_cut_over_dp(number, {}));
  EXPECT_FALSE(can_cut_over_dp(values({4, 2}), rows));
  EXPECT_TRUE(can_cut_over_dp(values({4}), {}));
  EXPECT_UQA_ERROR(dp_part_layout(values({4, 2}), rows, 0, 2), ErrorCode::kInternal, "cannot be cut over dp");
}

TEST(DpParts, GatherMakesWholeAndReduceScatterSums) {
  const ParameterLayout columns{.axis = ShardAxis::kTp, .global_shape = {4, 10}, .dim = 1, .ranges = {{5, 5}}};
  for (const int ranks : {1, 2, 3, 4}) {
    comm::run_ranks(ranks, [&](const comm::Communicator& dp) {
      // Uneven rows, columns of a slice, a vector, and fewer rows than ranks.
      const std::vector<Tensor> wholes{values({7, 3}), values({4, 5}), values({6}), values({1, 2})};
      const std::vector<ParameterLayout> layouts{{}, columns, {}, {}};
      std::vector<DpItem> items;
      std::vector<Tensor> parts, targets, contributions;
      for (std::size_t i = 0; i < wholes.size(); ++i) {
        items.push_back(dp_item(wholes[i], layouts[i]));
        const auto range = dp_range(wholes[i], layouts[i], dp.rank(), ranks);
        parts.push_back(wholes[i].narrow(dp_dim(layouts[i]), range.begin, range.length));
        targets.push_back(at::full_like(wholes[i], -9));
        contributions.push_back(wholes[i] * (dp.rank() + 1.0));
      }
      const DpExchange exchange(items, dp);
      EXPECT_EQ(exchange.num_elements(), 21 + 20 + 6 + 2);
      exchange.gather(parts, targets);
      for (std::size_t i = 0; i < wholes.size(); ++i) EXPECT_TRUE(at::equal(targets[i], wholes[i])) << i;
      contributions[2] = Tensor();
      const auto sums = exchange.reduce_scatter(contributions);
      const double factor = ranks * (ranks + 1) / 2.0;
      for (std::size_t i = 0; i < wholes.size(); ++i) {
        EXPECT_TRUE(at::allclose(sums[i], i == 2 ? at::zeros_like(parts[i]) : parts[i] * factor, 1e-6, 1e-6)) << i;
        EXPECT_TRUE(sums[i].is_contiguous());
      }
    });
  }
}

}  // namespace
}  // namespace uqa::models
