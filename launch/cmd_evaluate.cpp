#include <cstdio>

#include "comm/communicator.h"
#include "launch/bind.h"
#include "launch/command.h"
#include "trainer/evaluate.h"
#include "trainer/option_audit.h"

namespace uqa::launch {
namespace {

class EvaluateCommand final : public Command {
 public:
  EvaluateCommand() {
    options_.add("run", &config_.run, "run directory of uqa align", OptionSet::kRequired);
    options_.add("data", &config_.data, "imported data set (directory of uqa import)", OptionSet::kRequired);
    options_.add("questions", &config_.questions, "question set; empty: the one that the run was aligned with");
    options_.add("split", &config_.split, "test or train questions");
    options_.add("prompt", &config_.prompt, "soft, none, text (titles), shuffled (another user's token), zero, or prior (an answerer without LLM that sees everything but the user)");
    options_.add("output", &config_.output, "where to write; empty: RUN/eval/PROMPT-DIGEST");
    options_.add("dtype", &config_.dtype, "GEMM type of the LLM, float32 or bf16; empty: as it was trained");
    options_.add("batch_rows", &config_.batch_rows, "most LLM rows of one forward pass (> 0)");
    options_.add("shuffle_seed", &config_.shuffle_seed, "which permutation of users 'shuffled' takes");
    options_.add("text_items", &config_.text_items, "most titles of a 'text' prompt, newest first (> 0)");
    options_.add("max_questions", &config_.max_questions, "a fixed random subset of so many; 0: all");
    options_.add("audit_options", &config_.audit_options, "answer four times, with the options rotated, and show how much their order moves the result");
    options_.add("cache_responses", &config_.cache_responses, "keep scores in RUN/eval/responses.bin and do not ask again what the same weights answered before");
    options_.add("num_threads", &config_.num_threads, "threads of one rank; 0: cores of the host / ranks on it");
    bind(options_, call_);
  }

  OptionSet& options() override { return options_; }
  [[nodiscard]] Ranks ranks() const override { return Ranks::kMany; }
  [[nodiscard]] bool saves_on_signal() const override { return true; }

  void run(comm::Session* session) override {
    apply(call_);
    config_.overwrite = call_.overwrite;
    if (config_.prompt == "prior") return run_prior(session->world());
    comm::run_agreed(session->world(), [&] { config_.validate(); });
    session->configure_watchdog({.timeout_s = call_.timeout_s});
    const auto result = trainer::run_evaluate(config_, session->world());
    if (session->world().rank() == 0) print(result);
  }

 private:
  /// One rank trains and scores the prior-only answerer: it takes seconds.
  void run_prior(const comm::Communicator& world) const {
    comm::run_agreed(world, [&] {
      UQA_CHECK(!config_.questions.empty() && !config_.output.empty(), ErrorCode::kConfig,
                "--prompt prior needs --questions and --output; give both");
      if (world.rank() == 0) print(trainer::write_prior_evaluation(config_.questions, config_.output, config_.overwrite));
    });
  }

  static void print(const trainer::EvaluationResult& result) {
    for (const auto rule : trainer::kRules) {
      if (result.rules.contains(rule)) std::printf("\n%s", trainer::render_table({{result.prompt, result}}, rule).c_str());
    }
    if (result.details.contains("option_audit")) std::printf("\n%s", trainer::render_audit(result.details.at("option_audit")).c_str());
  }

  trainer::EvaluateConfig config_;
  CallSettings call_;
  OptionSet options_{"evaluate", "answers questions with a soft prompt or a baseline and scores them by four rules",
                     "mpirun -np 2 uqa evaluate --run runs/align --data data/ml-100k --prompt soft"};
};

}  // namespace

std::unique_ptr<Command> make_evaluate_command() { return std::make_unique<EvaluateCommand>(); }

}  // namespace uqa::launch
