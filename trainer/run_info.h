// trainer/run_info.h - what a run was made with and on, for run.json; threads of a rank.
#pragma once

#include <cstdint>

#include "comm/communicator.h"
#include "core/json.h"

namespace uqa::trainer {

/// Versions, hosts, devices, threads and mesh. Collective over mesh.world(); the same on every rank.
[[nodiscard]] Json describe_run(const comm::Mesh& mesh);

/// Sets the OpenMP threads of this rank: `num_threads`, or (0) the cores of the host divided by the ranks on it, at least 1. Warns when this
/// process may run on fewer cores than that (mpirun binds ranks unless told otherwise). Collective over `world`. Returns the number.
std::int64_t set_num_threads(std::int64_t num_threads, const comm::Communicator& world);

/// Operators without a fixed order of sums become errors (on), or may be used (off). For this process, until the next call.
void set_deterministic(bool on);
/// What decides the bits of a run besides its settings and data: ranks, mesh, threads, vector instructions, the kind of device.
[[nodiscard]] Json describe_numerics(const comm::Mesh& mesh);

}  // namespace uqa::trainer
