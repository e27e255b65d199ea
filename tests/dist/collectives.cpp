// The shared collective tests on MPI, with messages whole and cut into small pieces.
#include <gtest/gtest.h>

#include <algorithm>

#include "comm/backend.h"
#include "tests/dist/collective_cases.h"
#include "tests/dist/dist_world.h"

namespace uqa::testing {
namespace {

class Collectives : public ::testing::TestWithParam<CollectiveCase> {};

TEST_P(Collectives, OnMpi) { GetParam().run(dist_world()); }

TEST_P(Collectives, OnMpiWithMessagesCut) {
  // 37 divides none of the sizes; metadata is cut as well.
  const std::int64_t whole = std::exchange(comm::detail::max_message_elements(), 37);
  GetParam().run(dist_world());
  comm::detail::max_message_elements() = whole;
}

INSTANTIATE_TEST_SUITE_P(Mpi, Collectives, ::testing::ValuesIn(collective_cases()),
                         [](const auto& test) { return test.param.name; });

TEST(World, HasTheLaunchersSize) {
  const char* const size = std::getenv("OMPI_COMM_WORLD_SIZE");
  ASSERT_NE(size, nullptr) << "run under mpirun";
  EXPECT_EQ(dist_world().size(), std::atoi(size));
  EXPECT_EQ(dist_world().axis(), "world");
}

}  // namespace
}  // namespace uqa::testing
