// Ranks as threads of one process: shared memory and one condition variable. For tests and small tools, so it is kept
// plain: every collective publishes its arguments, meets, works on its slice, and meets again. Reductions run in rank
// order.
#include <algorithm>
#include <condition_variable>
#include <cstring>
#include <exception>
#include <map>
#include <mutex>
#include <numeric>
#include <thread>

#include "comm/backend.h"

namespace uqa::comm {

namespace detail {
namespace {

/// What all threads of one run_ranks call share.
struct Run {
  std::mutex mutex;
  std::condition_variable changed;
  std::exception_ptr first_error;
  int failed_rank = -1;
  std::vector<char> returned;  ///< by world rank
};

/// A started collective.
struct Started {
  struct Part {
    const char* op = nullptr;  ///< null: this rank has not issued it
    ElementType type = ElementType::kFloat32;
    const void* in = nullptr;
    void* out = nullptr;
    std::vector<std::int64_t> sizes;  ///< of a reduction: its elements; of a gather: the bytes of each rank's block
  };
  std::vector<Part> parts;  ///< by rank; filled as ranks issue it
  int issued = 0;
  bool done = false;
};

/// What the ranks of one group share; guarded by run->mutex unless said otherwise.
struct Group {
  Group(std::shared_ptr<Run> run_in, std::vector<int> world_ranks_in)
      : run(std::move(run_in)),
        world_ranks(std::move(world_ranks_in)),
        arrived(world_ranks.size(), 0),
        slots(world_ranks.size()),
        issued_async(world_ranks.size(), 0),
        split_into(world_ranks.size()) {}
  struct Slot {  // written by its rank before a meeting, read by all after it
    const char* op = "";
    const void* in = nullptr;
    std::int64_t count = 0;
    std::span<const std::int64_t> sizes;
    int color = 0, key = 0;
  };
  std::shared_ptr<Run> run;
  std::vector<int> world_ranks;
  std::vector<std::uint64_t> arrived;  ///< meetings that each rank has come to
  std::vector<Slot> slots;
  std::map<std::uint64_t, std::shared_ptr<Started>> async;
  std::vector<std::uint64_t> issued_async;
  std::vector<std::shared_ptr<Group>> split_into;
};

template <typename T>
T combine(T a, T b, ReduceOp op) {
  switch (op) {
    case ReduceOp::kMax:
      return std::max(a, b);
    case ReduceOp::kMin:
      return std::min(a, b);
    case ReduceOp::kSum:
      break;
  }
  return a + b;
}

/// out[i] = parts[0][i] op parts[1][i] op ..., i in [begin, end); out may be one of the parts.
template <typename T>
void reduce_range(const std::vector<const void*>& parts, T* out, std::int64_t begin, std::int64_t end,
                  std::int64_t out_begin, ReduceOp op) {
  for (std::int64_t i = begin; i < end; ++i) {
    T value = static_cast<const T*>(parts[0])[i];
    for (std::size_t rank = 1; rank < parts.size(); ++rank)
      value = combine(value, static_cast<const T*>(parts[rank])[i], op);
    out[out_begin + i - begin] = value;
  }
}

void reduce_range(const std::vector<const void*>& parts, ElementType type, void* out, std::int64_t begin,
                  std::int64_t end, std::int64_t out_begin, ReduceOp op) {
  if (type == ElementType::kFloat32) return reduce_range(parts, static_cast<float*>(out), begin, end, out_begin, op);
  reduce_range(parts, static_cast<std::int64_t*>(out), begin, end, out_begin, op);
}

void copy_bytes(void* to, std::int64_t to_offset, const void* from, std::int64_t from_offset, std::int64_t bytes) {
  if (bytes > 0)
    std::memcpy(static_cast<char*>(to) + to_offset, static_cast<const char*>(from) + from_offset,
                static_cast<std::size_t>(bytes));
}

std::int64_t sum_before(std::span<const std::int64_t> sizes, std::size_t rank) {
  return std::accumulate(sizes.begin(), sizes.begin() + static_cast<std::ptrdiff_t>(rank), std::int64_t{0});
}

class ThreadPending : public Pending {
 public:
  ThreadPending(std::shared_ptr<Group> group, std::shared_ptr<Started> started, const char* op, std::vector<Tensor> owners, std::string axis)
      : group_(std::move(group)), started_(std::move(started)), op_(op), owners_(std::move(owners)), axis_(std::move(axis)) {}
  void wait() override;
  bool test() override {
    const std::lock_guard lock(group_->run->mutex);
    return started_->done;
  }

