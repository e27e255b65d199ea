// comm/heartbeat.h - the small file in which a rank writes which collective it has entered, so that a peer's watchdog
// can say who is missing when one does not end. Plain memory and files: no MPI, no torch.
//
//   Heartbeats beats(rank, world_size);
//   beats.create(directory);      // every rank its own file
//   barrier(world);
//   beats.meet(PeerFiles::kByName);
#pragma once

#include <array>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

namespace uqa::comm {

/// One group of ranks in a heartbeat record. Fixed layout: it is read by other processes.
struct HeartbeatEntry {
  std::uint64_t group_id = 0;  ///< 0: free
  std::uint64_t sequence = 0;  ///< number of the collective last entered in this group, from 1
  std::uint64_t inside = 0;    ///< 1 while the rank is in it, 0 once it has left
  std::array<char, 24> axis{};
  std::array<char, 24> op{};
};

struct HeartbeatRecord {
  static constexpr int kMaxGroups = 64;
  std::uint64_t magic = 0;
  std::uint64_t pid = 0;
  std::uint64_t host = 0;      ///< a number of the host's name
  std::uint64_t beats = 0;     ///< rises while the rank's watching thread runs: not in a process that is stopped; 0: nobody watches
  std::uint64_t reported = 0;  ///< of the lowest reachable rank: 1 once a watchdog of the job has reported
  std::uint64_t last_entry = 0;
  std::array<HeartbeatEntry, kMaxGroups> entries{};
};

/// How a peer's record is reached when it is needed.
enum class PeerFiles {
  kByName,    ///< opened then: sees what another host has written to a shared directory
  kHeldOpen,  ///< opened at once and kept
};

/// This rank's record and the way to its peers' records. Not thread-safe; the watchdog guards it.
class Heartbeats {
 public:
  Heartbeats(int rank, int world_size);
  ~Heartbeats();
  Heartbeats(const Heartbeats&) = delete;
  Heartbeats& operator=(const Heartbeats&) = delete;

  /// Moves the record into a mapped file in `directory` (made if absent). Throws Error(kConfig) naming it.
  void create(const std::filesystem::path& directory);
  /// Looks for the peers' files; each rank must have called create() before. With kHeldOpen they stay readable after
  /// remove().
  void meet(PeerFiles files);
  /// Takes this rank's file out of the file system; open ones stay readable. Called at an orderly end, or, with peers
  /// held open, once each rank has called meet(): then nothing is left behind however the job ends.
  void remove() noexcept;

  [[nodiscard]] HeartbeatRecord& own() noexcept { return *record_; }
  [[nodiscard]] const HeartbeatRecord& own() const noexcept { return *record_; }
  /// A peer's record as it is now; nullopt when it cannot be reached (another host without a shared directory).
  [[nodiscard]] std::optional<HeartbeatRecord> read(int rank) const;
  /// True for the first rank of this job (as far as files are shared) that asks: only that one reports a time-out.
  [[nodiscard]] bool claim_report() noexcept;

 private:
  [[nodiscard]] std::filesystem::path file_of(int rank) const;
  void unmap_report() noexcept;

  int rank_, world_size_;
  std::filesystem::path directory_;  // empty: no name
  HeartbeatRecord private_record_;   // before create()
  HeartbeatRecord* record_ = &private_record_;
  HeartbeatRecord* report_record_ = nullptr;  // mapped from the lowest reachable rank
  std::vector<int> peer_fds_;                 // kHeldOpen only; -1: not reachable
};

}  // namespace uqa::comm
