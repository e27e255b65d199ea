// comm/communicator.h - ranks that talk to each other, as values passed to constructors. There is no default group.
//
//   const comm::Session session(&argc, &argv);
//   const comm::Communicator& world = session.world();
//   const auto total = comm::all_reduce(num_rows, comm::ReduceOp::kSum, world);
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "core/error.h"
#include "models/torch_pch.h"

namespace uqa::comm {

using at::Tensor;

enum class ReduceOp { kSum, kMax, kMin };

namespace detail {
class Backend;  // comm/backend.h: one implementation per transport
class Pending;
}  // namespace detail

/// An Error that every rank of a group throws alike (agree_or_throw, run_agreed, Mesh). When that group is the whole world, the
/// ranks end in order and one of them reports it, instead of aborting the job.
class AgreedError : public Error {
 public:
  AgreedError(ErrorCode code, const std::string& text, int num_ranks, std::source_location where = std::source_location::current())
      : Error(code, text, where), num_ranks_(num_ranks) {}
  [[nodiscard]] int num_ranks() const noexcept { return num_ranks_; }

 private:
  int num_ranks_;
};

/// A collective that was started and not yet waited for. Move-only; the destructor waits (and logs, never throws). While an
/// exception unwinds it waits for a second at most and then leaves the tensor to the transport: the peers may never answer.
class [[nodiscard]] Work {
 public:
  Work();
  explicit Work(std::unique_ptr<detail::Pending> pending);
  ~Work();
  Work(Work&&) noexcept;
  Work& operator=(Work&&) noexcept;  ///< waits for the work held before, as the destructor does
  /// Blocks until the result is in the tensor. Throws Error(kComm). A second call returns at once.
  void wait();
  /// Lets the transport progress; true when done. MPI needs such calls to move at all.
  [[nodiscard]] bool test();

 private:
  void settle() noexcept;
  std::unique_ptr<detail::Pending> pending_;
};

/// A group of ranks; cheap to copy. Every collective below must be called by every rank of the group, in the same order,
/// from one thread at a time per process.
class Communicator {
 public:
  /// A group of one: every collective is a copy or nothing.
  Communicator();
  explicit Communicator(std::shared_ptr<detail::Backend> backend);

  [[nodiscard]] int rank() const;
  [[nodiscard]] int size() const;
  /// "world", "dp", "tp": the mesh axis, named in errors and by the watchdog.
  [[nodiscard]] const std::string& axis() const;
  /// Ranks with the same `color` form a new group, ordered by `key`. Collective.
  [[nodiscard]] Communicator split(int color, int key, const std::string& axis) const;
  /// Where this process's tensors belong: the CPU, or the device that use_device() gave the world before this group was split from it.
  [[nodiscard]] at::Device device() const;
  /// This rank alone, on the same device. Local.
  [[nodiscard]] Communicator alone() const;
  /// Bytes that this rank has sent through collectives of this group so far, by the closed formulas in docs/design.
  [[nodiscard]] std::int64_t bytes_sent() const;
  [[nodiscard]] detail::Backend& backend() const;
  [[nodiscard]] const std::shared_ptr<detail::Backend>& backend_ptr() const { return backend_; }

