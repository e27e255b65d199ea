#include "launch/study_common.h"

#include <algorithm>
#include <map>
#include <tuple>

#include "core/log.h"
#include "launch/command.h"

namespace uqa::launch {
namespace {

using trainer::study::Run;
using trainer::study::StageCommand;
using trainer::study::StagePlan;

/// Parses a stage's words as the stage itself will.
void check_words(const Run& run, const StageCommand& stage) {
  const std::vector<std::string> words(stage.argv.begin() + 1, stage.argv.end());
  try {
    if (stage.stage == "pretrain") {
      static_cast<void>(parse_pretrain(words));
    } else if (stage.stage == "align") {
      static_cast<void>(parse_align(words));
    } else if (!make_evaluate_command()->parse(words)) {
      UQA_FAIL(ErrorCode::kConfig, "--help stands among the options; remove it");
    }
  } catch (const Error& error) {
    UQA_FAIL(error.code(), "run {}, stage {}: {}", run.name, stage.stage, error.what());
  }
}

/// Shapes by what they depend on: runs of a study share them.
class Shapes {
 public:
  explicit Shapes(const trainer::study::Study& study) : study_(study) {}

  const trainer::study::DataShape& of(const trainer::PretrainConfig& config) {
    const auto key = std::tuple(config.data, config.split, config.model.max_len, config.fraction, config.fraction < 1 ? config.loop.train.seed : 0);
    const auto at = shapes_.find(key);
    if (at != shapes_.end()) return at->second;
    std::error_code ec;
    const bool here = fs::exists(fs::path(config.data) / "manifest.json", ec);
    return shapes_.emplace(key, here ? trainer::study::shape_of(config) : trainer::study::shape_of(study_.data_shape, config, study_.file.string())).first->second;
  }

