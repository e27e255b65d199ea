// Row-sharded tables and softmax on threads against the same mathematics on one rank.
#include <gtest/gtest.h>

#include <atomic>
#include <cmath>

#include "core/error.h"
#include "models/loss/item_softmax.h"
#include "models/parallel/layout.h"
#include "models/parallel/sharded_rows.h"

namespace uqa::models {
namespace {

struct Layout {
  int ranks, tp;
};
constexpr Layout kLayouts[] = {{1, 1}, {2, 1}, {3, 1}, {4, 1}, {2, 2}, {4, 2}};

Tensor numbers(std::int64_t rows, std::int64_t columns, double phase) { return at::sin(at::arange(rows * columns, at::kFloat) * 0.7 + phase).view({rows, columns}); }

void expect_near(const Tensor& got, const Tensor& want, const std::string& what) {
  EXPECT_TRUE(got.sizes() == want.sizes() && at::allclose(got, want, 1e-5, 1e-6)) << what << "\n" << got << "\n" << want;
}

Tensor own_part(const Tensor& whole, const comm::Communicator& table) {
  const auto range = even_range(whole.size(0), table.rank(), table.size());
  return whole.narrow(0, range.begin, range.length).clone();
}

// ---- rows ----

/// What data-parallel rank d asks of table t; rank 1 asks for nothing.
Tensor ids_of(int d, std::int64_t rows, std::int64_t stride) {
  std::vector<std::int64_t> ids;
  for (std::int64_t id = d; d != 1 && id < rows; id += stride) ids.push_back(id);
  return at::tensor(ids, at::kLong);
}

TEST(ShardedRows, AreThoseOfTheWholeTableAndGradientsAddUpOverRanks) {
  for (const auto& [ranks, tp] : kLayouts) {
    for (const std::int64_t rows : {3, 17}) {  // 3: fewer than ranks
      const auto wholes = std::vector<Tensor>{numbers(rows, 4, 0), numbers(rows + 2, 3, 1)};
      const auto weight = [&](int d, std::size_t t, std::int64_t n) { return numbers(n, wholes[t].size(1), 2.0 * d + static_cast<double>(t)); };
      std::vector<Tensor> want{at::zeros_like(wholes[0]), at::zeros_like(wholes[1])};
      for (int d = 0; d < ranks / tp; ++d) {
        for (std::size_t t = 0; t < 2; ++t) {
          const auto ids = ids_of(d, wholes[t].size(0), 2);
          want[t].index_add_(0, ids, weight(d, t, ids.numel()));
        }
      }
      comm::run_ranks(ranks, [&, tp = tp](const comm::Communicator& world) {
        const comm::Mesh mesh(world, 0, tp);
        const TableSharding sharding{.table = mesh.table(), .tp = mesh.tp(), .min_rows = 0};
        const int d = mesh.dp().rank();
        std::vector<Tensor> tables;
        std::vector<RowRequest> requests;
        for (const auto& whole : wholes) {
          tables.push_back(own_part(whole, mesh.table()).requires_grad_(true));
          requests.push_back({.ids_U = ids_of(d, whole.size(0), 2), .num_rows = whole.size(0)});
        }
        const auto got = sharded_rows(tables, requests, sharding);
        Tensor loss = at::zeros({});
        for (std::size_t t = 0; t < 2; ++t) {
          EXPECT_TRUE(at::equal(got[t], wholes[t].index_select(0, requests[t].ids_U)));
          loss = loss + (got[t] * weight(d, t, got[t].size(0))).sum();
        }
        loss.backward();
        for (std::size_t t = 0; t < 2; ++t) expect_near(tables[t].grad(), own_part(want[t], mesh.table()), fmt::format("table {} of {} ranks, tp {}", t, ranks, tp));
      });
    }
  }
}

TEST(ShardedRows, RefuseAnIdOutsideTheTable) {
  const auto table = numbers(4, 2, 0);
  for (const std::int64_t id : {-1, 4}) {
    EXPECT_THROW((void)sharded_rows({table}, {{.ids_U = at::tensor({id}, at::kLong), .num_rows = 4}}, {}), Error);
  }
}

// ---- softmax ----

struct Problem {
  std::int64_t num_items;
  std::vector<Tensor> h, targets;  ///< of each data-parallel rank; rank 1 has no rows, rank 2 no labels
  Tensor w;
};

Problem make_problem(std::int64_t num_items, int dp) {
  Problem problem{.num_items = num_items, .h = {}, .targets = {}, .w = numbers(num_items, 5, 0.3)};
  for (int d = 0; d < dp; ++d) {
    const std::int64_t rows = d == 1 ? 0 : 6 + d;
    problem.h.push_back(numbers(rows, 5, 1.0 + d) * 2);
    std::vector<std::int64_t> targets;
    for (std::int64_t t = 0; t < rows; ++t) targets.push_back(d == 2 || t % 3 == 2 ? -1 : (t * 7 + d) % num_items);
    problem.targets.push_back(at::tensor(targets, at::kLong));
  }
  return problem;
}

TEST(ShardedSoftmax, LossAndGradientsAreThoseOfTheWholeTable) {
  for (const auto& [ranks, tp] : kLayouts) {
    for (const std::int64_t num_items : {1, 3, 50}) {
      const auto problem = make_problem(num_items, ranks / tp);
      const auto w = problem.w.clone().requires_grad_(true);
      std::vector<Tensor> h, losses;
      for (std::size_t d = 0; d < problem.h.size(); ++d) {
        h.push_back(problem.h[d].clone().requires_grad_(true));
        losses.push_back(item_softmax_loss(h[d], w, problem.targets[d]));
        (losses[d] * (0.5 + static_cast<double>(d))).backward();
      }
      if (num_items == 50) {
        EXPECT_GT(losses[0].item<double>(), 1);
      }
      for (const auto& options : {ItemSoftmaxOptions{}, ItemSoftmaxOptions{.block_bytes = 128, .gather_rows = 7}, ItemSoftmaxOptions{.gather_rows = 5, .keep_bytes = 0},
                                  ItemSoftmaxOptions{.block_bytes = 128, .gather_rows = 7, .plain = true}}) {
        comm::run_ranks(ranks, [&, tp = tp, ranks = ranks](const comm::Communicator& world) {
          const comm::Mesh mesh(world, 0, tp);
          const ItemShards shards{.table = mesh.table(), .tp = mesh.tp(), .num_rows = num_items};
          const auto d = static_cast<std::size_t>(mesh.dp().rank());
          const auto what = fmt::format("{} items over {} ranks, tp {}", num_items, ranks, tp);
          const auto own_h = problem.h[d].clone().requires_grad_(true), own_w = own_part(problem.w, mesh.table()).requires_grad_(true);
          const auto loss = item_softmax_loss(own_h, own_w, problem.targets[d], options, shards);
          EXPECT_NEAR(loss.item<double>(), losses[d].item<double>(), 1e-5 * std::max(1.0, losses[d].item<double>())) << what;
          (loss * (0.5 + static_cast<double>(d))).backward();
          expect_near(own_h.grad(), h[d].grad(), what);
          expect_near(own_w.grad(), own_part(w.grad(), mesh.table()), what);
        });
      }
    }
  }
}

TEST(ShardedSoftmax, Bf16IsAsCloseToFloat32AsOnOneRank) {
  const auto problem = make_problem(50, 3);
  const auto w = problem.w.clone();
  const double exact = item_softmax_loss(problem.h[0], w, problem.targets[0]).item<double>();
  const double one_rank = item_softmax_loss(problem.h[0], w, problem.targets[0], {.bf16 = true}).item<double>();
  ASSERT_NE(exact, one_rank);
  comm::run_ranks(3, [&](const comm::Communicator& world) {
    const ItemShards shards{.table = world, .tp = {}, .num_rows = 50};
    const auto d = static_cast<std::size_t>(world.rank());
    const double loss = item_softmax_loss(problem.h[d], own_part(w, world), problem.targets[d], {.bf16 = true}, shards).item<double>();
    if (d == 0) {
      EXPECT_LE(std::abs(loss - exact), 2 * std::abs(one_rank - exact));
    }
  });
}

TEST(ShardedSoftmax, ANotFiniteHiddenGivesANotFiniteLossOnItsRank) {
  auto problem = make_problem(3, 4);
  problem.h[0][0][0] = std::nanf("");
  comm::run_ranks(4, [&](const comm::Communicator& world) {  // rank 0 of 4 has no item
    const ItemShards shards{.table = world, .tp = {}, .num_rows = 3};
    const auto d = static_cast<std::size_t>(world.rank());
    const double loss = item_softmax_loss(problem.h[d], own_part(problem.w, world), problem.targets[d], {}, shards).item<double>();
    EXPECT_EQ(std::isfinite(loss), d != 0) << "rank " << d;
  });
}

TEST(ShardedRanks, AreThoseOfTheWholeTable) {
  for (const auto& [ranks, tp] : kLayouts) {
    for (const std::int64_t num_items : {3, 50}) {
      auto problem = make_problem(num_items, ranks / tp);
      // Eighths: scores are exact whatever the shape of the product, and many of them tie.
      problem.w = (problem.w * 8).round() / 8;
      for (auto& h : problem.h) h = (h * 8).round() / 8;
      comm::run_ranks(ranks, [&, tp = tp](const comm::Communicator& world) {
        const comm::Mesh mesh(world, 0, tp);
        const ItemShards shards{.table = mesh.table(), .tp = mesh.tp(), .num_rows = num_items};
        const auto d = static_cast<std::size_t>(mesh.dp().rank());
        const auto targets = problem.targets[d].clamp_min(0);
        const auto want = item_ranks(problem.h[d], problem.w, targets);
        for (const bool plain : {false, true}) {
          for (const std::int64_t gather_rows : {16384, 5}) {
            const auto got = item_ranks(problem.h[d], own_part(problem.w, mesh.table()), targets, {.block_bytes = 200, .gather_rows = gather_rows, .plain = plain}, shards);
            EXPECT_TRUE(at::equal(got, want)) << got << want;
          }
        }
      });
    }
  }
}

TEST(ShardedRanks, OneBrokenScoreIsAnErrorOnEveryRank) {
  auto problem = make_problem(50, 3);
  problem.h[2][4][1] = INFINITY;
  std::atomic<int> refused = 0;
  comm::run_ranks(3, [&](const comm::Communicator& world) {
    const ItemShards shards{.table = world, .tp = {}, .num_rows = 50};
    const auto d = static_cast<std::size_t>(world.rank());
    try {
      (void)item_ranks(problem.h[d], own_part(problem.w, world), problem.targets[d].clamp_min(0), {}, shards);
    } catch (const Error& e) {
      EXPECT_EQ(e.code(), ErrorCode::kNumeric);
      ++refused;
    }
  });
  EXPECT_EQ(refused, 3);
}

}  // namespace
}  // namespace uqa::models
