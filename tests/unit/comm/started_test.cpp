// Started collectives on threads: what is told when a rank fails, starts something else, or does not come.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <future>
#include <utility>

#include "comm/backend.h"

namespace uqa::comm {
namespace {

using ::testing::HasSubstr;

const std::vector<std::int64_t> kTwoEach{2, 2};

std::string error_on_two_ranks(const std::function<void(const Communicator&)>& body) {
  try {
    run_ranks(2, body);
  } catch (const std::exception& error) {
    return error.what();
  }
  return "";
}

TEST(StartedGather, ARankThatFailsReleasesPeersThatWait) {
  const auto text = error_on_two_ranks([](const Communicator& comm) {
    if (comm.rank() == 1) UQA_FAIL(ErrorCode::kNumeric, "loss = nan");
    all_gather_async(at::ones({2}), kTwoEach, comm).second.wait();
  });
  EXPECT_EQ(text, "loss = nan");
}

TEST(StartedGather, ARankThatReturnsWithoutStartingIsNamed) {
  const auto text = error_on_two_ranks([](const Communicator& comm) {
    if (comm.rank() == 0) all_gather_async(at::ones({2}), kTwoEach, comm).second.wait();
  });
  EXPECT_EQ(text, "all_gather_async on axis 'world': rank 1 has returned without calling it");
}

TEST(StartedGather, AnErrorOnItsWayOutLeavesAGatherThatNobodyJoins) {
  const auto text = error_on_two_ranks([](const Communicator& comm) {
    if (comm.rank() == 0) barrier(comm);
    const auto started = all_gather_async(at::ones({2}), kTwoEach, comm);
    UQA_FAIL(ErrorCode::kNumeric, "loss = nan");
  });
  EXPECT_EQ(text, "loss = nan");
}

TEST(StartedGather, WhatDoesNotMatchIsRefused) {
  EXPECT_THAT(error_on_two_ranks([](const Communicator& comm) {
                const auto mine = static_cast<std::int64_t>(2 + comm.rank());
                all_gather_async(at::ones({mine}), {mine, mine}, comm).second.wait();
              }),
              HasSubstr("all_gather_async of [8, 8] and all_gather_async of [12, 12]; started collectives must match"));
  EXPECT_THAT(error_on_two_ranks([](const Communicator& comm) {
                at::Tensor x = at::ones({2});
                if (comm.rank() == 0) all_gather_async(x, kTwoEach, comm).second.wait();
                if (comm.rank() == 1) all_reduce_async_(x, ReduceOp::kSum, comm).wait();
              }),
              HasSubstr("all_gather_async of [8, 8] and all_reduce_async of [2]; started collectives must match"));
}

TEST(StartedGather, TheWatchdogTellsWhichOneHasWaitedTooLong) {
  std::promise<std::string> reported;
  const std::shared_future<std::string> line = reported.get_future();
  const auto watchdog = std::make_shared<Watchdog>(0, 2, [&, told = false](const std::string& text, bool) mutable {
    if (!std::exchange(told, true)) reported.set_value(text);
  });
  run_ranks(2, [&](const Communicator& comm) {
    if (comm.rank() == 0) comm.backend().watched() = WatchedGroup(watchdog, 1, "world", std::vector<int>{0, 1});
    auto first = all_gather_async(at::ones({2}), kTwoEach, comm);
    first.second.wait();
    if (comm.rank() == 0) watchdog->watch(0.1);  // not before: the first may be late, too
    if (comm.rank() == 1) line.wait_for(std::chrono::seconds(20));
    auto second = all_gather_async(at::ones({2}), kTwoEach, comm);
    second.second.wait();
  });
  ASSERT_EQ(line.wait_for(std::chrono::seconds(0)), std::future_status::ready);
  EXPECT_THAT(line.get(), HasSubstr("all_gather_async on axis 'world', sequence 2,"));
}

}  // namespace
}  // namespace uqa::comm
