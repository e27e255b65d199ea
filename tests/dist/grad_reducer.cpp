// Gradient buckets over ranks against one rank that sees every shard.
#include "trainer/grad_reducer.h"

#include <gtest/gtest.h>
#include <torch/csrc/autograd/variable.h>

#include <algorithm>
#include <bit>
#include <cmath>

#include "tests/dist/dist_world.h"

namespace uqa::trainer {
namespace {

using uqa::testing::dist_world;

constexpr std::int64_t kOnePerBucket = 1, kAllInOne = std::int64_t{1} << 30;

/// Two layers, a shared vector and a parameter that nothing uses.
struct Model {
  Tensor w1_HD = leaf(at::sin(at::arange(20, at::kFloat)).view({5, 4}));
  Tensor unused = leaf(at::ones({3}));
  Tensor shared_H = leaf(at::cos(at::arange(5, at::kFloat)));
  Tensor w2_OH = leaf(at::cos(at::arange(35, at::kFloat) * 2).view({7, 5}));

  static Tensor leaf(const Tensor& value) { return value.clone().requires_grad_(true); }
  [[nodiscard]] std::vector<Tensor> parameters() const { return {w1_HD, unused, shared_H, w2_OH}; }
  /// Sum over the rows of one shard.
  [[nodiscard]] Tensor loss(std::int64_t shard) const {
    const Tensor x_TD = at::sin(at::arange(12, at::kFloat) * static_cast<double>(shard + 1)).view({3, 4});
    const Tensor h_TH = at::tanh(at::matmul(x_TD, w1_HD.t()) * shared_H + shared_H);
    return at::matmul(h_TH, w2_OH.t()).square().sum();
  }
};

std::vector<Tensor> reference_gradients(std::int64_t num_shards, double scale) {
  const Model model;
  for (std::int64_t shard = 0; shard < num_shards; ++shard) model.loss(shard).backward();
  std::vector<Tensor> result;
  for (const Tensor& p : model.parameters())
    result.push_back(p.grad().defined() ? p.grad() * scale : at::zeros_like(p));
  return result;
}

void expect_close(const std::vector<Tensor>& got, const std::vector<Tensor>& want) {
  EXPECT_EQ(got.size(), want.size());
  for (std::size_t i = 0; i < std::min(got.size(), want.size()); ++i) {
    EXPECT_TRUE(at::allclose(got[i], want[i], 1e-5, 1e-5)) << "parameter " << i << "\n" << got[i] << "\n" << want[i];
  }
  EXPECT_GT(want[0].abs().max().item<float>(), 0.1f) << "the check must not be vacuous";
}

TEST(GradReducer, GivesTheSumOverAllShardsForAnyBucketSize) {
  const auto& world = dist_world();
  const auto want = reference_gradients(world.size(), 0.5);
  for (const auto bucket_bytes : {kOnePerBucket, std::int64_t{200}, kAllInOne}) {
    const Model model;
    GradReducer reducer(model.parameters(), world, bucket_bytes);
    if (bucket_bytes == kOnePerBucket) { EXPECT_EQ(reducer.num_buckets(), 4); }
    if (bucket_bytes == kAllInOne) { EXPECT_EQ(reducer.num_buckets(), 1); }
    for (int step = 0; step < 3; ++step) {
      reducer.begin_step();
      reducer.arm();
      model.loss(world.rank()).backward();
      const double waited_s = reducer.finish(0.5);
      EXPECT_GE(waited_s, 0);
      EXPECT_LT(waited_s, 60);
      expect_close(reducer.gradients(), want);
      double squares = 0;
      for (const auto& g : want) squares += g.square().sum().item<double>();
      EXPECT_NEAR(reducer.global_norm(), std::sqrt(squares), 1e-4 * std::sqrt(squares));
      for (std::size_t i = 0; i < 4; ++i) EXPECT_TRUE(model.parameters()[i].grad().is_alias_of(reducer.gradients()[i]));
    }
    const Tensor norms = comm::all_gather(at::full({1}, reducer.global_norm(), at::kFloat), world);
    EXPECT_TRUE(at::equal(norms, norms[0].expand_as(norms))) << "one norm on all ranks";
  }
}

TEST(GradReducer, SumsEachLayoutOverItsOwnAxisAndCountsSlicesOnceInTheNorm) {
  const auto& world = dist_world();
  const int n = world.size();
  for (const int tp : {1, 2}) {
    for (const int table_group : {0, tp, 1}) {
      if (n % tp != 0 || table_group % tp != 0) continue;
      const comm::Mesh mesh(world, 0, tp, table_group);
      const auto values = [](std::int64_t rows, std::int64_t columns) { return at::sin(at::arange(rows * columns, at::kFloat)).view({rows, columns}); };
      const auto whole = values(5, 2), by_tp = values(6, 4), columns_by_tp = values(3, 4), table = values(7, 3), copied = values(2, 2);
      // The gradient of sum(c * w) is c: whole ones and those cut over tp get (dp rank + 1) x values, the table (group + 1) x its rows.
      const double dp_factor = mesh.dp().rank() + 1, group_factor = mesh.table_replica().rank() + 1;
      const auto slice = [](const Tensor& all, models::ShardAxis axis, std::int64_t dim, const comm::Communicator& comm) {
        const auto range = models::even_range(all.size(dim), comm.rank(), comm.size());
        return std::pair{all.narrow(dim, range.begin, range.length).contiguous(), models::sliced(axis, all.sizes().vec(), dim, range)};
      };
      std::vector<NamedParameter> parameters;
      std::vector<Tensor> contributions, wants;
      const auto add = [&](const Tensor& part, models::ParameterLayout layout, double factor, double factors) {
        parameters.push_back({std::to_string(parameters.size()), at::zeros_like(part).requires_grad_(true), 1, std::move(layout)});
        contributions.push_back(part * factor);
        wants.push_back(part * factors * 0.5);
      };
      const double dp_sum = mesh.dp().size() * (mesh.dp().size() + 1) / 2.0, group_sum = mesh.table_replica().size() * (mesh.table_replica().size() + 1) / 2.0;
      const auto [rows_part, rows_layout] = slice(by_tp, models::ShardAxis::kTp, 0, mesh.tp());
      const auto [columns_part, columns_layout] = slice(columns_by_tp, models::ShardAxis::kTp, 1, mesh.tp());
      const auto [table_part, table_layout] = slice(table, models::ShardAxis::kTable, 0, mesh.table());
      auto copied_layout = models::sliced(models::ShardAxis::kTp, {2, 2}, 0, {0, 2});
      copied_layout.ranges.front().copies = mesh.tp().size();
      add(table_part, table_layout, group_factor, group_sum);
      add(whole, {}, dp_factor, dp_sum);
      add(rows_part, rows_layout, dp_factor, dp_sum);
      add(columns_part, columns_layout, dp_factor, dp_sum);
      add(copied, copied_layout, dp_factor, dp_sum);
      const double squares = 0.25 * (group_sum * group_sum * table.square().sum().item<double>() +
                                     dp_sum * dp_sum * (whole.square().sum() + by_tp.square().sum() + columns_by_tp.square().sum() + copied.square().sum()).item<double>());
      for (const auto bucket_bytes : {kOnePerBucket, std::int64_t{200}, kAllInOne}) {
        GradReducer reducer(parameters, mesh, bucket_bytes);
        for (int step = 0; step < 2; ++step) {
          reducer.begin_step();
          reducer.arm();
          Tensor loss = at::zeros({});
          for (std::size_t i = 0; i < parameters.size(); ++i) loss = loss + (parameters[i].tensor * contributions[i]).sum();
          loss.backward();
          static_cast<void>(reducer.finish(0.5));
          for (std::size_t i = 0; i < wants.size(); ++i) EXPECT_TRUE(at::allclose(reducer.gradients()[i], wants[i], 1e-5, 1e-6)) << "parameter " << i;
        }
        const double norm = reducer.global_norm();
        EXPECT_NEAR(norm, std::sqrt(squares), 1e-5 * std::sqrt(squares));
        const Tensor bits = comm::all_gather(at::full({1}, std::bit_cast<std::int64_t>(norm), at::kLong), world);
        EXPECT_TRUE(at::equal(bits, bits[0].expand_as(bits))) << "one norm on all ranks";
      }
    }
  }
}

TEST(GradReducer, MicroStepsAccumulateAndARankWithoutWorkContributesZeros) {
  // Rank r has r micro-steps of the size() - 1 agreed ones, so rank 0 never runs backward.
  const auto& world = dist_world();
  const Model model, reference;
  GradReducer reducer(model.parameters(), world, 100);
  reducer.begin_step();
  for (int micro = 0; micro < world.size() - 1; ++micro) {
    if (micro == world.size() - 2) reducer.arm();
    if (micro < world.rank()) model.loss(10 * world.rank() + micro).backward();
  }
  static_cast<void>(reducer.finish());
  for (int r = 0; r < world.size(); ++r) {
    for (int micro = 0; micro < r; ++micro) reference.loss(10 * r + micro).backward();
  }
  if (world.size() == 1) {
    EXPECT_EQ(reducer.global_norm(), 0);
    return;
  }
  expect_close({reducer.gradients()[0], reducer.gradients()[2], reducer.gradients()[3]},
               {reference.w1_HD.grad(), reference.shared_H.grad(), reference.w2_OH.grad()});
  EXPECT_EQ(reducer.gradients()[1].abs().max().item<float>(), 0) << "unused parameter";
}

TEST(GradReducer, OrderOfSendingIsFixedWhenGradientsBecomeReadyInAnother) {
  const auto& world = dist_world();
  const bool odd = world.rank() % 2 == 1;
  // Sizes differ by parameter: buckets sent in ready order would not fit together.
  const std::vector<Tensor> parameters{Model::leaf(at::ones({1000})), Model::leaf(at::ones({50'000})),
                                       Model::leaf(at::ones({3}))};
  std::vector<int> ready;
  for (int i = 0; i < 3; ++i) {
    parameters[static_cast<std::size_t>(i)].register_hook([&ready, i](const Tensor&) { ready.push_back(i); });
  }
  GradReducer reducer(parameters, world, kOnePerBucket);
  for (int step = 0; step < 5; ++step) {
    ready.clear();
    reducer.begin_step();
    reducer.arm();
    Tensor loss = at::zeros({});
    // Backward meets the parameter used last first.
    for (int use = 0; use < 3; ++use)
      loss = loss + (parameters[static_cast<std::size_t>(odd ? 2 - use : use)] * (world.rank() + 1.0)).sum();
    loss.backward();
    EXPECT_EQ(ready, odd ? (std::vector<int>{0, 1, 2}) : (std::vector<int>{2, 1, 0}));
    static_cast<void>(reducer.finish());
    const double sum = world.size() * (world.size() + 1) / 2.0;
    for (const Tensor& g : reducer.gradients()) EXPECT_TRUE(at::equal(g, at::full_like(g, sum)));
  }
}

TEST(GradReducer, SendsWhileBackwardRuns) {
  const auto& world = dist_world();
  const Model model;
  GradReducer reducer({model.w1_HD, model.shared_H, model.w2_OH}, world, kOnePerBucket);
  const auto before = world.bytes_sent();
  reducer.begin_step();
  model.loss(0).backward();
  EXPECT_EQ(world.bytes_sent(), before) << "not armed";
  reducer.arm();
  model.loss(1).backward();
  EXPECT_EQ(world.bytes_sent() > before, world.size() > 1) << "armed";
  const auto in_backward = world.bytes_sent();
  static_cast<void>(reducer.finish());
  EXPECT_EQ(world.bytes_sent(), in_backward) << "nothing was left to send";
}

TEST(GradReducer, GroupOfOneIsNotHooked) {
  const auto& world = dist_world();
  const Model model;
  {
    GradReducer reducer(model.parameters(), world, kAllInOne);
    EXPECT_EQ(torch::autograd::impl::post_acc_grad_hooks(model.w1_HD) != nullptr, world.size() > 1);
  }
  EXPECT_EQ(torch::autograd::impl::post_acc_grad_hooks(model.w1_HD), nullptr) << "taken away at the end";
  model.loss(0).backward();
  GradReducer alone(model.parameters(), comm::Communicator(), kAllInOne);
  alone.begin_step();
  alone.arm();
  model.loss(0).backward();
  EXPECT_LT(alone.finish(), 0.1);
  expect_close(alone.gradients(), reference_gradients(1, 1));
}

TEST(GradReducer, ASecondArmedBackwardIsRefused) {
  const auto& world = dist_world();
  const Model model;
  GradReducer reducer({model.w1_HD, model.shared_H, model.w2_OH}, world, kOnePerBucket);
  reducer.begin_step();
  reducer.arm();
  model.loss(0).backward();
  if (world.size() > 1) {
    EXPECT_THROW(model.loss(0).backward(), Error);
    EXPECT_THROW(reducer.begin_step(), Error);
  }
  static_cast<void>(reducer.finish());
}

TEST(GradReducer, AGradientThatIsNoLongerAViewIsRefused) {
  const auto& world = dist_world();
  const Model model;
  GradReducer reducer(model.parameters(), world, kAllInOne);
  reducer.begin_step();
  model.w1_HD.mutable_grad() = Tensor();
  EXPECT_THROW(static_cast<void>(reducer.finish()), Error);
}

TEST(GradReducer, RefusesParametersThatItCannotHold) {
  const auto& world = dist_world();
  const Tensor good = Model::leaf(at::ones({2, 3}));
  const auto refused = [&](const std::vector<Tensor>& parameters, std::int64_t bucket_bytes) {
    EXPECT_THROW(GradReducer(parameters, world, bucket_bytes), Error);
  };
  refused({good, good}, kAllInOne);
  refused({at::ones({2})}, kAllInOne);
  refused({at::ones({2}, at::kBFloat16).requires_grad_(true)}, kAllInOne);
  refused({at::ones({2, 3}).t().detach().requires_grad_(true)}, kAllInOne);
  refused({good}, 0);
  const comm::Mesh mesh(world, 0, 1);
  const auto over_dp = models::sliced(models::ShardAxis::kDp, {2 * world.size(), 3}, 0, {2 * world.rank(), 2});
  EXPECT_THROW(GradReducer({NamedParameter{"w", good, 1, over_dp}}, mesh, kAllInOne), Error);
  const auto of_another_shape = models::sliced(models::ShardAxis::kTable, {4, 4}, 0, {0, 2});
  EXPECT_THROW(GradReducer({NamedParameter{"w", good, 1, of_another_shape}}, mesh, kAllInOne), Error);
}

}  // namespace
}  // namespace uqa::trainer