 private:
  std::shared_ptr<Group> group_;
  std::shared_ptr<Started> started_;
  const char* op_;
  std::vector<Tensor> owners_;
  std::string axis_;
};

/// Waits for `ready`; throws once a rank has failed, or when one that is still needed has returned from its body.
template <typename Ready, typename Needed>
void wait_for(std::unique_lock<std::mutex>& lock, const Group& group, const std::string& what, Ready ready,
              Needed needed) {
  Run& run = *group.run;
  int gone = -1;
  run.changed.wait(lock, [&] {
    if (ready() || run.failed_rank >= 0) return true;
    for (std::size_t rank = 0; rank < group.world_ranks.size(); ++rank) {
      const int world_rank = group.world_ranks[rank];
      if (run.returned[static_cast<std::size_t>(world_rank)] != 0 && needed(rank)) gone = world_rank;
    }
    return gone >= 0;
  });
  if (ready()) return;
  UQA_CHECK(run.failed_rank < 0, ErrorCode::kComm, "{}: rank {} has failed", what, run.failed_rank);
  UQA_FAIL(ErrorCode::kComm, "{}: rank {} has returned without calling it", what, gone);
}

void ThreadPending::wait() {
  std::unique_lock lock(group_->run->mutex);
  wait_for(
      lock, *group_, fmt::format("{} on axis '{}'", op_, axis_), [&] { return started_->done; },
      [&](std::size_t rank) { return started_->parts[rank].op == nullptr; });
}

class ThreadBackend : public Backend {
 public:
  ThreadBackend(std::shared_ptr<Group> group, int rank, const std::string& axis)
      : Backend(rank, static_cast<int>(group->world_ranks.size()), axis),
        group_(std::move(group)),
        me_(static_cast<std::size_t>(rank)) {}

  std::shared_ptr<Backend> split(int color, int key, const std::string& axis) override {
    meet({.op = "split", .color = color, .key = key});
    std::vector<std::size_t> members;
    for (std::size_t rank = 0; rank < group_->slots.size(); ++rank) {
      if (group_->slots[rank].color == color) members.push_back(rank);
    }
    std::stable_sort(members.begin(), members.end(),
                     [&](std::size_t a, std::size_t b) { return group_->slots[a].key < group_->slots[b].key; });
    if (members.front() == me_) {
      std::vector<int> world_ranks;
      for (const auto rank : members) world_ranks.push_back(group_->world_ranks[rank]);
      group_->split_into[me_] = std::make_shared<Group>(group_->run, std::move(world_ranks));
    }
    meet_again();
    const auto child = group_->split_into[members.front()];
    const auto rank = static_cast<int>(std::find(members.begin(), members.end(), me_) - members.begin());
    meet_again();  // slots and split_into are free again
    if (members.size() == 1) return make_serial_backend(axis);
    return std::make_shared<ThreadBackend>(child, rank, axis);
  }

  void all_reduce(const Elements& x, ReduceOp op) override {
    meet({.op = "all_reduce", .in = x.data, .count = x.count * element_bytes(x.type)});
    // Each rank reduces its own slice into its own memory, which nobody else reads meanwhile, then fetches the other
    // slices.
    const auto slice = [&](std::size_t rank) { return x.count * static_cast<std::int64_t>(rank) / size(); };
    reduce_range(inputs(), x.type, x.data, slice(me_), slice(me_ + 1), slice(me_), op);
    meet_again();
    for (std::size_t rank = 0; rank < group_->slots.size(); ++rank) {
      const std::int64_t begin = slice(rank) * element_bytes(x.type), end = slice(rank + 1) * element_bytes(x.type);
      if (rank != me_) copy_bytes(x.data, begin, group_->slots[rank].in, begin, end - begin);
    }
    meet_again();
  }

