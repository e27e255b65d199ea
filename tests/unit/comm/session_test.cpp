// A session without a launcher: one rank, no MPI. Sessions under mpirun are tested in tests/dist and tests/fault.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <optional>
#include <vector>

#include "comm/communicator.h"

namespace uqa::comm {
namespace {

/// Sets (or with nullptr unsets) variables for one test.
class Environment {
 public:
  explicit Environment(const std::vector<std::pair<std::string, const char*>>& values) {
    for (const auto& [name, value] : values) {
      const char* const old = std::getenv(name.c_str());
      saved_.emplace_back(name, old == nullptr ? std::nullopt : std::optional<std::string>(old));
      set(name, value);
    }
  }
  ~Environment() {
    for (const auto& [name, old] : saved_) set(name, old ? old->c_str() : nullptr);
  }

 private:
  static void set(const std::string& name, const char* value) {
    value == nullptr ? ::unsetenv(name.c_str()) : ::setenv(name.c_str(), value, 1);
  }
  std::vector<std::pair<std::string, std::optional<std::string>>> saved_;
};

class SessionTest : public ::testing::Test {
 protected:
  Environment alone_{
      {{"OMPI_COMM_WORLD_SIZE", nullptr}, {"PMIX_RANK", nullptr}, {"PMI_RANK", nullptr}, {"SLURM_NTASKS", nullptr}}};
  int argc_ = 0;
  char** argv_ = nullptr;
};

TEST_F(SessionTest, WithoutALauncherTheWorldIsOneRank) {
  Session session(&argc_, &argv_);
  EXPECT_EQ(session.world().size(), 1);
  EXPECT_EQ(session.world().rank(), 0);
  EXPECT_EQ(session.world().axis(), "world");
  session.configure_watchdog({.timeout_s = 5, .heartbeat_dir = "/nonexistent/never/made"});
  EXPECT_THROW(session.configure_watchdog({.timeout_s = 0, .heartbeat_dir = ""}), AgreedError);
  session.finish();
  session.finish();
}

TEST_F(SessionTest, SlurmTasksThatNothingConnectsAreRefused) {
  const Environment slurm({std::pair{"SLURM_NTASKS", "4"}});
  try {
    const Session session(&argc_, &argv_);
    ADD_FAILURE() << "accepted";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kConfig);
    EXPECT_NE(std::string(error.what()).find("SLURM_NTASKS = 4"), std::string::npos);
    EXPECT_NE(std::string(error.what()).find("srun --mpi=pmix"), std::string::npos);
  }
}

TEST_F(SessionTest, OneSlurmTaskIsFine) {
  const Environment slurm({std::pair{"SLURM_NTASKS", "1"}});
  EXPECT_EQ(Session(&argc_, &argv_).world().size(), 1);
}

std::pair<int, std::string> fail_with(Session& session, const std::exception& error) {
  ::testing::internal::CaptureStderr();
  const int code = session.fail(error);
  return {code, ::testing::internal::GetCapturedStderr()};
}

TEST_F(SessionTest, FailPrintsOneLineAndReturnsTheCode) {
  Session session(&argc_, &argv_);
  EXPECT_EQ(fail_with(session, Error(ErrorCode::kData, "users.h5 = 3 bytes")),
            std::pair(3, std::string("uqa: users.h5 = 3 bytes\n")));
  EXPECT_EQ(fail_with(session, AgreedError(ErrorCode::kRequeue, "stopped", 1)),
            std::pair(75, std::string("uqa: stopped\n")));
  EXPECT_EQ(fail_with(session, std::runtime_error("bad\nstack\ntrace")), std::pair(70, std::string("uqa: bad\n")));
  try {
    static_cast<void>(at::ones({2}).view({3}));
    ADD_FAILURE() << "torch accepted it";
  } catch (const std::exception& error) {
    const auto [code, text] = fail_with(session, error);
    EXPECT_EQ(code, 70);
    EXPECT_EQ(std::count(text.begin(), text.end(), '\n'), 1) << text;
  }
}

}  // namespace
}  // namespace uqa::comm
