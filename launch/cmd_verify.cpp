#include <cstdio>

#include "comm/communicator.h"
#include "core/text.h"
#include "launch/bind.h"
#include "launch/command.h"
#include "launch/study_common.h"
#include "trainer/run_directory.h"
#include "trainer/verify.h"

namespace uqa::launch {
namespace {

/// Makes tasks of a run's settings, with the loop's replaced.
template <typename Task, typename Config>
auto maker_of(Config config) {
  return [config = std::move(config)](const trainer::LoopConfig& loop, const comm::Mesh& mesh) {
    auto mine = config;
    mine.loop = loop;
    return std::make_unique<Task>(std::move(mine), mesh);
  };
}

/// Trains a few steps of a run on several layouts and compares the losses.
class VerifyCommand final : public Command {
 public:
  VerifyCommand() {
    options_.add("run", &run_, "run directory of uqa pretrain or uqa align; it is read, not changed", OptionSet::kRequired);
    options_.add("tp", &tp_, "tensor-parallel degrees to try, for example 1,2,4; each must divide the number of ranks");
    options_.add("tables", &tables_, "how the tables of a pre-training run lie: replicated, sharded or both");
    options_.add("one_rank", &one_rank_, "also train on rank 0 alone, first: what the others are compared with. Needs the model to fit there");
    options_.add("steps", &steps_, "optimizer steps on each layout (> 0)");
    options_.add("tolerance", &tolerance_, "largest relative difference of a loss; 0: 1e-4 for float32, 2e-2 for bf16");
    options_.add("scratch", &scratch_, "directory that all ranks see, made and removed; empty: RUN/verify");
    options_.add("output", &output_, "JSON file to write: losses of every layout");
    bind_device(options_, device_);
    bind(options_, call_);
  }
  OptionSet& options() override { return options_; }
  [[nodiscard]] Ranks ranks() const override { return Ranks::kMany; }
  [[nodiscard]] std::string device() const override { return device_; }

  void run(comm::Session* session) override {
    apply(call_);
    const auto& world = session->world();
    trainer::VerifyRequest request;
    std::vector<trainer::VerifyLayout> layouts;
    double tolerance = tolerance_;
    comm::run_agreed(world, [&] {
      const auto stage = get<std::string>(trainer::RunDirectory::read_run_json(run_), "stage", (fs::path(run_) / "run.json").string());
      request = make_request(stage);
      layouts = make_layouts(stage, world.size());
      if (tolerance == 0) tolerance = request.loop.train.dtype == "bf16" ? 2e-2 : 1e-4;
      UQA_CHECK(tolerance > 0, ErrorCode::kConfig, "--tolerance = {}, must be >= 0", tolerance_);
      UQA_CHECK(output_.empty() || call_.overwrite || !fs::exists(output_), ErrorCode::kConfig, "--output = {} exists; give another path or --overwrite", output_);
      UQA_CHECK(!fs::exists(request.scratch) || call_.overwrite, ErrorCode::kConfig, "--scratch = {} exists; remove it, or give --overwrite", request.scratch.string());
    });
    session->configure_watchdog({.timeout_s = call_.timeout_s, .heartbeat_dir = {}});
    const auto results = trainer::losses_on(layouts, request, world);
    const double worst = trainer::worst_difference(results);
    std::size_t ran = 0;
    for (const auto& result : results) ran += result.refused.empty() ? 1 : 0;
    comm::run_agreed(world, [&] {
      if (world.rank() != 0) return;
      // What was made, and no more: a directory that was there may hold something else.
      for (const auto& layout : layouts) fs::remove_all(request.scratch / layout.name);
      std::error_code not_empty;
      fs::remove(request.scratch, not_empty);
      std::fputs(text_of(results).c_str(), stdout);
      if (ran >= 2) std::printf("largest relative difference %.2e, tolerance %.0e\n", worst, tolerance);
      if (!output_.empty()) write_file_atomic(output_, json_of(results, worst, tolerance).dump(1) + "\n");
    });
    comm::agree_or_throw(world, ran >= 2, ErrorCode::kConfig, fmt::format("{} of {} layouts could be tried, at least 2 are needed to compare; see the reasons above", ran, results.size()));
    comm::agree_or_throw(world, worst <= tolerance, ErrorCode::kNumeric,
                         fmt::format("the layouts' losses differ by up to {:.2e}, must be at most {:.0e}; with bf16 or many steps rounding grows: try fewer --steps", worst, tolerance));
  }

