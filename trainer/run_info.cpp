#include "trainer/run_info.h"

#include <algorithm>
#include <array>
#include <set>
#include <thread>

#include <sched.h>
#include <unistd.h>

#include "comm/device.h"
#include "core/hash.h"
#include "core/log.h"
#include "models/torch_pch.h"

namespace uqa::trainer {

using at::Tensor;

namespace {

std::string host_name() {
  std::array<char, 256> name{};
  return ::gethostname(name.data(), name.size() - 1) == 0 ? name.data() : "unknown";
}

std::int64_t host_cores() { return std::max<std::int64_t>(1, ::sysconf(_SC_NPROCESSORS_ONLN)); }

/// Cores that this process may run on.
std::int64_t allowed_cores() {
  cpu_set_t set;
  CPU_ZERO(&set);
  return ::sched_getaffinity(0, sizeof(set), &set) == 0 ? CPU_COUNT(&set) : host_cores();
}

/// One number per rank that is equal exactly for ranks on one host.
Tensor host_keys(const comm::Communicator& world) {
  const auto key = static_cast<std::int64_t>(hash64(host_name()));
  return comm::all_gather(at::full({1}, key, at::kLong), world);
}

}  // namespace

std::int64_t set_num_threads(std::int64_t num_threads, const comm::Communicator& world) {
  const Tensor keys = host_keys(world);
  const std::int64_t ranks_here = (keys == keys[world.rank()]).sum().item<std::int64_t>();
  if (num_threads == 0) num_threads = std::max<std::int64_t>(1, host_cores() / ranks_here);
  if (const auto cores = allowed_cores(); cores < num_threads) {
    log::warn("trainer", "this rank has {} threads and may run on {} cores; start with mpirun --bind-to none, or set --train.num_threads", num_threads,
              cores);
  }
  at::set_num_threads(static_cast<int>(num_threads));
  return num_threads;
}

void set_deterministic(bool on) {
  auto& context = at::globalContext();
  context.setDeterministicAlgorithms(on, /*warn_only=*/false);
  context.setDeterministicFillUninitializedMemory(false);  // nothing reads what it did not write; filling costs time
  context.setDeterministicMkldnn(on);
  context.setDeterministicCuDNN(on);
}

Json describe_numerics(const comm::Mesh& mesh) {
  Json numerics{{"ranks", mesh.world().size()}, {"dp", mesh.dp().size()}, {"tp", mesh.tp().size()}, {"table_group", mesh.table().size()},
                {"threads", at::get_num_threads()}, {"cpu_capability", at::get_cpu_capability()}};
  if (!mesh.device().is_cpu()) numerics["device"] = comm::device_name(mesh.world());
  return numerics;
}

Json describe_run(const comm::Mesh& mesh) {
  const auto& world = mesh.world();
  const Tensor keys = host_keys(world).contiguous();
  const auto* const first = keys.const_data_ptr<std::int64_t>();
  const std::set<std::int64_t> hosts(first, first + keys.numel());
  const Json here{{"versions", {{"uqa", UQA_VERSION}, {"libtorch", TORCH_VERSION}, {"compiler", __VERSION__}}},
                  {"host", host_name()},
                  {"num_hosts", hosts.size()},
                  {"device", comm::describe_device(world)},
                  {"host_cores", host_cores()},
                  {"threads_per_rank", at::get_num_threads()},
                  {"mesh", {{"world", world.size()}, {"dp", mesh.dp().size()}, {"tp", mesh.tp().size()}, {"table_group", mesh.table().size()}}}};
  return parse_json(comm::broadcast_text(here.dump(), 0, world), "run description of rank 0");
}

}  // namespace uqa::trainer
