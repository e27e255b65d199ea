#include "trainer/verify.h"

#include <algorithm>
#include <cmath>
#include <fstream>

#include "core/error.h"
#include "trainer/checkpoint.h"
#include "trainer/run_directory.h"

namespace uqa::trainer {
namespace {

LoopConfig loop_for(const VerifyLayout& layout, LoopConfig loop, std::int64_t steps) {
  loop.parallel.dp = loop.parallel.llm_tp = loop.parallel.encoder_tp = loop.parallel.table_group = 0;
  loop.parallel.tp = layout.tp;
  loop.parallel.tables = layout.tables;
  loop.train.epochs = std::max(loop.train.epochs, steps);  // an epoch has at least one step
  loop.train.max_steps = steps;
  loop.train.patience = 0;
  loop.train.log_every_steps = 1;
  loop.checkpoint.time_limit_s = 0;
  loop.optim.warmup_fraction = 0;  // of so few steps: every one of them moves the weights
  loop.optim.schedule = "constant";
  return loop;
}

void read_losses(const fs::path& run, LayoutLosses& into) {
  std::ifstream in(run / "metrics.jsonl");
  for (std::string line; std::getline(in, line);) {
    const Json record = parse_json(line, (run / "metrics.jsonl").string());
    if (record.value("kind", "") != "train") continue;
    into.losses.push_back(record.at("loss_nats").get<double>());
    into.grad_norms.push_back(record.at("grad_norm").get<double>());
  }
}

void train_on(const VerifyLayout& layout, const VerifyRequest& request, const comm::Communicator& world) {
  const auto loop = loop_for(layout, request.loop, request.steps);
  const comm::Mesh mesh(world, 0, static_cast<int>(layout.tp));
  auto run = open_run_directory(request.scratch / layout.name, "verify", "", /*overwrite=*/true, world);
  const auto task = request.make_task(loop, mesh);
  comm::run_agreed(world, [&] {
    const auto latest = latest_checkpoint(request.checkpoints);
    if (!latest) return;
    static_cast<void>(load_checkpoint(checkpoint_path(request.checkpoints, *latest), as_stored(task->parameters()), Coverage::kSubset));
  });
  static_cast<void>(run_training(*task, loop, mesh, run));
}

}  // namespace

std::vector<LayoutLosses> losses_on(const std::vector<VerifyLayout>& layouts, const VerifyRequest& request, const comm::Communicator& world) {
  UQA_CHECK(request.steps > 0, ErrorCode::kConfig, "steps = {}, must be > 0; change --steps", request.steps);
  std::vector<LayoutLosses> results;
  for (const auto& layout : layouts) {
    LayoutLosses result{.layout = layout, .refused = {}, .losses = {}, .grad_norms = {}};
    try {
      if (layout.one_rank) {
        comm::run_agreed(world, [&] {
          if (world.rank() == 0) train_on(layout, request, world.alone());
        });
      } else {
        train_on(layout, request, world);
      }
    } catch (const Error& error) {
      if (error.code() != ErrorCode::kConfig) throw;
      result.refused = error.what();
    }
    if (result.refused.empty()) comm::run_agreed(world, [&] { read_losses(request.scratch / layout.name, result); });
    results.push_back(std::move(result));
  }
  return results;
}

double worst_difference(const std::vector<LayoutLosses>& results) {
  const LayoutLosses* first = nullptr;
  double worst = 0;
  for (const auto& result : results) {
    if (!result.refused.empty()) continue;
    if (first == nullptr) first = &result;
    for (std::size_t step = 0; step < std::min(first->losses.size(), result.losses.size()); ++step) {
      const double scale = std::max(std::abs(first->losses[step]), 1e-12);
      worst = std::max(worst, std::abs(result.losses[step] - first->losses[step]) / scale);
    }
  }
  return worst;
}

}  // namespace uqa::trainer
