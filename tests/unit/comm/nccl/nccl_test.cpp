// The NCCL plug-in against a recorder of the nccl* and cuda* entry points: which calls, with which arguments, on which stream, in which
// order; what happens when one fails; what is left at the end.
#include <dlfcn.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <future>

#include "comm/device.h"
#include "tests/unit/comm/nccl/error_text.h"
#include "tests/unit/comm/nccl/fake.h"

namespace uqa::testing {
namespace {

using comm::ReduceOp;
using comm::detail::Backend;
using comm::detail::Elements;
using comm::detail::ElementType;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

/// Stands for the host transport of one rank whose peers always do the same.
class Host : public Backend {
 public:
  Host(int rank, int size, const std::string& axis) : Backend(rank, size, axis) {}
  std::shared_ptr<Backend> split(int, int, const std::string& axis) override { return std::make_shared<Host>(rank(), size(), axis); }
  void all_reduce(const Elements& x, ReduceOp op) override {
    auto* const value = static_cast<std::int64_t*>(x.data);
    if (op == ReduceOp::kMax && x.count == 1 && *value == 0) *value = 128;  // a peer holds the id
  }
  std::unique_ptr<comm::detail::Pending> all_reduce_async(const Elements&, ReduceOp, const at::Tensor&) override { return nullptr; }
  std::unique_ptr<comm::detail::Pending> all_gather_async(const void*, void*, std::span<const std::int64_t>, std::vector<at::Tensor>) override { return nullptr; }
  void all_gather(const void*, void*, std::span<const std::int64_t>) override {}
  void reduce_scatter(const Elements&, void*, std::span<const std::int64_t>) override {}
  void broadcast(void* data, std::int64_t bytes, int root) override {
    broadcasts.push_back(root);
    if (rank() != root && bytes == 128) std::memset(data, 'p', 128);  // the peer's id
  }
  void all_to_all(const void*, std::span<const std::int64_t>, void*, std::span<const std::int64_t>) override {}
  void barrier() override {}
  std::vector<int> broadcasts;
};

class NcclTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    const auto library = comm::load_device_library(UQA_NCCL_FAKE);
    ASSERT_NE(library.plugin, nullptr) << library.trouble;
    plugin_ = library.plugin;
    void* const handle = ::dlopen(UQA_NCCL_FAKE, RTLD_NOW | RTLD_NOLOAD);
    fake_ = reinterpret_cast<GetNcclFake>(::dlsym(handle, kGetNcclFakeName))();
  }
  static void TearDownTestSuite() { plugin_.reset(); }
  void SetUp() override {
    reset();
    plugin_->select_device(1);
    fake_->calls.clear();
  }
  void TearDown() override {
    plugin_->abort();
    host_.reset();
    plugin_->close();  // forgets what is gone
    EXPECT_EQ(fake_->live_communicators, 0);
    EXPECT_EQ(fake_->live_streams, 0);
    EXPECT_EQ(fake_->live_events, 0);
    EXPECT_EQ(fake_->live_allocations, 0);
    EXPECT_EQ(fake_->group_depth, 0);
  }

  static void reset() {
    fake_->failures.clear();
    fake_->async_error = 0;
    fake_->last_error.clear();
    fake_->events_reached = true;
    fake_->device_uuids = {7, 8};
    fake_->handles = 0;
  }

  /// Stream s1, scratch memory 2, communicator c3; the first event is e4.
  Backend& group(int rank = 1, int size = 3) {
    host_ = std::make_shared<Host>(rank, size, "dp");
    comm::detail::attach_device(host_, plugin_);
    fake_->calls.clear();
    return *host_->on_device();
  }
  static Elements f32(std::intptr_t at, std::int64_t count) { return {reinterpret_cast<void*>(at), count, ElementType::kFloat32}; }
  static void* at_address(std::intptr_t address) { return reinterpret_cast<void*>(address); }

  inline static std::shared_ptr<comm::detail::DevicePlugin> plugin_;
  inline static NcclFake* fake_ = nullptr;
  std::shared_ptr<Host> host_;
};

TEST_F(NcclTest, NamesVersionsAndDevices) {
  EXPECT_EQ(plugin_->versions(), "NCCL 2.30.7, CUDA runtime 13.2, driver none");
  const auto ids = plugin_->device_ids();
  ASSERT_EQ(ids.size(), 2U);
  EXPECT_NE(ids[0], ids[1]);
  EXPECT_EQ(plugin_->device_name(1), "Fake 1");
  EXPECT_THAT(error_text([&] { plugin_->select_device(2); }, ErrorCode::kConfig), HasSubstr("CUDA device = 2, must be in [0, 2)"));
}

