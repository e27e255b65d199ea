// libuqa_nccl.so: the only part of uqa that links CUDA libraries. See comm/device.h.
#include <cuda_runtime_api.h>
#include <nccl.h>

#include <cstring>
#include <vector>

#include "comm/device.h"
#include "comm/nccl/calls.h"
#include "comm/nccl/group.h"

namespace uqa::comm::nccl {
namespace {

/// 13020 -> "13.2"
std::string cuda_version(int number) { return fmt::format("{}.{}", number / 1000, number % 1000 / 10); }

/// FNV-1a: a plain number to compare between processes.
std::int64_t hash_of(const void* data, std::size_t bytes) {
  std::uint64_t hash = 0xcbf29ce484222325ULL;
  for (std::size_t i = 0; i < bytes; ++i) hash = (hash ^ static_cast<const unsigned char*>(data)[i]) * 0x100000001b3ULL;
  return static_cast<std::int64_t>(hash);
}

class NcclPlugin final : public detail::DevicePlugin {
 public:
  std::string versions() const override {
    int nccl = 0, runtime = 0, driver = 0;
    UQA_NCCL(ncclGetVersion(&nccl), nullptr, "none");
    UQA_CUDA(cudaRuntimeGetVersion(&runtime));
    UQA_CUDA(cudaDriverGetVersion(&driver));
    return fmt::format("NCCL {}.{}.{}, CUDA runtime {}, driver {}", nccl / 10000, nccl % 10000 / 100, nccl % 100, cuda_version(runtime),
                       driver == 0 ? "none" : cuda_version(driver));
  }

  std::vector<std::int64_t> device_ids() const override {
    const int count = count_devices();
    std::vector<std::int64_t> ids;
    for (int device = 0; device < count; ++device) {
      const auto properties = properties_of(device);
      ids.push_back(hash_of(&properties.uuid, sizeof(properties.uuid)));
    }
    return ids;
  }

  std::string device_name(int device) const override { return properties_of(device).name; }

  void select_device(int device) override {
    const int count = count_devices();
    UQA_CHECK(device >= 0 && device < count, ErrorCode::kConfig, "CUDA device = {}, must be in [0, {})", device, count);
    UQA_CUDA(cudaSetDevice(device));
    device_ = device;
  }

  std::vector<char> new_group_id() const override {
    ncclUniqueId id;
    UQA_NCCL(ncclGetUniqueId(&id), nullptr, "none");
    return {id.internal, id.internal + sizeof(id.internal)};
  }

  detail::DeviceGroup make_group(detail::Backend& host, std::span<const char> bytes) override {
    ncclUniqueId id;
    UQA_CHECK(bytes.size() == sizeof(id.internal), ErrorCode::kInternal, "NCCL id = {} bytes, must be {}: the ranks run different builds", bytes.size(),
              sizeof(id.internal));
    std::memcpy(id.internal, bytes.data(), bytes.size());
    UQA_CHECK(device_ >= 0, ErrorCode::kInternal, "the NCCL group of axis '{}' is made before a device is selected", host.axis());
    auto group = std::make_shared<NcclGroup>(host, id, device_);
    groups_.push_back(group);
    return {group, group};
  }

  void close() override {
    for (const auto& entry : groups_) {
      if (const auto group = entry.lock()) group->close();
    }
    groups_.clear();
  }

  void abort() noexcept override {
    for (const auto& entry : groups_) {
      if (const auto group = entry.lock()) group->abort();
    }
  }

 private:
  static int count_devices() {
    int count = 0;  // left as it is on an error
    const cudaError_t result = cudaGetDeviceCount(&count);
    if (result != cudaSuccess) static_cast<void>(cudaGetLastError());
    UQA_CHECK(result == cudaSuccess && count > 0, ErrorCode::kConfig,
              "CUDA devices = {}, --device = cuda needs at least 1 on each host ({}); use --device=cpu, or look at nvidia-smi and CUDA_VISIBLE_DEVICES", count,
              result == cudaSuccess ? "none is visible" : cudaGetErrorString(result));
    return count;
  }

  static cudaDeviceProp properties_of(int device) {
    cudaDeviceProp properties{};
    UQA_CUDA(cudaGetDeviceProperties(&properties, device));
    return properties;
  }

  int device_ = -1;
  std::vector<std::weak_ptr<NcclGroup>> groups_;  // in the order of making, which is the same on all ranks
};

}  // namespace
}  // namespace uqa::comm::nccl

extern "C" __attribute__((visibility("default"))) uqa::comm::detail::DevicePlugin* uqa_make_device_plugin(int version) {
  return version == uqa::comm::detail::kDevicePluginVersion ? new uqa::comm::nccl::NcclPlugin : nullptr;
}
