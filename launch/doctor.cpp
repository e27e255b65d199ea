#include "launch/doctor.h"

#include <algorithm>
#include <array>
#include <filesystem>
#include <map>
#include <set>

#include <sched.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <fmt/format.h>
#include <fmt/ranges.h>

namespace uqa::launch {
namespace {

/// Open MPI maps a few MiB for each pair of ranks; less than this for a rank and it fails half-way or crawls over sockets.
constexpr std::int64_t kSharedMemoryPerRank = std::int64_t{16} << 20;

}  // namespace

Json RankFacts::to_json() const {
  return {{"rank", rank},           {"host", host},       {"host_cores", host_cores}, {"cores", cores}, {"threads", threads}, {"device", device},
          {"shared_memory_free_bytes", shared_memory_free_bytes}, {"has_gpu", has_gpu}, {"plugin_trouble", plugin_trouble}};
}

RankFacts RankFacts::from_json(const Json& json) {
  const std::string what = "facts of a rank";
  return {.rank = get<int>(json, "rank", what),
          .host = get<std::string>(json, "host", what),
          .host_cores = get<std::int64_t>(json, "host_cores", what),
          .cores = get<std::vector<int>>(json, "cores", what),
          .threads = get<std::int64_t>(json, "threads", what),
          .device = get<std::string>(json, "device", what),
          .shared_memory_free_bytes = get<std::int64_t>(json, "shared_memory_free_bytes", what),
          .has_gpu = get<bool>(json, "has_gpu", what),
          .plugin_trouble = get<std::string>(json, "plugin_trouble", what)};
}

RankFacts facts_of_this_process(int rank, std::int64_t threads) {
  RankFacts facts{.rank = rank, .threads = threads};
  std::array<char, 256> name{};
  facts.host = ::gethostname(name.data(), name.size() - 1) == 0 ? name.data() : "unknown";
  facts.host_cores = std::max<std::int64_t>(1, ::sysconf(_SC_NPROCESSORS_ONLN));
  cpu_set_t set;
  CPU_ZERO(&set);
  if (::sched_getaffinity(0, sizeof(set), &set) == 0) {
    for (int core = 0; core < CPU_SETSIZE; ++core) {
      if (CPU_ISSET(core, &set)) facts.cores.push_back(core);
    }
  }
  struct statvfs shm {};
  if (::statvfs("/dev/shm", &shm) == 0) facts.shared_memory_free_bytes = static_cast<std::int64_t>(shm.f_bavail) * static_cast<std::int64_t>(shm.f_frsize);
  std::error_code none;
  facts.has_gpu = std::filesystem::exists("/proc/driver/nvidia/version", none);
  return facts;
}

std::string ranges(const std::vector<int>& numbers) {
  std::vector<std::string> parts;
  for (std::size_t begin = 0, end = 0; begin < numbers.size(); begin = end) {
    for (end = begin + 1; end < numbers.size() && numbers[end] == numbers[end - 1] + 1; ++end) {
    }
    parts.push_back(end - begin == 1 ? fmt::format("{}", numbers[begin]) : fmt::format("{}-{}", numbers[begin], numbers[end - 1]));
  }
  return fmt::format("{}", fmt::join(parts, ","));
}

std::vector<std::string> diagnose(std::span<const RankFacts> ranks) {
  std::vector<std::string> warnings;
  std::map<std::string, std::vector<const RankFacts*>> hosts;
  for (const auto& rank : ranks) hosts[rank.host].push_back(&rank);

  for (const auto& rank : ranks) {
    if (rank.threads <= static_cast<std::int64_t>(rank.cores.size())) continue;
    warnings.push_back(fmt::format("rank {}: threads = {}, cores that it may run on = {} ({}); start with mpirun --bind-to none, or give fewer --train.num_threads", rank.rank,
                                   rank.threads, rank.cores.size(), ranges(rank.cores)));
  }
  for (const auto& [host, members] : hosts) {
    std::set<int> reachable;
    std::int64_t threads = 0;
    for (const auto* rank : members) {
      reachable.insert(rank->cores.begin(), rank->cores.end());
      threads += rank->threads;
    }
    const auto num_ranks = static_cast<std::int64_t>(members.size());
    const bool each_fits = std::all_of(members.begin(), members.end(), [](const auto* r) { return r->threads <= static_cast<std::int64_t>(r->cores.size()); });
    if (num_ranks > 1 && each_fits && threads > static_cast<std::int64_t>(reachable.size())) {
      warnings.push_back(fmt::format("host {}: threads of its {} ranks = {}, cores that they may run on together = {} ({}); {}", host, num_ranks, threads, reachable.size(),
                                     ranges({reachable.begin(), reachable.end()}),
                                     num_ranks > members.front()->host_cores ? "start fewer ranks there" : "bind each rank to cores of its own, or give fewer --train.num_threads"));
    }
    if (num_ranks > members.front()->host_cores) {
      warnings.push_back(fmt::format("host {}: ranks = {}, cores = {}: ranks that wait take time from ranks that compute; start fewer there", host, num_ranks, members.front()->host_cores));
    }
    if (num_ranks > 1 && members.front()->shared_memory_free_bytes < num_ranks * kSharedMemoryPerRank) {
      warnings.push_back(fmt::format("host {}: free in /dev/shm = {} MiB, {} ranks exchange messages there and need about {}; enlarge it (docker run --shm-size)", host,
                                     members.front()->shared_memory_free_bytes >> 20, num_ranks, (num_ranks * kSharedMemoryPerRank) >> 20));
    }
    const auto* const first = members.front();
    if (first->has_gpu && !first->plugin_trouble.empty()) warnings.push_back(fmt::format("host {} has a GPU that cannot be used: {}", host, first->plugin_trouble));
  }
  const auto differs = std::find_if(ranks.begin(), ranks.end(), [&](const auto& r) { return r.threads != ranks.front().threads; });
  if (differs != ranks.end()) {
    warnings.push_back(fmt::format("threads per rank differ ({} on rank {}, {} on rank {}): every step waits for the slower; give --train.num_threads", ranks.front().threads,
                                   ranks.front().rank, differs->threads, differs->rank));
  }
  return warnings;
}

}  // namespace uqa::launch
