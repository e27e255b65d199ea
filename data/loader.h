// data/loader.h - the order of samples, their division among ranks, and threads that prepare batches ahead of time.
//
//   data::Cursor at;                                                     // saved in checkpoints
//   const auto global = data::global_batch(seed, at, num_samples, 256);  // the same on every rank and world size
//   const auto mine = data::split_balanced(global, costs, dp.size(), dp.rank());
//   data::Prefetcher<Batch> batches([&](std::int64_t step) { return make_batch(step); }, {.first_step = s});
//   while (auto batch = batches.next()) train(*batch);
#pragma once

#include <algorithm>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <span>
#include <thread>
#include <utility>
#include <vector>

#include "core/clock.h"
#include "core/error.h"

namespace uqa::data {

/// Where training stands in the data. Does not depend on the world size.
struct Cursor {
  std::int64_t epoch = 0;
  std::int64_t position = 0;  ///< samples of this epoch already used; in [0, num_samples)
  bool operator==(const Cursor&) const = default;
};

/// The cursor after one global batch: position advances by global_users, and the next epoch begins when no sample is left.
[[nodiscard]] Cursor advance(Cursor at, std::int64_t num_samples, std::int64_t global_users);
/// Global batches in one epoch; the last one may be smaller.
[[nodiscard]] std::int64_t batches_per_epoch(std::int64_t num_samples, std::int64_t global_users);
/// The cursor before global batch `step`, counted from the first step of training.
[[nodiscard]] Cursor cursor_at(std::int64_t step, std::int64_t num_samples, std::int64_t global_users);

/// Samples [position, min(position + global_users, num_samples)) of the permutation of [0, num_samples) that (seed, epoch) chooses.
/// A pure function: one epoch visits every sample once. Throws Error(kInternal) on arguments out of range.
[[nodiscard]] std::vector<std::int64_t> global_batch(std::uint64_t seed, Cursor at, std::int64_t num_samples, std::int64_t global_users);
[[nodiscard]] std::vector<std::int64_t> global_batch(std::uint64_t seed, std::int64_t epoch, std::int64_t position,
                                                     std::int64_t num_samples, std::int64_t global_users);

/// The part of `samples` that `rank` of `num_ranks` works on: longest first, each to the rank with the least cost so far (ties: fewer
/// samples, then the lower rank). `costs[i]` >= 0 is the work of samples[i]. Deterministic; over the ranks every sample occurs
/// exactly once; the order of `samples` is kept within a rank. Empty for some ranks when there are more ranks than samples.
[[nodiscard]] std::vector<std::int64_t> split_balanced(std::span<const std::int64_t> samples, std::span<const std::int64_t> costs,
                                                       int num_ranks, int rank);

struct PrefetchOptions {
  std::int64_t first_step = 0;  ///< the step that next() returns first
  int num_threads = 1;          ///< producer threads; >= 1
  int capacity = 4;             ///< items that are ready or in work at most; >= 1
};

/// Runs `produce(step)` for first_step, first_step + 1, ... on threads of its own and hands the results out in that order.
/// A null result ends the stream: next() returns null from there on. An exception of produce(step) is thrown by the next() that would
/// have returned that step, and by every later one. The destructor waits for calls of produce that are under way.
/// next() and the counters belong to one consumer thread; produce must be thread-safe when num_threads > 1.
template <typename T>
class Prefetcher {
 public:
  using Producer = std::function<std::unique_ptr<T>(std::int64_t step)>;

  explicit Prefetcher(Producer produce, PrefetchOptions options = {})
      : produce_(std::move(produce)), capacity_(options.capacity), next_to_make_(options.first_step), next_to_give_(options.first_step) {
    UQA_CHECK(options.num_threads >= 1 && options.capacity >= 1, ErrorCode::kConfig,
              "loader threads = {}, capacity = {}, both must be at least 1", options.num_threads, options.capacity);
    try {
      for (int i = 0; i < options.num_threads; ++i) threads_.emplace_back([this] { work(); });
    } catch (...) {
      stop();  // a thread could not be started: join those that run
      throw;
    }
  }
  ~Prefetcher() { stop(); }
  Prefetcher(const Prefetcher&) = delete;
  Prefetcher& operator=(const Prefetcher&) = delete;

  /// The next step's item, waiting for it if need be; null after the end or after stop().
  [[nodiscard]] std::unique_ptr<T> next() {
    std::unique_lock lock(mutex_);
    const auto begin = Clock::now();
    changed_.wait(lock, [this] { return stopped_ || ready_.contains(next_to_give_); });
    wait_s_ += seconds_since(begin);
    if (stopped_) return nullptr;
    auto at = ready_.find(next_to_give_);
    if (at->second.error) std::rethrow_exception(at->second.error);  // stays at the head: later calls throw again
    if (at->second.item == nullptr) return nullptr;                  // the end: stays at the head too
    auto item = std::move(at->second.item);
    ready_.erase(at);
    ++next_to_give_;
    lock.unlock();
    changed_.notify_all();
    return item;
  }

  /// Ends the threads; next() returns null afterwards. Called by the destructor; may be called twice.
  void stop() {
    {
      const std::lock_guard lock(mutex_);
      stopped_ = true;
    }
    changed_.notify_all();
    for (auto& thread : threads_) thread.join();
    threads_.clear();
    ready_.clear();
  }

  /// Seconds that next() has waited in all: data_wait_fraction is this over the elapsed time.
  [[nodiscard]] double wait_s() const noexcept { return wait_s_; }
  /// The step that the next call of next() returns.
  [[nodiscard]] std::int64_t step() const noexcept { return next_to_give_; }

 private:
  struct Result {
    std::unique_ptr<T> item;
    std::exception_ptr error;
  };

  void work() {
    std::unique_lock lock(mutex_);
    while (true) {
      changed_.wait(lock, [this] { return stopped_ || ended_ || next_to_make_ < next_to_give_ + capacity_; });
      if (stopped_ || ended_) return;
      const std::int64_t step = next_to_make_++;
      lock.unlock();
      Result result;
      try {
        result.item = produce_(step);
      } catch (...) {
        result.error = std::current_exception();
      }
      lock.lock();
      // Steps before this one are with other threads that finish them, so the consumer never waits for a step nobody makes.
      if (result.item == nullptr) ended_ = true;
      ready_.emplace(step, std::move(result));
      changed_.notify_all();
    }
  }

  Producer produce_;
  const std::int64_t capacity_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::map<std::int64_t, Result> ready_;
  std::int64_t next_to_make_;
  std::int64_t next_to_give_;
  bool ended_ = false;
  bool stopped_ = false;
  double wait_s_ = 0;
  std::vector<std::thread> threads_;
};

}  // namespace uqa::data
