#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <numeric>

#include "comm/communicator.h"
#include "core/clock.h"
#include "core/random.h"
#include "core/text.h"
#include "launch/bind.h"
#include "launch/command.h"
#include "models/cost.h"
#include "models/loss/item_softmax.h"
#include "models/user_model.h"
#include "trainer/grad_reducer.h"
#include "trainer/metrics.h"
#include "trainer/optimizer.h"
#include "trainer/pretrain.h"
#include "trainer/run_info.h"

namespace uqa::launch {
namespace {

using at::Tensor;

/// Measures one training step of a user encoder on histories of random items: no data set is needed. Lengths are log-normal with
/// the published means (median 170, mean 205), cut at model.max_len.
class BenchCommand final : public Command {
 public:
  BenchCommand() {
    settings_.max_len = 512;
    options_.add("what", &what_, "what to measure: step (encoder pre-training step)", OptionSet::kRequired);
    options_.set_positional("what");
    options_.add("items", &items_, "rows of the item table (> 1)");
    options_.add("users", &users_, "users of one step on one rank (> 0)");
    options_.add("steps", &steps_, "measured steps, after two that are not (> 0)");
    options_.add("dtype", &dtype_, "GEMM type of the item softmax: float32 or bf16");
    options_.add("seed", &seed_, "random histories and weights");
    options_.add("num_threads", &num_threads_, "threads of one rank; 0: cores of the host / ranks on it");
    bind(options_, settings_);
    bind(options_, call_);
  }
  OptionSet& options() override { return options_; }
  [[nodiscard]] Ranks ranks() const override { return Ranks::kMany; }

  void run(comm::Session* session) override {
    apply(call_);
    const auto& world = session->world();
    comm::run_agreed(world, [&] {
      const std::vector<std::string> known{"step"};
      UQA_CHECK(what_ == "step", ErrorCode::kConfig, "bench {}: unknown, can measure: step{}", what_, suggestion(what_, known));
      UQA_CHECK(items_ > 1 && users_ > 0 && steps_ > 0, ErrorCode::kConfig, "--items = {}, --users = {}, --steps = {}, must be above 1, 0 and 0", items_,
                users_, steps_);
      UQA_CHECK(dtype_ == "float32" || dtype_ == "bf16", ErrorCode::kConfig, "--dtype = {}, must be float32 or bf16", dtype_);
    });
    trainer::set_num_threads(num_threads_, world);
    const Json record = measure(world);
    if (world.rank() == 0) std::printf("%s\n", record.dump().c_str());
  }

 private:
  struct Step {
    models::UserBatch batch;
    Tensor targets_T;
  };

  [[nodiscard]] data::Schema schema() const {
    return {.tables = {{"item_id", items_}}, .features = {{"item_id", "item_id", false}}};
  }

  [[nodiscard]] Step random_step(std::int64_t step, int rank) const {
    PhiloxStream random(mix_key(mix_key(stream_key(static_cast<std::uint64_t>(seed_), "bench"), static_cast<std::uint64_t>(step)), static_cast<std::uint64_t>(rank)));
    Step made;
    std::vector<std::int64_t> ids;
    for (std::int64_t u = 0; u < users_; ++u) {
      const double normal = std::sqrt(-2 * std::log(1 - random.uniform_double())) * std::cos(2 * M_PI * random.uniform_double());
      const auto length = std::clamp<std::int64_t>(std::llround(170 * std::exp(std::sqrt(2 * std::log(205.0 / 170.0)) * normal)), 2, settings_.max_len);
      for (std::int64_t t = 0; t < length; ++t) ids.push_back(static_cast<std::int64_t>(random.below(static_cast<std::uint64_t>(items_))));
      made.batch.layout.cu_seqlens.push_back(static_cast<std::int64_t>(ids.size()));
      made.batch.layout.sample_ids.push_back(rank * users_ + u);
    }
    made.batch.features.push_back({torch::tensor(ids, torch::kInt64), Tensor()});
    made.targets_T = made.batch.features.front().values.roll(-1);
    return made;
  }