  std::unique_ptr<Pending> all_reduce_async(const Elements& x, ReduceOp op, const Tensor& owner) override {
    return issue({.op = "all_reduce_async", .type = x.type, .in = x.data, .out = x.data, .sizes = {x.count}}, {owner},
                 [op](const Started& started) { finish_reduce(started, op); });
  }

  std::unique_ptr<Pending> all_gather_async(const void* in, void* out, std::span<const std::int64_t> bytes, std::vector<Tensor> owners) override {
    return issue({.op = "all_gather_async", .in = in, .out = out, .sizes = {bytes.begin(), bytes.end()}}, std::move(owners), finish_gather);
  }

  void all_gather(const void* in, void* out, std::span<const std::int64_t> bytes) override {
    meet({.op = "all_gather", .in = in, .count = std::accumulate(bytes.begin(), bytes.end(), std::int64_t{0})});
    for (std::size_t rank = 0; rank < bytes.size(); ++rank)
      copy_bytes(out, sum_before(bytes, rank), group_->slots[rank].in, 0, bytes[rank]);
    meet_again();
  }

  void reduce_scatter(const Elements& in, void* out, std::span<const std::int64_t> counts) override {
    meet({.op = "reduce_scatter", .in = in.data, .count = in.count * element_bytes(in.type)});
    const std::int64_t begin = sum_before(counts, me_);
    reduce_range(inputs(), in.type, out, begin, begin + counts[me_], 0, ReduceOp::kSum);
    meet_again();
  }

  void broadcast(void* data, std::int64_t bytes, int root) override {
    meet({.op = "broadcast", .in = data, .count = bytes});
    if (rank() != root) copy_bytes(data, 0, group_->slots[static_cast<std::size_t>(root)].in, 0, bytes);
    meet_again();
  }

  void all_to_all(const void* in, std::span<const std::int64_t> send_bytes, void* out,
                  std::span<const std::int64_t> receive_bytes) override {
    meet({.op = "all_to_all", .in = in, .sizes = send_bytes});
    for (std::size_t rank = 0; rank < send_bytes.size(); ++rank) {
      copy_bytes(out, sum_before(receive_bytes, rank), group_->slots[rank].in,
                 sum_before(group_->slots[rank].sizes, me_), receive_bytes[rank]);
    }
    meet_again();
  }

  void barrier() override { meet({.op = "barrier"}); }

 private:
  /// Publishes `slot` and waits for every rank's. All must be in the same collective with the same size.
  void meet(const Group::Slot& slot) {
    meet_again([&] { group_->slots[me_] = slot; }, slot.op);
    for (std::size_t rank = 0; rank < group_->slots.size(); ++rank) {
      const auto& other = group_->slots[rank];
      UQA_CHECK(std::strcmp(other.op, slot.op) == 0 && other.count == slot.count, ErrorCode::kComm,
                "axis '{}': rank {} is in {} of {} bytes, rank {} in {} of {} bytes; collectives must match", axis(),
                me_, slot.op, slot.count, rank, other.op, other.count);
    }
    // Nobody may publish for the next collective before all have compared.
    meet_again();
  }

  void meet_again() {
    meet_again([] {}, group_->slots[me_].op);
  }

  template <typename Publish>
  void meet_again(Publish publish, const char* op) {
    std::unique_lock lock(group_->run->mutex);
    publish();
    const std::uint64_t meeting = ++group_->arrived[me_];
    group_->run->changed.notify_all();
    wait_for(
        lock, *group_, fmt::format("{} on axis '{}'", op, axis()),
        [&] {
          return std::all_of(group_->arrived.begin(), group_->arrived.end(),
                             [&](std::uint64_t n) { return n >= meeting; });
        },
        [&](std::size_t rank) { return group_->arrived[rank] < meeting; });
  }

