// main() of the tests under mpirun. Every rank runs the same tests in the same order; each prints its own failures with
// its rank; a test that fails on one rank fails on all, and so does the exit code.
#include <gtest/gtest.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>

#include "tests/dist/dist_world.h"

namespace uqa::testing {

namespace {

comm::Communicator* world = nullptr;

/// Failures of this rank, on every rank; progress, on rank 0.
class RankPrinter : public ::testing::EmptyTestEventListener {
 public:
  void OnTestStart(const ::testing::TestInfo& test) override {
    if (world->rank() == 0) fmt::print("[ RUN  ] {}.{}\n", test.test_suite_name(), test.name());
  }
  void OnTestPartResult(const ::testing::TestPartResult& result) override {
    if (!result.failed()) return;
    fmt::print(stderr, "[rank {}] {}:{}: Failure\n{}\n", world->rank(),
               result.file_name() == nullptr ? "?" : result.file_name(), result.line_number(), result.message());
    std::fflush(stderr);
  }
  void OnTestEnd(const ::testing::TestInfo& test) override {
    if (world->rank() != 0) return;
    fmt::print("[{}] {}.{} ({} ms)\n", test.result()->Passed() ? "   OK  " : " FAILED", test.test_suite_name(),
               test.name(), test.result()->elapsed_time());
    std::fflush(stdout);
  }
  void OnTestProgramEnd(const ::testing::UnitTest& unit_test) override {
    if (world->rank() == 0) {
      fmt::print("{} tests on {} ranks, {} failed\n", unit_test.test_to_run_count(), world->size(),
                 unit_test.failed_test_count());
    }
  }
};

/// Makes the verdict of each test the worst of all ranks'. End events come in reverse order of listeners: added last,
/// it speaks before the printer.
class VerdictSharer : public ::testing::EmptyTestEventListener {
 public:
  void OnTestEnd(const ::testing::TestInfo& test) override {
    const bool failed = test.result()->Failed();
    const bool failed_somewhere = comm::all_reduce(std::int64_t{failed}, comm::ReduceOp::kMax, *world) != 0;
    if (failed_somewhere && !failed) ADD_FAILURE() << "failed on another rank";
  }
};

int run_tests(int* argc, char** argv) {
  ::testing::InitGoogleTest(argc, argv);
  // An exception leaves the other ranks waiting: let it end the job.
  GTEST_FLAG_SET(catch_exceptions, false);
  if (world->rank() != 0) GTEST_FLAG_SET(output, "");
  if (GTEST_FLAG_GET(shuffle) && GTEST_FLAG_GET(random_seed) == 0)
    GTEST_FLAG_SET(random_seed, 1);  // the same order everywhere
  auto& listeners = ::testing::UnitTest::GetInstance()->listeners();
  delete listeners.Release(listeners.default_result_printer());
  listeners.Append(new RankPrinter);  // GoogleTest owns listeners
  listeners.Append(new VerdictSharer);
  const int failed = RUN_ALL_TESTS();
  // A filter that matches nothing must not look like success.
  const bool ran = ::testing::UnitTest::GetInstance()->test_to_run_count() > 0;
  return comm::all_reduce(std::int64_t{failed != 0 || !ran}, comm::ReduceOp::kMax, *world) != 0 ? 1 : 0;
}

}  // namespace

comm::Communicator& dist_world() { return *world; }

}  // namespace uqa::testing

int main(int argc, char** argv) {
  for (int i = 1; i < argc; ++i) {
    if (std::strncmp(argv[i], "--gtest_list_tests", 18) != 0) continue;
    ::testing::InitGoogleTest(&argc, argv);
    return RUN_ALL_TESTS();
  }
  // Ranks above 0 write no result file.
  const char* const rank = std::getenv("OMPI_COMM_WORLD_RANK");
  if (rank != nullptr && std::strcmp(rank, "0") != 0) ::unsetenv("GTEST_OUTPUT");
  uqa::comm::Session session(&argc, &argv, {.timeout_s = 60, .heartbeat_dir = ""});
  try {
    uqa::comm::Communicator world = session.world();
    uqa::testing::world = &world;
    const int code = uqa::testing::run_tests(&argc, argv);
    session.finish();
    return code;
  } catch (const std::exception& error) {
    return session.fail(error);
  }
}