 private:
  const trainer::study::Study& study_;
  std::map<std::tuple<std::string, std::string, std::int64_t, double, std::int64_t>, trainer::study::DataShape> shapes_;
};

/// Number of training questions, from the question set's own file.
double count_questions(const fs::path& questions) {
  const std::string text = read_file(questions / "train.jsonl");
  return static_cast<double>(std::count(text.begin(), text.end(), '\n'));
}

}  // namespace

double PlannedRun::flops() const {
  double sum = 0;
  for (const auto& stage : stages) sum += stage.total_flops();
  return sum;
}

double PlannedRun::seconds() const {
  double sum = 0;
  for (const auto& stage : stages) sum += stage.seconds;
  return sum;
}

StudyRuns open_study(const std::string& file, const std::string& directory) {
  StudyRuns out{.study = trainer::study::read_study(file), .runs = {}};
  if (!directory.empty()) out.study.directory = directory;
  out.runs = trainer::study::expand(out.study);
  for (const auto& run : out.runs) {
    for (const auto& stage : run.stages) check_words(run, stage);
  }
  return out;
}

trainer::study::Hardware nominal_hardware() {
  trainer::study::Hardware hw;
  hw.name = "nominal";
  hw.memory_bytes = 1e18;
  hw.flops_per_s = hw.memory_bytes_per_s = hw.node_bytes_per_s = hw.network_bytes_per_s = 1e12;
  return hw;
}

fs::path hardware_file_of(const trainer::study::Study& study) { return study.directory / "hardware.ini"; }

std::vector<PlannedRun> plan_runs(const StudyRuns& study, const trainer::study::Hardware& hardware, std::int64_t ranks) {
  Shapes shapes(study.study);
  std::map<std::string, StagePlan> encoders;  // by run directory: what alignments start from
  std::map<std::string, std::int64_t> hidden;
  std::vector<PlannedRun> planned;
  for (const auto& run : study.runs) {
    PlannedRun one;
    for (const auto& stage : run.stages) {
      const std::vector<std::string> words(stage.argv.begin() + 1, stage.argv.end());
      if (stage.stage == "pretrain") {
        const auto config = parse_pretrain(words);
        one.stages.push_back(trainer::study::plan_pretrain(config, shapes.of(config), hardware, ranks));
        encoders.emplace(stage.directory.string(), one.stages.back());
        hidden.emplace(stage.directory.string(), config.model.hidden);
      } else if (stage.stage == "align") {
        const auto config = parse_align(words);
        trainer::study::AlignShape shape{.llm = models::LlmConfig::load(config.llm), .rows_per_question = study.study.rows_per_question};
        shape.encoder = encoders.at(config.encoder_run).parameters;
        shape.encoder_hidden = hidden.at(config.encoder_run);
        shape.questions = count_questions(config.questions);
        one.stages.push_back(trainer::study::plan_align(config, shape, hardware, ranks));
      }
    }
    planned.push_back(std::move(one));
  }

  const auto& budget = study.study;
  double flops = 0, seconds = 0, least_flops = 0, least_seconds = 0;
  std::int64_t fit = 0;
  for (auto& run : planned) {
    least_flops = &run == &planned.front() ? run.flops() : std::min(least_flops, run.flops());
    least_seconds = &run == &planned.front() ? run.seconds() : std::min(least_seconds, run.seconds());
    run.in_budget = (budget.budget_flops == 0 || flops + run.flops() <= budget.budget_flops) && (budget.budget_hours == 0 || seconds + run.seconds() <= 3600 * budget.budget_hours);
    if (!run.in_budget) continue;
    flops += run.flops();
    seconds += run.seconds();
    ++fit;
  }
  UQA_CHECK(fit > 0, ErrorCode::kConfig, "{}: no run fits the budget ({}): the cheapest needs {:.3g} FLOPs and {:.3g} hours; raise the budget or plan smaller runs",
            budget.file.string(),
            budget.budget_flops > 0 ? fmt::format("{:.3g} FLOPs", budget.budget_flops) : fmt::format("{:.3g} hours", budget.budget_hours), least_flops, least_seconds / 3600);
  // A run without the encoder that it needs cannot start.
  for (std::size_t i = 0; i < planned.size(); ++i) {
    for (const auto need : study.runs[i].needs) planned[i].in_budget = planned[i].in_budget && planned[static_cast<std::size_t>(need)].in_budget;
  }
  return planned;
}

namespace {

/// parallel.tp, parallel.tables or parallel.table_group, the words that apply_layouts() gives.
bool is_layout_word(const std::string& word) {
  return word.starts_with("--parallel.tp=") || word.starts_with("--parallel.tables=") || word.starts_with("--parallel.table_group=");
}

std::vector<std::string> without_layout(std::vector<std::string> words) {
  std::erase_if(words, is_layout_word);
  return words;
}

/// The runs of an earlier call; empty without one.
std::vector<Run> runs_before(const fs::path& directory) {
  const fs::path path = directory / "runs.json";
  return fs::exists(path) ? trainer::study::runs_from_json(read_json(path), path.string()) : std::vector<Run>{};
}

/// The same stage of the same run in an earlier call, if it has begun; null otherwise.
const StageCommand* begun_before(const std::vector<Run>& before, const Run& run, const StageCommand& stage) {
  const auto old = std::ranges::find(before, run.name, &Run::name);
  if (old == before.end() || !fs::exists(stage.directory)) return nullptr;
  const auto same = std::ranges::find(old->stages, stage.stage, &StageCommand::stage);
  return same == old->stages.end() ? nullptr : &*same;
}

}  // namespace

void apply_layouts(StudyRuns& study, const std::vector<PlannedRun>& planned) {
  const auto before = runs_before(study.study.directory);
  for (std::size_t i = 0; i < study.runs.size(); ++i) {
    auto plan = planned[i].stages.begin();
    for (auto& stage : study.runs[i].stages) {
      if (stage.stage != "pretrain" && stage.stage != "align") continue;
      const auto& layout = (plan++)->layout;
      if (std::ranges::any_of(stage.argv, is_layout_word)) continue;
      if (const auto* old = begun_before(before, study.runs[i], stage); old != nullptr && without_layout(old->argv) == stage.argv) {
        stage.argv = old->argv;
        continue;
      }
      if (layout.tp > 1) stage.argv.push_back(fmt::format("--parallel.tp={}", layout.tp));
      if (stage.stage != "pretrain") continue;
      if (layout.table_group > 1) {
        stage.argv.push_back("--parallel.tables=sharded");
        stage.argv.push_back(fmt::format("--parallel.table_group={}", layout.table_group));
      } else {
        stage.argv.push_back("--parallel.tables=replicated");
      }
    }
  }
}

void write_study(const StudyRuns& study, const std::vector<PlannedRun>& planned) {
  const auto& directory = study.study.directory;
  std::error_code ec;
  fs::create_directories(directory / "runs", ec);
  UQA_CHECK(!ec, ErrorCode::kConfig, "cannot create {}: {}; give another directory in the study file", (directory / "runs").string(), ec.message());
  const auto before = runs_before(directory);
  for (const auto& run : study.runs) {
    for (const auto& stage : run.stages) {
      const auto* same = begun_before(before, run, stage);
      if (same == nullptr || same->argv == stage.argv) continue;
      const auto [was, is] = std::mismatch(same->argv.begin(), same->argv.end(), stage.argv.begin(), stage.argv.end());
      UQA_FAIL(ErrorCode::kConfig, "run {} in {} has begun with other settings: {} then, {} now; restore the study file, or give another directory in it", run.name,
               directory.string(), was == same->argv.end() ? "nothing" : *was, is == stage.argv.end() ? "nothing" : *is);
    }
  }
  write_file_atomic(directory / "runs.json", trainer::study::to_json(study.runs).dump(1) + "\n");
  Json plans = Json::array();
  for (std::size_t i = 0; i < planned.size(); ++i) {
    Json stages = Json::array();
    for (const auto& stage : planned[i].stages) stages.push_back(stage.to_json());
    plans.push_back({{"name", study.runs[i].name}, {"in_budget", planned[i].in_budget}, {"stages", stages}});
  }
  const Json info{{"format", "uqa.study"},
                  {"version", 1},
                  {"name", study.study.name},
                  {"file", study.study.file.string()},
                  {"stages", study.study.stages},
                  {"learning_rate_rule", study.study.lr.describe()},
                  {"budget", {{"flops", study.study.budget_flops}, {"hours", study.study.budget_hours}}},
                  {"plan", plans}};
  write_file_atomic(directory / "study.json", info.dump(1) + "\n");
  log::info("study", "{} runs in {}; learning rate: {}", study.runs.size(), directory.string(), study.study.lr.describe());
}

}  // namespace uqa::launch
