// Ranks as MPI processes. Blocking collectives use one communicator per axis, started ones a duplicate of it, so that
// the two cannot mix. Element counts above max_message_elements() are cut.
#include "comm/mpi.h"

#include <malloc.h>
#include <mpi.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <numeric>

namespace uqa::comm::detail {

namespace {

void check(int result, const char* call, const std::string& axis) {
  if (result == MPI_SUCCESS) return;
  char text[MPI_MAX_ERROR_STRING] = "";
  int length = 0;
  MPI_Error_string(result, text, &length);
  UQA_FAIL(ErrorCode::kComm, "{} on axis '{}': {}; see the other ranks' output", call, axis, first_line(text));
}

MPI_Datatype datatype(ElementType type) { return type == ElementType::kFloat32 ? MPI_FLOAT : MPI_INT64_T; }

MPI_Op operation(ReduceOp op) {
  switch (op) {
    case ReduceOp::kMax:
      return MPI_MAX;
    case ReduceOp::kMin:
      return MPI_MIN;
    case ReduceOp::kSum:
      break;
  }
  return MPI_SUM;
}

/// Calls part(first element, number of elements) for the messages of `count` elements.
template <typename Part>
void in_messages(std::int64_t count, Part part) {
  for (std::int64_t begin = 0; begin < count; begin += max_message_elements()) {
    part(begin, static_cast<int>(std::min(max_message_elements(), count - begin)));
  }
}

char* at_byte(const void* data, std::int64_t offset) { return static_cast<char*>(const_cast<void*>(data)) + offset; }

/// MPI's counts and positions of the ranks' blocks.
struct Blocks {
  std::vector<int> counts, begins;
};

class MpiPending : public Pending {
 public:
  /// `blocks` are those that a request still reads.
  MpiPending(std::vector<MPI_Request> requests, std::vector<Tensor> owners, std::string axis, Blocks blocks = {})
      : requests_(std::move(requests)), owners_(std::move(owners)), axis_(std::move(axis)), blocks_(std::move(blocks)) {}
  void wait() override {
    check(MPI_Waitall(static_cast<int>(requests_.size()), requests_.data(), MPI_STATUSES_IGNORE), "MPI_Waitall", axis_);
  }
  bool test() override {
    int done = 0;
    check(MPI_Testall(static_cast<int>(requests_.size()), requests_.data(), &done, MPI_STATUSES_IGNORE), "MPI_Testall",
          axis_);
    return done != 0;
  }

 private:
  std::vector<MPI_Request> requests_;
  std::vector<Tensor> owners_;
  std::string axis_;
  Blocks blocks_;
};

int rank_in(MPI_Comm comm) {
  int rank = 0;
  check(MPI_Comm_rank(comm, &rank), "MPI_Comm_rank", "world");
  return rank;
}

int size_of(MPI_Comm comm) {
  int size = 0;
  check(MPI_Comm_size(comm, &size), "MPI_Comm_size", "world");
  return size;
}

class MpiBackend : public Backend {
 public:
  /// Takes `comm` over. Collective over it.
  MpiBackend(MPI_Comm comm, const std::string& axis, std::uint64_t id, std::shared_ptr<Watchdog> watchdog)
      : Backend(rank_in(comm), size_of(comm), axis), comm_(comm), id_(id), watchdog_(std::move(watchdog)) {
    check(MPI_Comm_dup(comm_, &async_comm_), "MPI_Comm_dup", axis);
    const int world_rank = mpi_rank();
    std::vector<int> world_ranks(static_cast<std::size_t>(size()));
    check(MPI_Allgather(&world_rank, 1, MPI_INT, world_ranks.data(), 1, MPI_INT, comm_), "MPI_Allgather", axis);
    watched_ = WatchedGroup(watchdog_, id_, axis, world_ranks);
  }

  std::shared_ptr<Backend> split(int color, int key, const std::string& axis) override {
    const WatchedGroup::Scope scope(watched_, "split");
    MPI_Comm part = MPI_COMM_NULL;
    check(MPI_Comm_split(comm_, color, key, &part), "MPI_Comm_split", axis);
    // The same number on every rank, since ranks split in the same order; siblings share it and have no rank in common.
    const std::uint64_t id = (id_ * 0x9E3779B97F4A7C15ULL + ++num_splits_) | 1;
    if (size_of(part) > 1) return std::make_shared<MpiBackend>(part, axis, id, watchdog_);
    MPI_Comm_free(&part);
    return make_serial_backend(axis);
  }

  void all_reduce(const Elements& x, ReduceOp op) override {
    in_messages(x.count, [&](std::int64_t begin, int count) {
      check(MPI_Allreduce(MPI_IN_PLACE, at_byte(x.data, begin * element_bytes(x.type)), count, datatype(x.type),
                          operation(op), comm_),
            "MPI_Allreduce", axis());
    });
  }

