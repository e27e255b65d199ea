// launch/collective_bench.h - measures one collective: seconds a call, and bus bandwidth, which does not depend on the number of ranks.
//
//   const auto m = measure_collective("all_reduce", at::kFloat, 1 << 20, mesh.dp(), 10);
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "comm/communicator.h"
#include "core/json.h"

namespace uqa::launch {

struct CollectiveMeasure {
  std::string op;
  std::string dtype;
  std::int64_t bytes = 0;       ///< of the whole tensor: what all_gather and all_to_all return, what reduce_scatter is given
  int np = 1;
  double seconds = 0;           ///< one call: median over repetitions of the slowest rank's time
  double bus_bytes_per_s = 0;   ///< bytes that each rank's link carries / seconds: all_reduce 2 (n-1)/n bytes, broadcast bytes, others (n-1)/n bytes
  [[nodiscard]] Json to_json() const;
};

/// all_reduce, all_reduce_async, all_gather, reduce_scatter, broadcast, all_to_all; barrier has no bytes.
[[nodiscard]] const std::vector<std::string>& collective_names();

/// Collective over `comm`; the same result on every rank. `bytes` is rounded to whole rows for every rank, at least one each.
/// Throws Error(kConfig) for an unknown name.
[[nodiscard]] CollectiveMeasure measure_collective(const std::string& op, at::ScalarType dtype, std::int64_t bytes, const comm::Communicator& comm,
                                                   int repetitions, const at::Device& device = at::kCPU);

/// Bytes a second of plain copies (read + written bytes are counted once), all ranks of `comm` copying at the same time; this rank's share,
/// the smallest of all ranks. What collectives on one host are held against: they copy too. Collective.
[[nodiscard]] double copy_bandwidth(const comm::Communicator& comm);

}  // namespace uqa::launch
