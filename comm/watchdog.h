// comm/watchdog.h - ends a job whose collective has waited too long, and says which ranks are missing. Never calls MPI.
//
//   auto watchdog = std::make_shared<Watchdog>(rank, world_size);
//   WatchedGroup group(watchdog, id, "dp", world_ranks);
//   { const WatchedGroup::Scope scope(group, "all_reduce"); MPI_Allreduce(...); }
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "comm/heartbeat.h"

namespace uqa::comm {

/// A transport whose collectives go on after their call has returned. The watching thread asks it in every round, so each function may be
/// called from that thread at any time.
class Polled {
 public:
  using Clock = std::chrono::steady_clock;
  struct State {
    std::string failure;         ///< one line; empty: none
    const char* op = "";         ///< the oldest collective that has not ended
    std::uint64_t sequence = 0;  ///< its number; 0: none is in flight
    Clock::time_point issued;
  };
  virtual ~Polled() = default;
  /// Short; never waits for a peer.
  [[nodiscard]] virtual State poll() = 0;
  /// Makes what waits on the device return, without the peers.
  virtual void abort() noexcept = 0;
};

/// Watches the collective that this process is in. Collectives come from one thread at a time; the watching thread is
/// its own.
class Watchdog {
 public:
  /// What to do with the one line of a time-out; the default prints it and leaves with exit code 4 (kComm), which makes
  /// the launcher end the job. `first` is false where another rank of the job has reported already.
  using OnTimeout = std::function<void(const std::string& line, bool first)>;
  Watchdog(int rank, int world_size, OnTimeout on_timeout = end_process);
  ~Watchdog();
  Watchdog(const Watchdog&) = delete;
  Watchdog& operator=(const Watchdog&) = delete;

  /// Starts (or goes on) watching with this time-out. Throws Error(kConfig) unless it is positive.
  void watch(double timeout_s);
  /// See Heartbeats: every rank creates, all meet after a barrier, and remove at the end.
  void create_heartbeat(const std::filesystem::path& directory);
  void meet_peers(PeerFiles files);
  void remove_heartbeat() noexcept;

  /// Registers a group; `id` is the same on all its ranks. Returns its entry. Throws Error(kInternal) beyond 64 live
  /// groups.
  [[nodiscard]] int add_group(std::uint64_t id, const std::string& axis, std::span<const int> world_ranks);
  void remove_group(int entry) noexcept;
  /// Asks `polled` from now on, for as long as it lives; its failures and time-outs count as the group's.
  void set_polled(int entry, std::weak_ptr<Polled> polled);
  /// Notes that the next collective of a group is issued; returns its sequence number.
  std::uint64_t issue(int entry, const char* op);
  /// From here on the caller waits for collective `sequence` of the group, until leave().
  void enter(int entry, const char* op, std::uint64_t sequence);
  void leave() noexcept;

  static void end_process(const std::string& line, bool first);

 private:
  using Clock = std::chrono::steady_clock;
  struct Group {
    std::string axis;
    std::vector<int> world_ranks;
    std::weak_ptr<Polled> polled;
  };
  /// A collective that has not ended.
  struct Waiting {
    int entry = -1;
    const char* op = "";
    std::uint64_t sequence = 0;
    Clock::time_point since;
  };
  void run();
  void poll(std::unique_lock<std::mutex>& lock);
  void report(std::unique_lock<std::mutex>& lock, const std::string& line);
  [[nodiscard]] bool is_late(const Waiting& waiting) const;
  /// Beats of the group's ranks on this host, by rank.
  [[nodiscard]] std::map<int, std::uint64_t> beats_of(const Group& group) const;
  /// `earlier`: beats_of() some looks ago; a rank that has not beaten since is missing, whatever it has started. May be empty.
  [[nodiscard]] std::string describe(const Waiting& waiting, const std::map<int, std::uint64_t>& earlier = {}) const;

  const int rank_;
  const OnTimeout on_timeout_;
  std::mutex mutex_;
  std::condition_variable stop_or_change_;
  Heartbeats heartbeats_;
  std::vector<Group> groups_;  // by entry
  double timeout_s_ = 0;
  bool stopping_ = false;
  Waiting waiting_;  // what the caller is in; entry -1: nothing
  int late_looks_ = 0;                           // at waiting_ since it is late
  std::map<int, std::uint64_t> beats_when_late_; // at the first of them
  std::thread thread_;
};

/// One group's way to the watchdog; a default-made one watches nothing but still counts.
class WatchedGroup {
 public:
  WatchedGroup() = default;
  WatchedGroup(std::shared_ptr<Watchdog> watchdog, std::uint64_t id, const std::string& axis,
               std::span<const int> world_ranks);
  ~WatchedGroup();
  WatchedGroup(WatchedGroup&& other) noexcept;
  WatchedGroup& operator=(WatchedGroup&& other) noexcept;

  /// Starts a collective without waiting for it; returns its sequence number.
  std::uint64_t issue(const char* op);
  /// Name and number of the collective started last; number 0 before the first.
  [[nodiscard]] const char* last_op() const noexcept { return last_op_; }
  [[nodiscard]] std::uint64_t last_sequence() const noexcept { return issued_; }
  void set_polled(std::weak_ptr<Polled> polled);

  /// The time in which the caller waits for one collective.
  class Scope {
   public:
    /// Starts a collective and waits for it.
    Scope(WatchedGroup& group, const char* op) : Scope(group, op, group.issue(op)) {}
    /// Waits for one that was started before.
    Scope(WatchedGroup& group, const char* op, std::uint64_t sequence);
    ~Scope();
    Scope(const Scope&) = delete;
    Scope& operator=(const Scope&) = delete;

   private:
    Watchdog* watchdog_;
  };

 private:
  std::shared_ptr<Watchdog> watchdog_;
  int entry_ = -1;
  std::uint64_t issued_ = 0;
  const char* last_op_ = "";
};

}  // namespace uqa::comm
