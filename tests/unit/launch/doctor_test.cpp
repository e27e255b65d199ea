#include "launch/doctor.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace uqa::launch {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr std::int64_t kPlenty = std::int64_t{1} << 34;

RankFacts rank_on(int rank, const std::string& host, std::vector<int> cores, std::int64_t threads) {
  return {.rank = rank, .host = host, .host_cores = 8, .cores = std::move(cores), .threads = threads, .shared_memory_free_bytes = kPlenty};
}

TEST(Doctor, RanksThatFitAreFine) {
  EXPECT_THAT(diagnose(std::vector{rank_on(0, "a", {0, 1, 2, 3}, 4), rank_on(1, "a", {4, 5, 6, 7}, 4), rank_on(2, "b", {0, 1, 2, 3, 4, 5, 6, 7}, 4)}), IsEmpty());
}

TEST(Doctor, ARankBoundToOneCoreIsToldHowToUnbind) {
  EXPECT_THAT(diagnose(std::vector{rank_on(0, "a", {0}, 8)}), ElementsAre(HasSubstr("rank 0: threads = 8, cores that it may run on = 1 (0); start with mpirun --bind-to none")));
}

TEST(Doctor, RanksOfTwoJobsOnOneCoreAreToldToShare) {
  const auto warnings = diagnose(std::vector{rank_on(0, "a", {0, 1}, 2), rank_on(1, "a", {0, 1}, 2)});
  EXPECT_THAT(warnings, ElementsAre(HasSubstr("host a: threads of its 2 ranks = 4, cores that they may run on together = 2 (0-1)")));
}

TEST(Doctor, MoreRanksThanCoresAreNamed) {
  std::vector<RankFacts> ranks;
  for (int r = 0; r < 9; ++r) ranks.push_back(rank_on(r, "a", {0, 1, 2, 3, 4, 5, 6, 7}, 1));
  EXPECT_THAT(diagnose(ranks), ::testing::Contains(HasSubstr("host a: ranks = 9, cores = 8")));
}

TEST(Doctor, SmallSharedMemoryUnequalThreadsAndAnIdleGpuAreNamed) {
  auto a = rank_on(0, "a", {0, 1, 2, 3}, 4), b = rank_on(1, "a", {4, 5, 6, 7}, 2);
  a.shared_memory_free_bytes = b.shared_memory_free_bytes = std::int64_t{8} << 20;
  a.has_gpu = true;
  a.plugin_trouble = "the plug-in is missing";
  EXPECT_THAT(diagnose(std::vector{a, b}), ElementsAre(HasSubstr("free in /dev/shm = 8 MiB"), HasSubstr("host a has a GPU that cannot be used: the plug-in is missing"),
                                                       HasSubstr("threads per rank differ (4 on rank 0, 2 on rank 1)")));
}

TEST(Doctor, FactsTravelAsJson) {
  const auto facts = facts_of_this_process(3, 2);
  EXPECT_FALSE(facts.cores.empty());
  EXPECT_GE(facts.host_cores, 1);
  const auto again = RankFacts::from_json(facts.to_json());
  EXPECT_EQ(again.to_json(), facts.to_json());
  EXPECT_EQ(again.rank, 3);
}

TEST(Doctor, CoresAreShownAsRanges) {
  EXPECT_EQ(ranges({0, 1, 2, 3, 8, 10, 11}), "0-3,8,10-11");
  EXPECT_EQ(ranges({}), "");
}

}  // namespace
}  // namespace uqa::launch
