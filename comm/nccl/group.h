// comm/nccl/group.h - one group of ranks over NCCL: comm/backend.h for CUDA tensors. Internal to the plug-in.
#pragma once

#include <cuda_runtime_api.h>
#include <nccl.h>

#include <atomic>
#include <deque>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <vector>

#include "comm/backend.h"
#include "comm/nccl/calls.h"

namespace uqa::comm::nccl {

/// Every collective goes to one stream of the group's own: it begins after what the current stream holds at the call, and what the current
/// stream gets afterwards begins when it has ended, so the host does not block. Calls come from one thread, in the same order on all ranks;
/// poll() and abort() may come from the watchdog's.
class NcclGroup final : public detail::Backend, public Polled {
 public:
  /// Blocks until all ranks of `host` are here. `host` counts the collectives and outlives the group.
  NcclGroup(detail::Backend& host, const ncclUniqueId& id, int device);
  /// Ends the group without its peers; one whose collectives have all ended loses nothing by that.
  ~NcclGroup() override;

  [[nodiscard]] bool serves(const at::Device& device) const override { return device.is_cuda() && device.index() == device_; }
  /// Groups split the host's transport (detail::attach_device).
  [[nodiscard]] std::shared_ptr<detail::Backend> split(int color, int key, const std::string& axis) override;
  void all_reduce(const detail::Elements& x, ReduceOp op) override;
  [[nodiscard]] std::unique_ptr<detail::Pending> all_reduce_async(const detail::Elements& x, ReduceOp op, const Tensor& owner) override;
  [[nodiscard]] std::unique_ptr<detail::Pending> all_gather_async(const void* in, void* out, std::span<const std::int64_t> bytes, std::vector<Tensor> owners) override;
  void all_gather(const void* in, void* out, std::span<const std::int64_t> bytes) override;
  void reduce_scatter(const detail::Elements& in, void* out, std::span<const std::int64_t> counts) override;
  void broadcast(void* data, std::int64_t bytes, int root) override;
  void all_to_all(const void* in, std::span<const std::int64_t> send_bytes, void* out, std::span<const std::int64_t> receive_bytes) override;
  /// The host waits until all ranks have come.
  void barrier() override;

  [[nodiscard]] State poll() override;
  void abort() noexcept override;
  /// The orderly end: waits for what was started, then for the peers. Collective. Nothing may be started after it.
  void close();

 private:
  struct InFlight {
    const char* op;
    std::uint64_t sequence;
    Clock::time_point issued;
    std::shared_ptr<const Event> done;
  };
  /// Issues `calls` between an ordering after the current stream and an event behind it, which is returned.
  template <typename Calls>
  std::shared_ptr<const Event> enqueue(Calls calls);
  /// Calls inside one ncclGroupStart and ncclGroupEnd.
  template <typename Calls>
  void grouped(Calls calls);
  std::shared_ptr<const Event> enqueue_all_reduce(const detail::Elements& x, ReduceOp op);
  std::shared_ptr<const Event> enqueue_all_gather(const void* in, void* out, std::span<const std::int64_t> bytes);
  [[nodiscard]] cudaStream_t current_stream() const;
  /// What the current stream gets from here on waits for `done`.
  void join(const Event& done) const;
  void forget_ended();

  class NcclPending;

  detail::Backend& host_;
  const int device_;
  cudaStream_t stream_ = nullptr;
  void* scratch_ = nullptr;  // for barriers
  std::atomic<ncclComm_t> comm_{nullptr};  // null: ended. The watchdog may end it in the middle of a call, as NCCL allows
  std::mutex mutex_;                       // of ending, and of in_flight_
  std::deque<InFlight> in_flight_;
};

}  // namespace uqa::comm::nccl
