// comm/mpi.h - the MPI transport as the session sees it; internal. mpi.h itself is included by mpi.cpp only.
#pragma once

#include <memory>

#include "comm/backend.h"

namespace uqa::comm::detail {

/// MPI_Init_thread with MPI_THREAD_SERIALIZED, errors returned. Throws Error(kComm). Call once, before threads.
void mpi_init(int* argc, char*** argv);
/// Rank and size of MPI_COMM_WORLD, after mpi_init.
[[nodiscard]] int mpi_rank();
[[nodiscard]] int mpi_size();
/// A number that is equal exactly for ranks that share memory (one host): the lowest world rank there. Collective.
[[nodiscard]] int mpi_node();
/// The library's own name and version, up to the first comma.
[[nodiscard]] std::string mpi_version();
/// All ranks, as axis "world". Collective. Communicators live until mpi_finalize: freeing one is collective, which a destructor
/// that runs on one failing rank alone must not be.
[[nodiscard]] std::shared_ptr<Backend> make_mpi_backend(std::shared_ptr<Watchdog> watchdog);
/// Collective. Throws Error(kComm).
void mpi_finalize();
/// Ends every rank of the job with this exit code.
[[noreturn]] void mpi_abort(int code) noexcept;

}  // namespace uqa::comm::detail
