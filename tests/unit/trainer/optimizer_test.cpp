#include "trainer/optimizer.h"

#include <gtest/gtest.h>

namespace uqa::trainer {
namespace {

std::vector<NamedParameter> make_parameters() {
  torch::manual_seed(3);
  return {{"a", torch::randn({17, 5}).set_requires_grad(true)}, {"b", torch::randn({9}).set_requires_grad(true)}};
}

TEST(Optimizer, AdamWAgreesWithLibTorchOverManySteps) {
  const OptimConfig config{.weight_decay = 0.1, .beta1 = 0.8, .beta2 = 0.95, .eps = 1e-6};
  const auto ours = make_parameters(), theirs = make_parameters();
  Optimizer optimizer(ours, config);
  torch::optim::AdamW reference({theirs[0].tensor, theirs[1].tensor},
                                torch::optim::AdamWOptions(1e-2).betas({0.8, 0.95}).eps(1e-6).weight_decay(0.1));
  for (int step = 0; step < 20; ++step) {
    for (std::size_t i = 0; i < ours.size(); ++i) {
      const auto grad = torch::randn_like(ours[i].tensor).detach();
      ours[i].tensor.mutable_grad() = grad.clone();
      theirs[i].tensor.mutable_grad() = grad.clone();
    }
    optimizer.step(1e-2);
    reference.step();
  }
  EXPECT_EQ(optimizer.updates(), 20);
  for (std::size_t i = 0; i < ours.size(); ++i) {
    EXPECT_GT((ours[i].tensor - make_parameters()[i].tensor).abs().max().item<float>(), 0.05) << "it must have moved";
    EXPECT_LT((ours[i].tensor - theirs[i].tensor).abs().max().item<float>(), 2e-6) << ours[i].name;
  }
}

TEST(Optimizer, GoesOnBitEquallyFromRestoredState) {
  const auto whole = make_parameters(), second_half = make_parameters();
  Optimizer one(whole, {}), two(second_half, {});
  const auto feed = [](const std::vector<NamedParameter>& parameters, int step) {
    for (const auto& p : parameters) p.tensor.mutable_grad() = at::full_like(p.tensor, 0.1 * (step + 1)).detach();
  };
  for (int step = 0; step < 3; ++step) {
    feed(whole, step);
    one.step(1e-2);
  }
  {
    const at::NoGradGuard no_grad;
    for (std::size_t i = 0; i < whole.size(); ++i) second_half[i].tensor.copy_(whole[i].tensor);
    const auto from = one.state(), to = two.state();
    ASSERT_EQ(from.size(), 4U);
    for (std::size_t i = 0; i < from.size(); ++i) {
      EXPECT_EQ(from[i].name, to[i].name);
      to[i].tensor.copy_(from[i].tensor);
    }
    two.set_updates(one.updates());
  }
  for (const auto& [parameters, optimizer] : {std::pair{&whole, &one}, std::pair{&second_half, &two}}) {
    feed(*parameters, 3);
    optimizer->step(1e-2);
  }
  for (std::size_t i = 0; i < whole.size(); ++i) EXPECT_TRUE(at::equal(whole[i].tensor, second_half[i].tensor));
}

TEST(Optimizer, SgdSubtractsTheScaledGradient) {
  const auto parameters = make_parameters();
  const auto before = parameters[1].tensor.detach().clone();
  Optimizer optimizer(parameters, {.kind = "sgd"});
  parameters[1].tensor.mutable_grad() = at::ones({9});
  optimizer.step(0.25);
  EXPECT_TRUE(at::equal(parameters[1].tensor.detach(), before - 0.25));
  EXPECT_TRUE(at::equal(parameters[0].tensor.detach(), make_parameters()[0].tensor.detach())) << "no gradient counts as zero";
  EXPECT_TRUE(optimizer.state().empty());
}

TEST(Optimizer, RefusesWhatTheFusedKernelWouldCorrupt) {
  const auto column = at::zeros({4, 4}).narrow(1, 0, 2).detach().set_requires_grad(true);
  EXPECT_THROW(Optimizer({{"column", column}}, {}), Error);
  const auto half = at::zeros({4}, at::kBFloat16).set_requires_grad(true);
  EXPECT_THROW(Optimizer({{"half", half}}, {}), Error);
  const auto parameters = make_parameters();
  Optimizer optimizer(parameters, {});
  parameters[0].tensor.mutable_grad() = at::zeros({5, 17}).t();
  EXPECT_THROW(optimizer.step(0.1), Error);
}

}  // namespace
}  // namespace uqa::trainer