 private:
  [[nodiscard]] trainer::VerifyRequest make_request(const std::string& stage) const {
    const fs::path run(run_);
    const std::vector<std::string> words{"--config", (run / "config.ini").string()};
    trainer::VerifyRequest request{.loop = {}, .make_task = {}, .checkpoints = run / "checkpoints", .scratch = scratch_.empty() ? run / "verify" : fs::path(scratch_), .steps = steps_};
    if (stage == "pretrain") {
      const auto config = parse_pretrain(words);
      request.loop = config.loop;
      request.make_task = maker_of<trainer::PretrainTask>(config);
    } else if (stage == "align") {
      const auto config = parse_align(words);
      request.loop = config.loop;
      request.make_task = maker_of<trainer::AlignTask>(config);
    } else {
      UQA_FAIL(ErrorCode::kConfig, "--run = {} is a run of stage {}, must be of pretrain or align", run_, stage);
    }
    return request;
  }

  [[nodiscard]] std::vector<trainer::VerifyLayout> make_layouts(const std::string& stage, int num_ranks) const {
    std::vector<trainer::VerifyLayout> layouts;
    if (one_rank_) layouts.push_back({.name = "one-rank", .one_rank = true, .tp = 1, .tables = "replicated"});
    for (const auto& word : tp_) {
      const std::int64_t tp = parse_int(word).value_or(0);
      UQA_CHECK(tp > 0, ErrorCode::kConfig, "--tp has '{}', must be whole numbers > 0, for example 1,2,4", word);
      UQA_CHECK(num_ranks % tp == 0, ErrorCode::kConfig, "--tp has {}, which does not divide the {} rank{}; start with mpirun -np {}", tp, num_ranks, num_ranks == 1 ? "" : "s", tp);
      for (const auto& tables : tables_) {
        UQA_CHECK(tables == "replicated" || tables == "sharded", ErrorCode::kConfig, "--tables has '{}', must be replicated or sharded", tables);
        if (stage == "align" && tables == "sharded") continue;  // alignment reads whole histories on every rank
        layouts.push_back({.name = fmt::format("dp{}-tp{}-{}", num_ranks / tp, tp, tables), .one_rank = false, .tp = tp, .tables = tables});
      }
    }
    return layouts;
  }

  [[nodiscard]] static std::string text_of(const std::vector<trainer::LayoutLosses>& results) {
    std::string text = fmt::format("{:<24} losses in nats, one a step (gradient norm)\n", "layout");
    for (const auto& result : results) {
      text += fmt::format("{:<24}", result.layout.name);
      for (std::size_t step = 0; step < result.losses.size(); ++step) text += fmt::format(" {:.8f} ({:.6f})", result.losses[step], result.grad_norms[step]);
      text += result.refused.empty() ? "\n" : fmt::format(" not possible: {}\n", result.refused);
    }
    return text;
  }

  [[nodiscard]] static Json json_of(const std::vector<trainer::LayoutLosses>& results, double worst, double tolerance) {
    Json layouts = Json::array();
    for (const auto& result : results) {
      layouts.push_back({{"layout", result.layout.name}, {"tp", result.layout.tp}, {"tables", result.layout.tables}, {"one_rank", result.layout.one_rank}, {"refused", result.refused},
                         {"losses_nats", result.losses}, {"grad_norms", result.grad_norms}});
    }
    return {{"format", "uqa.verify"}, {"version", 1}, {"layouts", layouts}, {"worst_relative_difference", worst}, {"tolerance", tolerance}};
  }

  std::string run_, scratch_, output_, device_ = "cpu";
  std::vector<std::string> tp_{"1"}, tables_{"replicated", "sharded"};
  bool one_rank_ = true;
  std::int64_t steps_ = 3;
  double tolerance_ = 0;
  CallSettings call_;
  OptionSet options_{"verify", "trains a few steps of a run on several layouts of its ranks and shows that the losses are the same",
                     "mpirun -np 4 uqa verify --run runs/trm --tp 1,2,4"};
};

}  // namespace

std::unique_ptr<Command> make_verify_command() { return std::make_unique<VerifyCommand>(); }

}  // namespace uqa::launch
