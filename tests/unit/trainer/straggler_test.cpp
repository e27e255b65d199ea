#include "trainer/straggler.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <vector>

namespace uqa::trainer {
namespace {

using ::testing::HasSubstr;

TEST(Straggler, TheRankThatTheOthersWaitForIsTheBusiest) {
  StragglerWatch watch;
  // All steps took 10 s; rank 1 waited for nobody.
  const std::vector<RankTimes> ranks{{10, 0.5, 4.5}, {10, 0.5, 0.5}, {10, 1, 4}};
  const auto report = watch.add(ranks);
  EXPECT_EQ(report.slowest_rank, 1);
  EXPECT_EQ(report.where, "compute");
  EXPECT_NEAR(report.excess, 9.5 / 6 - 1, 1e-12);
  EXPECT_EQ(report.to_json().at("rank"), 1);
  EXPECT_DOUBLE_EQ(report.to_json().at("compute_s").get<double>(), 9);
}

TEST(Straggler, ARankThatWaitsForItsDataIsSaidToWaitForData) {
  StragglerWatch watch;
  const std::vector<RankTimes> ranks{{10, 0.5, 4.5}, {10, 5, 0}};
  const auto report = watch.add(ranks);
  EXPECT_EQ(report.slowest_rank, 1);
  EXPECT_EQ(report.where, "data");
}

TEST(Straggler, EvenRanksThatWaitForTheTransportSayComm) {
  StragglerWatch watch;
  const std::vector<RankTimes> ranks{{10, 0, 8}, {10, 0, 7.9}};
  const auto report = watch.add(ranks);
  EXPECT_EQ(report.where, "comm");
  EXPECT_TRUE(report.warning.empty());
}

TEST(Straggler, OnlyAPersistentOneIsWarnedAboutAndLessAndLessOften) {
  StragglerWatch watch;
  const std::vector<RankTimes> slow_1{{10, 0, 5}, {10, 0, 1}}, slow_0{{10, 0, 1}, {10, 0, 5}}, even{{10, 0, 2}, {10, 0, 2}};
  std::vector<int> warned;
  for (int interval = 1; interval <= 13; ++interval) {
    const auto report = watch.add(slow_1);
    if (report.warning.empty()) continue;
    warned.push_back(interval);
    EXPECT_THAT(report.warning, HasSubstr("rank 1 was busy 80 % longer"));
  }
  EXPECT_THAT(warned, ::testing::ElementsAre(3, 6, 12));
  // Another rank, or none, begins anew.
  for (const auto& ranks : {slow_0, slow_0, even, slow_0, slow_0, slow_1, slow_1}) EXPECT_TRUE(watch.add(ranks).warning.empty());
  EXPECT_FALSE(watch.add(slow_1).warning.empty());
}

TEST(Straggler, MillisecondsAreNoReasonToWarn) {
  StragglerWatch watch;
  const std::vector<RankTimes> uneven{{0.02, 0, 0.018}, {0.02, 0, 0.002}};
  for (int interval = 0; interval < 5; ++interval) {
    const auto report = watch.add(uneven);
    EXPECT_EQ(report.slowest_rank, 1);
    EXPECT_GT(report.excess, 1);
    EXPECT_TRUE(report.warning.empty());
  }
}

TEST(Straggler, OneRankAloneIsNeverBehind) {
  StragglerWatch watch;
  const std::vector<RankTimes> alone{{10, 6, 0}};
  for (int interval = 0; interval < 5; ++interval) {
    const auto report = watch.add(alone);
    EXPECT_EQ(report.where, "data");
    EXPECT_EQ(report.excess, 0);
    EXPECT_TRUE(report.warning.empty());
  }
}

}  // namespace
}  // namespace uqa::trainer
