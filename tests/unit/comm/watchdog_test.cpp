// The watchdog without MPI: who is missing is read from heartbeat files; the time-out calls a function instead of
// leaving.
#include "comm/watchdog.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <atomic>
#include <fstream>
#include <future>

#include "core/error.h"

namespace uqa::comm {
namespace {

namespace fs = std::filesystem;
using std::chrono::milliseconds;

class WatchdogTest : public ::testing::Test {
 protected:
  WatchdogTest() : directory_(fs::temp_directory_path() / ("uqa-watchdog-test-" + std::to_string(::getpid()))) {
    fs::remove_all(directory_);
  }
  ~WatchdogTest() override { fs::remove_all(directory_); }

  struct Report {
    std::string line;
    bool first;
  };
  struct Rank {
    Rank(int rank, int size)
        : watchdog(std::make_shared<Watchdog>(rank, size, [this](const std::string& line, bool first) {
            reported.set_value({line, first});
          })) {}
    std::promise<Report> reported;
    std::future<Report> report = reported.get_future();
    std::shared_ptr<Watchdog> watchdog;
  };

  void meet(std::vector<std::unique_ptr<Rank>>& ranks, PeerFiles files) const {
    for (auto& rank : ranks) rank->watchdog->create_heartbeat(directory_);
    for (auto& rank : ranks) rank->watchdog->meet_peers(files);
  }

  static std::vector<std::unique_ptr<Rank>> make_ranks(int size) {
    std::vector<std::unique_ptr<Rank>> ranks;
    for (int r = 0; r < size; ++r) ranks.push_back(std::make_unique<Rank>(r, size));
    return ranks;
  }

