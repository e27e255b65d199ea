#include "trainer/training.h"

#include <cmath>
#include <exception>

#include "core/clock.h"
#include "core/log.h"
#include "core/progress.h"
#include "core/signals.h"
#include "data/loader.h"
#include "trainer/checkpoint.h"
#include "trainer/metrics.h"
#include "trainer/optimizer.h"
#include "trainer/run_info.h"
#include "trainer/schedule.h"
#include "trainer/step.h"
#include "trainer/trained_parameters.h"

namespace uqa::trainer {
namespace {

/// One run of the loop. Every member function is called by every rank at the same step, in the same order.
class Loop {
 public:
  Loop(TrainingTask& task, const LoopConfig& config, const comm::Mesh& mesh, RunDirectory& run)
      : task_(task),
        config_(config),
        mesh_(mesh),
        run_(run),
        begin_(Clock::now()),
        num_samples_(task.num_samples()),
        steps_per_epoch_(data::batches_per_epoch(num_samples_, config.batch.global_users)),
        num_steps_(config.train.epochs * steps_per_epoch_),
        trained_(task.parameters(), task.layered_models(), mesh, config.parallel),
        optimizer_(trained_.updated(), config.optim),
        writer_(run.checkpoints(), mesh.world(), config.checkpoint.keep),
        meter_(mesh) {
    if (config.train.max_steps > 0) num_steps_ = std::min(num_steps_, config.train.max_steps);
  }

  TrainingResult operator()() {
    resume();
    if (!done()) train();
    finish();
    return result_;
  }

 private:
  [[nodiscard]] bool done() const { return result_.steps >= num_steps_ || result_.stopped_early; }
  [[nodiscard]] bool reports() const { return mesh_.world().rank() == 0; }

  /// Keeps an error of this rank alone until all ranks meet: see throw_agreed().
  template <typename F>
  void guarded(F&& body) {
    try {
      body();
    } catch (...) {
      if (!error_) error_ = std::current_exception();
    }
  }
  void throw_agreed() {
    comm::run_agreed(mesh_.world(), [&] {
      if (error_) std::rethrow_exception(error_);
    });
  }

  [[nodiscard]] std::vector<NamedParameter> checkpoint_tensors() const {
    auto tensors = as_stored(trained_.stored());
    for (auto& state : optimizer_.state()) tensors.push_back(std::move(state));
    return tensors;
  }

  [[nodiscard]] Json loop_state() const {
    const auto at = data::cursor_at(result_.steps, num_samples_, config_.batch.global_users);
    Json state{{"stage", task_.stage()},
               {"step", result_.steps},
               {"updates", optimizer_.updates()},
               {"seed", config_.train.seed},
               {"epoch", at.epoch},
               {"position", at.position},
               {"num_samples", num_samples_},
               {"global_users", config_.batch.global_users},
               {"last_loss_nats", result_.last_loss_nats},
               {"interactions", result_.interactions},
               {"labels", result_.labels},
               {"flops", result_.flops},
               {"best_step", result_.best_step},
               {"epochs_without_gain", epochs_without_gain_},
               {"stopped_early", result_.stopped_early},
               {"meter", meter_.state()}};
    if (result_.best_metric) state["best_metric"] = *result_.best_metric;
    if (config_.train.deterministic) state["numerics"] = describe_numerics(mesh_);
    return state;
  }

