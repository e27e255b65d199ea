// Must turn red: proves that a failure on the last rank alone is seen. Run by ctest with WILL_FAIL.
#include <gtest/gtest.h>

#include "tests/dist/dist_world.h"

TEST(LastRank, FailsAlone) {
  const auto& world = uqa::testing::dist_world();
  EXPECT_NE(world.rank(), world.size() - 1);
}

TEST(LastRank, IsFineOtherwise) { EXPECT_GE(uqa::testing::dist_world().size(), 2); }
