// tests/dist/dist_world.h - the ranks of a test under mpirun. Link uqa_dist_main, which brings main().
#pragma once

#include "comm/communicator.h"

namespace uqa::testing {

/// All ranks of this test run; valid inside tests.
[[nodiscard]] comm::Communicator& dist_world();

}  // namespace uqa::testing
