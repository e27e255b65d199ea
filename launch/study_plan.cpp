// `uqa study plan`: what every run is and costs.
#include <algorithm>
#include <cstdio>
#include <map>

#include "core/progress.h"
#include "core/text.h"
#include "launch/bind.h"
#include "launch/study.h"
#include "launch/study_common.h"
#include "trainer/study/calibrate.h"

namespace uqa::launch {
namespace {

std::string count_text(double value) {
  constexpr const char* kSuffix[] = {"", "k", "M", "G", "T", "P", "E", "Z"};
  std::size_t s = 0;
  while (value >= 999.5 && s + 1 < std::size(kSuffix)) {
    value /= 1000;
    ++s;
  }
  return s == 0 ? fmt::format("{:.0f}", value) : fmt::format("{:.3g}{}", value, kSuffix[s]);
}

class StudyPlanCommand final : public Command {
 public:
  StudyPlanCommand() {
    options_.add("study", &study_, "study file", OptionSet::kRequired);
    options_.add("directory", &directory_, "instead of the study file's directory");
    options_.add("hardware", &hardware_, "hardware file, for example recipes/hardware/h100x8.ini; empty: hardware.ini of the study's directory, if it is there");
    options_.add("calibrate", &calibrate_, "measure this machine first and keep the figures as hardware.ini of the study's directory");
    options_.add("calibrate_s", &calibrate_s_, "seconds for each encoder and size that is measured (> 0)");
    options_.add("ranks", &ranks_, "ranks of one run, up to thousands; 0: the study file's");
    options_.add("output", &output_, "JSON file to write: everything");
    bind(options_, call_);
  }
  OptionSet& options() override { return options_; }
  [[nodiscard]] Ranks ranks() const override { return Ranks::kSingle; }

  void run(comm::Session*) override {
    apply(call_);
    UQA_CHECK(ranks_ >= 0, ErrorCode::kConfig, "--ranks = {}, must be 0 or more", ranks_);
    UQA_CHECK(calibrate_s_ > 0, ErrorCode::kConfig, "--calibrate_s = {}, must be above 0", calibrate_s_);
    UQA_CHECK(!calibrate_ || hardware_.empty(), ErrorCode::kConfig, "--calibrate measures this machine and --hardware describes another; give one of them");
    UQA_CHECK(output_.empty() || call_.overwrite || !fs::exists(output_), ErrorCode::kConfig, "--output = {} exists; give another path or --overwrite", output_);
    const auto study = open_study(study_, directory_);
    const auto ranks = ranks_ > 0 ? ranks_ : study.study.ranks;
    const auto hardware = find_hardware(study);
    const auto planned = plan_runs(study, hardware, ranks);
    print(study, planned, hardware, ranks);
    if (!output_.empty()) {
      Json runs = Json::array();
      for (std::size_t i = 0; i < planned.size(); ++i) {
        Json stages = Json::array();
        for (const auto& stage : planned[i].stages) stages.push_back(stage.to_json());
        runs.push_back({{"name", study.runs[i].name}, {"in_budget", planned[i].in_budget}, {"stages", stages}});
      }
      const Json all{{"study", study.study.name}, {"hardware", hardware.name}, {"ranks", ranks}, {"learning_rate_rule", study.study.lr.describe()}, {"runs", runs}};
      write_file_atomic(output_, all.dump(1) + "\n");
      std::printf("written to %s\n", output_.c_str());
    }
  }

 private:
  [[nodiscard]] trainer::study::Hardware find_hardware(const StudyRuns& study) const {
    const auto kept = hardware_file_of(study.study);
    if (calibrate_) {
      const auto hardware = trainer::study::calibrate(cases_of(study), calibrate_s_);
      std::error_code ec;
      fs::create_directories(study.study.directory, ec);
      UQA_CHECK(!ec, ErrorCode::kConfig, "cannot create {}: {}; give another directory in the study file", study.study.directory.string(), ec.message());
      write_file_atomic(kept, hardware.to_ini());
      return hardware;
    }
    if (!hardware_.empty()) return trainer::study::read_hardware(hardware_);
    UQA_CHECK(fs::exists(kept), ErrorCode::kConfig, "no figures of a machine are known; give --hardware FILE (recipes/hardware/h100x8.ini), or --calibrate to measure this one");
    return trainer::study::read_hardware(kept);
  }

