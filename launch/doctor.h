// launch/doctor.h - what `uqa doctor` knows about the ranks, and what it finds wrong with it. Plain values: no MPI, no torch.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "core/json.h"

namespace uqa::launch {

/// One rank as it sees itself.
struct RankFacts {
  int rank = 0;
  std::string host;
  std::int64_t host_cores = 1;
  std::vector<int> cores;           ///< those that it may run on
  std::int64_t threads = 1;         ///< what a run would give it
  std::string device = "cpu";       ///< "cpu", or "cuda:1 (NVIDIA H200)"
  std::int64_t shared_memory_free_bytes = 0;  ///< /dev/shm, where ranks of one host exchange messages
  bool has_gpu = false;             ///< the host has an NVIDIA driver
  std::string plugin_trouble;       ///< why --device=cuda would be refused here; empty: it would not

  [[nodiscard]] Json to_json() const;
  [[nodiscard]] static RankFacts from_json(const Json& json);
};

/// About the process that calls; `threads` is 0 for "cores of the host / ranks on it", which the caller fills in once it knows them.
[[nodiscard]] RankFacts facts_of_this_process(int rank, std::int64_t threads);

/// "0-3,8": core numbers as ranges.
[[nodiscard]] std::string ranges(const std::vector<int>& numbers);

/// What is misconfigured, each with the way out. The same whatever the order of the hosts; empty: nothing.
[[nodiscard]] std::vector<std::string> diagnose(std::span<const RankFacts> ranks);

/// A collective that reaches less than this share of its yardstick is warned about.
inline constexpr double kPoorFraction = 0.02;

}  // namespace uqa::launch
