// The shared collective tests on one rank and on threads as ranks, and what happens there when a rank fails.
#include <gtest/gtest.h>

#include <atomic>

#include "tests/dist/collective_cases.h"

namespace uqa::testing {
namespace {

using comm::Communicator;
using comm::ReduceOp;
using comm::run_ranks;

class ThreadCollectives : public ::testing::TestWithParam<std::tuple<CollectiveCase, int>> {};

TEST_P(ThreadCollectives, GiveClosedFormAnswers) {
  const auto& [body, num_ranks] = GetParam();
  std::atomic<int> ran{0};
  run_ranks(num_ranks, [&, run = body.run](const Communicator& comm) {
    EXPECT_EQ(comm.axis(), "world");
    run(comm);
    ++ran;
  });
  EXPECT_EQ(ran, num_ranks);
}

INSTANTIATE_TEST_SUITE_P(Threads, ThreadCollectives,
                         ::testing::Combine(::testing::ValuesIn(collective_cases()), ::testing::Values(1, 2, 3, 4)),
                         [](const auto& test) {
                           return fmt::format("{}_np{}", std::get<0>(test.param).name, std::get<1>(test.param));
                         });

TEST(Serial, DefaultCommunicatorIsAlone) {
  const Communicator alone;
  for (const auto& body : collective_cases()) {
    SCOPED_TRACE(body.name);
    body.run(alone);
  }
  EXPECT_EQ(alone.bytes_sent(), 0);
}

std::string message_of(int num_ranks, const std::function<void(const Communicator&)>& body) {
  try {
    run_ranks(num_ranks, body);
  } catch (const std::exception& error) {
    return error.what();
  }
  return "";
}

TEST(RunRanks, FirstErrorIsRethrownAndWakesWaitingPeers) {
  std::atomic<int> woken{0};
  const auto text = message_of(3, [&](const Communicator& comm) {
    if (comm.rank() == 1) UQA_FAIL(ErrorCode::kData, "rank 1 cannot read");
    try {
      comm::barrier(comm);
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kComm);
      ++woken;
      throw;
    }
  });
  EXPECT_EQ(text, "rank 1 cannot read");
  EXPECT_EQ(woken, 2);
}

TEST(RunRanks, RankThatFailsReleasesPeersThatWaitForWork) {
  const auto text = message_of(2, [&](const Communicator& comm) {
    if (comm.rank() == 1) UQA_FAIL(ErrorCode::kNumeric, "loss = nan");
    at::Tensor x = at::ones({4});
    comm::all_reduce_async_(x, ReduceOp::kSum, comm).wait();
  });
  EXPECT_EQ(text, "loss = nan");
}

TEST(RunRanks, RankThatReturnsEarlyIsNamed) {
  const auto text = message_of(3, [&](const Communicator& comm) {
    if (comm.rank() != 2) comm::barrier(comm);
  });
  EXPECT_EQ(text, "barrier on axis 'world': rank 2 has returned without calling it");
}

TEST(RunRanks, CollectivesThatDoNotMatchAreRefused) {
  const auto kinds = message_of(2, [&](const Communicator& comm) {
    at::Tensor x = at::ones({4});
    if (comm.rank() == 0) comm::all_reduce_(x, ReduceOp::kSum, comm);
    if (comm.rank() == 1) comm::broadcast_(x, 0, comm);
  });
  EXPECT_NE(kinds.find("collectives must match"), std::string::npos) << kinds;
  const auto sizes = message_of(2, [&](const Communicator& comm) {
    at::Tensor x = at::ones({4 + comm.rank()});
    comm::all_reduce_(x, ReduceOp::kSum, comm);
  });
  EXPECT_NE(sizes.find("16 bytes"), std::string::npos) << sizes;
  EXPECT_NE(sizes.find("20 bytes"), std::string::npos) << sizes;
}

TEST(RunRanks, WorksOfTwoAxesMayWaitInDifferentOrder) {
  run_ranks(2, [&](const Communicator& world) {
    const auto a = world.split(0, world.rank(), "a"), b = world.split(0, world.rank(), "b");
    at::Tensor x = at::ones({3}), y = at::ones({3});
    if (world.rank() == 0) {
      auto work = comm::all_reduce_async_(x, ReduceOp::kSum, a);
      comm::all_reduce_(y, ReduceOp::kSum, b);
      work.wait();
    } else {
      comm::all_reduce_(y, ReduceOp::kSum, b);
      comm::all_reduce_async_(x, ReduceOp::kSum, a).wait();
    }
    EXPECT_TRUE(at::equal(x, at::full({3}, 2.0f)) && at::equal(y, x));
  });
}

TEST(RunRanks, RefusesZeroRanks) {
  EXPECT_THROW(run_ranks(0, [](const Communicator&) {}), Error);
}

}  // namespace
}  // namespace uqa::testing