TEST_F(NcclTest, NoDriverIsAConfigurationError) {
  fake_->failures["cudaGetDeviceCount"] = 35;
  const auto text = error_text([&] { static_cast<void>(plugin_->device_ids()); }, ErrorCode::kConfig);
  EXPECT_THAT(text, HasSubstr("CUDA devices = 0"));
  EXPECT_THAT(text, HasSubstr("driver is missing"));
  EXPECT_THAT(text, HasSubstr("--device=cpu"));
  fake_->failures.clear();
  fake_->device_uuids.clear();
  EXPECT_THAT(error_text([&] { static_cast<void>(plugin_->device_ids()); }, ErrorCode::kConfig), HasSubstr("none is visible"));
}

TEST_F(NcclTest, RankZeroMakesTheIdAndEveryRankJoinsWithIt) {
  host_ = std::make_shared<Host>(0, 3, "dp");
  comm::detail::attach_device(host_, plugin_);
  EXPECT_THAT(fake_->calls, ElementsAre("ncclGetUniqueId", "cudaSetDevice d1", "cudaStreamCreateWithPriority non-blocking -5", "cudaMalloc 4",
                                        "cudaMemsetAsync 0 4 s1", "ncclCommInitRank n3 uuu r0"));
  EXPECT_THAT(host_->broadcasts, ElementsAre(0));
  EXPECT_EQ(host_->on_device()->rank(), 0);
  EXPECT_EQ(host_->on_device()->size(), 3);
  EXPECT_EQ(host_->on_device()->axis(), "dp");

  const auto other = std::make_shared<Host>(2, 3, "dp");
  fake_->calls.clear();
  comm::detail::attach_device(other, plugin_);
  EXPECT_THAT(fake_->calls, ::testing::Not(::testing::Contains("ncclGetUniqueId")));
  EXPECT_EQ(fake_->calls.back(), "ncclCommInitRank n3 ppp r2");
  const std::vector<char> id(5, 'p');
  EXPECT_THROW(static_cast<void>(plugin_->make_group(*other, id)), Error);
}

TEST_F(NcclTest, GroupsOfOneGetNoTransport) {
  const auto one = std::make_shared<Host>(0, 1, "tp");
  comm::detail::attach_device(one, plugin_);
  EXPECT_EQ(one->on_device(), nullptr);
  EXPECT_TRUE(fake_->calls.empty());
}

TEST_F(NcclTest, SplitGivesTheNewGroupATransportOfItsOwn) {
  group(0);
  const comm::Communicator world(host_);
  const auto part = world.split(0, 0, "tp");
  ASSERT_NE(part.backend().on_device(), nullptr);
  EXPECT_NE(part.backend().on_device(), host_->on_device());
  EXPECT_EQ(part.backend().on_device()->axis(), "tp");
  EXPECT_THROW(static_cast<void>(host_->on_device()->split(0, 0, "tp")), Error);
}

TEST_F(NcclTest, ServesItsOwnDeviceOnly) {
  const auto& nccl = group();
  EXPECT_TRUE(nccl.serves(at::Device(at::kCUDA, 1)));
  EXPECT_FALSE(nccl.serves(at::Device(at::kCUDA, 0)));
  EXPECT_FALSE(nccl.serves(at::Device(at::kCPU)));
}

TEST_F(NcclTest, AllReduceIsOrderedAfterAndBeforeTheCurrentStream) {
  group().all_reduce(f32(0x1000, 5), ReduceOp::kSum);
  EXPECT_THAT(fake_->calls, ElementsAre("cudaEventRecord e4 s99", "cudaStreamWaitEvent s1 e4", "ncclAllReduce 0x1000 0x1000 5 f32 sum c3 s1",
                                        "cudaEventRecord e5 s1", "cudaStreamWaitEvent s99 e5"));
}

TEST_F(NcclTest, EveryReductionAndType) {
  auto& nccl = group();
  for (const auto op : {ReduceOp::kSum, ReduceOp::kMax, ReduceOp::kMin}) {
    for (const auto type : {ElementType::kFloat32, ElementType::kInt64}) {
      fake_->calls.clear();
      nccl.all_reduce({at_address(0x40), 9, type}, op);
      const std::string want = fmt::format("ncclAllReduce 0x40 0x40 9 {} {} c3 s1", type == ElementType::kFloat32 ? "f32" : "i64",
                                           op == ReduceOp::kSum ? "sum" : op == ReduceOp::kMax ? "max" : "min");
      EXPECT_THAT(fake_->calls, ::testing::Contains(want));
    }
  }
}

