// The metrics record of every rank names the same slowest rank, from what each has measured for itself.
#include <gtest/gtest.h>

#include "tests/dist/dist_world.h"
#include "trainer/metrics.h"

namespace uqa::testing {
namespace {

TEST(Straggler, EveryRankNamesTheLastOneWhichAloneDoesNotWait) {
  const auto& world = dist_world();
  const int last = world.size() - 1;
  trainer::StepMeter meter(comm::Mesh(world, 0, 1));
  const bool slow = world.rank() == last;
  for (int step = 0; step < 2; ++step) meter.add({.num_labels = 1}, 1.0, 1.0, {.total_s = 5, .data_wait_s = slow ? 3.0 : 0.5, .comm_exposed_s = slow ? 0.25 : 3.5});
  const auto record = meter.record(2, 0.5, 0.1, 1.0).at("slowest_rank");
  EXPECT_EQ(record.at("rank").get<int>(), last);
  EXPECT_EQ(record.at("where").get<std::string>(), "data");
  EXPECT_NEAR(record.at("data_wait_s").get<double>(), 6, 1e-6);
  EXPECT_NEAR(record.at("comm_wait_s").get<double>(), 0.5, 1e-6);
  if (world.size() > 1) {
    EXPECT_GT(record.at("excess_fraction").get<double>(), 2);
  }
  // A fresh start.
  EXPECT_EQ(meter.record(3, 0.5, 0.1, 1.0).at("slowest_rank").at("data_wait_s").get<double>(), 0);
}

}  // namespace
}  // namespace uqa::testing
