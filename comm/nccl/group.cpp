#include "comm/nccl/group.h"

#include <c10/cuda/CUDAStream.h>

#include <algorithm>
#include <numeric>
#include <vector>

namespace uqa::comm::nccl {

namespace {

using detail::Elements;
using detail::ElementType;

ncclDataType_t datatype(ElementType type) { return type == ElementType::kFloat32 ? ncclFloat32 : ncclInt64; }

ncclRedOp_t operation(ReduceOp op) {
  switch (op) {
    case ReduceOp::kMax:
      return ncclMax;
    case ReduceOp::kMin:
      return ncclMin;
    case ReduceOp::kSum:
      break;
  }
  return ncclSum;
}

char* at_byte(const void* data, std::int64_t offset) { return static_cast<char*>(const_cast<void*>(data)) + offset; }

std::vector<std::int64_t> begins_of(std::span<const std::int64_t> sizes) {
  std::vector<std::int64_t> begins(sizes.size());
  std::exclusive_scan(sizes.begin(), sizes.end(), begins.begin(), std::int64_t{0});
  return begins;
}

bool all_equal(std::span<const std::int64_t> sizes) {
  return std::all_of(sizes.begin(), sizes.end(), [&](std::int64_t n) { return n == sizes.front(); });
}

std::size_t as_size(std::int64_t n) { return static_cast<std::size_t>(n); }

}  // namespace

class NcclGroup::NcclPending : public detail::Pending {
 public:
  NcclPending(const NcclGroup& group, std::shared_ptr<const Event> done, std::vector<Tensor> owners)
      : group_(group), done_(std::move(done)), owners_(std::move(owners)) {}
  void wait() override {
    group_.join(*done_);
    owners_.clear();  // their memory is reused on the current stream only, which comes after the collective now
  }
  bool test() override { return done_->reached(); }

