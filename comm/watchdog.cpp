#include "comm/watchdog.h"

#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "core/error.h"

namespace uqa::comm {

namespace {

/// At a late collective before it is reported: as many beats of every rank that runs.
constexpr int kLooksForLife = 3;

template <std::size_t N>
void put_text(std::array<char, N>& field, const std::string& text) {
  field.fill('\0');
  std::copy_n(text.begin(), std::min(text.size(), N - 1), field.begin());
}

std::string describe_last(const HeartbeatRecord& record) {
  const HeartbeatEntry& last = record.entries[record.last_entry % HeartbeatRecord::kMaxGroups];
  if (last.sequence == 0) return "has not entered any collective";
  return fmt::format("last {} {} on axis '{}', sequence {}", last.inside != 0 ? "entered" : "left", last.op.data(),
                     last.axis.data(), last.sequence);
}

}  // namespace

Watchdog::Watchdog(int rank, int world_size, OnTimeout on_timeout)
    : rank_(rank),
      on_timeout_(std::move(on_timeout)),
      heartbeats_(rank, world_size),
      groups_(HeartbeatRecord::kMaxGroups) {}

Watchdog::~Watchdog() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  stop_or_change_.notify_all();
  if (thread_.joinable()) thread_.join();
}

void Watchdog::watch(double timeout_s) {
  UQA_CHECK(std::isfinite(timeout_s) && timeout_s > 0, ErrorCode::kConfig,
            "comm.timeout_s = {}, must be > 0 seconds; change it", timeout_s);
  {
    const std::lock_guard lock(mutex_);
    timeout_s_ = timeout_s;
  }
  stop_or_change_.notify_all();
  if (!thread_.joinable()) thread_ = std::thread([this] { run(); });
}

void Watchdog::create_heartbeat(const std::filesystem::path& directory) {
  const std::lock_guard lock(mutex_);
  heartbeats_.create(directory);
}

void Watchdog::meet_peers(PeerFiles files) {
  const std::lock_guard lock(mutex_);
  heartbeats_.meet(files);
}

void Watchdog::remove_heartbeat() noexcept {
  const std::lock_guard lock(mutex_);
  heartbeats_.remove();
}

int Watchdog::add_group(std::uint64_t id, const std::string& axis, std::span<const int> world_ranks) {
  const std::lock_guard lock(mutex_);
  auto& entries = heartbeats_.own().entries;
  const auto free =
      std::find_if(entries.begin(), entries.end(), [](const HeartbeatEntry& entry) { return entry.group_id == 0; });
  UQA_CHECK(free != entries.end(), ErrorCode::kInternal,
            "communicators alive = {}, at most that many can be watched; split fewer", entries.size());
  *free = {};
  free->group_id = id;
  put_text(free->axis, axis);
  const auto entry = static_cast<int>(free - entries.begin());
  groups_[static_cast<std::size_t>(entry)] = {axis, {world_ranks.begin(), world_ranks.end()}, {}};
  return entry;
}

void Watchdog::set_polled(int entry, std::weak_ptr<Polled> polled) {
  const std::lock_guard lock(mutex_);
  groups_[static_cast<std::size_t>(entry)].polled = std::move(polled);
}

void Watchdog::remove_group(int entry) noexcept {
  const std::lock_guard lock(mutex_);
  heartbeats_.own().entries[static_cast<std::size_t>(entry)] = {};
  groups_[static_cast<std::size_t>(entry)] = {};
}

std::uint64_t Watchdog::issue(int entry, const char* op) {
  const std::lock_guard lock(mutex_);
  HeartbeatRecord& record = heartbeats_.own();
  HeartbeatEntry& mine = record.entries[static_cast<std::size_t>(entry)];
  put_text(mine.op, op);
  record.last_entry = static_cast<std::uint64_t>(entry);
  return ++mine.sequence;
}

