#include "trainer/study/calibrate.h"

#include <algorithm>
#include <cmath>

#include <unistd.h>

#include "core/clock.h"
#include "core/log.h"
#include "core/random.h"
#include "models/cost.h"
#include "models/loss/item_softmax.h"
#include "trainer/autocast.h"
#include "trainer/metrics.h"
#include "trainer/optimizer.h"

namespace uqa::trainer::study {
namespace {

/// Best of a few runs of `body`, which does `work` units: units a second.
template <typename F>
double best_rate(double work, F&& body) {
  double best = 0;
  for (int i = 0; i < 6; ++i) {
    const auto begin = Clock::now();
    body();
    best = std::max(best, work / seconds_since(begin));
  }
  return best;
}

/// Histories of the case's mean length whose items, and ids of every other table, are random.
struct RandomBatch {
  models::UserBatch batch;
  Tensor targets_T;
};
RandomBatch random_batch(const CalibrationCase& c, std::int64_t users, std::uint64_t step) {
  PhiloxStream random(mix_key(stream_key(1, "calibrate"), step));
  RandomBatch made;
  for (std::int64_t u = 0; u < users; ++u) {
    const auto length = c.shape.lengths.empty() ? std::max<std::int64_t>(1, std::llround(c.shape.mean_length))
                                                : c.shape.lengths[static_cast<std::size_t>(random.below(c.shape.lengths.size()))];
    made.batch.layout.cu_seqlens.push_back(made.batch.layout.cu_seqlens.back() + length);
    made.batch.layout.sample_ids.push_back(u);
  }
  const auto rows = made.batch.layout.num_rows();
  for (const auto& feature : c.shape.schema.features) {
    constexpr std::int64_t kBag = 3;  // ids of a bag, about as many as a text of the published data has
    const auto count = feature.multi_valued ? kBag * rows : rows;
    const auto table = static_cast<std::uint64_t>(c.shape.schema.table(feature.table).rows);
    std::vector<std::int64_t> ids;
    for (std::int64_t i = 0; i < count; ++i) ids.push_back(static_cast<std::int64_t>(random.below(table)));
    made.batch.features.push_back({.values = at::tensor(ids, at::kLong), .offsets = feature.multi_valued ? at::arange(0, count + 1, kBag, at::kLong) : Tensor()});
  }
  made.targets_T = made.batch.features.front().values.roll(-1);
  return made;
}

/// FLOP/s of the case's training steps, the fastest half of them: what else runs on the machine now and then is not its speed.
std::pair<double, double> measure(const CalibrationCase& c, double seconds) {
  const auto config = resolve(c.config.model, c.shape.schema);
  const bool bf16 = c.config.loop.train.dtype == "bf16";
  models::UserModel model(config);
  model->init_weights(1);
  model->train();
  std::vector<NamedParameter> parameters;
  for (const auto& item : model->named_parameters()) {
    item.value().mutable_grad() = at::zeros_like(item.value());
    parameters.push_back({item.key(), item.value()});
  }
  Optimizer optimizer(parameters, c.config.loop.optim);
  const auto users = std::min(c.config.loop.batch.global_users, c.shape.train_users);
  const auto pass = c.config.loop.batch.micro_users > 0 ? std::min(users, c.config.loop.batch.micro_users) : users;
  std::vector<double> rates;
  double per_interaction = 0;
  const auto begin = Clock::now();
  constexpr std::size_t kWarmup = 2, kLeast = 4;
  for (std::uint64_t step = 0; rates.size() < kWarmup + kLeast || seconds_since(begin) < seconds; ++step) {
    std::vector<RandomBatch> made;
    double rows = 0;
    for (std::int64_t first = 0; first < users; first += pass) {
      made.push_back(random_batch(c, std::min(pass, users - first), step));
      rows += static_cast<double>(made.back().batch.layout.num_rows());
    }
    const auto step_begin = Clock::now();
    for (const auto& part : made) {
      Tensor h_TD;
      {
        const AutocastBf16 autocast(bf16, at::kCPU);
        h_TD = model->item_hiddens(model->forward(part.batch, {.seed = 1, .step = static_cast<std::int64_t>(step), .micro_step = 0}));
      }
      models::item_softmax_loss(h_TD.to(at::kFloat), model->item_table(), part.targets_T, {.bf16 = bf16}).backward();
    }
    optimizer.step(1e-6);
    for (const auto& parameter : parameters) parameter.tensor.grad().zero_();
    const double took = seconds_since(step_begin);
    const double flops = 3 * models::forward_flops(config, rows, c.shape.mean_length, rows).total();
    rates.push_back(flops / took);
    per_interaction = flops / rows;
  }
  rates.erase(rates.begin(), rates.begin() + kWarmup);
  std::sort(rates.begin(), rates.end(), std::greater<>());
  return {per_interaction, rates[rates.size() / 4]};
}

}  // namespace

Hardware calibrate(const std::vector<CalibrationCase>& cases, double seconds) {
  Hardware hw;
  hw.name = "this machine";
  UQA_CHECK(!cases.empty(), ErrorCode::kInternal, "nothing to calibrate");
  const auto& train = cases.front().config.loop.train;
  const auto cores = std::max<std::int64_t>(1, ::sysconf(_SC_NPROCESSORS_ONLN));
  at::set_num_threads(static_cast<int>(train.num_threads > 0 ? train.num_threads : cores));
  hw.ranks_per_node = std::max<std::int64_t>(1, cores / at::get_num_threads());
  hw.memory_bytes = static_cast<double>(::sysconf(_SC_PHYS_PAGES)) * static_cast<double>(::sysconf(_SC_PAGE_SIZE)) / static_cast<double>(hw.ranks_per_node);
  {
    const at::NoGradGuard no_grad;
    constexpr std::int64_t kSide = 1024, kFloats = 1 << 24;
    const auto type = train.dtype == "bf16" ? at::kBFloat16 : at::kFloat;
    const Tensor a = at::rand({kSide, kSide}).to(type), b = at::rand({kSide, kSide}).to(type);
    hw.flops_per_s = best_rate(2.0 * kSide * kSide * kSide, [&] { (void)at::mm(a, b); });
    const Tensor from = at::rand({kFloats});
    Tensor to = at::empty_like(from);
    hw.memory_bytes_per_s = best_rate(8.0 * kFloats, [&] { to.copy_(from); });
  }
  hw.node_bytes_per_s = hw.network_bytes_per_s = hw.memory_bytes_per_s / 4;  // shared memory: a copy in and a copy out, by both sides
  hw.latency_s = 5e-6;
  for (const auto& c : cases) {
    const auto [flops, rate] = measure(c, seconds);
    log::info("study", "calibrate: {} width {}: {:.3g} FLOPs an interaction, {:.3g} FLOP/s", c.config.model.encoder, c.config.model.hidden, flops, rate);
    hw.measured[c.config.model.encoder].emplace_back(flops, rate);
    if (hw.process_bytes == 0) {
      // The process without what the first case itself needs: its state and the benchmark's own arrays.
      const auto model = resolve(c.config.model, c.shape.schema);
      hw.process_bytes = std::max(0.0, static_cast<double>(peak_rss_bytes()) - 16.0 * static_cast<double>(models::count_parameters(model).total()) - 3.0 * (1 << 26));
    }
  }
  for (auto& [encoder, points] : hw.measured) std::sort(points.begin(), points.end());
  return hw;
}

}  // namespace uqa::trainer::study
