// The mesh of a run without MPI.
#pragma once

#include "comm/communicator.h"

namespace uqa::trainer::test {

inline comm::Mesh one_rank() { return comm::Mesh(comm::Communicator(), 0, 1); }

}  // namespace uqa::trainer::test