  /// Smallest, middle and largest width of each encoder; every other setting of the first run with it.
  [[nodiscard]] static std::vector<trainer::study::CalibrationCase> cases_of(const StudyRuns& study) {
    std::map<std::string, std::map<std::int64_t, trainer::PretrainConfig>> by_width;
    for (const auto& run : study.runs) {
      for (const auto& stage : run.stages) {
        if (stage.stage != "pretrain") continue;
        const auto config = parse_pretrain({stage.argv.begin() + 1, stage.argv.end()});
        by_width[config.model.encoder].emplace(config.model.hidden, config);
      }
    }
    std::vector<trainer::study::CalibrationCase> cases;
    for (const auto& [encoder, widths] : by_width) {
      std::vector<trainer::PretrainConfig> configs;
      for (const auto& [width, config] : widths) configs.push_back(config);
      std::vector<std::size_t> picks{0, configs.size() / 2, configs.size() - 1};
      picks.erase(std::unique(picks.begin(), picks.end()), picks.end());
      for (const auto pick : picks) cases.push_back({.config = configs[pick], .shape = trainer::study::shape_of(configs[pick])});
    }
    return cases;
  }

  static void print(const StudyRuns& study, const std::vector<PlannedRun>& planned, const trainer::study::Hardware& hardware, std::int64_t ranks) {
    std::printf("study %s: %zu runs on %s, %lld rank%s each; learning rate: %s\n", study.study.name.c_str(), study.runs.size(), hardware.name.c_str(), static_cast<long long>(ranks),
                ranks == 1 ? "" : "s", study.study.lr.describe().c_str());
    std::printf("FLOPs: %s.\n\n", models::kFlopsConvention);
    std::size_t width = 3;
    for (const auto& run : study.runs) width = std::max(width, run.name.size());
    const int w = static_cast<int>(width);
    std::printf("%-*s %-8s %8s %8s %8s %8s %8s %9s %8s %9s %9s %9s %9s %10s %10s %9s  %s\n", w, "run", "stage", "tables", "backbone", "proj.", "adapter", "LLM", "steps", "inter.",
                "FLOPs", "no soft.", "softmax", "attention", "memory", "wire/step", "time", "layout");
    double flops = 0, bare = 0, seconds = 0;
    for (std::size_t i = 0; i < planned.size(); ++i) {
      for (const auto& s : planned[i].stages) {
        std::printf("%-*s %-8s %8s %8s %8s %8s %8s %9lld %8s %9s %9s %9s %9s %10s %10s %9s  %s%s\n", w, study.runs[i].name.c_str(), s.stage.c_str(),
                    count_text(static_cast<double>(s.parameters.tables)).c_str(), count_text(static_cast<double>(s.parameters.backbone)).c_str(),
                    count_text(static_cast<double>(s.parameters.projections)).c_str(), count_text(static_cast<double>(s.adapter_parameters + s.lora_parameters)).c_str(),
                    count_text(static_cast<double>(s.llm_parameters)).c_str(), static_cast<long long>(s.steps), count_text(s.interactions).c_str(), count_text(s.total_flops()).c_str(),
                    count_text(s.flops.without_softmax() + s.llm_flops).c_str(), count_text(s.flops.item_softmax).c_str(), count_text(s.flops.attention).c_str(),
                    bytes_text(static_cast<std::int64_t>(s.memory.total())).c_str(), bytes_text(static_cast<std::int64_t>(s.wire_bytes_per_step)).c_str(),
                    format_duration(s.seconds).c_str(), s.layout.describe().c_str(), planned[i].in_budget ? "" : "  OVER BUDGET");
        if (!s.fits) std::printf("%-*s   does not fit: %s\n", w, "", s.advice.c_str());
        if (!planned[i].in_budget) continue;
        flops += s.total_flops();
        bare += s.flops.without_softmax() + s.llm_flops;
        seconds += s.seconds;
      }
    }
    const auto& first = planned.front().stages.front();
    std::printf("\ntotal: %s FLOPs (%s without the item softmax), %s of %lld rank%s = %.4g rank-hours; times from %s\n", count_text(flops).c_str(), count_text(bare).c_str(),
                format_duration(seconds).c_str(), static_cast<long long>(ranks), ranks == 1 ? "" : "s", seconds / 3600 * static_cast<double>(ranks), first.time_from.c_str());
    if (!first.exact) std::printf("the data set is not here or a run may stop early: steps and FLOPs follow from mean lengths\n");
    if (study.study.stages.size() > 1) std::printf("alignment: %.0f LLM rows a question are assumed (rows_per_question); evaluations are not planned\n", study.study.rows_per_question);
  }

  std::string study_, directory_, hardware_, output_;
  bool calibrate_ = false;
  double calibrate_s_ = 2;
  std::int64_t ranks_ = 0;
  CallSettings call_;
  OptionSet options_{"study plan", "says what every run of a study is and costs: parameters, FLOPs by module, memory, bytes on the wire, time, layout",
                     "uqa study plan --study recipes/studies/widths.ini --hardware recipes/hardware/h100x8.ini --ranks 64"};
};

}  // namespace

std::unique_ptr<Command> make_study_plan() { return std::make_unique<StudyPlanCommand>(); }

}  // namespace uqa::launch