  fs::path directory_;
  const std::vector<int> world_{0, 1, 2};
};

void expect_contains(const std::string& text, const std::string& part) {
  EXPECT_NE(text.find(part), std::string::npos) << text;
}

TEST_F(WatchdogTest, NamesTheMissingRankAndWhatItDidLast) {
  for (const auto files : {PeerFiles::kByName, PeerFiles::kHeldOpen}) {
    auto ranks = make_ranks(3);
    std::vector<WatchedGroup> groups;
    for (auto& rank : ranks) groups.emplace_back(rank->watchdog, 7, "dp", world_);
    meet(ranks, files);
    if (files == PeerFiles::kHeldOpen) {
      for (auto& rank : ranks) rank->watchdog->remove_heartbeat();
      EXPECT_FALSE(fs::exists(directory_)) << "nothing is left behind";
    }
    for (auto& group : groups) const WatchedGroup::Scope scope(group, "broadcast");
    ranks[0]->watchdog->watch(0.1);
    const WatchedGroup::Scope stuck(groups[0], "all_reduce");
    const WatchedGroup::Scope also_there(groups[2], "all_reduce");
    ASSERT_EQ(ranks[0]->report.wait_for(milliseconds(5000)), std::future_status::ready);
    const auto report = ranks[0]->report.get();
    EXPECT_TRUE(report.first);
    expect_contains(report.line, "rank 0: all_reduce on axis 'dp', sequence 2,");
    expect_contains(report.line, "missing ranks: 1 (last left broadcast on axis 'dp', sequence 1);");
  }
}

TEST_F(WatchdogTest, NamesARankThatHasStartedTheCollectiveAndStopped) {
  Rank waits(0, 3), runs(2, 3);
  // Its watching thread stops where a stopped process' does: anywhere, here in its own report.
  std::promise<void> stopped, go_on;
  const auto stops = std::make_shared<Watchdog>(1, 3, [&](const std::string&, bool) {
    stopped.set_value();
    go_on.get_future().wait();
  });
  const std::vector<std::shared_ptr<Watchdog>> watchdogs{waits.watchdog, stops, runs.watchdog};
  for (const auto& watchdog : watchdogs) watchdog->create_heartbeat(directory_);
  for (const auto& watchdog : watchdogs) watchdog->meet_peers(PeerFiles::kByName);
  std::vector<WatchedGroup> groups;
  for (const auto& watchdog : watchdogs) groups.emplace_back(watchdog, 7, "dp", world_);
  for (auto& group : groups) static_cast<void>(group.issue("all_reduce_async"));
  WatchedGroup other(stops, 9, "tp", std::vector<int>{1});
  {
    const WatchedGroup::Scope elsewhere(other, "barrier");
    stops->watch(0.1);
    stopped.get_future().wait();
    runs.watchdog->watch(0.5);
    waits.watchdog->watch(1);
    const WatchedGroup::Scope stuck(groups[0], "all_reduce_async", 1);
    ASSERT_EQ(waits.report.wait_for(milliseconds(20000)), std::future_status::ready);
    expect_contains(waits.report.get().line, "missing ranks: 1 (gives no sign of life, last entered barrier on axis 'tp', sequence 1);");
    go_on.set_value();
  }
}

TEST_F(WatchdogTest, NamesARankThatHasStartedTheCollectiveAndIsBusyElsewhere) {
  auto ranks = make_ranks(2);
  std::vector<WatchedGroup> groups;
  for (auto& rank : ranks) groups.emplace_back(rank->watchdog, 1, "world", std::vector<int>{0, 1});
  meet(ranks, PeerFiles::kByName);
  { const WatchedGroup::Scope started(groups[1], "all_gather_async"); }
  ranks[0]->watchdog->watch(0.1);
  const WatchedGroup::Scope waits(groups[0], "all_gather_async");
  ASSERT_EQ(ranks[0]->report.wait_for(milliseconds(5000)), std::future_status::ready);
  const auto report = ranks[0]->report.get();
  expect_contains(report.line, "no rank is missing");
  expect_contains(report.line, "ranks that have started it and are outside of collectives: 1");
}

TEST_F(WatchdogTest, OneRankOfTheJobReports) {
  auto ranks = make_ranks(2);
  std::vector<WatchedGroup> groups;
  for (auto& rank : ranks) groups.emplace_back(rank->watchdog, 1, "world", std::vector<int>{0, 1});
  meet(ranks, PeerFiles::kByName);
  for (auto& rank : ranks) rank->watchdog->watch(0.1);
  const WatchedGroup::Scope one(groups[0], "barrier"), other(groups[1], "barrier");
  for (auto& rank : ranks) ASSERT_EQ(rank->report.wait_for(milliseconds(5000)), std::future_status::ready);
  const auto first = ranks[0]->report.get(), second = ranks[1]->report.get();
  EXPECT_NE(first.first, second.first);
  expect_contains(first.line, "no rank is missing");
}

TEST_F(WatchdogTest, StaysQuietOutsideAndInShortCollectives) {
  Rank rank(0, 1);
  rank.watchdog->watch(0.2);
  WatchedGroup group(rank.watchdog, 1, "world", std::vector<int>{0});
  for (int i = 0; i < 8; ++i) {
    const WatchedGroup::Scope scope(group, "all_reduce");
    std::this_thread::sleep_for(milliseconds(50));
  }
  EXPECT_EQ(rank.report.wait_for(milliseconds(400)), std::future_status::timeout);
}

TEST_F(WatchdogTest, WaitForAStartedCollectiveHasItsOwnSequence) {
  Rank rank(0, 2);
  WatchedGroup group(rank.watchdog, 1, "dp", std::vector<int>{0, 1});
  const auto started = group.issue("all_reduce_async");
  { const WatchedGroup::Scope scope(group, "barrier"); }
  rank.watchdog->watch(0.1);
  const WatchedGroup::Scope waiting(group, "all_reduce_async", started);
  ASSERT_EQ(rank.report.wait_for(milliseconds(5000)), std::future_status::ready);
  const auto line = rank.report.get().line;
  expect_contains(line, "all_reduce_async on axis 'dp', sequence 1,");
  expect_contains(line, "heartbeat cannot be read from here: 1;");
}

TEST_F(WatchdogTest, RefusesATimeOutThatIsNotPositive) {
  Rank rank(0, 1);
  EXPECT_THROW(rank.watchdog->watch(0), Error);
  EXPECT_THROW(rank.watchdog->watch(-1), Error);
}

TEST_F(WatchdogTest, RefusesADirectoryThatCannotBeMade) {
  std::ofstream(directory_.string()) << "a file";
  Rank rank(0, 1);
  try {
    rank.watchdog->create_heartbeat(directory_ / "below");
    ADD_FAILURE() << "accepted";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kConfig);
    expect_contains(error.what(), directory_.string());
  }
}

TEST_F(WatchdogTest, GroupsAreGivenBack) {
  Rank rank(0, 1);
  for (int i = 0; i < 3 * HeartbeatRecord::kMaxGroups; ++i)
    const WatchedGroup group(rank.watchdog, 1, "x", std::vector<int>{0});
  std::vector<WatchedGroup> held;
  EXPECT_THROW(for (int i = 0; i <= HeartbeatRecord::kMaxGroups; ++i)
                   held.emplace_back(rank.watchdog, 1, "x", std::vector<int>{0}),
               Error);
}

}  // namespace
}  // namespace uqa::comm
