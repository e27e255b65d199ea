// comm/device.h - devices that this process talks through besides the CPU: a plug-in library brings their transport, so that one build
// runs on machines without any device library. Internal to comm/, except for DeviceLibrary and what follows it.
//
//   const auto library = comm::load_device_library(directory_of_program / comm::kNcclPlugin);   // first thing in main
//   comm::Session session(&argc, &argv);
//   comm::use_device(session.world(), library);   // every rank; refuses on all ranks alike
//   const at::Device device = session.world().device();
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "comm/backend.h"

namespace uqa::comm {

/// File name of the plug-in for `--device=cuda`, beside the program.
inline constexpr const char* kNcclPlugin = "libuqa_nccl.so";

namespace detail {

/// A device transport's group of ranks and its link to the watchdog.
struct DeviceGroup {
  std::shared_ptr<Backend> backend;
  std::shared_ptr<Polled> polled;  ///< usually the same object
};

/// What a plug-in library offers. Every function throws Error(kConfig) or Error(kComm) with the reason and the way out.
class DevicePlugin {
 public:
  virtual ~DevicePlugin() = default;
  /// "NCCL 2.30.7, CUDA runtime 13.2, driver 13.0"
  [[nodiscard]] virtual std::string versions() const = 0;
  /// One number for each device that this process sees, equal for two processes only where the device is the same. Never empty.
  [[nodiscard]] virtual std::vector<std::int64_t> device_ids() const = 0;
  /// "NVIDIA H200"
  [[nodiscard]] virtual std::string device_name(int device) const = 0;
  /// Makes `device` this process's own. Once, before any group is made.
  virtual void select_device(int device) = 0;
  /// What the ranks of a new group need from one of them.
  [[nodiscard]] virtual std::vector<char> new_group_id() const = 0;
  /// The group's transport; blocks until all ranks of it are here. `host` is the same ranks' host transport and outlives the result.
  [[nodiscard]] virtual DeviceGroup make_group(Backend& host, std::span<const char> id) = 0;
  /// Ends every live group in the order of making, after what was started has ended. Collective over each group.
  virtual void close() = 0;
  /// Ends every live group at once, without the peers: what waits on the device returns.
  virtual void abort() noexcept = 0;
};

/// Changes with DevicePlugin, Backend, Polled and WatchedGroup: a library built for another version is refused.
inline constexpr int kDevicePluginVersion = 2;
/// The one function that a plug-in exports, by this name. Returns null for a version that it does not know. The caller owns the result.
using MakeDevicePlugin = DevicePlugin* (*)(int version);
inline constexpr const char* kMakeDevicePluginName = "uqa_make_device_plugin";

/// Gives `host`'s ranks a device transport as well: rank 0's id travels over the host transport. Collective over `host`; an error of any
/// rank is thrown on all of them. Nothing to do for a group of one.
void attach_device(const std::shared_ptr<Backend>& host, const std::shared_ptr<DevicePlugin>& plugin);

/// What one rank of the world sees.
struct VisibleDevices {
  std::int64_t node = 0;           ///< equal for ranks on one host
  std::vector<std::int64_t> ids;   ///< DevicePlugin::device_ids()
};

/// Which of its devices each rank takes: the first that no lower rank of its node has taken. So rank i of a node takes device i where all
/// see all, and device 0 where the launcher shows each rank one of its own. Throws Error(kConfig) with the numbers of ranks and devices.
[[nodiscard]] std::vector<int> assign_devices(std::span<const VisibleDevices> ranks);

}  // namespace detail

/// A loaded plug-in, or why there is none.
struct DeviceLibrary {
  std::shared_ptr<detail::DevicePlugin> plugin;  ///< null: see trouble
  std::string trouble;                           ///< one line with the way out
};

/// Loads the library for good. Call it before anything asks LibTorch for devices: the answer "none" is kept for the process. Never throws.
[[nodiscard]] DeviceLibrary load_device_library(const std::filesystem::path& file) noexcept;

/// Gives this rank a device of its own, and `world` and every group split from it a transport for its tensors. Before the first split. Collective.
/// Throws AgreedError(kConfig) where a rank has no plug-in or no device, or a host has more ranks than devices. From then on collectives on tensors of that
/// device are ordered by the current stream and do not block the host; row counts, scalars, texts and errors travel between the hosts. The session ends the
/// device groups: in order when it finishes, at once when it fails.
void use_device(const Communicator& world, const DeviceLibrary& library);

/// What kind of device the tensors of this rank are on: "cpu", "NVIDIA H200".
[[nodiscard]] std::string device_name(const Communicator& comm);
/// Which one: "cpu", "cuda:0 (NVIDIA H200)".
[[nodiscard]] std::string describe_device(const Communicator& comm);

}  // namespace uqa::comm
