// comm/backend.h - what a transport implements; used by communicator.cpp only. Buffers arrive checked: contiguous, on
// the transport's device, of equal count where the collective asks for it, and never for a group of one rank.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "comm/communicator.h"
#include "comm/watchdog.h"

namespace uqa::comm::detail {

/// What the transports can reduce; bfloat16 is widened to float32 before it gets here.
enum class ElementType { kFloat32, kInt64 };

struct Elements {
  void* data = nullptr;
  std::int64_t count = 0;
  ElementType type = ElementType::kFloat32;
};

/// Bytes of one element.
[[nodiscard]] constexpr std::int64_t element_bytes(ElementType type) { return type == ElementType::kFloat32 ? 4 : 8; }

/// Messages are cut at this many elements (2^30: MPI counts are int). Lower it in tests only, on all ranks alike.
[[nodiscard]] std::int64_t& max_message_elements();

/// A started collective. Owns what the transport still reads or writes.
class Pending {
 public:
  virtual ~Pending() = default;
  /// Returns once the result is in place. Called once at most, and not after test() has returned true.
  virtual void wait() = 0;
  /// True once the result is in place; not called again after that.
  [[nodiscard]] virtual bool test() = 0;
};

class DevicePlugin;  // comm/device.h

/// One group of ranks on one transport.
class Backend {
 public:
  Backend(int rank, int size, std::string axis) : rank_(rank), size_(size), axis_(std::move(axis)) {}
  virtual ~Backend() = default;
  Backend(const Backend&) = delete;
  Backend& operator=(const Backend&) = delete;

  [[nodiscard]] int rank() const noexcept { return rank_; }
  [[nodiscard]] int size() const noexcept { return size_; }
  [[nodiscard]] const std::string& axis() const noexcept { return axis_; }
  [[nodiscard]] std::int64_t bytes_sent() const noexcept { return bytes_sent_.load(std::memory_order_relaxed); }
  void count_sent(std::int64_t bytes) noexcept { bytes_sent_.fetch_add(bytes, std::memory_order_relaxed); }

  /// Where the watchdog is told about this group's collectives; an idle one for transports without a watchdog.
  [[nodiscard]] WatchedGroup& watched() noexcept { return watched_; }

  /// True for tensors that this transport can read.
  [[nodiscard]] virtual bool serves(const at::Device& device) const { return device.is_cpu(); }
  /// The same ranks' transport for tensors of another device; null without one.
  [[nodiscard]] Backend* on_device() const noexcept { return on_device_.get(); }
  [[nodiscard]] const std::shared_ptr<DevicePlugin>& plugin() const noexcept { return plugin_; }
  /// Where this process's tensors belong: the CPU, or what use_device() chose for the world; groups split from it say the same.
  [[nodiscard]] at::Device device() const noexcept { return device_; }
  void set_device(at::Device device, std::shared_ptr<DevicePlugin> plugin) {
    device_ = device;
    plugin_ = std::move(plugin);
  }
  /// "Open MPI v4.1.4"; what carries the messages.
  [[nodiscard]] virtual std::string transport() const { return "none (one process)"; }
  /// A number that is equal exactly for ranks on one host. Collective over the world.
  [[nodiscard]] virtual std::int64_t node() const { return 0; }
  /// Once. `plugin` (may be null) gives groups split from this one their device transport.
  void set_on_device(std::shared_ptr<Backend> backend, std::shared_ptr<DevicePlugin> plugin) {
    on_device_ = std::move(backend);
    plugin_ = std::move(plugin);
  }

  [[nodiscard]] virtual std::shared_ptr<Backend> split(int color, int key, const std::string& axis) = 0;
  virtual void all_reduce(const Elements& x, ReduceOp op) = 0;
  /// `owner` keeps x's memory alive.
  [[nodiscard]] virtual std::unique_ptr<Pending> all_reduce_async(const Elements& x, ReduceOp op,
                                                                  const Tensor& owner) = 0;
  /// all_gather below, started only; not all of `bytes` are 0. `owners` keep the memory of `in` and `out` alive.
  [[nodiscard]] virtual std::unique_ptr<Pending> all_gather_async(const void* in, void* out, std::span<const std::int64_t> bytes, std::vector<Tensor> owners) = 0;
  /// `out` holds sum(bytes) bytes; rank r contributes bytes[r].
  virtual void all_gather(const void* in, void* out, std::span<const std::int64_t> bytes) = 0;
  /// Sums `in`, leaves elements [sum of counts before this rank, + counts[rank]) in `out`.
  virtual void reduce_scatter(const Elements& in, void* out, std::span<const std::int64_t> counts) = 0;
  virtual void broadcast(void* data, std::int64_t bytes, int root) = 0;
  virtual void all_to_all(const void* in, std::span<const std::int64_t> send_bytes, void* out,
                          std::span<const std::int64_t> receive_bytes) = 0;
  virtual void barrier() = 0;

 protected:
  WatchedGroup watched_;

 private:
  int rank_, size_;
  std::string axis_;
  std::atomic<std::int64_t> bytes_sent_{0};
  at::Device device_{at::kCPU};
  std::shared_ptr<DevicePlugin> plugin_;
  std::shared_ptr<Backend> on_device_;
};

/// The group of one (comm/serial.cpp).
[[nodiscard]] std::shared_ptr<Backend> make_serial_backend(const std::string& axis);

}  // namespace uqa::comm::detail