TEST_F(NcclTest, AStartedReductionMeetsTheCurrentStreamAtItsWait) {
  auto& nccl = group();
  fake_->events_reached = false;
  const at::Tensor owner = at::ones({5});
  const auto pending = nccl.all_reduce_async(f32(0x1000, 5), ReduceOp::kSum, owner);
  EXPECT_EQ(fake_->calls.back(), "cudaEventRecord e5 s1");
  EXPECT_EQ(owner.use_count(), 2U) << "the memory must live until the wait";
  EXPECT_FALSE(pending->test());
  pending->wait();
  EXPECT_EQ(fake_->calls.back(), "cudaStreamWaitEvent s99 e5");
  EXPECT_EQ(owner.use_count(), 1U);
  const auto second = nccl.all_reduce_async(f32(0x1000, 5), ReduceOp::kSum, owner);
  fake_->events_reached = true;
  EXPECT_TRUE(second->test());
}

TEST_F(NcclTest, StartedGathersMeetTheCurrentStreamAtTheirWaits) {
  auto& nccl = group();
  fake_->events_reached = false;
  const at::Tensor in = at::ones({2}), out = at::ones({6});
  const auto number = host_->watched().issue("all_gather_async");
  const auto first = nccl.all_gather_async(at_address(0x10), at_address(0x100), std::vector<std::int64_t>{8, 8, 8}, {in, out});
  static_cast<void>(host_->watched().issue("all_gather_async"));
  const auto second = nccl.all_gather_async(at_address(0x10), at_address(0x100), std::vector<std::int64_t>{16, 4, 0}, {in, out});
  EXPECT_THAT(fake_->calls,
              ElementsAre("cudaEventRecord e4 s99", "cudaStreamWaitEvent s1 e4", "ncclAllGather 0x10 0x100 8 u8 c3 s1", "cudaEventRecord e5 s1",
                          "cudaEventRecord e6 s99", "cudaStreamWaitEvent s1 e6", "ncclGroupStart", "ncclBroadcast 0x100 0x100 16 u8 root0 c3 s1",
                          "ncclBroadcast 0x10 0x110 4 u8 root1 c3 s1", "ncclGroupEnd", "cudaEventRecord e7 s1"));
  EXPECT_EQ(in.use_count() + out.use_count(), 6U) << "the memory must live until the waits";
  const auto state = dynamic_cast<comm::Polled&>(nccl).poll();
  EXPECT_STREQ(state.op, "all_gather_async");
  EXPECT_EQ(state.sequence, number);
  EXPECT_FALSE(first->test());
  first->wait();
  EXPECT_EQ(fake_->calls.back(), "cudaStreamWaitEvent s99 e5");
  second->wait();
  EXPECT_EQ(fake_->calls.back(), "cudaStreamWaitEvent s99 e7");
  EXPECT_EQ(in.use_count() + out.use_count(), 2U);
}

TEST_F(NcclTest, EqualBlocksAreGatheredAndScatteredByOneCall) {
  auto& nccl = group();
  nccl.all_gather(at_address(0x10), at_address(0x100), std::vector<std::int64_t>{8, 8, 8});
  EXPECT_THAT(fake_->calls, ::testing::Contains("ncclAllGather 0x10 0x100 8 u8 c3 s1"));
  nccl.reduce_scatter(f32(0x1000, 12), at_address(0x20), std::vector<std::int64_t>{4, 4, 4});
  EXPECT_THAT(fake_->calls, ::testing::Contains("ncclReduceScatter 0x1000 0x20 4 f32 sum c3 s1"));
}

TEST_F(NcclTest, UnevenBlocksTravelTogetherOneRootEach) {
  auto& nccl = group();
  nccl.all_gather(at_address(0x10), at_address(0x100), std::vector<std::int64_t>{16, 4, 0});
  EXPECT_THAT(fake_->calls,
              ElementsAre("cudaEventRecord e4 s99", "cudaStreamWaitEvent s1 e4", "ncclGroupStart", "ncclBroadcast 0x100 0x100 16 u8 root0 c3 s1",
                          "ncclBroadcast 0x10 0x110 4 u8 root1 c3 s1", "ncclGroupEnd", "cudaEventRecord e5 s1", "cudaStreamWaitEvent s99 e5"));
  fake_->calls.clear();
  nccl.reduce_scatter({at_address(0x1000), 6, ElementType::kInt64}, at_address(0x20), std::vector<std::int64_t>{0, 4, 2});
  EXPECT_THAT(fake_->calls, ElementsAre("cudaEventRecord e6 s99", "cudaStreamWaitEvent s1 e6", "ncclGroupStart",
                                        "ncclReduce 0x1000 0x20 4 i64 sum root1 c3 s1", "ncclReduce 0x1020 0x0 2 i64 sum root2 c3 s1", "ncclGroupEnd",
                                        "cudaEventRecord e7 s1", "cudaStreamWaitEvent s99 e7"));
}