 private:
  std::shared_ptr<detail::Backend> backend_;
};

// Dtypes of every collective: float32, bfloat16 (sums accumulate in float32), int64. Others throw Error(kInternal).
// Tensors live on the CPU for the MPI, serial and thread backends. Results are new storage unless the name ends in `_`, and
// are never part of an autograd graph. The result is the same on every call with the same layout (ranks, shapes, backend); it
// does not depend on which rank arrives first. kMax and kMin of a NaN are not defined: sum a flag to find one.

/// Element-wise reduction over the group. Shapes equal on all ranks; x is not modified.
[[nodiscard]] Tensor all_reduce(const Tensor& x, ReduceOp op, const Communicator& comm);
/// In place; x must be contiguous.
void all_reduce_(Tensor& x, ReduceOp op, const Communicator& comm);
/// In place, started only: x is busy until wait(). x must be contiguous.
[[nodiscard]] Work all_reduce_async_(Tensor& x, ReduceOp op, const Communicator& comm);
/// Concatenation over ranks along dim 0, in rank order. Row counts may differ (also be 0); dtype and trailing shape must agree,
/// else AgreedError(kInternal).
[[nodiscard]] Tensor all_gather(const Tensor& x, const Communicator& comm);
/// all_gather, started only: the result, whose rows are not there before wait(), and the work. `rows` are the row counts of all ranks, equal on all of them,
/// so that nothing is exchanged before; x has rows[rank], and dtype and trailing shape agree (not checked). x must not change until wait(); the work
/// keeps both tensors alive.
[[nodiscard]] std::pair<Tensor, Work> all_gather_async(const Tensor& x, const std::vector<std::int64_t>& rows, const Communicator& comm);
/// Sums x [sum(rows), ...] over ranks and returns this rank's block of `rows[rank]` rows. `rows` is equal on all ranks.
[[nodiscard]] Tensor reduce_scatter(const Tensor& x, const std::vector<std::int64_t>& rows, const Communicator& comm);
/// Rank `root`'s x on every rank, in place; x must be contiguous and of equal shape everywhere.
void broadcast_(Tensor& x, int root, const Communicator& comm);
/// Sends `send_rows[r]` rows of x (in rank order) to rank r; returns what arrived, in rank order, and its row counts. Dtype and
/// trailing shape must agree, else AgreedError(kInternal).
[[nodiscard]] std::pair<Tensor, std::vector<std::int64_t>> all_to_all(const Tensor& x, const std::vector<std::int64_t>& send_rows,
                                                                      const Communicator& comm);
void barrier(const Communicator& comm);

/// One integer reduced over the group.
[[nodiscard]] std::int64_t all_reduce(std::int64_t value, ReduceOp op, const Communicator& comm);
/// Sum in double, added up in rank order: the same bits on every rank, NaN and infinity included.
[[nodiscard]] double sum_in_order(double value, const Communicator& comm);
/// Rank `root`'s text on every rank.
[[nodiscard]] std::string broadcast_text(const std::string& text, int root, const Communicator& comm);

/// Throws the same AgreedError on every rank when `ok` is false on any: code and text of the lowest failing rank, with its rank
/// named (unless every rank failed). Every rank must call it. Use before a collective that one rank might not reach.
void agree_or_throw(const Communicator& comm, bool ok, ErrorCode code, const std::string& text);
/// Runs `body` on every rank and rethrows an error of any rank on all of them as agree_or_throw does (other exceptions than
/// uqa::Error become kInternal). `body` may hold no collective that a failing rank would not reach.
void run_agreed(const Communicator& comm, const std::function<void()>& body);

/// Up to the first line break: what a foreign exception (c10::Error with its stack trace) has to say on one line.
[[nodiscard]] std::string first_line(const std::string& text);

struct SessionOptions {
  double timeout_s = 600;          ///< comm.timeout_s: a collective that waits longer ends the job with code 4; > 0
  /// Where ranks keep their heartbeat files, reachable by all of them. Empty: unnamed files of this host, so that ranks on other
  /// hosts cannot be told missing from present.
  std::string heartbeat_dir = "";
};

/// Owns MPI for the process: initialised (MPI_THREAD_SERIALIZED) only when a launcher started it (mpirun, srun with PMIx),
/// else the world is one rank without MPI. Make exactly one, first thing in main, before threads; it outlives everything.
/// Under Slurm with several tasks and no PMIx it throws Error(kConfig): else N runs would write one directory.
class Session {
 public:
  Session(int* argc, char*** argv, SessionOptions options = {});
  ~Session();
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;

  [[nodiscard]] const Communicator& world() const;
  /// Changes the watchdog's time-out and directory once options are parsed. Collective. Throws AgreedError(kConfig).
  void configure_watchdog(const SessionOptions& options);
  /// Ends well: a last barrier, then finalize. Collective. Nothing may talk after it.
  void finish();
  /// For main's catch block. An AgreedError of the world, or any error of a world of one: rank 0 prints `uqa: <text>` and MPI is finalized in
  /// order. Any other error may be this rank's alone: prints `uqa: rank r: <text>` and aborts the job with the exit code
  /// (MPI_Abort). Returns the exit code: the Error's own, kInternal for other exceptions (first line of what()).
  [[nodiscard]] int fail(const std::exception& error) noexcept;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

/// Splits the world once into named axes, row-major with tp innermost (same node). Beside them, the world is cut into table groups of
/// consecutive ranks: each group holds the row-sharded tables once.
class Mesh {
 public:
  /// dp * tp must be the world size, and `table_group` must divide it and be a multiple of tp, else Error(kConfig) with every factor named.
  /// dp = 0 means world / tp; table_group = 0 means the world up to 64 ranks, beyond that the largest group of at most 64. Collective.
  Mesh(const Communicator& world, int dp, int tp, int table_group = 0);
  [[nodiscard]] const Communicator& world() const { return world_; }
  [[nodiscard]] const Communicator& dp() const { return dp_; }  ///< data loading and gradient sums
  [[nodiscard]] const Communicator& tp() const { return tp_; }  ///< shards of one layer
  [[nodiscard]] const Communicator& table() const { return table_; }                  ///< this rank's table group
  [[nodiscard]] const Communicator& table_replica() const { return table_replica_; }  ///< ranks of all groups that hold the same rows
  /// Where models, batches and gradients of this rank live: the world's device().
  [[nodiscard]] at::Device device() const { return world_.device(); }
  /// Bytes that this rank has sent through collectives of all axes so far.
  [[nodiscard]] std::int64_t bytes_sent() const;

 private:
  Communicator world_, dp_, tp_, table_, table_replica_;
};

/// Runs `body(comm)` on `num_ranks` threads of this process, each with its own rank: for tests and small tools.
/// The first exception of any rank is rethrown after all have stopped; a rank that waits for a failed peer gets Error(kComm).
void run_ranks(int num_ranks, const std::function<void(const Communicator&)>& body);

}  // namespace uqa::comm