  std::unique_ptr<Pending> all_reduce_async(const Elements& x, ReduceOp op, const Tensor& owner) override {
    std::vector<MPI_Request> requests;
    in_messages(x.count, [&](std::int64_t begin, int count) {
      requests.push_back(MPI_REQUEST_NULL);
      check(MPI_Iallreduce(MPI_IN_PLACE, at_byte(x.data, begin * element_bytes(x.type)), count, datatype(x.type),
                           operation(op), async_comm_, &requests.back()),
            "MPI_Iallreduce", axis());
    });
    return std::make_unique<MpiPending>(std::move(requests), std::vector<Tensor>{owner}, axis());
  }

  std::unique_ptr<Pending> all_gather_async(const void* in, void* out, std::span<const std::int64_t> bytes, std::vector<Tensor> owners) override {
    std::vector<MPI_Request> requests;
    if (std::accumulate(bytes.begin(), bytes.end(), std::int64_t{0}) <= max_message_elements()) {
      Blocks blocks = blocks_of(bytes);
      requests.push_back(MPI_REQUEST_NULL);
      check(MPI_Iallgatherv(in, blocks.counts[static_cast<std::size_t>(rank())], MPI_BYTE, out, blocks.counts.data(), blocks.begins.data(), MPI_BYTE, async_comm_,
                            &requests.back()),
            "MPI_Iallgatherv", axis());
      return std::make_unique<MpiPending>(std::move(requests), std::move(owners), axis(), std::move(blocks));
    }
    // As in all_gather.
    std::int64_t block_begin = 0;
    for (int root = 0; root < size(); ++root) {
      const std::int64_t block = bytes[static_cast<std::size_t>(root)];
      if (root == rank() && block > 0) std::memcpy(at_byte(out, block_begin), in, static_cast<std::size_t>(block));
      in_messages(block, [&](std::int64_t begin, int count) {
        requests.push_back(MPI_REQUEST_NULL);
        check(MPI_Ibcast(at_byte(out, block_begin + begin), count, MPI_BYTE, root, async_comm_, &requests.back()), "MPI_Ibcast", axis());
      });
      block_begin += block;
    }
    return std::make_unique<MpiPending>(std::move(requests), std::move(owners), axis());
  }

  void all_gather(const void* in, void* out, std::span<const std::int64_t> bytes) override {
    const std::int64_t total = std::accumulate(bytes.begin(), bytes.end(), std::int64_t{0});
    if (total <= max_message_elements()) {
      const auto [counts, begins] = blocks_of(bytes);
      check(MPI_Allgatherv(in, counts[static_cast<std::size_t>(rank())], MPI_BYTE, out, counts.data(), begins.data(),
                           MPI_BYTE, comm_),
            "MPI_Allgatherv", axis());
      return;
    }
    // MPI counts positions in int as well: each rank's block travels by itself.
    std::int64_t begin = 0;
    for (int root = 0; root < size(); ++root) {
      const std::int64_t block = bytes[static_cast<std::size_t>(root)];
      if (root == rank() && block > 0) std::memcpy(at_byte(out, begin), in, static_cast<std::size_t>(block));
      send_all(at_byte(out, begin), block, root);
      begin += block;
    }
  }

  void reduce_scatter(const Elements& in, void* out, std::span<const std::int64_t> counts) override {
    if (in.count <= max_message_elements()) {
      check(MPI_Reduce_scatter(in.data, out, blocks_of(counts).counts.data(), datatype(in.type), MPI_SUM, comm_),
            "MPI_Reduce_scatter", axis());
      return;
    }
    std::int64_t block_begin = 0;
    for (int root = 0; root < size(); ++root) {
      const std::int64_t block = counts[static_cast<std::size_t>(root)];
      in_messages(block, [&](std::int64_t begin, int count) {
        check(MPI_Reduce(at_byte(in.data, (block_begin + begin) * element_bytes(in.type)),
                         root == rank() ? at_byte(out, begin * element_bytes(in.type)) : nullptr, count,
                         datatype(in.type), MPI_SUM, root, comm_),
              "MPI_Reduce", axis());
      });
      block_begin += block;
    }
  }

  void broadcast(void* data, std::int64_t bytes, int root) override { send_all(data, bytes, root); }

