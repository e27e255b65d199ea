// Copies between the host and the device of a rank. LibTorch's meta device stands for a GPU: its tensors have shapes and no memory, so code that reads one as if it
// were the host's fails.
#include "trainer/device.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>

#include "comm/backend.h"
#include "tests/support/temp_dir.h"
#include "tiny_data.h"
#include "trainer/checkpoint.h"
#include "trainer/grad_reducer.h"
#include "trainer/optimizer.h"
#include "trainer/trained_parameters.h"

namespace uqa::trainer {
namespace {

using ::testing::Each;
using ::testing::HasSubstr;
using ::testing::Not;

const at::Device kElsewhere(at::kMeta);

Tensor leaf_elsewhere(at::IntArrayRef shape) { return at::zeros(shape, at::TensorOptions(at::kFloat).device(kElsewhere)).requires_grad_(true); }

/// One of two ranks that do the same; notes what reaches it. The host's gives metadata back as the peer's.
class Recorder : public comm::detail::Backend {
 public:
  Recorder(at::DeviceType type, std::vector<std::string>& log) : Backend(0, 2, "dp"), type_(type), log_(log) {}
  bool serves(const at::Device& device) const override { return device.type() == type_; }
  std::shared_ptr<Backend> split(int, int, const std::string&) override { return nullptr; }
  void all_reduce(const comm::detail::Elements&, comm::ReduceOp) override { note("all_reduce"); }
  std::unique_ptr<comm::detail::Pending> all_reduce_async(const comm::detail::Elements&, comm::ReduceOp, const Tensor&) override {
    note("all_reduce_async");
    return std::make_unique<Done>();
  }
  std::unique_ptr<comm::detail::Pending> all_gather_async(const void*, void*, std::span<const std::int64_t>, std::vector<Tensor>) override {
    note("all_gather_async");
    return std::make_unique<Done>();
  }
  void all_gather(const void* in, void* out, std::span<const std::int64_t> bytes) override {
    note("all_gather");
    if (type_ != at::kCPU) return;
    for (int r = 0; r < 2; ++r) std::memcpy(static_cast<char*>(out) + r * bytes[0], in, static_cast<std::size_t>(bytes[0]));
  }
  void reduce_scatter(const comm::detail::Elements&, void*, std::span<const std::int64_t>) override { note("reduce_scatter"); }
  void broadcast(void*, std::int64_t, int) override { note("broadcast"); }
  void all_to_all(const void*, std::span<const std::int64_t>, void*, std::span<const std::int64_t>) override { note("all_to_all"); }
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

TEST(Device, ABatchIsTheSameBehindACopyAndLeavesNothingBehind) {
  const tests::TempDir dir;
  const PretrainTask task(test::tiny_config(test::write_tiny_data(dir.path()), "gru4rec"));
  const auto packed = std::make_shared<const data::PackedBatch>(data::pack(task.dataset(), {{.user = 0, .begin = 0, .end = 3}, {.user = 1, .begin = 1, .end = 3}}, {4, 5}, data::Targets::kNext));
  const auto host = wrap_user_batch(packed);
  ASSERT_EQ(host.features.size(), 2U);
  ASSERT_TRUE(host.features[1].offsets.defined()) << "tags are bags";
  const auto there = to_device(host, kElsewhere), same = to_device(host, at::kCPU);
  EXPECT_EQ(there.layout.cu_seqlens, host.layout.cu_seqlens);
  EXPECT_EQ(there.layout.sample_ids, host.layout.sample_ids);
  for (std::size_t f = 0; f < host.features.size(); ++f) {
    EXPECT_EQ(there.features[f].values.device(), kElsewhere);
    EXPECT_EQ(there.features[f].values.sizes(), host.features[f].values.sizes());
    EXPECT_EQ(there.features[f].offsets.defined(), host.features[f].offsets.defined());
    EXPECT_TRUE(at::equal(same.features[f].values, host.features[f].values));
    EXPECT_TRUE(same.features[f].values.is_alias_of(host.features[f].values)) << "the CPU's batch is not copied";
  }
  EXPECT_EQ(there.features[1].offsets.device(), kElsewhere);
}

TEST(Device, EveryTensorOfAPromptIsMoved) {
  EncodedQuestion question;
  question.prompt = {3, 1, 4, 1, 5};
  const std::vector<std::int64_t> words{2, 6};
  const auto packed = pack_prompts({{.prompt = &question, .continuations = {words}}});
  const auto there = to_device(packed, kElsewhere);
  for (const auto* tensor : {&there.ids_T, &there.positions_T, &there.soft_rows_S, &there.head_rows_R, &there.prompt_heads_B, &there.pair_rows_N, &there.pair_tokens_N,
                             &there.pair_continuations_N, &there.continuation_tokens_C}) {
    EXPECT_EQ(tensor->device(), kElsewhere);
  }
  EXPECT_EQ(there.num_rows(), packed.num_rows());
  EXPECT_EQ(there.blocks.size(), packed.blocks.size());
  EXPECT_FALSE(to_device(PackedPrompts{}, kElsewhere).prompt_heads_B.defined());
}

TEST(Device, ACheckpointHoldsWhatTensorsWereWhenItStarted) {
  const Tensor whole = at::arange(12, at::kFloat).view({3, 4});
  const Tensor copy = host_copy(whole), column = host_copy(whole.narrow(1, 1, 2));
  EXPECT_FALSE(copy.is_alias_of(whole)) << "the background writer reads it while training goes on";
  EXPECT_TRUE(column.is_contiguous());
  const Tensor before = whole.clone();
  whole.fill_(-1);
  EXPECT_TRUE(at::equal(copy, before));
  EXPECT_TRUE(at::equal(column, before.narrow(1, 1, 2)));
}

TEST(Device, GradientsLieAndTravelWhereTheirParametersAre) {
  std::vector<std::string> log;
  const auto host = std::make_shared<Recorder>(at::kCPU, log);
  host->set_on_device(std::make_shared<Recorder>(at::kMeta, log), nullptr);
  const std::vector<Tensor> parameters{leaf_elsewhere({3, 5}), leaf_elsewhere({7})};
  GradReducer reducer(parameters, comm::Communicator(host), /*bucket_bytes=*/1);
  ASSERT_EQ(reducer.num_buckets(), 2);
  reducer.begin_step();
  reducer.arm();
  (parameters[0].sum() + parameters[1].sum()).backward();
  static_cast<void>(reducer.finish(0.5));
  for (const auto& gradient : reducer.gradients()) EXPECT_EQ(gradient.device(), kElsewhere);
  EXPECT_THAT(log, ::testing::ElementsAre("device all_reduce_async", "device all_reduce_async"));
}

TEST(Device, GradientsOnTwoDevicesAreRefused) {
  EXPECT_THROW(GradReducer({leaf_elsewhere({3}), at::zeros({3}).requires_grad_(true)}, comm::Communicator(), 1000), Error);
  EXPECT_THROW(Optimizer({{"here", at::zeros({3}).requires_grad_(true)}, {"there", leaf_elsewhere({3})}}, {}), Error);
}

TEST(Device, WithoutATransportOfTheDeviceNothingTravels) {
  std::vector<std::string> log;
  const auto host = std::make_shared<Recorder>(at::kCPU, log);
  const std::vector<Tensor> parameters{leaf_elsewhere({3})};
  GradReducer reducer(parameters, comm::Communicator(host), 1000);
  reducer.begin_step();
  EXPECT_THROW(static_cast<void>(reducer.finish()), Error);
  EXPECT_THAT(log, Each(Not(HasSubstr("all_reduce"))));
}

TEST(Device, AnUpdateReadsNothingOnTheHost) {
  const std::vector<NamedParameter> parameters{{"a", leaf_elsewhere({4, 2})}, {"b", leaf_elsewhere({3})}};
  const comm::Mesh mesh(comm::Communicator(), 0, 1);
  TrainedParameters trained(parameters, {}, mesh, {});
  Optimizer sgd(trained.updated(), {.weight_decay = 0.1, .kind = "sgd"});
  trained.begin_step();
  (parameters[0].tensor.sum() * 2).backward();
  static_cast<void>(trained.finish(0.25));
  trained.before_update(0.5);  // clipped
  sgd.step(1e-2);
  static_cast<void>(trained.after_update());
  EXPECT_EQ(sgd.updates(), 1);
  const Optimizer adamw(trained.updated(), {});
  for (const auto& state : adamw.state()) EXPECT_EQ(state.tensor.device(), kElsewhere) << state.name;
}

TEST(Device, GroupsOfAWorldAreOnItsDevice) {
  const comm::Communicator world;
  EXPECT_EQ(comm::Mesh(world, 0, 1).device(), at::Device(at::kCPU));
  world.backend().set_device(kElsewhere, nullptr);
  const comm::Mesh mesh(world, 0, 1);
  EXPECT_EQ(mesh.device(), kElsewhere);
  EXPECT_EQ(mesh.dp().device(), kElsewhere);
  EXPECT_EQ(world.alone().device(), kElsewhere);
}

}  // namespace
}  // namespace uqa::trainer