TEST_F(NcclTest, BroadcastAndBarrier) {
  auto& nccl = group();
  nccl.broadcast(at_address(0x30), 12, 2);
  EXPECT_THAT(fake_->calls, ::testing::Contains("ncclBroadcast 0x30 0x30 12 u8 root2 c3 s1"));
  fake_->calls.clear();
  nccl.barrier();
  EXPECT_THAT(fake_->calls, ElementsAre("cudaEventRecord e6 s99", "cudaStreamWaitEvent s1 e6", "ncclAllReduce 0x2 0x2 1 f32 sum c3 s1", "cudaEventRecord e7 s1",
                                        "cudaEventSynchronize e7"));
}

TEST_F(NcclTest, AllToAllSendsEachPeerItsPartAndCopiesItsOwn) {
  auto& nccl = group();  // rank 1 of 3
  nccl.all_to_all(at_address(0x1000), std::vector<std::int64_t>{8, 4, 0}, at_address(0x2000), std::vector<std::int64_t>{0, 4, 12});
  EXPECT_THAT(fake_->calls, ElementsAre("cudaEventRecord e4 s99", "cudaStreamWaitEvent s1 e4", "cudaMemcpyAsync 0x2000 0x1008 4 d2d s1", "ncclGroupStart",
                                        "ncclSend 0x1000 8 u8 to0 c3 s1", "ncclRecv 0x2004 12 u8 from2 c3 s1", "ncclGroupEnd", "cudaEventRecord e5 s1",
                                        "cudaStreamWaitEvent s99 e5"));
}

TEST_F(NcclTest, AFailedCallIsNamedWithItsAxisAndNcclsOwnWords) {
  auto& nccl = group();
  fake_->failures["ncclAllReduce"] = 2;
  fake_->last_error = "NET/IB : connection refused\nmore";
  const auto text = error_text([&] { nccl.all_reduce(f32(0x1000, 5), ReduceOp::kSum); }, ErrorCode::kComm);
  EXPECT_THAT(text, HasSubstr("ncclAllReduce on axis 'dp': unhandled system error (NET/IB : connection refused); see"));
}

TEST_F(NcclTest, AFailureInsideAGroupLeavesTheGroup) {
  auto& nccl = group();
  fake_->failures["ncclSend"] = 2;
  EXPECT_THROW(nccl.all_to_all(at_address(0x1000), std::vector<std::int64_t>{8, 4, 0}, at_address(0x2000), std::vector<std::int64_t>{0, 4, 12}), Error);
  EXPECT_EQ(fake_->calls.back(), "ncclGroupEnd");
  EXPECT_EQ(fake_->group_depth, 0);
}

TEST_F(NcclTest, AFailedStartLeavesNothingAndIsAgreed) {
  fake_->failures["ncclCommInitRank"] = 3;
  host_ = std::make_shared<Host>(0, 3, "dp");
  try {
    comm::detail::attach_device(host_, plugin_);
    ADD_FAILURE() << "accepted";
  } catch (const comm::AgreedError& error) {
    EXPECT_EQ(error.code(), ErrorCode::kComm);
    EXPECT_THAT(error.what(), HasSubstr("ncclCommInitRank on axis 'dp'"));
  }
  EXPECT_EQ(host_->on_device(), nullptr);
}

TEST_F(NcclTest, PollTellsTheOldestCollectiveInFlightUntilItsEventIsReached) {
  auto& nccl = group();
  auto& polled = dynamic_cast<comm::Polled&>(nccl);
  EXPECT_EQ(polled.poll().sequence, 0U);
  fake_->events_reached = false;
  const auto first = host_->watched().issue("all_gather");
  nccl.all_gather(at_address(0x10), at_address(0x100), std::vector<std::int64_t>{8, 8, 8});
  static_cast<void>(host_->watched().issue("all_reduce"));
  nccl.all_reduce(f32(0x1000, 5), ReduceOp::kSum);
  const auto state = polled.poll();
  EXPECT_EQ(state.failure, "");
  EXPECT_STREQ(state.op, "all_gather");
  EXPECT_EQ(state.sequence, first);
  fake_->events_reached = true;
  EXPECT_EQ(polled.poll().sequence, 0U);
}

