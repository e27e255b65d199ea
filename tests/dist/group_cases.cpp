// Groups of ranks, and what they agree on.
#include "tests/dist/case_values.h"
#include "tests/dist/collective_cases.h"

namespace uqa::testing {

namespace {

using comm::Communicator;
using comm::ReduceOp;

void integers(const Communicator& comm) {
  EXPECT_EQ(comm::all_reduce(std::int64_t{comm.rank()}, ReduceOp::kMax, comm), comm.size() - 1);
  EXPECT_EQ(comm::all_reduce((std::int64_t{1} << 53) + comm.rank(), ReduceOp::kMin, comm), std::int64_t{1} << 53);
  comm::barrier(comm);
}

void split_makes_ordered_groups(const Communicator& comm) {
  const int color = comm.rank() % 2;
  const Communicator part = comm.split(color, -comm.rank(), "odd_even");
  const int size = (comm.size() + 1 - color) / 2;
  EXPECT_EQ(part.axis(), "odd_even");
  EXPECT_EQ(part.size(), size);
  EXPECT_EQ(part.rank(), size - 1 - comm.rank() / 2) << "ordered by key";
  std::int64_t sum = 0;
  for (int r = color; r < comm.size(); r += 2) sum += r;
  EXPECT_EQ(comm::all_reduce(std::int64_t{comm.rank()}, ReduceOp::kSum, part), sum);
  const Communicator alone = part.split(part.rank(), 0, "alone");
  EXPECT_EQ(alone.size(), 1);
  EXPECT_EQ(comm::all_reduce(std::int64_t{comm.rank()}, ReduceOp::kSum, alone), comm.rank());
  EXPECT_EQ(comm.split(0, comm.rank(), "again").rank(), comm.rank());
}

void mesh_has_tp_innermost(const Communicator& comm) {
  const int n = comm.size();
  for (const int tp : {1, 2, n}) {
    if (n % tp != 0) continue;
    const comm::Mesh mesh(comm, 0, tp);
    EXPECT_EQ(mesh.world().size(), n);
    EXPECT_EQ(mesh.tp().size(), tp);
    EXPECT_EQ(mesh.dp().size(), n / tp);
    EXPECT_EQ(mesh.tp().rank(), comm.rank() % tp);
    EXPECT_EQ(mesh.dp().rank(), comm.rank() / tp);
    EXPECT_EQ(mesh.dp().axis(), "dp");
    const comm::Mesh same(comm, n / tp, tp);
    EXPECT_EQ(same.dp().rank(), mesh.dp().rank());
  }
  const auto [code, text] = agreed_error([&] { const comm::Mesh mesh(comm, n + 1, 3); });
  EXPECT_EQ(code, ErrorCode::kConfig);
  for (const auto& named :
       {fmt::format("parallel.dp = {}", n + 1), std::string("parallel.tp = 3"), fmt::format("world size {}", n)}) {
    EXPECT_NE(text.find(named), std::string::npos) << text;
  }
  EXPECT_EQ(agreed_error([&] { const comm::Mesh mesh(comm, 0, n + 1); }).first, ErrorCode::kConfig);
  EXPECT_EQ(agreed_error([&] { const comm::Mesh mesh(comm, 1, 0); }).first, ErrorCode::kConfig);
}

void mesh_has_table_groups_of_consecutive_ranks(const Communicator& comm) {
  const int n = comm.size();
  for (const int tp : {1, 2}) {
    if (n % tp != 0) continue;
    EXPECT_EQ(comm::Mesh(comm, 0, tp).table().size(), n) << "the whole world by default";
    for (int group = tp; group <= n; group += tp) {
      if (n % group != 0) continue;
      const comm::Mesh mesh(comm, 0, tp, group);
      EXPECT_EQ(mesh.table().size(), group);
      EXPECT_EQ(mesh.table().rank(), comm.rank() % group);
      EXPECT_EQ(mesh.table_replica().size(), n / group);
      EXPECT_EQ(mesh.table_replica().rank(), comm.rank() / group);
      EXPECT_EQ(comm::all_reduce(std::int64_t{comm.rank()}, ReduceOp::kMin, mesh.table()), comm.rank() / group * group);
      const auto before = mesh.bytes_sent();
      (void)comm::all_gather(at::zeros({4}), mesh.table());
      EXPECT_EQ(mesh.bytes_sent() - before, 16 * (group - 1)) << "bytes of every axis are counted";
    }
  }
  const auto [code, text] = agreed_error([&] { const comm::Mesh mesh(comm, 0, 1, n + 1); });
  EXPECT_EQ(code, ErrorCode::kConfig);
  for (const auto& named : {fmt::format("parallel.table_group = {}", n + 1), fmt::format("world size {}", n), std::string("parallel.tp = 1")}) {
    EXPECT_NE(text.find(named), std::string::npos) << text;
  }
  if (n % 2 == 0) {
    EXPECT_EQ(agreed_error([&] { const comm::Mesh mesh(comm, 0, 2, 1); }).first, ErrorCode::kConfig) << "splits a tp group";
  }
  EXPECT_EQ(agreed_error([&] { const comm::Mesh mesh(comm, 0, 1, -1); }).first, ErrorCode::kConfig);
}

void errors_are_agreed(const Communicator& comm) {
  const int last = comm.size() - 1;
  const std::string prefix = comm.size() == 1 ? "" : fmt::format("rank {}: ", last);
  comm::agree_or_throw(comm, true, ErrorCode::kData, "never seen");
  const auto mine = agreed_error([&] {
    comm::agree_or_throw(comm, comm.rank() != last, ErrorCode::kData, fmt::format("file of rank {}", comm.rank()));
  });
  EXPECT_EQ(mine.first, ErrorCode::kData);
  EXPECT_EQ(mine.second, fmt::format("{}file of rank {}", prefix, last));
  const auto all = agreed_error(
      [&] { comm::agree_or_throw(comm, false, ErrorCode::kNumeric, fmt::format("loss on {}", comm.rank())); });
  EXPECT_EQ(all.first, ErrorCode::kNumeric);
  EXPECT_EQ(all.second, "loss on 0");

  int runs = 0;
  comm::run_agreed(comm, [&] { ++runs; });
  EXPECT_EQ(runs, 1);
  const auto ours = agreed_error(
      [&] { comm::run_agreed(comm, [&] { UQA_CHECK(comm.rank() != last, ErrorCode::kConfig, "x = {}", 3); }); });
  EXPECT_EQ(ours.first, ErrorCode::kConfig);
  EXPECT_EQ(ours.second, prefix + "x = 3");
  const auto foreign = agreed_error([&] {
    comm::run_agreed(comm, [&] {
      if (comm.rank() == last) throw std::runtime_error("first\nsecond");
    });
  });
  EXPECT_EQ(foreign.first, ErrorCode::kInternal);
  EXPECT_EQ(foreign.second, prefix + "first");
  const auto nested = agreed_error([&] {
    comm::run_agreed(comm, [&] { comm::agree_or_throw(comm, comm.rank() != last, ErrorCode::kData, "inner"); });
  });
  EXPECT_EQ(nested.second, prefix + "inner") << "named once";
}

}  // namespace

std::vector<CollectiveCase> group_cases() {
  return {
      {"Integers", integers},
      {"SplitMakesOrderedGroups", split_makes_ordered_groups},
      {"MeshHasTpInnermost", mesh_has_tp_innermost},
      {"MeshHasTableGroupsOfConsecutiveRanks", mesh_has_table_groups_of_consecutive_ranks},
      {"ErrorsAreAgreed", errors_are_agreed},
  };
}

}  // namespace uqa::testing
