// Which transport a tensor takes, which device a rank takes, and how a missing plug-in is told.
#include "comm/device.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <fstream>

#include "tests/support/temp_dir.h"
#include "tests/unit/comm/nccl/error_text.h"

namespace uqa::testing {
namespace {

using comm::ReduceOp;
using comm::detail::assign_devices;
using comm::detail::Backend;
using comm::detail::Elements;
using comm::detail::VisibleDevices;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

/// Notes which collectives reach it. The host's gives metadata as every rank would: all the same.
class Recorder : public Backend {
 public:
  Recorder(at::DeviceType type, std::vector<std::string>& log) : Backend(0, 2, "world"), type_(type), log_(log) {}
  bool serves(const at::Device& device) const override { return device.type() == type_; }
  std::shared_ptr<Backend> split(int, int, const std::string&) override { return nullptr; }
  void all_reduce(const Elements&, ReduceOp) override { note("all_reduce"); }
  std::unique_ptr<comm::detail::Pending> all_reduce_async(const Elements&, ReduceOp, const at::Tensor&) override {
    note("all_reduce_async");
    return std::make_unique<Done>();
  }
  std::unique_ptr<comm::detail::Pending> all_gather_async(const void*, void*, std::span<const std::int64_t>, std::vector<at::Tensor>) override {
    note("all_gather_async");
    return std::make_unique<Done>();
  }
  void all_gather(const void* in, void* out, std::span<const std::int64_t> bytes) override {
    note("all_gather");
    if (type_ != at::kCPU) return;
    for (int r = 0; r < 2; ++r) std::memcpy(static_cast<char*>(out) + r * bytes[0], in, static_cast<std::size_t>(bytes[0]));
  }
  void reduce_scatter(const Elements&, void*, std::span<const std::int64_t>) override { note("reduce_scatter"); }
  void broadcast(void*, std::int64_t, int) override { note("broadcast"); }
  void all_to_all(const void* in, std::span<const std::int64_t> bytes, void* out, std::span<const std::int64_t>) override {
    note("all_to_all");
    if (type_ == at::kCPU) std::memcpy(out, in, static_cast<std::size_t>(bytes[0] + bytes[1]));
  }
  void barrier() override { note("barrier"); }

