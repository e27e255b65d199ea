// Where the memory of fully sharded parameters is, and that ranks meet whatever part of the model they use.
#include "trainer/layer_shards.h"

#include <gtest/gtest.h>

#include "comm/backend.h"
#include "models/recompute.h"
#include "tests/support/counting_allocator.h"
#include "tests/support/expect_error.h"
#include "trainer/grad_reducer.h"

namespace uqa::trainer {
namespace {

using models::Layered;

/// y = tanh(x W_i^T), layer after layer, then a product with a vector outside of layers.
struct Chain : Layered {
  explicit Chain(std::int64_t num_layers) {
    for (std::int64_t i = 0; i < num_layers; ++i) weights.push_back(at::sin(at::arange(15, at::kFloat) * static_cast<double>(i + 2)).narrow(0, 0, 9).view({3, 3}).clone().requires_grad_(true));
  }
  [[nodiscard]] std::vector<std::vector<Tensor>> layer_parameters() const override {
    std::vector<std::vector<Tensor>> layers;
    for (const auto& weight : weights) layers.push_back({weight});
    return layers;
  }
  [[nodiscard]] std::vector<NamedParameter> parameters() const {
    std::vector<NamedParameter> all{{"head", head}};
    for (const auto& weight : weights) all.push_back({fmt::format("w{}", all.size()), weight});
    return all;
  }
  /// Of the first `used` layers.
  [[nodiscard]] Tensor loss(const Tensor& x_T3, std::size_t used) const {
    auto h = x_T3;
    for (std::size_t i = 0; i < used; ++i) {
      const auto layer = [this, i](const Tensor& x) {
        if (on_layer) on_layer(i);
        return at::linear(x, weights[i]).tanh();
      };
      h = watched(i, [&] { return models::run_layer(layer, h, {weights[i]}); });
      if (h.requires_grad()) {
        h.register_hook([this, i](const Tensor&) {
          if (on_backward) on_backward(i);
        });
      }
    }
    return h.mv(head).square().sum();
  }
  [[nodiscard]] Tensor loss(const Tensor& x_T3) const { return loss(x_T3, weights.size()); }