  void resume() {
    const auto latest = writer_.latest_step();
    if (!latest) return;
    comm::run_agreed(mesh_.world(), [&] {
      const fs::path path = checkpoint_path(run_.checkpoints(), *latest);
      const std::string what = (path / kManifestName).string();
      const Json state = load_checkpoint(path, checkpoint_tensors());
      const auto expect = [&](const char* key, std::int64_t here) {
        const auto stored = get<std::int64_t>(state, key, what);
        UQA_CHECK(stored == here, ErrorCode::kData, "{}: {} = {} in the checkpoint and {} in this run; use the same data and settings", what,
                  key, stored, here);
      };
      result_.steps = get<std::int64_t>(state, "step", what);
      expect("seed", config_.train.seed);
      expect("num_samples", num_samples_);
      expect("global_users", config_.batch.global_users);
      if (config_.train.deterministic) {
        const Json stored = get<Json>(state, "numerics", what), here = describe_numerics(mesh_);
        UQA_CHECK(stored == here, ErrorCode::kConfig, "{}: written with {}, this run has {}; a deterministic run goes on with the same ranks, threads and vector instructions only", what,
                  stored.dump(), here.dump());
      }
      const auto at = data::cursor_at(result_.steps, num_samples_, config_.batch.global_users);
      expect("epoch", at.epoch);
      expect("position", at.position);
      optimizer_.set_updates(get<std::int64_t>(state, "updates", what));
      result_.last_loss_nats = get<double>(state, "last_loss_nats", what);
      result_.interactions = get<double>(state, "interactions", what);
      result_.labels = get<double>(state, "labels", what);
      result_.flops = get<double>(state, "flops", what);
      result_.best_step = get<std::int64_t>(state, "best_step", what);
      result_.stopped_early = get<bool>(state, "stopped_early", what);
      epochs_without_gain_ = get<std::int64_t>(state, "epochs_without_gain", what);
      meter_.restore(get<Json>(state, "meter", what), what);
      if (state.contains("best_metric")) result_.best_metric = get<double>(state, "best_metric", what);
      run_.truncate_metrics(result_.steps);
    });
    result_.epochs = result_.steps / steps_per_epoch_;
    log::info(task_.stage(), "resumed from {} at step {} of {}", checkpoint_path(run_.checkpoints(), *latest).string(), result_.steps, num_steps_);
  }

  [[nodiscard]] std::unique_ptr<TaskBatch> load(std::int64_t step) const {
    if (step >= num_steps_) return nullptr;
    const auto at = data::cursor_at(step, num_samples_, config_.batch.global_users);
    const auto samples = data::global_batch(static_cast<std::uint64_t>(config_.train.seed), at, num_samples_, config_.batch.global_users);
    std::vector<std::int64_t> costs;
    costs.reserve(samples.size());
    for (const auto sample : samples) costs.push_back(task_.cost(sample));
    return task_.load(data::split_balanced(samples, costs, mesh_.dp().size(), mesh_.dp().rank()));
  }

  void train() {
    task_.set_training(true);
    const int threads = static_cast<int>(config_.batch.loader_threads);
    data::Prefetcher<TaskBatch> batches([this](std::int64_t step) { return load(step); },
                                        {.first_step = result_.steps, .num_threads = threads, .capacity = 2 * threads + 2});
    Progress progress(task_.stage(), num_steps_, "steps", reports(), result_.steps);
    while (!done()) {
      const auto step_begin = Clock::now();
      const double waited_before = batches.wait_s();
      StepTimes times;
      std::unique_ptr<TaskBatch> batch;
      guarded([&] { batch = batches.next(); });
      times.data_wait_s = batches.wait_s() - waited_before;

      const auto agreed = agree(batch.get(), times);
      if (agreed.failed) throw_agreed();
      if (agreed.checkpoint_written) writer_.commit();
      if (agreed.stop) save_and_requeue();

      const double lr = learning_rate(config_.optim, result_.steps, num_steps_);
      const auto [loss_sum, grad_norm] = update(*batch, agreed, lr, times);
      ++result_.steps;
      result_.last_loss_nats = agreed.num_labels > 0 ? loss_sum / static_cast<double>(agreed.num_labels) : 0;
      times.total_s = seconds_since(step_begin);
      const double flops = task_.flops(agreed.num_interactions, agreed.num_tokens, agreed.num_labels);
      result_.interactions += static_cast<double>(agreed.num_interactions);
      result_.labels += static_cast<double>(agreed.num_labels);
      result_.flops += flops;
      meter_.add(agreed, loss_sum, flops, times);
      after_step(lr, grad_norm);
      progress.advance(1, note());
    }
    progress.finish();
  }