  [[nodiscard]] Json measure(const comm::Communicator& world) {
    const auto config = trainer::resolve(settings_, schema());
    models::UserModel model(config);
    model->init_weights(static_cast<std::uint64_t>(seed_));
    model->train();
    std::vector<trainer::NamedParameter> parameters;
    std::vector<Tensor> tensors;
    for (const auto& item : model->named_parameters()) {
      parameters.push_back({item.key(), item.value()});
      tensors.push_back(item.value());
    }
    trainer::GradReducer reducer(tensors, world, static_cast<std::int64_t>(25e6));
    trainer::Optimizer optimizer(parameters, {});

    std::vector<double> seconds, rates, exposed;
    double loss_nats = 0;
    std::int64_t rows = 0;
    const std::int64_t warmup = 2;
    for (std::int64_t step = 0; step < warmup + steps_; ++step) {
      const auto made = random_step(step, world.rank());
      const auto global_rows = comm::all_reduce(made.batch.layout.num_rows(), comm::ReduceOp::kSum, world);
      comm::barrier(world);
      const auto begin = Clock::now();
      reducer.begin_step();
      reducer.arm();
      const auto states_TH = model->forward(made.batch, {.seed = static_cast<std::uint64_t>(seed_), .step = step, .micro_step = 0});
      const auto loss = models::item_softmax_loss(model->item_hiddens(states_TH), model->item_table(), made.targets_T, {.bf16 = dtype_ == "bf16"});
      loss.backward();
      const double waited_s = reducer.finish(1.0 / static_cast<double>(global_rows));
      optimizer.step(1e-4);
      const double took_s = seconds_since(begin);
      if (step < warmup) continue;
      seconds.push_back(took_s);
      exposed.push_back(waited_s / took_s);
      rates.push_back(static_cast<double>(global_rows) / took_s);
      rows += made.batch.layout.num_rows();
      loss_nats = loss.item<double>() / static_cast<double>(made.batch.layout.num_rows());
    }
    std::sort(seconds.begin(), seconds.end());
    std::sort(rates.begin(), rates.end());
    std::sort(exposed.begin(), exposed.end());
    const double median_s = seconds[seconds.size() / 2];
    const double rows_per_step = static_cast<double>(rows) / static_cast<double>(steps_);
    const double flops = 3 * models::forward_flops(config, rows_per_step, rows_per_step / static_cast<double>(users_)).total();
    const double peak = gemm_peak();
    return {{"bench", "step"},
            {"encoder", config.encoder},
            {"items", items_},
            {"users_per_rank", users_},
            {"ranks", world.size()},
            {"threads_per_rank", at::get_num_threads()},
            {"dtype", dtype_},
            {"steps", steps_},
            {"interactions_per_step_and_rank", rows_per_step},
            {"step_s_median", median_s},
            {"step_s_min", seconds.front()},
            {"step_s_max", seconds.back()},
            {"interactions_per_s", rates[rates.size() / 2]},
            {"flops_per_s_and_rank", flops / median_s},
            {"gemm_peak_flops_per_s", peak},
            {"gemm_peak_fraction", flops / median_s / peak},
            {"comm_exposed_fraction", exposed[exposed.size() / 2]},
            {"comm_bytes_per_step", world.bytes_sent() / (steps_ + warmup)},
            {"peak_rss_bytes", trainer::peak_rss_bytes()},
            {"last_loss_nats", loss_nats}};
  }

  /// What this machine's GEMM reaches on a square product of the chosen type: the bound that the step is held against.
  [[nodiscard]] double gemm_peak() const {
    const at::NoGradGuard no_grad;
    const auto type = dtype_ == "bf16" ? at::kBFloat16 : at::kFloat;
    const std::int64_t n = 1024;
    const auto a = torch::rand({n, n}).to(type), b = torch::rand({n, n}).to(type);
    double best = 0;
    for (int i = 0; i < 6; ++i) {
      const auto begin = Clock::now();
      (void)at::mm(a, b);
      best = std::max(best, 2.0 * static_cast<double>(n * n * n) / seconds_since(begin));
    }
    return best;
  }

  std::string what_ = "step", dtype_ = "float32";
  std::int64_t items_ = 50'000, users_ = 4, steps_ = 10, seed_ = 1, num_threads_ = 0;
  trainer::UserModelSettings settings_;
  CallSettings call_;
  OptionSet options_{"bench", "measures throughput, memory and FLOPs of one part; prints one JSON line",
                     "uqa bench step --encoder trm_plus --items 50000 --model.hidden=512 --model.num_layers=4 --model.num_heads=4 --model.item_dim=128"};
};

}  // namespace

std::unique_ptr<Command> make_bench_command() { return std::make_unique<BenchCommand>(); }

}  // namespace uqa::launch