void Watchdog::enter(int entry, const char* op, std::uint64_t sequence) {
  const std::lock_guard lock(mutex_);
  HeartbeatRecord& record = heartbeats_.own();
  record.entries[static_cast<std::size_t>(entry)].inside = 1;
  record.last_entry = static_cast<std::uint64_t>(entry);
  waiting_ = {entry, op, sequence, Clock::now()};
  late_looks_ = 0;
}

void Watchdog::leave() noexcept {
  const std::lock_guard lock(mutex_);
  if (waiting_.entry < 0) return;
  heartbeats_.own().entries[static_cast<std::size_t>(waiting_.entry)].inside = 0;
  waiting_.entry = -1;
}

void Watchdog::run() {
  std::unique_lock lock(mutex_);
  while (!stopping_) {
    // Looking ten times in a time-out, and three times more at what is late, is late by four tenths at most.
    stop_or_change_.wait_for(lock, std::chrono::duration<double>(std::clamp(timeout_s_ / 10, 0.01, 1.0)));
    ++heartbeats_.own().beats;
    if (stopping_) continue;
    if (waiting_.entry >= 0 && is_late(waiting_)) {
      // A rank that is stopped after it has started a collective looks as if it waited, too: only its beats tell.
      if (late_looks_ == 0) beats_when_late_ = beats_of(groups_[static_cast<std::size_t>(waiting_.entry)]);
      if (++late_looks_ <= kLooksForLife) continue;
      const std::string line = describe(waiting_, beats_when_late_);
      waiting_.entry = -1;  // once per collective
      report(lock, line);
    }
    poll(lock);
  }
}

bool Watchdog::is_late(const Waiting& waiting) const {
  return std::chrono::duration<double>(Clock::now() - waiting.since).count() > timeout_s_;
}

void Watchdog::report(std::unique_lock<std::mutex>& lock, const std::string& line) {
  const bool first = heartbeats_.claim_report();
  // What waits on a device must return before the process can end well.
  std::vector<std::shared_ptr<Polled>> alive;
  for (auto& group : groups_) {
    if (auto polled = group.polled.lock()) alive.push_back(std::move(polled));
  }
  lock.unlock();
  for (const auto& polled : alive) polled->abort();
  on_timeout_(line, first);
  alive.clear();
  lock.lock();
}

void Watchdog::poll(std::unique_lock<std::mutex>& lock) {
  for (std::size_t entry = 0; entry < groups_.size() && !stopping_; ++entry) {
    const auto polled = groups_[entry].polled.lock();
    if (!polled) continue;
    lock.unlock();
    const auto state = polled->poll();
    lock.lock();
    const Waiting waiting{static_cast<int>(entry), state.op, state.sequence, state.issued};
    const bool late = state.sequence > 0 && is_late(waiting);
    if (state.failure.empty() && !late) continue;
    const std::string line =
        late ? describe(waiting)
             : fmt::format("uqa: rank {}: axis '{}'{}: {}; see the other ranks' output", rank_, groups_[entry].axis,
                           state.sequence > 0 ? fmt::format(", {} with sequence {} in flight", state.op, state.sequence) : "", state.failure);
    groups_[entry].polled.reset();  // once per group
    lock.unlock();
    polled->abort();
    lock.lock();
    report(lock, line);
  }
}

std::map<int, std::uint64_t> Watchdog::beats_of(const Group& group) const {
  std::map<int, std::uint64_t> beats;
  for (const int peer : group.world_ranks) {
    if (peer == rank_) continue;
    // What another host writes may come here late.
    const auto record = heartbeats_.read(peer);
    if (record && record->host == heartbeats_.own().host && record->beats > 0) beats[peer] = record->beats;
  }
  return beats;
}