 private:
  struct Done : comm::detail::Pending {
    void wait() override {}
    bool test() override { return true; }
  };
  void note(const std::string& what) { log_.push_back((type_ == at::kCPU ? "host " : "device ") + what); }
  at::DeviceType type_;
  std::vector<std::string>& log_;
};

class RoutingTest : public ::testing::Test {
 protected:
  RoutingTest() : host_(std::make_shared<Recorder>(at::kCPU, log_)) {}
  void add_device() { host_->set_on_device(std::make_shared<Recorder>(at::kMeta, log_), nullptr); }
  std::vector<std::string> log_;
  std::shared_ptr<Backend> host_;
  at::Tensor x_ = at::empty({4, 2}, at::TensorOptions(at::kFloat).device(at::kMeta));  // stands for a tensor that is not on the CPU
};

TEST_F(RoutingTest, TensorsTakeTheTransportOfTheirDeviceAndCountsTheHosts) {
  add_device();
  const comm::Communicator comm(host_);
  comm::all_reduce_(x_, ReduceOp::kSum, comm);
  comm::all_reduce_async_(x_, ReduceOp::kSum, comm).wait();
  EXPECT_EQ(comm::all_gather(x_, comm).size(0), 8);
  EXPECT_EQ(comm::all_gather_async(x_, {4, 3}, comm).first.size(0), 7);
  EXPECT_EQ(comm::reduce_scatter(x_, {1, 3}, comm).size(0), 1);
  comm::broadcast_(x_, 1, comm);
  EXPECT_EQ(comm::all_to_all(x_, {2, 2}, comm).first.size(0), 4);
  EXPECT_THAT(log_, ElementsAre("device all_reduce", "device all_reduce_async", "host all_gather", "device all_gather", "device all_gather_async",
                                "device reduce_scatter", "device broadcast", "host all_to_all", "device all_to_all"));
  log_.clear();
  at::Tensor here = at::ones({3});
  comm::all_reduce_(here, ReduceOp::kSum, comm);
  EXPECT_EQ(comm::all_reduce(std::int64_t{3}, ReduceOp::kMax, comm), 3);
  comm::barrier(comm);
  EXPECT_THAT(log_, ElementsAre("host all_reduce", "host all_reduce", "host barrier"));
}

TEST_F(RoutingTest, ATensorThatNoTransportReadsIsRefused) {
  const comm::Communicator comm(host_);
  EXPECT_THAT(error_text([&] { comm::all_reduce_(x_, ReduceOp::kSum, comm); }, ErrorCode::kInternal), HasSubstr("the tensor is on meta"));
  EXPECT_TRUE(log_.empty());
}

TEST(AssignDevices, RankIOfAHostTakesDeviceIWhereAllSeeAll) {
  const std::vector<VisibleDevices> ranks{{0, {10, 11}}, {0, {10, 11}}, {2, {20, 21}}, {2, {20, 21}}};
  EXPECT_THAT(assign_devices(ranks), ElementsAre(0, 1, 0, 1));
}

TEST(AssignDevices, ARankThatIsShownOneDeviceTakesIt) {
  const std::vector<VisibleDevices> ranks{{0, {10}}, {0, {11}}, {0, {12}}};
  EXPECT_THAT(assign_devices(ranks), ElementsAre(0, 0, 0));
}

TEST(AssignDevices, InterleavedRanksAreCountedByHost) {
  const std::vector<VisibleDevices> ranks{{0, {10, 11}}, {1, {20, 21}}, {0, {10, 11}}, {1, {20, 21}}};
  EXPECT_THAT(assign_devices(ranks), ElementsAre(0, 0, 1, 1));
}

TEST(AssignDevices, MoreRanksThanDevicesAreRefusedWithBothNumbers) {
  const std::vector<VisibleDevices> ranks{{0, {10}}, {1, {20, 21}}, {1, {20, 21}}, {1, {20, 21}}};
  const auto text = error_text([&] { static_cast<void>(assign_devices(ranks)); }, ErrorCode::kConfig);
  EXPECT_THAT(text, HasSubstr("ranks on the host of rank 1 = 3, CUDA devices that they see = 2"));
  EXPECT_THAT(text, HasSubstr("ppr:2:node"));
}

TEST(DeviceLibrary, MissingOnesAreNamedWithTheWayOut) {
  const auto missing = comm::load_device_library("/nonexistent/libuqa_nccl.so");
  EXPECT_EQ(missing.plugin, nullptr);
  EXPECT_THAT(missing.trouble, HasSubstr("/nonexistent/libuqa_nccl.so, which is not there; run scripts/setup.sh --cuda"));
}

TEST(DeviceLibrary, BrokenOnesAreNamedWithTheLoadersReason) {
  const tests::TempDir directory;
  const auto path = directory.path() / "libuqa_nccl.so";
  std::ofstream(path) << "no library";
  const auto broken = comm::load_device_library(path);
  EXPECT_EQ(broken.plugin, nullptr);
  EXPECT_THAT(broken.trouble, HasSubstr("cannot be loaded"));
  EXPECT_THAT(broken.trouble, HasSubstr("--device=cpu"));
  EXPECT_EQ(broken.trouble.find('\n'), std::string::npos);
}

// On a machine that has every CUDA library it loads, elsewhere the loader's reason is told: never a crash, never silence.
TEST(DeviceLibrary, TheRealPlugInLoadsOrSaysWhatItMisses) {
  const auto real = comm::load_device_library(UQA_NCCL_PLUGIN);
  if (real.plugin) {
    EXPECT_THAT(real.plugin->versions(), HasSubstr("NCCL 2."));
  } else {
    EXPECT_THAT(real.trouble, HasSubstr("cannot be loaded (lib"));
    EXPECT_THAT(real.trouble, HasSubstr(".so"));
  }
}

}  // namespace
}  // namespace uqa::testing