  [[nodiscard]] std::vector<const void*> inputs() const {
    std::vector<const void*> result;
    for (const auto& slot : group_->slots) result.push_back(slot.in);
    return result;
  }

  /// Issues this rank's next started collective. The last rank to do so does the work of all.
  template <typename Finish>
  std::unique_ptr<Pending> issue(Started::Part part, std::vector<Tensor> owners, Finish finish) {
    const char* const op = part.op;
    const std::lock_guard lock(group_->run->mutex);
    // A rank that has seen the failure has let go of its buffers.
    UQA_CHECK(group_->run->failed_rank < 0, ErrorCode::kComm, "{}: rank {} has failed", op, group_->run->failed_rank);
    auto& entry = group_->async[++group_->issued_async[me_]];
    if (!entry) {
      entry = std::make_shared<Started>();
      entry->parts.resize(group_->world_ranks.size());
    }
    const auto started = entry;
    started->parts[me_] = std::move(part);
    if (++started->issued == size()) {
      group_->async.erase(group_->issued_async[me_]);
      check_alike(*started);
      finish(*started);
      started->done = true;
      group_->run->changed.notify_all();
    }
    return std::make_unique<ThreadPending>(group_, started, op, std::move(owners), axis());
  }

  void check_alike(const Started& started) const {
    const auto& first = started.parts[0];
    for (const auto& part : started.parts) {
      UQA_CHECK(std::strcmp(part.op, first.op) == 0 && part.type == first.type && part.sizes == first.sizes, ErrorCode::kComm,
                "axis '{}': ranks have started {} of [{}] and {} of [{}]; started collectives must match", axis(), first.op, fmt::join(first.sizes, ", "), part.op,
                fmt::join(part.sizes, ", "));
    }
  }

  static void finish_reduce(const Started& started, ReduceOp op) {
    std::vector<const void*> parts;
    for (const auto& part : started.parts) parts.push_back(part.in);
    const auto& first = started.parts[0];
    const std::int64_t count = first.sizes[0];
    reduce_range(parts, first.type, first.out, 0, count, 0, op);
    for (std::size_t rank = 1; rank < parts.size(); ++rank) copy_bytes(started.parts[rank].out, 0, first.out, 0, count * element_bytes(first.type));
  }

  static void finish_gather(const Started& started) {
    for (const auto& to : started.parts) {
      for (std::size_t rank = 0; rank < started.parts.size(); ++rank) copy_bytes(to.out, sum_before(to.sizes, rank), started.parts[rank].in, 0, to.sizes[rank]);
    }
  }

  std::shared_ptr<Group> group_;
  std::size_t me_;
};

}  // namespace
}  // namespace detail

void run_ranks(int num_ranks, const std::function<void(const Communicator&)>& body) {
  UQA_CHECK(num_ranks >= 1, ErrorCode::kConfig, "ranks = {}, must be at least 1", num_ranks);
  if (num_ranks == 1) return body(Communicator(detail::make_serial_backend("world")));
  const auto run = std::make_shared<detail::Run>();
  run->returned.resize(static_cast<std::size_t>(num_ranks));
  std::vector<int> world_ranks(static_cast<std::size_t>(num_ranks));
  std::iota(world_ranks.begin(), world_ranks.end(), 0);
  const auto group = std::make_shared<detail::Group>(run, world_ranks);
  std::vector<std::thread> threads;
  for (const int rank : world_ranks) {
    threads.emplace_back([&, rank] {
      std::exception_ptr error;
      try {
        body(Communicator(std::make_shared<detail::ThreadBackend>(group, rank, "world")));
      } catch (...) {
        error = std::current_exception();
      }
      const std::lock_guard lock(run->mutex);
      run->returned[static_cast<std::size_t>(rank)] = 1;
      if (error && !run->first_error) {
        run->first_error = error;
        run->failed_rank = rank;
      }
      run->changed.notify_all();
    });
  }
  for (auto& thread : threads) thread.join();
  if (run->first_error) std::rethrow_exception(run->first_error);
}

}  // namespace uqa::comm