TEST_F(NcclTest, PollTellsAsynchronousErrorsOfNcclAndOfKernels) {
  auto& nccl = group();
  auto& polled = dynamic_cast<comm::Polled&>(nccl);
  fake_->async_error = 7;  // in progress is none
  EXPECT_EQ(polled.poll().failure, "");
  fake_->async_error = 6;
  EXPECT_THAT(polled.poll().failure, HasSubstr("asynchronous error: remote process exited"));
  fake_->async_error = 0;
  fake_->events_reached = false;
  nccl.all_reduce(f32(0x1000, 5), ReduceOp::kSum);
  fake_->failures["cudaEventQuery"] = 719;
  EXPECT_THAT(polled.poll().failure, HasSubstr("cudaEventQuery: launch failed"));
}

TEST_F(NcclTest, AbortEndsTheGroupOnceAndLaterCollectivesAreRefused) {
  auto& nccl = group();
  auto& polled = dynamic_cast<comm::Polled&>(nccl);
  fake_->events_reached = false;
  nccl.all_reduce(f32(0x1000, 5), ReduceOp::kSum);
  polled.abort();
  EXPECT_EQ(fake_->calls.back(), "ncclCommAbort c3");
  EXPECT_EQ(polled.poll().sequence, 0U);
  fake_->calls.clear();
  polled.abort();
  EXPECT_TRUE(fake_->calls.empty());
  EXPECT_THAT(error_text([&] { nccl.all_reduce(f32(0x1000, 5), ReduceOp::kSum); }, ErrorCode::kComm), HasSubstr("has been ended"));
}

TEST_F(NcclTest, TheOrderlyEndWaitsForTheStreamThenForThePeers) {
  group();
  fake_->calls.clear();
  plugin_->close();
  EXPECT_THAT(fake_->calls, ElementsAre("cudaStreamSynchronize s1", "ncclCommFinalize c3", "ncclCommDestroy c3"));
  fake_->calls.clear();
  plugin_->close();
  plugin_->abort();
  host_.reset();
  EXPECT_THAT(fake_->calls, ElementsAre("cudaStreamDestroy s1"));
}

TEST_F(NcclTest, TheWatchdogAbortsAndReportsAnAsynchronousError) {
  std::promise<std::string> reported;
  auto line = reported.get_future();
  const auto watchdog = std::make_shared<comm::Watchdog>(1, 3, [&](const std::string& text, bool) { reported.set_value(text); });
  host_ = std::make_shared<Host>(1, 3, "dp");
  const std::vector<int> world{0, 1, 2};
  host_->watched() = comm::WatchedGroup(watchdog, 5, "dp", world);
  const std::vector<char> id(128, 'p');
  const auto made = plugin_->make_group(*host_, id);
  host_->set_on_device(made.backend, plugin_);
  host_->watched().set_polled(made.polled);
  fake_->async_error = 6;
  watchdog->watch(0.2);
  const std::string text = line.get();
  EXPECT_THAT(text, HasSubstr("uqa: rank 1: axis 'dp'"));
  EXPECT_THAT(text, HasSubstr("remote process exited"));
  const std::lock_guard lock(fake_->mutex);
  EXPECT_THAT(fake_->calls, ::testing::Contains("ncclCommAbort c3"));
}

TEST_F(NcclTest, TheWatchdogEndsACollectiveThatDoesNotEndOnTheDevice) {
  std::promise<std::string> reported;
  auto line = reported.get_future();
  const auto watchdog = std::make_shared<comm::Watchdog>(1, 3, [&](const std::string& text, bool) { reported.set_value(text); });
  host_ = std::make_shared<Host>(1, 3, "dp");
  const std::vector<int> world{0, 1, 2};
  host_->watched() = comm::WatchedGroup(watchdog, 5, "dp", world);
  const std::vector<char> id(128, 'p');
  const auto made = plugin_->make_group(*host_, id);
  host_->set_on_device(made.backend, plugin_);
  host_->watched().set_polled(made.polled);
  fake_->events_reached = false;
  const auto sequence = host_->watched().issue("reduce_scatter");
  made.backend->reduce_scatter(f32(0x1000, 12), at_address(0x20), std::vector<std::int64_t>{4, 4, 4});
  watchdog->watch(0.2);
  const std::string text = line.get();
  EXPECT_THAT(text, HasSubstr(fmt::format("reduce_scatter on axis 'dp', sequence {}, has waited", sequence)));
  EXPECT_THAT(text, HasSubstr("heartbeat cannot be read from here: 0, 2"));
  const std::lock_guard lock(fake_->mutex);
  EXPECT_THAT(fake_->calls, ::testing::Contains("ncclCommAbort c3"));
}

}  // namespace
}  // namespace uqa::testing