  [[nodiscard]] AgreedStep agree(const TaskBatch* batch, StepTimes& times) const {
    StepFacts mine{.stop = stop_requested() || (config_.checkpoint.time_limit_s > 0 && seconds_since(begin_) > config_.checkpoint.time_limit_s),
                   .checkpoint_written = writer_.written(),
                   .failed = error_ != nullptr};
    if (batch != nullptr) {
      mine.num_labels = batch->num_labels;
      mine.num_interactions = batch->num_interactions;
      mine.num_tokens = batch->num_tokens;
      mine.num_micro_batches = batch->num_micro_batches;
    }
    const auto begin = Clock::now();
    const auto agreed = agree_on_step(mine, mesh_);
    times.comm_exposed_s += seconds_since(begin);
    return agreed;
  }

  struct Outcome {
    double loss_sum_nats;
    double grad_norm;  ///< before clipping
  };

  Outcome update(const TaskBatch& batch, const AgreedStep& agreed, double lr, StepTimes& times) {
    double loss_sum = 0;
    trained_.begin_step();
    for (std::int64_t micro = 0; micro < agreed.num_micro_batches; ++micro) {
      if (micro + 1 == agreed.num_micro_batches) trained_.arm();
      // Dropout is keyed by step and sample; which micro-step a sample falls into depends on the world size and must not matter.
      const models::DropoutContext context{.seed = static_cast<std::uint64_t>(config_.train.seed), .step = result_.steps, .micro_step = 0};
      trained_.begin_micro_step();
      const Tensor loss = task_.loss_sum(batch, micro, context);
      loss_sum += loss.item<double>();
      if (loss.requires_grad()) loss.backward();
      trained_.end_micro_step();
    }
    // Mean over the labels of all ranks, not a mean of means.
    times.comm_exposed_s += trained_.finish(1.0 / static_cast<double>(std::max<std::int64_t>(agreed.num_labels, 1)));
    const double norm = trained_.global_norm();
    const auto begin = Clock::now();
    loss_sum = agree_on_loss(loss_sum, norm, result_.steps + 1, mesh_);
    times.comm_exposed_s += seconds_since(begin);
    const bool clips = config_.optim.clip_norm > 0 && norm > config_.optim.clip_norm;
    trained_.before_update(clips ? config_.optim.clip_norm / norm : 1);
    optimizer_.step(lr);
    times.comm_exposed_s += trained_.after_update();
    return {loss_sum, norm};
  }

  void after_step(double lr, double grad_norm) {
    const bool epoch_end = result_.steps % steps_per_epoch_ == 0;
    const bool last = result_.steps == num_steps_;
    if (result_.steps % config_.train.log_every_steps == 0 || last) {
      const double epoch = static_cast<double>(result_.steps) / static_cast<double>(steps_per_epoch_);
      Json record = meter_.record(result_.steps, epoch, lr, grad_norm);
      for (const auto& [name, value] : task_.take_figures()) record[name] = value;
      guarded([&] { run_.append_metrics(record); });
    }
    if (epoch_end) ++result_.epochs;
    if (const auto every = task_.evaluate_every(); every > 0 && (result_.steps % every == 0 || last)) evaluate();
    const bool improved = (epoch_end || last) && validate();
    const bool due = config_.checkpoint.every_steps > 0 ? result_.steps % config_.checkpoint.every_steps == 0 : epoch_end;
    if (due || improved || last || result_.stopped_early) start_checkpoint();
  }

  /// Runs `body` in eval mode with whole parameters.
  template <typename Body>
  auto outside_of_steps(const Body& body) {
    trained_.make_whole();
    task_.set_training(false);
    auto result = body();
    task_.set_training(true);
    trained_.release();
    return result;
  }

  void evaluate() {
    const auto begin = Clock::now();
    const auto values = outside_of_steps([&] { return task_.evaluate(mesh_); });
    Json record{{"kind", "evaluation"}, {"step", result_.steps}, {"epoch", static_cast<double>(result_.steps) / static_cast<double>(steps_per_epoch_)},
                {"seconds", seconds_since(begin)}};
    for (const auto& [name, value] : values) record[name] = value;
    guarded([&] { run_.append_metrics(record); });
  }

