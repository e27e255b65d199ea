// Collectives that are started and waited for later.
#include <numeric>

#include "comm/backend.h"
#include "tests/dist/case_values.h"
#include "tests/dist/collective_cases.h"

namespace uqa::testing {

namespace {

using comm::Communicator;
using comm::ReduceOp;

void works_complete_in_any_order(const Communicator& comm) {
  const int n = comm.size(), sum = n * (n + 1) / 2;
  std::vector<Tensor> tensors;
  std::vector<comm::Work> works;
  for (int i = 0; i < 5; ++i) tensors.push_back(at::full({100 * (i + 1)}, (comm.rank() + 1.0) * (i + 1), at::kFloat));
  for (auto& x : tensors) works.push_back(comm::all_reduce_async_(x, ReduceOp::kSum, comm));
  // A blocking one between issue and wait does not mix with them.
  EXPECT_EQ(comm::all_reduce(std::int64_t{comm.rank() + 1}, ReduceOp::kSum, comm), sum);
  while (!works[4].test()) {
  }
  for (int i : {3, 0, 2, 1}) works[static_cast<std::size_t>(i)].wait();
  for (int i = 0; i < 5; ++i) {
    expect_equal(tensors[static_cast<std::size_t>(i)], at::full({100 * (i + 1)}, 1.0 * sum * (i + 1), at::kFloat));
  }
  Tensor dropped = at::full({10}, comm.rank() + 1.0, at::kBFloat16);
  { const comm::Work work = comm::all_reduce_async_(dropped, ReduceOp::kSum, comm); }
  expect_equal(dropped, at::full({10}, 1.0 * sum, at::kBFloat16));
}

/// Row counts of all ranks: equal, uneven with an empty block, all rows on the last rank.
std::vector<std::vector<std::int64_t>> row_counts(int n) {
  std::vector<std::vector<std::int64_t>> all(3, std::vector<std::int64_t>(static_cast<std::size_t>(n), 0));
  for (int r = 0; r < n; ++r) {
    all[0][static_cast<std::size_t>(r)] = 5;
    all[1][static_cast<std::size_t>(r)] = (2 * r + 1) % 3;  // 1, 0, 2, 1
  }
  all[2].back() = 41;
  return all;
}

/// Rank `rank`'s rows in the gather with number `i`.
Tensor rows_of(int rank, std::int64_t rows, int i, at::ScalarType dtype) { return (pattern(rows * 6, dtype) * (rank + 1 + i)).view({rows, 2, 3}); }

Tensor gathered(const std::vector<std::int64_t>& rows, int i, at::ScalarType dtype) {
  std::vector<Tensor> blocks;
  for (std::size_t r = 0; r < rows.size(); ++r) blocks.push_back(rows_of(static_cast<int>(r), rows[r], i, dtype));
  return at::cat(blocks);
}

void gathers_are_started_together_and_waited_for_in_order(const Communicator& comm) {
  const auto me = static_cast<std::size_t>(comm.rank());
  const int n = comm.size();
  for (const auto dtype : kDtypes) {
    std::vector<Tensor> inputs, results;
    std::vector<comm::Work> works;
    const auto counts = row_counts(n);
    Tensor reduced = at::full({100}, comm.rank() + 1.0);
    comm::Work reduction;
    for (int i = 0; i < 6; ++i) {
      const auto& rows = counts[static_cast<std::size_t>(i % 3)];
      inputs.push_back(rows_of(comm.rank(), rows[me], i, dtype));
      auto [result, work] = comm::all_gather_async(inputs.back(), rows, comm);
      results.push_back(result);
      works.push_back(std::move(work));
      // Other collectives between start and wait, started ones and blocking ones, do not mix with them.
      if (i == 1) reduction = comm::all_reduce_async_(reduced, ReduceOp::kSum, comm);
      if (i == 3) expect_equal(comm::all_gather(inputs.back(), comm), gathered(rows, i, dtype));
    }
    for (int i = 0; i < 6; ++i) {
      const auto at = static_cast<std::size_t>(i);
      works[at].wait();
      works[at].wait();
      EXPECT_TRUE(works[at].test());
      const auto& rows = counts[at % 3];
      expect_equal(results[at], gathered(rows, i, dtype));
      expect_equal(inputs[at], rows_of(comm.rank(), rows[me], i, dtype));
    }
    reduction.wait();
    expect_equal(reduced, at::full({100}, 0.5 * n * (n + 1)));
  }
}

void a_started_gather_owns_what_it_reads_and_writes(const Communicator& comm) {
  const auto rows = row_counts(comm.size())[1];
  const auto mine = rows[static_cast<std::size_t>(comm.rank())];
  const auto want = gathered(rows, 0, at::kFloat);
  // The input is a temporary, not contiguous and part of a graph.
  const auto start = [&] {
    const Tensor x = rows_of(comm.rank(), mine, 0, at::kFloat).permute({0, 2, 1}).contiguous().requires_grad_(true);
    return comm::all_gather_async(x.permute({0, 2, 1}), rows, comm);
  };
  auto [result, work] = start();
  EXPECT_FALSE(result.requires_grad());
  while (!work.test()) {
  }
  expect_equal(result, want);
  // The result goes before its gather ends; the next one is not disturbed.
  comm::Work alone;
  {
    auto dropped = start();
    alone = std::move(dropped.second);
  }
  alone.wait();
  auto [next, next_work] = start();
  next_work.wait();
  expect_equal(next, want);
  const Tensor x = at::ones({2});
  auto [copy, copied] = comm::all_gather_async(x, std::vector<std::int64_t>(static_cast<std::size_t>(comm.size()), 2), comm);
  copied.wait();
  EXPECT_FALSE(copy.is_alias_of(x));
}

void a_started_gather_of_nothing_is_there(const Communicator& comm) {
  const auto ranks = static_cast<std::size_t>(comm.size());
  auto [none, done] = comm::all_gather_async(at::empty({0, 3}), std::vector<std::int64_t>(ranks, 0), comm);
  EXPECT_TRUE(done.test());
  expect_equal(none, at::empty({0, 3}));
  auto [narrow, narrow_done] = comm::all_gather_async(at::empty({2, 0}), std::vector<std::int64_t>(ranks, 2), comm);
  EXPECT_TRUE(narrow_done.test());
  expect_equal(narrow, at::empty({2 * comm.size(), 0}));
}

void a_started_gather_has_a_number_and_its_bytes(const Communicator& comm) {
  if (comm.size() == 1) return;
  const auto rows = row_counts(comm.size())[1];
  const auto mine = rows[static_cast<std::size_t>(comm.rank())];
  auto& watched = comm.backend().watched();
  const auto number = watched.last_sequence();
  const auto bytes = comm.bytes_sent();
  const Tensor x = at::ones({mine, 5});
  auto [first, first_work] = comm::all_gather_async(x, rows, comm);
  EXPECT_STREQ(watched.last_op(), "all_gather_async");
  EXPECT_EQ(watched.last_sequence(), number + 1) << "nothing else is exchanged";
  auto [second, second_work] = comm::all_gather_async(x, rows, comm);
  EXPECT_EQ(watched.last_sequence(), number + 2);
  first_work.wait();
  second_work.wait();
  EXPECT_EQ(watched.last_sequence(), number + 2) << "a wait is no collective";
  EXPECT_EQ(comm.bytes_sent() - bytes, 2 * (comm.size() - 1) * mine * 20);
}

void a_started_gather_refuses_rows_that_are_not_its_own(const Communicator& comm) {
  const auto ranks = static_cast<std::size_t>(comm.size());
  const auto start = [&](const Tensor& x, const std::vector<std::int64_t>& rows) { static_cast<void>(comm::all_gather_async(x, rows, comm)); };
  EXPECT_THROW(start(at::ones({3}), std::vector<std::int64_t>(ranks, 2)), Error);
  EXPECT_THROW(start(at::ones({2}), std::vector<std::int64_t>(ranks + 1, 2)), Error);
  EXPECT_THROW(start(at::ones({2}), {}), Error);
  std::vector<std::int64_t> negative(ranks, 0);
  negative.front() = -1;
  EXPECT_THROW(start(at::empty({0}), negative), Error);
  EXPECT_THROW(start(at::scalar_tensor(1.0f), std::vector<std::int64_t>(ranks, 1)), Error);
  EXPECT_THROW(start(at::ones({1}, at::kDouble), std::vector<std::int64_t>(ranks, 1)), Error);
}

}  // namespace

std::vector<CollectiveCase> started_cases() {
  return {
      {"WorksCompleteInAnyOrder", works_complete_in_any_order},
      {"GathersAreStartedTogetherAndWaitedForInOrder", gathers_are_started_together_and_waited_for_in_order},
      {"AStartedGatherOwnsWhatItReadsAndWrites", a_started_gather_owns_what_it_reads_and_writes},
      {"AStartedGatherOfNothingIsThere", a_started_gather_of_nothing_is_there},
      {"AStartedGatherHasANumberAndItsBytes", a_started_gather_has_a_number_and_its_bytes},
      {"AStartedGatherRefusesRowsThatAreNotItsOwn", a_started_gather_refuses_rows_that_are_not_its_own},
  };
}

}  // namespace uqa::testing
