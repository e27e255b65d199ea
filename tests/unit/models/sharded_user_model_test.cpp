// The user model with row-sharded tables on threads against one rank.
#include <gtest/gtest.h>

#include "models/cost.h"
#include "models/loss/item_softmax.h"
#include "models/parallel/layout.h"
#include "models/user_model.h"

namespace uqa::models {
namespace {

Tensor own_part(const Tensor& whole, const comm::Communicator& table) {
  const auto range = even_range(whole.size(0), table.rank(), table.size());
  return whole.narrow(0, range.begin, range.length).clone();
}

void expect_near(const Tensor& got, const Tensor& want, const std::string& what) {
  EXPECT_TRUE(got.sizes() == want.sizes() && at::allclose(got, want, 1e-4, 1e-5)) << what << "\n" << got << "\n" << want;
}

UserModelConfig tiny(const std::string& encoder) {
  return {.encoder = encoder,
          .tables = {{.name = "item", .rows = 23, .dim = 8}, {.name = "tag", .rows = 3, .dim = 4}, {.name = "few", .rows = 2, .dim = 4}},
          .features = {{.name = "item", .table = "item"}, {.name = "tags", .table = "tag"}, {.name = "tag", .table = "tag"}, {.name = "few", .table = "few"}},
          .hidden = 16,
          .num_layers = 1,
          .inner = 16,
          .ffn_multiple_of = 8,
          .max_len = 9,
          .dropout = 0,
          .attention_dropout = 0,
          .mamba2 = {.head_dim = 16, .state_size = 8}};
}

/// Data-parallel rank d has d users (rank 0 none) of 2 + user interactions.
UserBatch batch_of(int d) {
  UserBatch batch;
  std::vector<std::int64_t> items, tags, offsets{0}, one_tag, few;
  for (int user = 0; user < d; ++user) {
    for (int t = 0; t < 2 + user; ++t) {
      items.push_back((user * 5 + t * 3 + d) % 23);
      for (int k = 0; k < (t + d) % 3; ++k) tags.push_back((t + k) % 3);
      offsets.push_back(static_cast<std::int64_t>(tags.size()));
      one_tag.push_back((t + d) % 3);
      few.push_back(t % 2);
    }
    batch.layout.cu_seqlens.push_back(static_cast<std::int64_t>(items.size()));
    batch.layout.sample_ids.push_back(10 * d + user);
  }
  batch.features = {{at::tensor(items, at::kLong), {}}, {at::tensor(tags, at::kLong), at::tensor(offsets, at::kLong)}, {at::tensor(one_tag, at::kLong), {}}, {at::tensor(few, at::kLong), {}}};
  return batch;
}

TEST(ShardedUserModel, GradientsOfEveryEncoderAreThoseOfOneRankAlsoWhereOneHasNoUsers) {
  for (const auto* encoder : {"sasrec", "hstu", "gru4rec", "mamba2", "trm_plus"}) {
    for (const int ranks : {2, 3}) {
      UserModel alone(tiny(encoder));
      alone->init_weights(7);
      double loss_alone = 0;
      const auto loss_of = [](UserModelImpl& model, const UserBatch& batch) {
        const auto h = model.item_hiddens(model.forward(batch, {}));
        return item_softmax_loss(h, model.item_table(), batch.features[0].values.roll(-1), {}, model.item_shards());
      };
      for (int d = 1; d < ranks; ++d) {
        const auto loss = loss_of(*alone, batch_of(d));
        loss_alone += loss.item<double>();
        loss.backward();
      }
      comm::run_ranks(ranks, [&](const comm::Communicator& world) {
        UserModel model(tiny(encoder), TableSharding{.table = world, .tp = {}, .min_rows = 3});
        model->init_weights(7);
        const auto layouts = layouts_of(*model);
        EXPECT_EQ(layouts.size(), 2U) << "the table of two rows is whole";
        auto batch = world.rank() == 0 ? model->empty_batch() : batch_of(world.rank());
        const auto loss = loss_of(*model, batch);
        loss.backward();
        EXPECT_NEAR(comm::sum_in_order(loss.item<double>(), world), loss_alone, 1e-4);
        for (const auto& item : model->named_parameters()) {
          const auto want = alone->named_parameters()[item.key()];
          const auto found = layouts.find(item.key());
          if (found != layouts.end()) {
            EXPECT_TRUE(at::equal(item.value(), own_part(want.detach(), world))) << "initial weights";
            expect_near(item.value().grad(), own_part(want.grad(), world), fmt::format("{} {}", encoder, item.key()));
          } else if (want.grad().defined()) {
            const auto own = item.value().grad().defined() ? item.value().grad() : at::zeros_like(want);
            expect_near(comm::all_reduce(own, comm::ReduceOp::kSum, world), want.grad(), fmt::format("{} {}", encoder, item.key()));
          }
        }
      });
    }
  }
}

TEST(ShardedUserModel, SendsWhatTheFormulaSays) {
  struct At {
    int ranks, tp;
    bool bf16;
  };
  for (const auto& [ranks, tp, bf16] : {At{1, 1, false}, At{2, 1, false}, At{3, 1, true}, At{4, 1, false}, At{4, 2, false}}) {
    auto config = tiny("trm_plus");
    config.tables[0].rows = 5000;
    config.tables[1].rows = 700;
    comm::run_ranks(ranks, [&, ranks = ranks, tp = tp, bf16 = bf16](const comm::Communicator& world) {
      const comm::Mesh mesh(world, 0, tp);
      UserModel model(config, TableSharding{.table = mesh.table(), .tp = mesh.tp(), .min_rows = 100});
      model->init_weights(7);
      UserBatch batch;
      const std::int64_t rows = 400;
      for (std::int64_t t = 8; t <= rows; t += 8) {
        batch.layout.cu_seqlens.push_back(t);
        batch.layout.sample_ids.push_back(t);
      }
      // Spread over the tables, with repeats.
      const auto ids = (at::arange(rows, at::kLong) * 37 + 11 * mesh.dp().rank());
      batch.features = {{(ids % 5000).contiguous(), {}}, {(ids % 700).contiguous(), at::arange(rows + 1, at::kLong)}, {(ids % 350 * 2).contiguous(), {}}, {(ids % 2).contiguous(), {}}};
      WireShape shape{.ranks = ranks, .tp = tp, .table_group = ranks, .table_min_rows = 100, .bf16 = bf16, .num_labels = static_cast<double>(rows), .distinct_ids = {}};
      const auto distinct = [](const Tensor& values) { return static_cast<double>(std::get<0>(at::_unique(values)).numel()); };
      shape.distinct_ids = {distinct(batch.features[0].values), distinct(at::cat({batch.features[1].values, batch.features[2].values})), 2};
      const auto before = mesh.table().bytes_sent() + mesh.tp().bytes_sent();
      const auto h = model->item_hiddens(model->forward(batch, {}));
      item_softmax_loss(h, model->item_table(), batch.features[0].values, {.bf16 = bf16}, model->item_shards()).backward();
      const auto sent = static_cast<double>(mesh.table().bytes_sent() + mesh.tp().bytes_sent() - before);
      const double counted = comm::sum_in_order(sent, world) / ranks;
      const auto formula = wire_bytes(config, shape);
      EXPECT_NEAR(counted, formula.tables + formula.softmax, 0.05 * (formula.tables + formula.softmax)) << ranks << " ranks, tp " << tp;
      if (ranks > 1) {
        EXPECT_GT(formula.tables, 1000);
        EXPECT_GT(formula.softmax, 1000);
        EXPECT_GT(formula.dense, 1000);
      } else {
        EXPECT_EQ(formula.total(), 0);
      }
    });
  }
}

}  // namespace
}  // namespace uqa::models
