// Tensor-parallel building blocks and encoders, ranks as threads: the full layer is the oracle.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "models/layers/dropout.h"
#include "models/parallel/norm.h"
#include "models/parallel/vocabulary.h"
#include "parallel_case.h"
#include "tests/support/expect_error.h"

namespace uqa::models {
namespace {

using testing::encoder_cases;
using testing::max_abs;
using testing::packed_input;
using testing::random_normal;
using testing::relative_error;
using testing::run_encoder;
using testing::worst_error;

constexpr double kRounding = 2e-6;  // of float32 sums of some ten terms in another order

Tensor of_rank(int rank, at::IntArrayRef shape) { return random_normal(shape, 100 + static_cast<std::uint64_t>(rank), at::kFloat); }

TEST(ParallelCollectives, ForwardAndBackwardAreConjugate) {
  constexpr int kRanks = 3;
  comm::run_ranks(kRanks, [](const comm::Communicator& comm) {
    const int rank = comm.rank();
    const auto sum_of = [&](at::IntArrayRef shape) {
      auto sum = at::zeros(shape);
      for (int r = 0; r < kRanks; ++r) sum += of_rank(r, shape);
      return sum;
    };
    // copy: the same x, weighted by another w on each rank; the gradient of x is the sum of the w.
    const auto x = random_normal({4, 7}, 1, at::kFloat).requires_grad_(true);
    const auto copied = copy_to(x, comm);
    EXPECT_TRUE(at::equal(copied, x));
    (copied * of_rank(rank, {4, 7})).sum().backward();
    EXPECT_LE(max_abs(x.grad() - sum_of({4, 7})), 1e-6);
    // reduce: the sum forward, the gradient as it is.
    const auto part = of_rank(rank, {4, 7}).requires_grad_(true);
    const auto reduced = reduce_from(part, comm);
    EXPECT_LE(max_abs(reduced - sum_of({4, 7})), 1e-6);
    (reduced * x.detach()).sum().backward();
    EXPECT_TRUE(at::equal(part.grad(), x.detach()));
    // scatter and gather undo each other, forward and backward; 7 columns on 3 ranks.
    const auto mine = even_range(7, rank, kRanks);
    const auto whole = random_normal({4, 7}, 2, at::kFloat).requires_grad_(true);
    const auto scattered = scatter_to(whole, comm);
    EXPECT_TRUE(at::equal(scattered, whole.narrow(1, mine.begin, mine.length)));
    const auto gathered = gather_from(scattered, comm);
    EXPECT_TRUE(at::equal(gathered, whole));
    const auto weights = random_normal({4, 7}, 3, at::kFloat);
    (gathered * weights).sum().backward();
    EXPECT_TRUE(at::equal(whole.grad(), weights));
    // Several tensors, one collective.
    const auto a = at::ones({2, 3}).requires_grad_(true), b = at::ones({5}).requires_grad_(true);
    const auto before = comm.bytes_sent();
    const auto both = copy_all_to({a, b}, comm);
    ((both[0] * of_rank(rank, {2, 3})).sum() + (both[1] * of_rank(rank, {5})).sum()).backward();
    EXPECT_LE(max_abs(a.grad() - sum_of({2, 3})), 1e-6);
    EXPECT_LE(max_abs(b.grad() - sum_of({5})), 1e-6);
    EXPECT_GT(comm.bytes_sent(), before);
  });
}

TEST(ParallelCollectives, AreTheIdentityOnOneRank) {
  const comm::Communicator one;
  const auto x = random_normal({3, 4}, 1, at::kFloat);
  for (const auto& y : {copy_to(x, one), reduce_from(x, one), scatter_to(x, one), gather_from(x, one), copy_all_to({x}, one)[0]}) {
    EXPECT_TRUE(y.is_same(x));
  }
}

TEST(ParallelLinear, SlicesOfAFullLayerComputeTheSame) {
  constexpr std::int64_t kIn = 12, kInner = 20, kOut = 6;
  Linear up(kIn, kInner, Bias::kYes), down(kInner, kOut, Bias::kYes);
  std::uint64_t seed = 40;
  {
    const at::NoGradGuard no_grad;
    for (const auto& linear : {up, down}) {
      linear->weight.copy_(random_normal(linear->weight.sizes(), ++seed, at::kFloat));
      linear->bias.copy_(random_normal(linear->bias.sizes(), ++seed, at::kFloat));
    }
  }
  const auto input = random_normal({9, kIn}, 50, at::kFloat), weights = random_normal({9, kOut}, 51, at::kFloat);
  const auto x_full = input.clone().requires_grad_(true);
  const auto y_full = down->forward(up->forward(x_full).relu());
  (y_full * weights).sum().backward();
  for (const int size : {1, 2, 4}) {
    comm::run_ranks(size, [&](const comm::Communicator& comm) {
      const TensorParallel tp{.comm = comm};
      const auto inner = cut(kInner, tp, "inner");
      ColumnParallelLinear column(kIn, kInner, Bias::kYes, inner, tp);
      RowParallelLinear row(kInner, kOut, Bias::kYes, inner, tp);
      column->from_full(*up);
      row->from_full(*down);
      EXPECT_EQ(column->weight.tensor().size(0), kInner / size);
      EXPECT_EQ(row->weight.tensor().size(1), kInner / size);
      const auto x = input.clone().requires_grad_(true);
      const auto y = row->forward(column->forward(copy_to(x, comm)).relu());
      (y * weights).sum().backward();
      EXPECT_LE(relative_error(y, y_full), kRounding);
      EXPECT_LE(relative_error(x.grad(), x_full.grad()), kRounding);
      const auto whole = [&](const SlicedParameter& p) { return whole_of(p.tensor().grad(), p.layout(), comm); };
      EXPECT_LE(relative_error(whole(column->weight), up->weight.grad()), kRounding);
      EXPECT_LE(relative_error(whole(column->bias), up->bias.grad()), kRounding);
      EXPECT_LE(relative_error(whole(row->weight), down->weight.grad()), kRounding);
      EXPECT_LE(relative_error(row->bias.grad(), down->bias.grad()), kRounding);
    });
  }
}

TEST(ParallelLinear, RefusesAnUnevenCutWithBothNumbers) {
  comm::run_ranks(2, [](const comm::Communicator& comm) {
    EXPECT_THAT([&] { static_cast<void>(cut(7, TensorParallel{.comm = comm}, "model.num_heads")); },
                ::testing::ThrowsMessage<Error>(::testing::AllOf(::testing::HasSubstr("model.num_heads = 7"), ::testing::HasSubstr("degree 2"))));
  });
}

TEST(ParallelNorm, StatisticsCoverAllRanks) {
  const auto input = random_normal({6, 24}, 60, at::kFloat) + 3, weights = random_normal({6, 24}, 61, at::kFloat);
  const auto x_full = input.clone().requires_grad_(true);
  const auto layer = at::layer_norm(x_full, {24}, {}, {}, 1e-6);
  (layer * weights).sum().backward();
  const auto r_full = input.clone().requires_grad_(true);
  const auto rms = r_full / (r_full.square().mean(1, true) + 1e-6).sqrt();
  (rms * weights).sum().backward();
  comm::run_ranks(3, [&](const comm::Communicator& comm) {
    const auto part = [&](const Tensor& x) { return x.narrow(1, comm.rank() * 8, 8); };
    const auto check = [&](const auto& norm, const Tensor& y_full, const Tensor& dx_full) {
      const auto x = part(input).clone().requires_grad_(true);
      const auto y = norm(x, 1e-6, comm);
      (y * part(weights)).sum().backward();
      EXPECT_LE(max_abs(y - part(y_full)), 3e-6);
      EXPECT_LE(max_abs(x.grad() - part(dx_full)), 3e-6);
    };
    check(parallel_layer_norm, layer, x_full.grad());
    check(parallel_rms_norm, rms, r_full.grad());
  });
}

TEST(ParallelVocabulary, EmbeddingScoresAndArgmaxAreThoseOfTheWholeTable) {
  constexpr std::int64_t kVocab = 53, kWidth = 8, kRows = 7;
  const auto table = random_normal({kVocab, kWidth}, 70, at::kFloat), states = random_normal({kRows, kWidth}, 71, at::kFloat) * 2;
  const auto ids = at::tensor({52, 0, 17, 17, 26, 27, 40}, at::kLong);
  const auto rows = at::tensor({0, 0, 3, 6, 6}, at::kLong), tokens = at::tensor({1, 52, 26, 27, 13}, at::kLong);
  const auto run = [&](const Tensor& head, const VocabularySlice& slice) {
    const auto h = states.clone().requires_grad_(true);
    const auto x = vocabulary_embedding(ids, head, slice);
    const auto log_probs = vocabulary_log_probs(h, head, slice, rows, tokens, at::kFloat);
    ((x * random_normal(x.sizes(), 72, at::kFloat)).sum() + (log_probs * random_normal({5}, 73, at::kFloat)).sum()).backward();
    return std::vector<Tensor>{x.detach(), log_probs.detach(), h.grad(), vocabulary_argmax(at::linear(states, head.detach()), slice)};
  };
  const auto table_full = table.clone().requires_grad_(true);
  const auto full = run(table_full, {});
  const auto plain = at::linear(states, table).log_softmax(1).index({rows, tokens});
  EXPECT_LE(relative_error(full[1], plain), 1e-6);
  EXPECT_TRUE(at::equal(full[3], at::linear(states, table).argmax(1)));
  for (const int size : {2, 4}) {
    comm::run_ranks(size, [&](const comm::Communicator& comm) {
      const auto range = even_range(kVocab, comm.rank(), size);
      const auto mine = table.narrow(0, range.begin, range.length).clone().requires_grad_(true);
      const auto parts = run(mine, {.first = range.begin, .comm = comm});
      EXPECT_TRUE(at::equal(parts[0], full[0]));
      EXPECT_LE(relative_error(parts[1], full[1]), kRounding);
      EXPECT_LE(relative_error(parts[2], full[2]), kRounding);
      EXPECT_TRUE(at::equal(parts[3], full[3]));
      EXPECT_LE(max_abs(mine.grad() - table_full.grad().narrow(0, range.begin, range.length)), kRounding * max_abs(table_full.grad()));
      // Ties go to the lowest id, and one rank's bad logit is everybody's.
      auto equal = at::zeros({2, range.length});
      if (comm.rank() == size - 1) equal[1][0] = INFINITY;
      const auto tied = vocabulary_argmax(equal, {.first = range.begin, .comm = comm});
      EXPECT_EQ(tied[0].item<std::int64_t>(), 0);
      EXPECT_EQ(tied[1].item<std::int64_t>(), -1);
    });
  }
}

TEST(ParallelDropout, APartOfTheFeaturesDrawsItsPartOfTheMask) {
  const auto input = packed_input(200, 80);
  const auto whole = dropout(input.x_TH, 0.4, 99, input.layout);
  for (const auto& [begin, length] : std::vector<std::pair<std::int64_t, std::int64_t>>{{0, 200}, {0, 50}, {50, 50}, {64, 64}, {100, 3}, {127, 73}}) {
    EXPECT_TRUE(at::equal(dropout(input.x_TH.narrow(1, begin, length), 0.4, 99, input.layout, begin), whole.narrow(1, begin, length))) << begin;
  }
}

class ParallelEncoder : public ::testing::TestWithParam<testing::EncoderCase> {};

TEST_P(ParallelEncoder, WeightsStatesAndGradientsAreThoseOfOneRank) {
  const auto& config = GetParam().config;
  const auto input = packed_input(config.hidden, 90);
  const auto full = run_encoder(config, input, {});
  EXPECT_GT(max_abs(full.states_TH), 0.1);
  for (const int size : {2, 4}) {
    comm::run_ranks(size, [&](const comm::Communicator& comm) {
      const auto parts = run_encoder(config, input, {.comm = comm});
      std::string where;
      EXPECT_EQ(worst_error(parts.weights, full.weights, &where), 0) << where;
      EXPECT_LE(relative_error(parts.states_TH, full.states_TH), 1e-5);
      EXPECT_LE(relative_error(parts.dx_TH, full.dx_TH), 1e-5);
      EXPECT_LE(worst_error(parts.gradients, full.gradients, &where), 1e-5) << where;
    });
  }
}

TEST_P(ParallelEncoder, RecomputedLayersMeetTheSameWay) {
  const auto& config = GetParam().config;
  for (const int size : {1, 2, 4}) {
    for (const bool empty : {false, true}) {  // a rank group without rows runs its layers, too
      const auto input = empty ? testing::PackedInput{.layout = {}, .x_TH = at::zeros({0, config.hidden})} : packed_input(config.hidden, 90);
      comm::run_ranks(size, [&](const comm::Communicator& comm) {
        const auto kept = run_encoder(config, input, {.comm = comm}), again = run_encoder(config, input, {.comm = comm}, /*recompute=*/true);
        std::string where;
        EXPECT_TRUE(at::equal(again.states_TH, kept.states_TH));
        EXPECT_LE(max_abs(again.dx_TH - kept.dx_TH), 1e-6 * max_abs(kept.dx_TH));
        EXPECT_LE(worst_error(again.gradients, kept.gradients, &where), 1e-6) << where;
        EXPECT_FALSE(kept.gradients.empty());
      });
    }
  }
}

TEST_P(ParallelEncoder, HoldsItsPartOnly) {
  const auto& config = GetParam().config;
  std::int64_t whole = 0;
  for (const auto& p : make_encoder(config)->parameters()) whole += p.numel();
  comm::run_ranks(4, [&](const comm::Communicator& comm) {
    const auto encoder = make_encoder(config, {.comm = comm});
    std::int64_t mine = 0;
    for (const auto& p : encoder->parameters()) mine += p.numel();
    if (splits_over_ranks(config.encoder)) {
      EXPECT_LT(mine, whole / 2);
      EXPECT_FALSE(layouts_of(*encoder).empty());
    } else {
      EXPECT_EQ(mine, whole);
    }
    // Every element is counted once by the copies that the layouts name.
    std::vector<double> counted(1, 0);
    const auto layouts = layouts_of(*encoder);
    for (const auto& item : encoder->named_parameters()) {
      const auto layout = layouts.find(item.key());
      if (layout == layouts.end()) {
        counted[0] += static_cast<double>(item.value().numel()) / comm.size();
        continue;
      }
      const auto line = item.value().numel() / item.value().size(layout->second.dim);
      for (const auto& range : layout->second.ranges) counted[0] += static_cast<double>(range.length * line) / range.copies;
    }
    auto total = at::tensor(counted, at::kFloat);
    comm::all_reduce_(total, comm::ReduceOp::kSum, comm);
    EXPECT_NEAR(total.item<double>(), static_cast<double>(whole), 0.5);
  });
}

INSTANTIATE_TEST_SUITE_P(Cases, ParallelEncoder, ::testing::ValuesIn(encoder_cases()), [](const auto& test) { return test.param.name; });

TEST(ParallelEncoder, RefusesHeadsThatDoNotDivide) {
  for (const auto& [name, config] : encoder_cases()) {
    if (!splits_over_ranks(config.encoder)) continue;
    comm::run_ranks(3, [&](const comm::Communicator& comm) {
      EXPECT_THAT([&] { static_cast<void>(make_encoder(config, {.comm = comm})); }, ::testing::ThrowsMessage<Error>(::testing::HasSubstr("degree 3"))) << name;
    });
  }
}

TEST(ParallelUserModel, LoadsAndGathersFullTensors) {
  const auto config = encoder_cases().front().config;
  UserModel full(config);
  full->init_weights(11);
  std::map<std::string, Tensor> state;
  for (const auto& item : full->named_parameters()) state[item.key()] = item.value().detach();
  comm::run_ranks(2, [&](const comm::Communicator& comm) {
    UserModel half(config, TableSharding{}, TensorParallel{.comm = comm});
    load_full_state(*half, state, "test");
    EXPECT_EQ(worst_error(full_state(*half, comm), state), 0);
    auto wrong = state;
    wrong.erase("proj1.bias");
    EXPECT_THAT([&] { load_full_state(*half, wrong, "file"); }, ::testing::ThrowsMessage<Error>(::testing::HasSubstr("file: tensor proj1.bias is missing")));
  });
}

}  // namespace
}  // namespace uqa::models