  void all_to_all(const void* in, std::span<const std::int64_t> send_bytes, void* out,
                  std::span<const std::int64_t> receive_bytes) override {
    std::vector<std::int64_t> send_begins(send_bytes.size()), receive_begins(receive_bytes.size());
    std::exclusive_scan(send_bytes.begin(), send_bytes.end(), send_begins.begin(), std::int64_t{0});
    std::exclusive_scan(receive_bytes.begin(), receive_bytes.end(), receive_begins.begin(), std::int64_t{0});
    const auto me = static_cast<std::size_t>(rank());
    if (send_bytes[me] > 0)
      std::memcpy(at_byte(out, receive_begins[me]), at_byte(in, send_begins[me]),
                  static_cast<std::size_t>(send_bytes[me]));
    std::vector<MPI_Request> requests;
    // Starting with the next rank, so that not all talk to rank 0 first.
    for (int step = 1; step < size(); ++step) {
      const int source = (rank() - step + size()) % size();
      const auto from = static_cast<std::size_t>(source);
      in_messages(receive_bytes[from], [&](std::int64_t begin, int count) {
        requests.push_back(MPI_REQUEST_NULL);
        check(MPI_Irecv(at_byte(out, receive_begins[from] + begin), count, MPI_BYTE, source, kTag, comm_,
                        &requests.back()),
              "MPI_Irecv", axis());
      });
    }
    for (int step = 1; step < size(); ++step) {
      const int target = (rank() + step) % size();
      const auto to = static_cast<std::size_t>(target);
      in_messages(send_bytes[to], [&](std::int64_t begin, int count) {
        requests.push_back(MPI_REQUEST_NULL);
        check(MPI_Isend(at_byte(in, send_begins[to] + begin), count, MPI_BYTE, target, kTag, comm_, &requests.back()),
              "MPI_Isend", axis());
      });
    }
    check(MPI_Waitall(static_cast<int>(requests.size()), requests.data(), MPI_STATUSES_IGNORE), "MPI_Waitall", axis());
  }

  void barrier() override { check(MPI_Barrier(comm_), "MPI_Barrier", axis()); }
  std::string transport() const override { return mpi_version(); }
  std::int64_t node() const override { return mpi_node(); }

 private:
  static constexpr int kTag = 1;

  void send_all(void* data, std::int64_t bytes, int root) {
    in_messages(bytes, [&](std::int64_t begin, int count) {
      check(MPI_Bcast(at_byte(data, begin), count, MPI_BYTE, root, comm_), "MPI_Bcast", axis());
    });
  }

  /// The caller has made sure that they fit.
  static Blocks blocks_of(std::span<const std::int64_t> sizes) {
    Blocks blocks{std::vector<int>(sizes.size()), std::vector<int>(sizes.size())};
    std::transform(sizes.begin(), sizes.end(), blocks.counts.begin(), [](std::int64_t n) { return static_cast<int>(n); });
    std::exclusive_scan(blocks.counts.begin(), blocks.counts.end(), blocks.begins.begin(), 0);
    return blocks;
  }

  MPI_Comm comm_;
  MPI_Comm async_comm_ = MPI_COMM_NULL;
  std::uint64_t id_;
  std::uint64_t num_splits_ = 0;
  std::shared_ptr<Watchdog> watchdog_;
};

}  // namespace

void mpi_init(int* argc, char*** argv) {
  // Buffers of non-blocking collectives come from malloc; mapping and unmapping them each time costs more than the sum
  // itself.
  ::mallopt(M_MMAP_THRESHOLD, 1 << 30);
  ::mallopt(M_TRIM_THRESHOLD, 0x7fffffff);
  int provided = MPI_THREAD_SINGLE;
  check(MPI_Init_thread(argc, argv, MPI_THREAD_SERIALIZED, &provided), "MPI_Init_thread", "world");
  UQA_CHECK(provided >= MPI_THREAD_SERIALIZED, ErrorCode::kComm,
            "MPI thread level = {}, must be at least MPI_THREAD_SERIALIZED ({}); use another MPI", provided,
            static_cast<int>(MPI_THREAD_SERIALIZED));
  check(MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN), "MPI_Comm_set_errhandler", "world");
}

int mpi_rank() { return rank_in(MPI_COMM_WORLD); }
int mpi_size() { return size_of(MPI_COMM_WORLD); }

int mpi_node() {
  MPI_Comm shared = MPI_COMM_NULL;
  check(MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &shared), "MPI_Comm_split_type", "world");
  int node = mpi_rank();
  check(MPI_Bcast(&node, 1, MPI_INT, 0, shared), "MPI_Bcast", "node");
  check(MPI_Comm_free(&shared), "MPI_Comm_free", "node");
  return node;
}

std::string mpi_version() {
  char text[MPI_MAX_LIBRARY_VERSION_STRING] = "";
  int length = 0;
  check(MPI_Get_library_version(text, &length), "MPI_Get_library_version", "world");
  const std::string line = first_line(text);
  return line.substr(0, line.find(','));
}

std::shared_ptr<Backend> make_mpi_backend(std::shared_ptr<Watchdog> watchdog) {
  MPI_Comm world = MPI_COMM_NULL;
  check(MPI_Comm_dup(MPI_COMM_WORLD, &world), "MPI_Comm_dup", "world");  // inherits the error handler
  return std::make_shared<MpiBackend>(world, "world", 1, std::move(watchdog));
}

void mpi_finalize() { check(MPI_Finalize(), "MPI_Finalize", "world"); }

void mpi_abort(int code) noexcept {
  MPI_Abort(MPI_COMM_WORLD, code);
  std::_Exit(code);
}

}  // namespace uqa::comm::detail