std::string Watchdog::describe(const Waiting& waiting, const std::map<int, std::uint64_t>& earlier) const {
  const Group& group = groups_[static_cast<std::size_t>(waiting.entry)];
  const std::uint64_t id = heartbeats_.own().entries[static_cast<std::size_t>(waiting.entry)].group_id;
  std::vector<std::string> missing;
  std::vector<int> unknown, outside;
  for (const int peer : group.world_ranks) {
    if (peer == rank_) continue;
    const auto record = heartbeats_.read(peer);
    if (!record) {
      unknown.push_back(peer);
      continue;
    }
    const auto entry = std::find_if(record->entries.begin(), record->entries.end(),
                                    [&](const HeartbeatEntry& e) { return e.group_id == id; });
    const auto before = earlier.find(peer);
    const bool silent = before != earlier.end() && record->beats == before->second;
    if (silent || entry == record->entries.end() || entry->sequence < waiting.sequence)
      missing.push_back(fmt::format("{} ({}{})", peer, silent ? "gives no sign of life, " : "", describe_last(*record)));
    else if (std::all_of(record->entries.begin(), record->entries.end(), [](const HeartbeatEntry& e) { return e.inside == 0; }))
      outside.push_back(peer);
  }
  std::string who;
  if (!missing.empty()) who = fmt::format("missing ranks: {}", fmt::join(missing, ", "));
  if (!unknown.empty()) {
    who += fmt::format("{}ranks whose heartbeat cannot be read from here: {}", who.empty() ? "" : "; ",
                       fmt::join(unknown, ", "));
  }
  if (who.empty()) who = "no rank is missing, so the transport or a process has stopped";
  // A started collective may need its sender to come back to the transport.
  if (missing.empty() && !outside.empty()) who += fmt::format("; ranks that have started it and are outside of collectives: {}", fmt::join(outside, ", "));
  return fmt::format(
      "uqa: rank {}: {} on axis '{}', sequence {}, has waited {:.1f} s, allowed is comm.timeout_s = {}; {}; see what "
      "they do, or raise "
      "comm.timeout_s",
      rank_, waiting.op, group.axis, waiting.sequence, std::chrono::duration<double>(Clock::now() - waiting.since).count(),
      timeout_s_, who);
}

void Watchdog::end_process(const std::string& line, bool first) {
  if (first) {
    const std::string text = line + "\n";
    for (std::size_t done = 0; done < text.size();) {
      const auto written = ::write(STDERR_FILENO, text.data() + done, text.size() - done);
      if (written <= 0) break;
      done += static_cast<std::size_t>(written);
    }
  } else {
    // The rank that reports gets its line out before the launcher sees a rank leave.
    std::this_thread::sleep_for(std::chrono::seconds(2));
  }
  ::_exit(static_cast<int>(ErrorCode::kComm));
}

WatchedGroup::WatchedGroup(std::shared_ptr<Watchdog> watchdog, std::uint64_t id, const std::string& axis,
                           std::span<const int> world_ranks)
    : watchdog_(std::move(watchdog)), entry_(watchdog_->add_group(id, axis, world_ranks)) {}

WatchedGroup::~WatchedGroup() {
  if (watchdog_) watchdog_->remove_group(entry_);
}

WatchedGroup::WatchedGroup(WatchedGroup&& other) noexcept
    : watchdog_(std::move(other.watchdog_)), entry_(other.entry_), issued_(other.issued_), last_op_(other.last_op_) {}

WatchedGroup& WatchedGroup::operator=(WatchedGroup&& other) noexcept {
  std::swap(watchdog_, other.watchdog_);
  std::swap(entry_, other.entry_);
  std::swap(issued_, other.issued_);
  std::swap(last_op_, other.last_op_);
  return *this;
}

std::uint64_t WatchedGroup::issue(const char* op) {
  last_op_ = op;
  return issued_ = watchdog_ ? watchdog_->issue(entry_, op) : issued_ + 1;
}

void WatchedGroup::set_polled(std::weak_ptr<Polled> polled) {
  if (watchdog_) watchdog_->set_polled(entry_, std::move(polled));
}

WatchedGroup::Scope::Scope(WatchedGroup& group, const char* op, std::uint64_t sequence)
    : watchdog_(group.watchdog_.get()) {
  if (watchdog_ != nullptr) watchdog_->enter(group.entry_, op, sequence);
}

WatchedGroup::Scope::~Scope() {
  if (watchdog_ != nullptr) watchdog_->leave();
}

}  // namespace uqa::comm
