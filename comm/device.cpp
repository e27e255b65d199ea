#include "comm/device.h"

#include <dlfcn.h>

#include <algorithm>
#include <map>
#include <set>

#include "core/error.h"

namespace uqa::comm {

namespace detail {

void attach_device(const std::shared_ptr<Backend>& host, const std::shared_ptr<DevicePlugin>& plugin) {
  if (host->size() == 1) return;
  // Both steps are agreed through the transport itself: a Communicator of this group is what callers get, not what they have.
  const Communicator comm(host);
  std::vector<char> id;
  run_agreed(comm, [&] {
    if (host->rank() == 0) id = plugin->new_group_id();
  });
  const std::int64_t size = all_reduce(static_cast<std::int64_t>(id.size()), ReduceOp::kMax, comm);
  id.resize(static_cast<std::size_t>(size));
  host->broadcast(id.data(), size, 0);
  run_agreed(comm, [&] {
    // A rank that fails here leaves its peers waiting inside: the watchdog ends that.
    const WatchedGroup::Scope scope(host->watched(), "join device group");
    const DeviceGroup group = plugin->make_group(*host, id);
    host->set_on_device(group.backend, plugin);
    host->watched().set_polled(group.polled);
  });
}

std::vector<int> assign_devices(std::span<const VisibleDevices> ranks) {
  std::map<std::int64_t, std::vector<std::size_t>> nodes;
  for (std::size_t rank = 0; rank < ranks.size(); ++rank) nodes[ranks[rank].node].push_back(rank);
  std::vector<int> chosen(ranks.size(), 0);
  for (const auto& [node, members] : nodes) {
    std::set<std::int64_t> seen, taken;
    for (const auto rank : members) seen.insert(ranks[rank].ids.begin(), ranks[rank].ids.end());
    for (const auto rank : members) {
      const auto& ids = ranks[rank].ids;
      const auto free = std::find_if(ids.begin(), ids.end(), [&](std::int64_t id) { return !taken.contains(id); });
      UQA_CHECK(free != ids.end(), ErrorCode::kConfig,
                "ranks on the host of rank {} = {}, CUDA devices that they see = {}, each rank needs a device of its own; start at most {} on a host "
                "(mpirun --map-by ppr:{}:node), or show the ranks more devices (CUDA_VISIBLE_DEVICES)",
                members.front(), members.size(), seen.size(), seen.size(), seen.size());
      taken.insert(*free);
      chosen[rank] = static_cast<int>(free - ids.begin());
    }
  }
  return chosen;
}

}  // namespace detail

void use_device(const Communicator& world, const DeviceLibrary& library) {
  std::vector<std::int64_t> mine;
  run_agreed(world, [&] {
    UQA_CHECK(library.plugin != nullptr, ErrorCode::kConfig, "{}", library.trouble);
    mine = library.plugin->device_ids();
  });
  // One row [node, number of devices, ids...] per rank.
  const std::int64_t width = 2 + all_reduce(static_cast<std::int64_t>(mine.size()), ReduceOp::kMax, world);
  at::Tensor row = at::zeros({1, width}, at::kLong);
  auto* const values = row.data_ptr<std::int64_t>();
  values[0] = world.backend().node();
  values[1] = static_cast<std::int64_t>(mine.size());
  std::copy(mine.begin(), mine.end(), values + 2);
  const at::Tensor rows = all_gather(row, world);
  std::vector<detail::VisibleDevices> ranks(static_cast<std::size_t>(world.size()));
  for (std::size_t rank = 0; rank < ranks.size(); ++rank) {
    const auto* const theirs = rows.const_data_ptr<std::int64_t>() + static_cast<std::int64_t>(rank) * width;
    ranks[rank] = {theirs[0], {theirs + 2, theirs + 2 + theirs[1]}};
  }
  int device = 0;
  run_agreed(world, [&] {
    device = detail::assign_devices(ranks)[static_cast<std::size_t>(world.rank())];
    library.plugin->select_device(device);
  });
  world.backend().set_device(at::Device(at::kCUDA, static_cast<c10::DeviceIndex>(device)), library.plugin);
  detail::attach_device(world.backend_ptr(), library.plugin);
}

std::string device_name(const Communicator& comm) {
  const auto device = comm.device();
  return device.is_cpu() ? device.str() : comm.backend().plugin()->device_name(device.index());
}

std::string describe_device(const Communicator& comm) {
  const auto device = comm.device();
  return device.is_cpu() ? device.str() : fmt::format("{} ({})", device.str(), device_name(comm));
}

DeviceLibrary load_device_library(const std::filesystem::path& file) noexcept {
  try {
    const auto advice = "run scripts/setup.sh --cuda and build again, or use --device=cpu";
    std::error_code none;
    if (!std::filesystem::exists(file, none)) {
      return {nullptr, fmt::format("--device = cuda needs the plug-in {}, which is not there; {}", file.string(), advice)};
    }
    // Never closed: LibTorch keeps pointers into what it loads.
    void* const library = ::dlopen(file.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) {
      const char* const reason = ::dlerror();
      return {nullptr, fmt::format("--device = cuda: the plug-in cannot be loaded ({}); {}", first_line(reason == nullptr ? file.string() : reason), advice)};
    }
    const auto make = reinterpret_cast<detail::MakeDevicePlugin>(::dlsym(library, detail::kMakeDevicePluginName));
    auto* const plugin = make == nullptr ? nullptr : make(detail::kDevicePluginVersion);
    if (plugin == nullptr) {
      return {nullptr, fmt::format("--device = cuda: {} does not offer plug-in version {}, so it belongs to another build of uqa; build both together", file.string(),
                                   detail::kDevicePluginVersion)};
    }
    return {std::shared_ptr<detail::DevicePlugin>(plugin), ""};
  } catch (const std::exception& error) {
    return {nullptr, first_line(error.what())};
  }
}

}  // namespace uqa::comm