  /// True when the metric is the best so far.
  bool validate() {
    const auto begin = Clock::now();
    const auto validation = outside_of_steps([&] { return task_.validate(mesh_); });
    if (!validation) return false;
    if (!std::isfinite(validation->metric)) {
      comm::agree_or_throw(mesh_.world(), false, ErrorCode::kNumeric,
                           fmt::format("validation metric = {} at step {}, must be finite; lower optim.peak_lr", validation->metric, result_.steps));
    }
    const bool improved = !result_.best_metric || validation->metric > *result_.best_metric;
    if (improved) {
      result_.best_metric = validation->metric;
      result_.best_step = result_.steps;
      epochs_without_gain_ = 0;
    } else {
      ++epochs_without_gain_;
      result_.stopped_early = config_.train.patience > 0 && epochs_without_gain_ >= config_.train.patience;
    }
    Json record{{"kind", "validation"}, {"step", result_.steps}, {"epoch", result_.epochs}, {"metric", validation->metric},
                {"best_metric", *result_.best_metric}, {"best_step", result_.best_step}, {"seconds", seconds_since(begin)}};
    for (const auto& [name, value] : validation->values) record[name] = value;
    guarded([&] { run_.append_metrics(record); });
    return improved;
  }

  void start_checkpoint() {
    writer_.commit();  // one in flight: the earlier one first
    if (writer_.latest_step() == result_.steps) return;
    writer_.start(result_.steps, checkpoint_tensors(), loop_state());
  }

  [[noreturn]] void save_and_requeue() {
    start_checkpoint();
    writer_.commit();
    comm::agree_or_throw(mesh_.world(), false, ErrorCode::kRequeue,
                         fmt::format("stopped on request at step {} of {}; {} is saved, run the same command again to go on", result_.steps,
                                     num_steps_, checkpoint_path(run_.checkpoints(), result_.steps).string()));
    UQA_FAIL(ErrorCode::kInternal, "agree_or_throw returned for a false condition");
  }

  void finish() {
    throw_agreed();
    writer_.commit();
    if (!result_.best_metric) result_.best_step = result_.steps;
    comm::run_agreed(mesh_.world(), [&] {
      if (result_.best_step != result_.steps) {
        static_cast<void>(load_checkpoint(checkpoint_path(run_.checkpoints(), result_.best_step), as_stored(trained_.stored()), Coverage::kSubset));
      }
      task_.set_training(false);
    });
    trained_.make_whole();
    task_.save_model(run_.path(), mesh_);
  }

  [[nodiscard]] std::string note() const {
    std::string text = fmt::format("loss {:.4f}", result_.last_loss_nats);
    if (result_.best_metric) text += fmt::format(", best metric {:.4f} at step {}", *result_.best_metric, result_.best_step);
    return text;
  }

  TrainingTask& task_;
  const LoopConfig& config_;
  const comm::Mesh& mesh_;
  RunDirectory& run_;
  const Clock::time_point begin_;
  const std::int64_t num_samples_, steps_per_epoch_;
  std::int64_t num_steps_;
  TrainedParameters trained_;
  Optimizer optimizer_;
  CheckpointWriter writer_;
  StepMeter meter_;
  TrainingResult result_;
  std::int64_t epochs_without_gain_ = 0;
  std::exception_ptr error_;
};

}  // namespace

TrainingResult run_training(TrainingTask& task, const LoopConfig& config, const comm::Mesh& mesh, RunDirectory& run) {
  config.validate();
  UQA_CHECK(task.num_samples() > 0, ErrorCode::kData, "{}: training samples = 0, at least 1 is required; look at the split", task.stage());
  set_num_threads(config.train.num_threads, mesh.world());
  set_deterministic(config.train.deterministic);
  return Loop(task, config, mesh, run)();
}

}  // namespace uqa::trainer
