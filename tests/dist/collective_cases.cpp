#include "tests/dist/collective_cases.h"

#include <gtest/gtest.h>

#include <numeric>

#include "tests/dist/case_values.h"

namespace uqa::testing {

namespace {

using comm::Communicator;
using comm::ReduceOp;

Tensor expected_reduction(const Tensor& a, ReduceOp op, int n) {
  // Rank r holds (r + 1) * a.
  switch (op) {
    case ReduceOp::kMax:
      return at::where(a > 0, a * n, a);
    case ReduceOp::kMin:
      return at::where(a > 0, a, a * n);
    case ReduceOp::kSum:
      break;
  }
  return a * (n * (n + 1) / 2);
}

template <typename Body>
void for_each_form(Body body) {
  for (const auto dtype : kDtypes) {
    for (const auto size : kSizes) {
      SCOPED_TRACE(fmt::format("{} [{}]", at::toString(dtype), size));
      body(pattern(size, dtype));
    }
  }
}

void all_reduce_in_three_forms(const Communicator& comm) {
  for (const auto op : {ReduceOp::kSum, ReduceOp::kMax, ReduceOp::kMin}) {
    for_each_form([&](const Tensor& a) {
      const Tensor mine = a * (comm.rank() + 1), want = expected_reduction(a, op, comm.size());
      const Tensor input = mine.clone();
      expect_equal(comm::all_reduce(input, op, comm), want);
      expect_equal(input, mine);
      Tensor in_place = mine.clone();
      comm::all_reduce_(in_place, op, comm);
      expect_equal(in_place, want);
      Tensor started = mine.clone();
      auto work = comm::all_reduce_async_(started, op, comm);
      work.wait();
      work.wait();
      EXPECT_TRUE(work.test());
      expect_equal(started, want);
    });
  }
}

void result_is_new_storage_and_keeps_no_graph(const Communicator& comm) {
  const Tensor x = at::ones({3}).requires_grad_(true);
  std::vector<std::int64_t> rows(static_cast<std::size_t>(comm.size()), 0);
  rows.front() = 3;
  for (const Tensor& y : {comm::all_reduce(x, ReduceOp::kSum, comm), comm::all_gather(x, comm),
                          comm::reduce_scatter(x, rows, comm), comm::all_to_all(x, rows, comm).first}) {
    EXPECT_FALSE(y.requires_grad());
    EXPECT_FALSE(y.is_alias_of(x));
  }
}

void non_contiguous_inputs(const Communicator& comm) {
  const int n = comm.size();
  const Tensor base = at::arange(12, at::kFloat).view({3, 4});
  const Tensor x = (base * (comm.rank() + 1)).t();  // [4, 3]
  EXPECT_FALSE(x.is_contiguous());
  expect_equal(comm::all_reduce(x, ReduceOp::kSum, comm), (base * (n * (n + 1) / 2)).t().contiguous());
  const Tensor gathered = comm::all_gather(x, comm);
  EXPECT_EQ(gathered.sizes(), (std::vector<std::int64_t>{4 * n, 3}));
  for (int r = 0; r < n; ++r) expect_equal(gathered.narrow(0, 4 * r, 4), (base * (r + 1)).t().contiguous());
  std::vector<std::int64_t> rows(static_cast<std::size_t>(n), 0);
  rows.back() = 4;
  const Tensor part = comm::reduce_scatter(x, rows, comm);
  if (comm.rank() == n - 1) expect_equal(part, (base * (n * (n + 1) / 2)).t().contiguous());
  const auto [sent, counts] = comm::all_to_all(x, rows, comm);
  EXPECT_EQ(sent.size(0), comm.rank() == n - 1 ? 4 * n : 0);
  Tensor in_place = x;
  EXPECT_THROW(comm::all_reduce_(in_place, ReduceOp::kSum, comm), Error);
  EXPECT_THROW(comm::broadcast_(in_place, 0, comm), Error);
}

void bf16_sums_round_once(const Communicator& comm) {
  // 256 + 1 + 1 in bfloat16 steps of 2 stays 256 when each addition rounds.
  const Tensor mine = at::full({5}, comm.rank() == 0 ? 256.0 : 1.0, at::kBFloat16);
  const Tensor want = at::full({5}, 256.0 + comm.size() - 1, at::kFloat).to(at::kBFloat16);
  expect_equal(comm::all_reduce(mine, ReduceOp::kSum, comm), want);
  std::vector<std::int64_t> rows(static_cast<std::size_t>(comm.size()), 0);
  rows.front() = 5;
  const Tensor part = comm::reduce_scatter(mine, rows, comm);
  if (comm.rank() == 0) expect_equal(part, want);
}

void all_gather_of_uneven_rows(const Communicator& comm) {
  // 1, 0, 2, 1, ... rows.
  const auto rows_of = [](int rank) { return std::int64_t{(2 * rank + 1) % 3}; };
  for (const auto dtype : kDtypes) {
    const auto block = [&](int rank) {
      return (pattern(rows_of(rank) * 6, dtype) * (rank + 1)).view({rows_of(rank), 2, 3});
    };
    std::vector<Tensor> want;
    for (int r = 0; r < comm.size(); ++r) want.push_back(block(r));
    const Tensor mine = block(comm.rank());
    expect_equal(comm::all_gather(mine, comm), at::cat(want));
    expect_equal(mine, block(comm.rank()));
  }
}

void empty_tensors(const Communicator& comm) {
  const std::vector<std::int64_t> none(static_cast<std::size_t>(comm.size()), 0);
  for (const auto dtype : kDtypes) {
    const Tensor x = at::empty({0, 3}, dtype);
    expect_equal(comm::all_reduce(x, ReduceOp::kSum, comm), x);
    expect_equal(comm::all_gather(x, comm), x);
    expect_equal(comm::reduce_scatter(x, none, comm), x);
    const auto [received, rows] = comm::all_to_all(x, none, comm);
    expect_equal(received, x);
    EXPECT_EQ(rows, none);
    // Rows without elements keep their number.
    expect_equal(comm::all_gather(at::empty({2, 0}, dtype), comm), at::empty({2 * comm.size(), 0}, dtype));
  }
}

void reduce_scatter_of_uneven_rows(const Communicator& comm) {
  std::vector<std::int64_t> rows;
  for (int r = 0; r < comm.size(); ++r) rows.push_back(r % 2 == 1 ? 0 : r + 2);
  const auto begin = std::accumulate(rows.begin(), rows.begin() + comm.rank(), std::int64_t{0});
  const auto total = std::accumulate(rows.begin(), rows.end(), std::int64_t{0});
  for (const auto dtype : kDtypes) {
    const Tensor a = pattern(total * 3, dtype).view({total, 3});
    const Tensor mine = a * (comm.rank() + 1);
    const Tensor want = a * (comm.size() * (comm.size() + 1) / 2);
    expect_equal(comm::reduce_scatter(mine, rows, comm),
                 want.narrow(0, begin, rows[static_cast<std::size_t>(comm.rank())]));
    expect_equal(mine, a * (comm.rank() + 1));
  }
  EXPECT_THROW(static_cast<void>(comm::reduce_scatter(at::zeros({total + 1, 3}), rows, comm)), Error);
}

void broadcast_from_every_root(const Communicator& comm) {
  for (int root = 0; root < comm.size(); ++root) {
    for_each_form([&](const Tensor& a) {
      Tensor x = a * (comm.rank() + 1);
      comm::broadcast_(x, root, comm);
      expect_equal(x, a * (root + 1));
    });
    for (const std::string& text : {std::string(), std::string("a\0b", 3), std::string(1001, 'x')}) {
      EXPECT_EQ(comm::broadcast_text(comm.rank() == root ? text : "mine", root, comm), text);
    }
  }
  Tensor x = at::zeros({1});
  EXPECT_THROW(comm::broadcast_(x, comm.size(), comm), Error);
}

void all_to_all_of_uneven_rows(const Communicator& comm) {
  const int n = comm.size();
  const auto rows_between = [](int from, int to) { return std::int64_t{(from + 2 * to) % 3}; };
  for (const auto dtype : kDtypes) {
    const auto block = [&](int from, int to) {
      const auto rows = rows_between(from, to);
      return (at::arange(rows * 2, at::kLong) + 40 * from + 10 * to).to(dtype).view({rows, 2});
    };
    std::vector<Tensor> send, want;
    std::vector<std::int64_t> send_rows, want_rows;
    for (int r = 0; r < n; ++r) {
      send.push_back(block(comm.rank(), r));
      send_rows.push_back(rows_between(comm.rank(), r));
      want.push_back(block(r, comm.rank()));
      want_rows.push_back(rows_between(r, comm.rank()));
    }
    const auto [received, rows] = comm::all_to_all(at::cat(send), send_rows, comm);
    expect_equal(received, at::cat(want));
    EXPECT_EQ(rows, want_rows);
  }
}

void shapes_that_disagree_are_refused_everywhere(const Communicator& comm) {
  if (comm.size() == 1) return;
  const bool odd_one = comm.rank() == comm.size() - 1;
  const Tensor wide = at::zeros({comm.size(), odd_one ? 3 : 2});
  const std::vector<std::int64_t> one_each(static_cast<std::size_t>(comm.size()), 1);
  const std::string named = fmt::format("rank {} differs", comm.size() - 1);
  EXPECT_NE(agreed_error([&] { static_cast<void>(comm::all_gather(wide, comm)); }).second.find(named),
            std::string::npos);
  EXPECT_NE(agreed_error([&] { static_cast<void>(comm::all_to_all(wide, one_each, comm)); }).second.find(named),
            std::string::npos);
  const Tensor typed = at::zeros({1, 2}, odd_one ? at::kLong : at::kFloat);
  EXPECT_EQ(agreed_error([&] { static_cast<void>(comm::all_gather(typed, comm)); }).first, ErrorCode::kInternal);
}

void other_dtypes_are_refused(const Communicator& comm) {
  Tensor x = at::zeros({2}, at::kDouble);
  EXPECT_THROW(static_cast<void>(comm::all_reduce(x, ReduceOp::kSum, comm)), Error);
  EXPECT_THROW(static_cast<void>(comm::all_gather(x, comm)), Error);
  EXPECT_THROW(comm::broadcast_(x, 0, comm), Error);
  EXPECT_THROW(static_cast<void>(comm::all_gather(at::scalar_tensor(1.0f), comm)), Error);
}

void sums_are_the_same_bits_on_every_rank_and_call(const Communicator& comm) {
  const Tensor x = at::sin(at::arange(5000, at::kFloat) * (comm.rank() + 1));
  const Tensor first = comm::all_reduce(x, ReduceOp::kSum, comm);
  for (int repeat = 0; repeat < 3; ++repeat) expect_equal(comm::all_reduce(x, ReduceOp::kSum, comm), first);
  const Tensor all = comm::all_gather(first.unsqueeze(0), comm);
  for (int r = 0; r < comm.size(); ++r) expect_equal(all[r], first);
}

void bytes_sent_follow_the_formulas(const Communicator& comm) {
  const std::int64_t n = comm.size(), r = comm.rank();
  std::int64_t before = comm.bytes_sent();
  const auto added = [&] { return comm.bytes_sent() - std::exchange(before, comm.bytes_sent()); };
  Tensor x = at::zeros({12, 10});
  comm::all_reduce_(x, ReduceOp::kSum, comm);
  EXPECT_EQ(added(), 2 * (n - 1) * 480 / n);
  comm::all_reduce_async_(x, ReduceOp::kSum, comm).wait();
  EXPECT_EQ(added(), 2 * (n - 1) * 480 / n);
  static_cast<void>(comm::all_reduce(x.to(at::kBFloat16), ReduceOp::kSum, comm));
  EXPECT_EQ(added(), 2 * (n - 1) * 480 / n) << "bfloat16 travels as float32 when it is reduced";
  static_cast<void>(comm::all_gather(x.narrow(0, 0, r), comm));
  EXPECT_EQ(added(), (n - 1) * r * 40);
  std::vector<std::int64_t> rows(static_cast<std::size_t>(n), 0);
  rows.front() = 12;
  static_cast<void>(comm::reduce_scatter(x, rows, comm));
  EXPECT_EQ(added(), r == 0 ? 0 : 480);
  static_cast<void>(comm::all_to_all(x.to(at::kBFloat16), rows, comm));
  EXPECT_EQ(added(), r == 0 ? 0 : 240);
  comm::broadcast_(x, 0, comm);
  EXPECT_EQ(added(), r == 0 ? (n - 1) * 480 : 0);
  comm::barrier(comm);
  EXPECT_EQ(added(), 0);
}

}  // namespace

std::vector<CollectiveCase> tensor_cases() {
  return {
      {"AllReduceInThreeForms", all_reduce_in_three_forms},
      {"ResultIsNewStorageAndKeepsNoGraph", result_is_new_storage_and_keeps_no_graph},
      {"NonContiguousInputs", non_contiguous_inputs},
      {"Bf16SumsRoundOnce", bf16_sums_round_once},
      {"AllGatherOfUnevenRows", all_gather_of_uneven_rows},
      {"EmptyTensors", empty_tensors},
      {"ReduceScatterOfUnevenRows", reduce_scatter_of_uneven_rows},
      {"BroadcastFromEveryRoot", broadcast_from_every_root},
      {"AllToAllOfUnevenRows", all_to_all_of_uneven_rows},
      {"ShapesThatDisagreeAreRefusedEverywhere", shapes_that_disagree_are_refused_everywhere},
      {"OtherDtypesAreRefused", other_dtypes_are_refused},
      {"SumsAreTheSameBitsOnEveryRankAndCall", sums_are_the_same_bits_on_every_rank_and_call},
      {"BytesSentFollowTheFormulas", bytes_sent_follow_the_formulas},
  };
}

const std::vector<CollectiveCase>& collective_cases() {
  static const std::vector<CollectiveCase> cases = [] {
    auto all = tensor_cases();
    for (const auto& more : {started_cases(), group_cases()}) all.insert(all.end(), more.begin(), more.end());
    return all;
  }();
  return cases;
}

}  // namespace uqa::testing