 private:
  const NcclGroup& group_;
  std::shared_ptr<const Event> done_;
  std::vector<Tensor> owners_;
};

NcclGroup::NcclGroup(detail::Backend& host, const ncclUniqueId& id, int device)
    : Backend(host.rank(), host.size(), host.axis()), host_(host), device_(device) {
  try {
    UQA_CUDA(cudaSetDevice(device_));
    // Above the computing streams: a collective that is ready should not queue behind kernels that nobody waits for.
    int least = 0, greatest = 0;
    UQA_CUDA(cudaDeviceGetStreamPriorityRange(&least, &greatest));
    UQA_CUDA(cudaStreamCreateWithPriority(&stream_, cudaStreamNonBlocking, greatest));
    UQA_CUDA(cudaMalloc(&scratch_, sizeof(float)));
    UQA_CUDA(cudaMemsetAsync(scratch_, 0, sizeof(float), stream_));
    ncclComm_t comm = nullptr;
    UQA_NCCL(ncclCommInitRank(&comm, size(), id, rank()), nullptr, axis());
    comm_ = comm;
  } catch (...) {
    if (scratch_ != nullptr) static_cast<void>(cudaFree(scratch_));
    if (stream_ != nullptr) static_cast<void>(cudaStreamDestroy(stream_));
    throw;
  }
}

NcclGroup::~NcclGroup() {
  abort();
  static_cast<void>(cudaFree(scratch_));
  static_cast<void>(cudaStreamDestroy(stream_));
}

std::shared_ptr<detail::Backend> NcclGroup::split(int, int, const std::string& axis) {
  UQA_FAIL(ErrorCode::kInternal, "split of the NCCL group of axis '{}' into '{}': split the host's group, which gets a device group of its own", this->axis(), axis);
}

cudaStream_t NcclGroup::current_stream() const { return c10::cuda::getCurrentCUDAStream(static_cast<c10::DeviceIndex>(device_)).stream(); }

void NcclGroup::join(const Event& done) const { UQA_CUDA(cudaStreamWaitEvent(current_stream(), done.get(), 0)); }

void NcclGroup::forget_ended() {
  while (!in_flight_.empty() && in_flight_.front().done->reached()) in_flight_.pop_front();
}

template <typename Calls>
std::shared_ptr<const Event> NcclGroup::enqueue(Calls calls) {
  const Event ready;
  UQA_CUDA(cudaEventRecord(ready.get(), current_stream()));
  UQA_CUDA(cudaStreamWaitEvent(stream_, ready.get(), 0));
  UQA_CHECK(comm_ != nullptr, ErrorCode::kComm, "{} on axis '{}': the group has been ended", host_.watched().last_op(), axis());
  calls();
  auto done = std::make_shared<const Event>();
  UQA_CUDA(cudaEventRecord(done->get(), stream_));
  const std::lock_guard lock(mutex_);
  forget_ended();
  in_flight_.push_back({host_.watched().last_op(), host_.watched().last_sequence(), Clock::now(), done});
  return done;
}

template <typename Calls>
void NcclGroup::grouped(Calls calls) {
  UQA_NCCL(ncclGroupStart(), comm_, axis());
  try {
    calls();
  } catch (...) {
    static_cast<void>(ncclGroupEnd());  // the thread must not stay inside a group
    throw;
  }
  UQA_NCCL(ncclGroupEnd(), comm_, axis());
}

std::shared_ptr<const Event> NcclGroup::enqueue_all_reduce(const Elements& x, ReduceOp op) {
  return enqueue([&] { UQA_NCCL(ncclAllReduce(x.data, x.data, as_size(x.count), datatype(x.type), operation(op), comm_, stream_), comm_, axis()); });
}

void NcclGroup::all_reduce(const Elements& x, ReduceOp op) { join(*enqueue_all_reduce(x, op)); }

std::unique_ptr<detail::Pending> NcclGroup::all_reduce_async(const Elements& x, ReduceOp op, const Tensor& owner) {
  return std::make_unique<NcclPending>(*this, enqueue_all_reduce(x, op), std::vector<Tensor>{owner});
}

std::shared_ptr<const Event> NcclGroup::enqueue_all_gather(const void* in, void* out, std::span<const std::int64_t> bytes) {
  return enqueue([&] {
    if (all_equal(bytes)) {
      UQA_NCCL(ncclAllGather(in, out, as_size(bytes.front()), ncclUint8, comm_, stream_), comm_, axis());
      return;
    }
    // NCCL gathers equal blocks only: one broadcast per rank, all at once.
    const auto begins = begins_of(bytes);
    grouped([&] {
      for (int root = 0; root < size(); ++root) {
        const auto r = static_cast<std::size_t>(root);
        if (bytes[r] == 0) continue;
        UQA_NCCL(ncclBroadcast(root == rank() ? in : at_byte(out, begins[r]), at_byte(out, begins[r]), as_size(bytes[r]), ncclUint8, root, comm_, stream_), comm_,
                 axis());
      }
    });
  });
}

void NcclGroup::all_gather(const void* in, void* out, std::span<const std::int64_t> bytes) { join(*enqueue_all_gather(in, out, bytes)); }

std::unique_ptr<detail::Pending> NcclGroup::all_gather_async(const void* in, void* out, std::span<const std::int64_t> bytes, std::vector<Tensor> owners) {
  return std::make_unique<NcclPending>(*this, enqueue_all_gather(in, out, bytes), std::move(owners));
}

void NcclGroup::reduce_scatter(const Elements& in, void* out, std::span<const std::int64_t> counts) {
  join(*enqueue([&] {
    if (all_equal(counts)) {
      UQA_NCCL(ncclReduceScatter(in.data, out, as_size(counts.front()), datatype(in.type), ncclSum, comm_, stream_), comm_, axis());
      return;
    }
    const auto begins = begins_of(counts);
    grouped([&] {
      for (int root = 0; root < size(); ++root) {
        const auto r = static_cast<std::size_t>(root);
        if (counts[r] == 0) continue;
        const void* const block = at_byte(in.data, begins[r] * detail::element_bytes(in.type));
        UQA_NCCL(ncclReduce(block, root == rank() ? out : nullptr, as_size(counts[r]), datatype(in.type), ncclSum, root, comm_, stream_), comm_, axis());
      }
    });
  }));
}

void NcclGroup::broadcast(void* data, std::int64_t bytes, int root) {
  join(*enqueue([&] { UQA_NCCL(ncclBroadcast(data, data, as_size(bytes), ncclUint8, root, comm_, stream_), comm_, axis()); }));
}

void NcclGroup::all_to_all(const void* in, std::span<const std::int64_t> send_bytes, void* out, std::span<const std::int64_t> receive_bytes) {
  const auto send_begins = begins_of(send_bytes), receive_begins = begins_of(receive_bytes);
  const auto me = static_cast<std::size_t>(rank());
  join(*enqueue([&] {
    if (send_bytes[me] > 0) {
      UQA_CUDA(cudaMemcpyAsync(at_byte(out, receive_begins[me]), at_byte(in, send_begins[me]), as_size(send_bytes[me]), cudaMemcpyDeviceToDevice, stream_));
    }
    grouped([&] {
      for (int step = 1; step < size(); ++step) {
        const int to = (rank() + step) % size(), from = (rank() - step + size()) % size();
        const auto t = static_cast<std::size_t>(to), f = static_cast<std::size_t>(from);
        if (send_bytes[t] > 0) UQA_NCCL(ncclSend(at_byte(in, send_begins[t]), as_size(send_bytes[t]), ncclUint8, to, comm_, stream_), comm_, axis());
        if (receive_bytes[f] > 0) UQA_NCCL(ncclRecv(at_byte(out, receive_begins[f]), as_size(receive_bytes[f]), ncclUint8, from, comm_, stream_), comm_, axis());
      }
    });
  }));
}

void NcclGroup::barrier() {
  const auto done = enqueue([&] { UQA_NCCL(ncclAllReduce(scratch_, scratch_, 1, ncclFloat32, ncclSum, comm_, stream_), comm_, axis()); });
  UQA_CUDA(cudaEventSynchronize(done->get()));
}

Polled::State NcclGroup::poll() {
  const std::lock_guard lock(mutex_);
  State state;
  if (comm_ == nullptr) return state;
  try {
    UQA_CUDA(cudaSetDevice(device_));  // this thread's; it has not chosen one before
    ncclResult_t result = ncclSuccess;
    UQA_NCCL(ncclCommGetAsyncError(comm_, &result), comm_, axis());
    if (result != ncclSuccess && result != ncclInProgress) state.failure = fmt::format("NCCL reports an asynchronous error: {}", explain(result, comm_));
    forget_ended();
  } catch (const std::exception& error) {
    state.failure = error.what();
  }
  if (!in_flight_.empty()) {
    const auto& oldest = in_flight_.front();
    state.op = oldest.op;
    state.sequence = oldest.sequence;
    state.issued = oldest.issued;
  }
  return state;
}

void NcclGroup::abort() noexcept {
  const std::lock_guard lock(mutex_);
  if (comm_ == nullptr) return;
  static_cast<void>(ncclCommAbort(comm_.exchange(nullptr)));
  in_flight_.clear();
}

void NcclGroup::close() {
  if (comm_ == nullptr) return;
  UQA_CUDA(cudaStreamSynchronize(stream_));
  UQA_NCCL(ncclCommFinalize(comm_), comm_, axis());
  const std::lock_guard lock(mutex_);
  in_flight_.clear();
  UQA_NCCL(ncclCommDestroy(comm_.exchange(nullptr)), nullptr, axis());
}

}  // namespace uqa::comm::nccl
