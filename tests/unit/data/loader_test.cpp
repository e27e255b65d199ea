#include "data/loader.h"

#include <atomic>
#include <numeric>
#include <set>

#include "tests/unit/data/fixture.h"

namespace uqa::data {
namespace {

using ::testing::StartsWith;
using namespace std::chrono_literals;

TEST(GlobalBatchTest, OneEpochVisitsEverySampleOnce) {
  for (const std::int64_t n : {1, 7, 64, 1000}) {
    std::set<std::int64_t> seen;
    std::int64_t count = 0;
    Cursor at;
    while (at.epoch == 0) {
      for (const auto sample : global_batch(3, at, n, 10)) {
        EXPECT_TRUE(sample >= 0 && sample < n);
        seen.insert(sample);
        ++count;
      }
      at = advance(at, n, 10);
    }
    EXPECT_EQ(count, n);
    EXPECT_EQ(static_cast<std::int64_t>(seen.size()), n);
    EXPECT_EQ(at, (Cursor{.epoch = 1, .position = 0}));
  }
}

TEST(GlobalBatchTest, OrderDependsOnSeedAndEpochOnly) {
  const auto first = global_batch(1, 0, 0, 100, 100);
  EXPECT_EQ(first, global_batch(1, 0, 0, 100, 100));
  EXPECT_NE(first, global_batch(2, 0, 0, 100, 100));
  EXPECT_NE(first, global_batch(1, 1, 0, 100, 100));
  // Another batch size walks through the same order.
  std::vector<std::int64_t> small;
  for (std::int64_t p = 0; p < 100; p += 30) {
    const auto part = global_batch(1, 0, p, 100, 30);
    small.insert(small.end(), part.begin(), part.end());
  }
  EXPECT_EQ(small, first);
}

TEST(GlobalBatchTest, CursorIsArithmetic) {
  EXPECT_EQ(batches_per_epoch(100, 30), 4);
  EXPECT_EQ(batches_per_epoch(90, 30), 3);
  Cursor at;
  for (std::int64_t step = 0; step < 20; ++step) {
    EXPECT_EQ(cursor_at(step, 100, 30), at) << step;
    at = advance(at, 100, 30);
  }
  EXPECT_THAT(error_of([] { (void)global_batch(1, 0, 100, 100, 30); }), StartsWith("70: "));
  EXPECT_THAT(error_of([] { (void)global_batch(1, 0, 0, 0, 30); }), StartsWith("70: "));
}

TEST(SplitBalancedTest, UnionIsExactForEveryWorldSize) {
  const auto samples = global_batch(5, 0, 0, 500, 101);
  std::vector<std::int64_t> costs;
  for (const auto s : samples) costs.push_back(1 + s * s % 997);
  for (const int size : {1, 2, 3, 8, 150}) {
    std::multiset<std::int64_t> all;
    for (int r = 0; r < size; ++r) {
      const auto mine = split_balanced(samples, costs, size, r);
      all.insert(mine.begin(), mine.end());
    }
    EXPECT_EQ(all, std::multiset<std::int64_t>(samples.begin(), samples.end()));
  }
  EXPECT_EQ(split_balanced(samples, costs, 1, 0), samples);
}

TEST(SplitBalancedTest, CostsAreWithinOneSampleOfEachOther) {
  const auto samples = global_batch(5, 0, 0, 300, 300);
  std::vector<std::int64_t> cost_of(300), costs;
  for (std::size_t s = 0; s < 300; ++s) cost_of[s] = 1 + static_cast<std::int64_t>(s * 37 % 512);
  for (const auto s : samples) costs.push_back(cost_of[static_cast<std::size_t>(s)]);
  std::vector<std::int64_t> loads;
  for (int r = 0; r < 4; ++r) {
    std::int64_t load = 0;
    for (const auto s : split_balanced(samples, costs, 4, r)) load += cost_of[static_cast<std::size_t>(s)];
    loads.push_back(load);
  }
  const auto [low, high] = std::minmax_element(loads.begin(), loads.end());
  EXPECT_LE(*high - *low, 10);  // the smallest samples come last and even the loads out
}

TEST(SplitBalancedTest, SamplesWithoutCostAreSpreadEvenly) {
  std::vector<std::int64_t> samples(10), costs(10, 0);
  std::iota(samples.begin(), samples.end(), 0);
  for (int r = 0; r < 5; ++r) EXPECT_EQ(split_balanced(samples, costs, 5, r).size(), 2U);
  EXPECT_TRUE(split_balanced({}, {}, 3, 2).empty());
}

TEST(PrefetcherTest, ResultsComeInOrderFromSeveralThreads) {
  Prefetcher<std::int64_t> batches(
      [](std::int64_t step) {
        std::this_thread::sleep_for(std::chrono::microseconds(step % 3 * 500));
        return step < 60 ? std::make_unique<std::int64_t>(step) : nullptr;
      },
      {.first_step = 10, .num_threads = 4, .capacity = 6});
  for (std::int64_t step = 10; step < 60; ++step) {
    EXPECT_EQ(batches.step(), step);
    const auto item = batches.next();
    ASSERT_NE(item, nullptr);
    EXPECT_EQ(*item, step);
  }
  EXPECT_EQ(batches.next(), nullptr);
  EXPECT_EQ(batches.next(), nullptr);
}

TEST(PrefetcherTest, NeverRunsFurtherAheadThanItsCapacity) {
  std::atomic<std::int64_t> made{0};
  Prefetcher<int> batches(
      [&](std::int64_t) {
        ++made;
        return std::make_unique<int>(0);
      },
      {.num_threads = 3, .capacity = 4});
  std::this_thread::sleep_for(50ms);
  EXPECT_EQ(made, 4);
  (void)batches.next();
  std::this_thread::sleep_for(50ms);
  EXPECT_EQ(made, 5);
}

TEST(PrefetcherTest, ExceptionComesAtItsStepAndStays) {
  Prefetcher<std::int64_t> batches(
      [](std::int64_t step) -> std::unique_ptr<std::int64_t> {
        if (step == 3) UQA_FAIL(ErrorCode::kData, "step 3 is broken");
        return std::make_unique<std::int64_t>(step);
      },
      {.num_threads = 2});
  for (std::int64_t step = 0; step < 3; ++step) EXPECT_EQ(*batches.next(), step);
  EXPECT_EQ(error_of([&] { (void)batches.next(); }), "3: step 3 is broken");
  EXPECT_EQ(error_of([&] { (void)batches.next(); }), "3: step 3 is broken");
}

TEST(PrefetcherTest, StopsWhileProducersAreBusyOrWaiting) {
  std::atomic<int> running{0};
  {
    Prefetcher<int> batches(
        [&](std::int64_t) {
          ++running;
          std::this_thread::sleep_for(5ms);
          --running;
          return std::make_unique<int>(1);
        },
        {.num_threads = 4, .capacity = 2});
    EXPECT_NE(batches.next(), nullptr);
    batches.stop();
    EXPECT_EQ(running, 0);
    EXPECT_EQ(batches.next(), nullptr);
    batches.stop();
  }
  EXPECT_EQ(running, 0);
}

TEST(PrefetcherTest, MeasuresTheTimeItMadeTheConsumerWait) {
  Prefetcher<int> slow([](std::int64_t) {
    std::this_thread::sleep_for(20ms);
    return std::make_unique<int>(1);
  });
  (void)slow.next();
  EXPECT_GE(slow.wait_s(), 0.01);
  Prefetcher<int> fast([](std::int64_t) { return std::make_unique<int>(1); });
  std::this_thread::sleep_for(50ms);
  (void)fast.next();
  EXPECT_LT(fast.wait_s(), 0.01);
}

TEST(PrefetcherTest, RefusesNoThreads) {
  EXPECT_THAT(error_of([] { const Prefetcher<int> none([](std::int64_t) { return nullptr; }, {.num_threads = 0}); }), StartsWith("2: "));
}

}  // namespace
}  // namespace uqa::data