  std::vector<Tensor> weights;
  Tensor head = at::tensor({0.5F, -0.25F, 1.0F}).requires_grad_(true);
  std::function<void(std::size_t)> on_layer, on_backward;
};

Tensor input_of(int rank) { return at::cos(at::arange(6, at::kFloat) * (rank + 1.0)).view({2, 3}); }

std::vector<Tensor> reference_gradients(int ranks) {
  const Chain alone(4);
  for (int rank = 0; rank < ranks; ++rank) alone.loss(input_of(rank)).backward();
  std::vector<Tensor> gradients;
  for (const auto& parameter : alone.parameters()) gradients.push_back(parameter.tensor.grad());
  return gradients;
}

Tensor whole_gradient(const NamedParameter& part, const comm::Mesh& mesh) {
  return whole_of({.name = part.name, .tensor = part.tensor.grad(), .layout = part.layout}, mesh);
}

TEST(LayerShards, ALayerIsThereWhileItRunsForwardAndBackward) {
  const auto reference = reference_gradients(3);
  comm::run_ranks(3, [&](const comm::Communicator& world) {
    const comm::Mesh mesh(world, 0, 1);
    Chain chain(4);
    LayerShards shards(chain.parameters(), {&chain}, mesh.dp());
    const auto is_there = [](const Tensor& tensor) { return tensor.storage().nbytes() > 0; };
    const auto expect_only = [&](std::size_t layer, const char* when) {
      for (std::size_t i = 0; i < chain.weights.size(); ++i) EXPECT_EQ(is_there(chain.weights[i]), i == layer) << "layer " << i << " while " << layer << " runs " << when;
      EXPECT_TRUE(is_there(chain.head));
    };
    std::vector<std::size_t> order;
    chain.on_layer = [&](std::size_t layer) { expect_only(layer, "forward"); };
    // The hook of layer i's output runs before the layer's own backward, while the weights may still be those of the layer behind it.
    chain.on_backward = [&](std::size_t layer) { order.push_back(layer); };
    for (const auto& weight : chain.weights) EXPECT_FALSE(is_there(weight));
    EXPECT_FALSE(is_there(chain.head));
    for (int step = 0; step < 2; ++step) {
      shards.begin_step();
      for (int micro = 0; micro < 2; ++micro) {
        shards.begin_micro_step();
        (chain.loss(input_of(world.rank())) * 0.5).backward();
        shards.end_micro_step();
      }
      shards.finish(2.0);
      for (std::size_t i = 0; i < reference.size(); ++i) {
        EXPECT_TRUE(at::allclose(whole_gradient(shards.parts()[i], mesh), reference[i] * 2, 1e-5, 1e-6)) << shards.parts()[i].name;
        EXPECT_FALSE(chain.parameters()[i].tensor.grad().defined());
        EXPECT_FALSE(is_there(chain.parameters()[i].tensor));
      }
    }
    EXPECT_EQ(order.size(), 16U);
    chain.on_layer = chain.on_backward = {};
    shards.make_whole();
    const Chain untouched(4);
    for (std::size_t i = 0; i < 4; ++i) EXPECT_TRUE(at::equal(chain.weights[i], untouched.weights[i]));
    {
      const at::NoGradGuard no_grad;
      EXPECT_GT(chain.loss(input_of(world.rank())).item<float>(), 0);
    }
    shards.release();
    EXPECT_FALSE(is_there(chain.head));
  });
}

TEST(LayerShards, ALayerIsThereWhenItRunsAgainInBackward) {
  const auto reference = reference_gradients(3);
  comm::run_ranks(3, [&](const comm::Communicator& world) {
    const models::RecomputeLayers recompute(true);
    const comm::Mesh mesh(world, 0, 1);
    Chain chain(4);
    LayerShards shards(chain.parameters(), {&chain}, mesh.dp());
    std::vector<std::size_t> ran;
    chain.on_layer = [&](std::size_t layer) {
      ran.push_back(layer);
      for (std::size_t i = 0; i < chain.weights.size(); ++i) EXPECT_EQ(chain.weights[i].storage().nbytes() > 0, i == layer) << "layer " << i << " while " << layer << " runs";
    };
    shards.begin_step();
    for (int micro = 0; micro < 2; ++micro) {
      ran.clear();
      shards.begin_micro_step();
      (chain.loss(input_of(world.rank())) * 0.5).backward();
      EXPECT_EQ(ran, (std::vector<std::size_t>{0, 1, 2, 3, 3, 2, 1, 0}));
      shards.end_micro_step();
    }
    shards.finish(1);
    for (std::size_t i = 0; i < reference.size(); ++i) {
      EXPECT_TRUE(at::allclose(whole_gradient(shards.parts()[i], mesh), reference[i], 1e-5, 1e-6)) << shards.parts()[i].name;
    }
  });
}

TEST(LayerShards, RanksThatUseLessOfTheModelTakePartInEveryCollective) {
  // Rank 0 does nothing, rank 1 runs forward only, rank 2 uses two layers, rank 3 all.
  Chain alone(4);
  alone.loss(input_of(2), 2).backward();
  alone.loss(input_of(3)).backward();
  comm::run_ranks(4, [&](const comm::Communicator& world) {
    const comm::Mesh mesh(world, 0, 1);
    Chain chain(4);
    LayerShards shards(chain.parameters(), {&chain}, mesh.dp());
    shards.begin_step();
    shards.begin_micro_step();
    if (world.rank() == 1) static_cast<void>(chain.loss(input_of(1)));
    if (world.rank() == 2) chain.loss(input_of(2), 2).backward();
    if (world.rank() == 3) chain.loss(input_of(3)).backward();
    shards.end_micro_step();
    shards.finish(1);
    for (std::size_t i = 0; i < shards.parts().size(); ++i) {
      EXPECT_TRUE(at::allclose(whole_gradient(shards.parts()[i], mesh), alone.parameters()[i].tensor.grad(), 1e-5, 1e-6)) << shards.parts()[i].name;
    }
  });
}

TEST(LayerShards, GradientsOfOneMicroStepAreThoseOfReplicatedParametersBitForBit) {
  for (const bool recompute : {false, true}) {
    comm::run_ranks(3, [&](const comm::Communicator& world) {
      const models::RecomputeLayers layers(recompute);
      const comm::Mesh mesh(world, 0, 1);
      const Chain whole(4);
      Chain cut(4);
      GradReducer reducer(whole.parameters(), mesh, 100);
      LayerShards shards(cut.parameters(), {&cut}, mesh.dp());
      reducer.begin_step();
      shards.begin_step();
      shards.begin_micro_step();
      if (world.rank() != 1) {  // which has no samples
        whole.loss(input_of(world.rank())).backward();
        cut.loss(input_of(world.rank())).backward();
      }
      shards.end_micro_step();
      shards.finish(0.25);
      static_cast<void>(reducer.finish(0.25));
      for (std::size_t i = 0; i < shards.parts().size(); ++i) {
        EXPECT_TRUE(at::equal(whole_gradient(shards.parts()[i], mesh), reducer.gradients()[i])) << shards.parts()[i].name << " recompute " << recompute;
      }
    });
  }
}

TEST(LayerShards, TheNextLayersGatherIsStartedBeforeALayerRuns) {
  comm::run_ranks(3, [](const comm::Communicator& world) {
    const models::RecomputeLayers recompute(true);  // a layer tells when it runs in backward, too
    const comm::Mesh mesh(world, 0, 1);
    Chain chain(4);
    LayerShards shards(chain.parameters(), {&chain}, mesh.dp());
    auto& dp = mesh.dp().backend().watched();
    const auto num_calls = [&] { return dp.last_sequence(); };
    std::vector<std::uint64_t> calls;  // of dp so far, when a layer runs
    std::uint64_t before = 0;
    chain.on_layer = [&](std::size_t layer) {
      calls.push_back(num_calls() - before);
      const bool has_next = calls.size() != 4 && calls.size() != 8;
      if (has_next) {
        EXPECT_STREQ(dp.last_op(), "all_gather_async") << "layer " << layer;
      }
    };
    shards.begin_step();
    for (int micro = 0; micro < 2; ++micro) {
      calls.clear();
      before = num_calls();
      shards.begin_micro_step();
      EXPECT_EQ(num_calls() - before, 1U) << "the first layer's gather";
      // Rank 0 has no samples: its collectives are as many, and in the same order, or they would not match.
      if (world.rank() != 0) {
        chain.loss(input_of(world.rank())).backward();
        // Forward: layers 1 to 4 have been started before 1, ..., 4 run, and each time one more. Backward: layer 4 runs with 3 on its way; 3 with the sum of 4 and 2 on its way.
        EXPECT_EQ(calls, (std::vector<std::uint64_t>{2, 3, 4, 4, 5, 7, 9, 10}));
      }
      shards.end_micro_step();
      EXPECT_EQ(num_calls() - before, 7U + 4U) << "gathers and sums";
    }
    shards.finish(1);
  });
}

/// Layers of 256 KiB, one after the other.
struct Wide : Layered {
  static constexpr std::int64_t kWidth = 256, kLayerBytes = kWidth * kWidth * 4;
  explicit Wide(int num_layers) {
    for (int i = 0; i < num_layers; ++i) weights.push_back(at::full({kWidth, kWidth}, 1e-3).requires_grad_(true));
  }
  [[nodiscard]] std::vector<std::vector<Tensor>> layer_parameters() const override {
    std::vector<std::vector<Tensor>> layers;
    for (const auto& weight : weights) layers.push_back({weight});
    return layers;
  }
  [[nodiscard]] std::vector<NamedParameter> parameters() const {
    std::vector<NamedParameter> all;
    for (const auto& weight : weights) all.push_back({fmt::format("w{}", all.size()), weight});
    return all;
  }
  [[nodiscard]] Tensor loss() const {
    auto h = at::ones({kWidth});
    for (std::size_t i = 0; i < weights.size(); ++i) h = watched(i, [&] { return weights[i].mv(h); });
    return h.sum();
  }
  std::vector<Tensor> weights;
};

TEST(LayerShards, TwoLayersAreHeldAtMost) {
  // One rank, where a gather is a copy: what is held is the same, and nobody else allocates.
  const tests::CountingAllocator counting;
  Wide model(8);
  LayerShards shards(model.parameters(), {&model}, comm::Communicator());
  const auto layers_over = [](std::int64_t begin) { return static_cast<double>(tests::CountingAllocator::peak - begin) / Wide::kLayerBytes; };
  for (int step = 0; step < 2; ++step) {
    shards.begin_step();
    const std::int64_t begin = tests::CountingAllocator::held;
    tests::CountingAllocator::peak = begin;
    shards.begin_micro_step();
    const auto loss = model.loss();
    EXPECT_NEAR(layers_over(begin), 2, 0.2) << "the one that runs and the one on its way";
    loss.backward();
    shards.end_micro_step();
    // In backward beside them: the gradient, the message it is summed in, and its sum, but then the layer's own values are gone.
    EXPECT_GT(layers_over(begin), 2.8);
    EXPECT_LT(layers_over(begin), 4.2);
    shards.finish(1);
  }
  const auto begin = tests::CountingAllocator::held.load();
  shards.make_whole();
  EXPECT_NEAR(static_cast<double>(tests::CountingAllocator::held - begin) / Wide::kLayerBytes, 8, 0.1);
  shards.release();
  EXPECT_EQ(tests::CountingAllocator::held, begin) << "nothing is left";
}

TEST(LayerShards, AnErrorInTheMiddleLeavesNothingOnItsWay) {
  const auto reference = reference_gradients(3);
  comm::run_ranks(3, [&](const comm::Communicator& world) {
    const comm::Mesh mesh(world, 0, 1);
    Chain chain(4);
    LayerShards shards(chain.parameters(), {&chain}, mesh.dp());
    for (const std::size_t bad_layer : {0, 1, 3}) {
      chain.on_layer = [&](std::size_t layer) { UQA_CHECK(layer != bad_layer || world.rank() == 2, ErrorCode::kNumeric, "layer {} fails", layer); };
      shards.begin_step();
      shards.begin_micro_step();
      if (world.rank() != 2) {
        EXPECT_UQA_ERROR(chain.loss(input_of(0)), ErrorCode::kNumeric, "fails");
      }
      EXPECT_UQA_ERROR(shards.begin_micro_step(), ErrorCode::kInternal, "inside a micro-step");
      EXPECT_UQA_ERROR(shards.make_whole(), ErrorCode::kInternal, "inside a micro-step");
      shards.end_micro_step();
      shards.finish(1);
    }
    chain.on_layer = {};
    // An evaluation in between, which asks for all layers, and a step that is right.
    shards.make_whole();
    {
      const at::NoGradGuard no_grad;
      EXPECT_GT(chain.loss(input_of(world.rank()), 2).item<float>(), 0) << "an evaluation that stops early";
    }
    shards.release();
    shards.begin_step();
    shards.begin_micro_step();
    chain.loss(input_of(world.rank())).backward();
    shards.end_micro_step();
    shards.finish(1);
    for (std::size_t i = 0; i < reference.size(); ++i) {
      EXPECT_TRUE(at::equal(whole_gradient(shards.parts()[i], mesh), reference[i])) << shards.parts()[i].name;
    }
  });
  // An error that is not caught ends all ranks, whatever is on its way.
  const auto fail = [] {
    comm::run_ranks(3, [](const comm::Communicator& world) {
      const comm::Mesh mesh(world, 0, 1);
      Chain chain(4);
      LayerShards shards(chain.parameters(), {&chain}, mesh.dp());
      chain.on_layer = [&](std::size_t layer) { UQA_CHECK(layer != 1 || world.rank() != 1, ErrorCode::kNumeric, "rank 1 fails"); };
      shards.begin_step();
      shards.begin_micro_step();
      chain.loss(input_of(world.rank())).backward();
      shards.end_micro_step();
    });
  };
  EXPECT_UQA_ERROR(fail(), ErrorCode::kNumeric, "rank 1 fails");
}

TEST(LayerShards, FrozenLayersAndTwoModelsAreServed) {
  Chain alone_first(2), alone_second(3);
  alone_first.weights[1].requires_grad_(false);
  alone_second.weights[0].requires_grad_(false);
  const auto trained = [](const Chain& a, const Chain& b) {
    std::vector<NamedParameter> all;
    for (const auto& [prefix, chain] : {std::pair{"a.", &a}, std::pair{"b.", &b}}) {
      for (auto& parameter : chain->parameters()) {
        if (parameter.tensor.requires_grad()) all.push_back({prefix + parameter.name, parameter.tensor});
      }
    }
    return all;
  };
  const auto loss_of = [](const Chain& a, const Chain& b, int rank) { return b.loss(input_of(rank) * a.loss(input_of(rank + 5))); };
  for (int rank = 0; rank < 2; ++rank) loss_of(alone_first, alone_second, rank).backward();
  const auto reference = trained(alone_first, alone_second);
  comm::run_ranks(2, [&](const comm::Communicator& world) {
    const comm::Mesh mesh(world, 0, 1);
    Chain first(2), second(3);
    first.weights[1].requires_grad_(false);
    second.weights[0].requires_grad_(false);
    LayerShards shards(trained(first, second), {&first, &second}, mesh.dp());
    EXPECT_EQ(shards.parts().size(), 5U);
    EXPECT_GT(first.weights[1].storage().nbytes(), 0U) << "a frozen parameter stays";
    shards.begin_step();
    shards.begin_micro_step();
    loss_of(first, second, world.rank()).backward();
    shards.end_micro_step();
    shards.finish(1);
    for (std::size_t i = 0; i < reference.size(); ++i) {
      EXPECT_TRUE(at::allclose(whole_gradient(shards.parts()[i], mesh), reference[i].tensor.grad(), 1e-5, 1e-6)) << reference[i].name;
    }
  });
}

TEST(LayerShards, WhatItCannotServeIsRefused) {
  comm::run_ranks(2, [](const comm::Communicator& world) {
    const comm::Mesh mesh(world, 0, 1);
    {
      Chain chain(2);
      LayerShards shards(chain.parameters(), {&chain}, mesh.dp());
      shards.begin_step();
      shards.begin_micro_step();
      static_cast<void>(chain.loss(input_of(0)));
      EXPECT_UQA_ERROR(chain.loss(input_of(0)), ErrorCode::kInternal, "a second time in one micro-step");
      shards.end_micro_step();
      shards.finish(1);
      EXPECT_ANY_THROW(static_cast<void>(chain.head.sum())) << "given up, and read";
    }
    {
      Chain chain(2);
      auto view = chain.parameters();
      view[0].tensor = at::ones({6}).narrow(0, 3, 3).detach().requires_grad_(true);
      EXPECT_UQA_ERROR(LayerShards(view, {&chain}, mesh.dp()), ErrorCode::kInternal, "storage of its own");
    }
    {
      Chain chain(2);
      chain.weights[1] = chain.weights[0];
      EXPECT_UQA_ERROR(LayerShards(chain.parameters(), {&chain}, mesh.dp()), ErrorCode::kInternal, "is also one of layer");
    }
  });
}

}  // namespace
}  // namespace uqa::trainer
