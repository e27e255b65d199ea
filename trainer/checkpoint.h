// trainer/checkpoint.h - checkpoints/step-N/{rank-R.safetensors, manifest.json}, whole or absent, written behind training's back.
//
//   CheckpointWriter writer(run.checkpoints(), mesh.world(), /*keep=*/2);
//   writer.start(step, tensors, loop_state);                // copies this rank's part, returns at once
//   if (all_ranks(writer.written())) writer.commit();       // collective: manifest, rename, `latest`
//   const Json loop = load_checkpoint(path, tensors);       // on another run, at any world size
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "comm/communicator.h"
#include "core/file.h"
#include "core/json.h"
#include "trainer/checkpoint_manifest.h"
#include "trainer/training.h"

namespace uqa::trainer {

/// A part of a tensor that goes into one file.
struct StoredSlice {
  std::size_t tensor = 0;                   ///< position in the list of tensors
  std::optional<models::SliceRange> range;  ///< of the layout's dimension; nullopt: the whole, replicated tensor
  int rank = 0;                             ///< in whose file it is stored
};
/// Which rank stores what: each distinct slice once, largest first, each by the rank with the fewest bytes so far among those that hold
/// it (ties: the lowest). `held[r][i]` are the ranges of tensor i on rank r (of a replicated tensor: anything). A pure function,
/// equal on all ranks. Error(kInternal) if the ranges do not cover a tensor.
[[nodiscard]] std::vector<StoredSlice> assign_slices(const std::vector<NamedParameter>& tensors,
                                                     const std::vector<std::vector<std::vector<models::SliceRange>>>& held);

/// Writes checkpoints: each tensor, or each slice of one that is cut, goes to exactly one rank's file. One checkpoint is in flight at a
/// time. All ranks call start() and commit() at the same steps.
class CheckpointWriter {
 public:
  /// Collective: rank 0 removes what an interrupted run left half-written.
  CheckpointWriter(fs::path directory, comm::Communicator world, std::int64_t keep);
  /// Waits for the thread; a checkpoint that was not committed is as if it had not been started.
  ~CheckpointWriter();
  CheckpointWriter(const CheckpointWriter&) = delete;
  CheckpointWriter& operator=(const CheckpointWriter&) = delete;

  /// Copies this rank's part to host memory and starts writing and syncing it. Collective where a tensor is cut (ranks tell each other their ranges). `loop` is stored in the manifest; its "best_step" (may be
  /// absent) is never removed. No checkpoint may be in flight.
  void start(std::int64_t step, const std::vector<NamedParameter>& tensors, const Json& loop);
  /// Between start() and commit().
  [[nodiscard]] bool in_flight() const { return pending_ != nullptr; }
  /// This rank's file is on the device, or could not be written (commit() tells). False when nothing is in flight.
  [[nodiscard]] bool written() const;
  /// Collective; waits for the threads of all ranks, then publishes the checkpoint: rank 0 writes the manifest, renames, moves
  /// `latest`, and removes old ones. Throws Error(kData) on every rank when any rank could not write (a full disk, say): earlier
  /// checkpoints are then untouched. Does nothing when nothing is in flight.
  void commit();
  /// The step of the newest published checkpoint of this writer or of an earlier run; nullopt if there is none.
  [[nodiscard]] std::optional<std::int64_t> latest_step() const { return latest_; }

 private:
  struct Pending;
  void publish(const Manifest& manifest) const;
  void remove_old(const Manifest& manifest) const;
  fs::path directory_;
  comm::Communicator world_;
  std::int64_t keep_;
  std::optional<std::int64_t> latest_;
  std::unique_ptr<Pending> pending_;
};

/// checkpoints/step-N
[[nodiscard]] fs::path checkpoint_path(const fs::path& directory, std::int64_t step);
/// What `latest` points at; nullopt when there is none. Error(kData) if it is unreadable.
[[nodiscard]] std::optional<std::int64_t> latest_checkpoint(const fs::path& directory);

enum class Coverage {
  kAll,     ///< the checkpoint must hold these tensors and no others
  kSubset,  ///< it may hold more (best weights without optimizer state)
};
/// Reads a checkpoint into `tensors` (in place) and returns the stored loop state. Local: every rank reads what its layouts hold, whatever
/// layout the checkpoint was written with. Checks the manifest's checksum, size and checksum of every file that it needs, and
/// every tensor's name and global shape before anything is copied. Throws Error(kData) naming file and
/// tensor, with both shapes if they differ.
[[nodiscard]] Json load_checkpoint(const fs::path& path, const std::vector<NamedParameter>& tensors, Coverage coverage = Coverage::kAll);

}  // namespace uqa::trainer
