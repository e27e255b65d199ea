#include <algorithm>
#include <cstdio>

#include "comm/communicator.h"
#include "core/error.h"
#include "core/text.h"
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
    options_.add("shuffle_seed", &shuffle_seeds_, "which permutation of users 'shuffled' takes; several (1,2,3): one evaluation each");
    options_.add("text_items", &text_items_, "most titles of a 'text' prompt, newest first (> 0); several budgets (16,64,256,512): one evaluation each");
    options_.add("max_new_tokens", &config_.max_new_tokens, "most tokens of a generated answer, which ends with its turn (> 0); 1: the first token alone, as the reference");
    options_.add("temperature", &config_.temperature, "0: the answer's likeliest tokens; > 0: drawn from softmax(logits / temperature)");
    options_.add("sample_seed", &config_.sample_seed, "of those draws, which depend on it and the question alone");
    options_.add("max_questions", &config_.max_questions, "a fixed random subset of so many; 0: all");
    options_.add("audit_options", &config_.audit_options, "answer four times, with the options rotated, and show how much their order moves the result");
    options_.add("cache_responses", &config_.cache_responses, "keep scores in RUN/eval/responses.bin and do not ask again what the same weights answered before");
    options_.add("num_threads", &config_.num_threads, "threads of one rank; 0: cores of the host / ranks on it");
    options_.add("parallel.tp", &config_.tp, "tensor-parallel degree: ranks that split each layer (> 0)");
    options_.add("parallel.llm_tp", &config_.llm_tp, "that of the LLM; 0: parallel.tp");
    options_.add("parallel.encoder_tp", &config_.encoder_tp, "that of the encoder; 0: parallel.tp");
    bind_device(options_, device_);
    bind(options_, call_);
  }

  OptionSet& options() override { return options_; }
  [[nodiscard]] Ranks ranks() const override { return Ranks::kMany; }
  [[nodiscard]] bool saves_on_signal() const override { return true; }
  [[nodiscard]] std::string device() const override { return device_; }

  void run(comm::Session* session) override {
    apply(call_);
    config_.overwrite = call_.overwrite;
    if (config_.prompt == "prior") return run_prior(session->world());
    std::vector<trainer::EvaluateConfig> variants;
    comm::run_agreed(session->world(), [&] {
      variants = read_variants();
      for (const auto& variant : variants) variant.validate();
    });
    session->configure_watchdog({.timeout_s = call_.timeout_s});
    const auto results = trainer::run_evaluations(variants, session->world());
    if (session->world().rank() != 0) return;
    Columns columns;
    for (std::size_t v = 0; v < results.size(); ++v) columns.emplace_back(results[v].prompt + (results.size() == 1 ? "" : " " + labels_[v]), results[v]);
    print(columns);
  }

 private:
  using Columns = std::vector<std::pair<std::string, trainer::EvaluationResult>>;

  /// The whole numbers of a list option, each once. `prompt` is the only one under which several make sense.
  std::vector<std::int64_t> read_list(const std::string& name, const std::vector<std::string>& words, const std::string& prompt) const {
    std::vector<std::int64_t> values;
    UQA_CHECK(!words.empty(), ErrorCode::kConfig, "--{} is empty, must be a whole number or several; see uqa evaluate --help", name);
    for (const auto& word : words) {
      const auto value = parse_int(word);
      UQA_CHECK(value.has_value(), ErrorCode::kConfig, "--{} = {}, must be a whole number or several (1,2,3); see uqa evaluate --help", name, word);
      UQA_CHECK(std::find(values.begin(), values.end(), *value) == values.end(), ErrorCode::kConfig, "--{} holds {} twice; keep one", name, *value);
      values.push_back(*value);
    }
    UQA_CHECK(values.size() == 1 || config_.prompt == prompt, ErrorCode::kConfig,
              "--{} has {} values and prompt = {}, must have one unless the prompt is {}; give --prompt {} or one value", name, values.size(), config_.prompt, prompt,
              prompt);
    return values;
  }

  /// One evaluation for each budget of titles, or each permutation of users.
  std::vector<trainer::EvaluateConfig> read_variants() {
    const auto items = read_list("text_items", text_items_, "text"), seeds = read_list("shuffle_seed", shuffle_seeds_, "shuffled");
    std::vector<trainer::EvaluateConfig> variants;
    for (const auto text_items : items) {
      for (const auto seed : seeds) {
        auto& variant = variants.emplace_back(config_);
        variant.text_items = text_items;
        variant.shuffle_seed = seed;
        labels_.push_back(fmt::format("{}", items.size() > 1 ? text_items : seed));
        const bool several = items.size() * seeds.size() > 1;
        if (several && !config_.output.empty()) variant.output = (fs::path(config_.output) / ((items.size() > 1 ? "items" : "seed") + labels_.back())).string();
      }
    }
    return variants;
  }

  /// One rank trains and scores the prior-only answerer: it takes seconds.
  void run_prior(const comm::Communicator& world) const {
    comm::run_agreed(world, [&] {
      UQA_CHECK(!config_.questions.empty() && !config_.output.empty(), ErrorCode::kConfig,
                "--prompt prior needs --questions and --output; give both");
      UQA_CHECK(device_ == "cpu", ErrorCode::kConfig, "--device = {} has no part in --prompt prior, whose answerer runs on the CPU; leave it out", device_);
      if (world.rank() == 0) print({{"prior", trainer::write_prior_evaluation(config_.questions, config_.output, config_.overwrite)}});
    });
  }

  static void print(const Columns& columns) {
    for (const auto rule : trainer::kRules) {
      if (columns.front().second.rules.contains(rule)) std::printf("\n%s", trainer::render_table(columns, rule).c_str());
    }
    for (const auto& [name, result] : columns) {
      if (!result.details.contains("option_audit")) continue;
      std::printf("\n%s%s", columns.size() == 1 ? "" : (name + ":\n").c_str(), trainer::render_audit(result.details.at("option_audit")).c_str());
    }
  }

  trainer::EvaluateConfig config_;
  std::vector<std::string> text_items_{std::to_string(config_.text_items)}, shuffle_seeds_{std::to_string(config_.shuffle_seed)};
  std::string device_ = "cpu";
  std::vector<std::string> labels_;  ///< of the variants
  CallSettings call_;
  OptionSet options_{"evaluate", "answers questions with a soft prompt or a baseline and scores them by four rules",
                     "mpirun -np 2 uqa evaluate --run runs/align --data data/ml-100k --prompt soft"};
};

}  // namespace

std::unique_ptr<Command> make_evaluate_command() { return std::make_unique<EvaluateCommand>(); }

}  // namespace uqa::launch
