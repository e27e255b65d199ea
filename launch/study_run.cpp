// `uqa study run`: executes what is not finished, here, under mpirun, or as Slurm array jobs.
#include <algorithm>
#include <cstdio>
#include <deque>
#include <filesystem>
#include <thread>

#include "core/clock.h"
#include "core/log.h"
#include "core/progress.h"
#include "core/text.h"
#include "launch/bind.h"
#include "launch/study.h"
#include "launch/study_common.h"
#include "trainer/study/child.h"
#include "trainer/study/points.h"

namespace uqa::launch {
namespace {

namespace study = trainer::study;
using namespace std::chrono_literals;

std::vector<std::string> words_of(const std::string& text) {
  std::vector<std::string> words;
  for (auto& word : split(text, ' ')) {
    if (!word.empty()) words.push_back(std::move(word));
  }
  return words;
}

/// Runs a short program to its end and returns what it printed. Error(kConfig) when it cannot start.
std::pair<int, std::string> output_of(const std::vector<std::string>& argv, const fs::path& scratch) {
  std::error_code ec;
  fs::remove(scratch, ec);
  study::Child child({.argv = argv, .log = scratch, .keep_slurm = true});
  std::optional<int> code;
  while (!(code = child.poll())) std::this_thread::sleep_for(20ms);
  const auto text = read_file(scratch);
  fs::remove(scratch, ec);
  return {*code, text};
}

/// How stages are started.
struct LaunchWords {
  std::vector<std::string> before;  ///< "mpirun", "-np", "2"; empty: the program itself
  bool keep_slurm = false;
  bool logs = true;                 ///< output goes to files beside the run
};

/// Runs of a study as children of this process, some at a time.
class LocalRuns {
 public:
  LocalRuns(const std::vector<study::Run>& runs, LaunchWords launch, std::int64_t jobs, fs::path directory)
      : runs_(runs), launch_(std::move(launch)), jobs_(static_cast<std::size_t>(jobs)), directory_(std::move(directory)), program_(fs::read_symlink("/proc/self/exe").string()) {}

  /// Error of the first run that failed, or kRequeue when one was stopped; returns when all are finished.
  void operator()(std::deque<std::size_t> waiting) {
    total_ = waiting.size();
    study::count_stop_signals();
    while (!waiting.empty() || !active_.empty()) {
      forward_stop();
      if (asked_ > 0) waiting.clear();
      start(waiting);
      for (auto job = active_.begin(); job != active_.end();) {
        const auto code = job->child.poll();
        if (!code) {
          ++job;
          continue;
        }
        auto ended = std::move(*job);
        job = active_.erase(job);
        after(std::move(ended), *code);
      }
      std::this_thread::sleep_for(20ms);
    }
    if (!first_failure_.empty()) UQA_FAIL(static_cast<ErrorCode>(failure_code_), "{}", first_failure_);
    UQA_CHECK(!requeue_ && asked_ == 0, ErrorCode::kRequeue, "stopped on request; what had begun is saved: run the same command again to go on");
  }

 private:
  struct Job {
    std::size_t run = 0, stage = 0;
    study::Child child;
    Clock::time_point begin;
  };

  void forward_stop() {
    const int signals = study::stop_signals();
    if (signals == asked_) return;
    asked_ = signals;
    log::warn("study", "stopping: {} running, {}", active_.size(), signals == 1 ? "asked to save" : "ended");
    for (const auto& job : active_) {
      if (signals == 1) job.child.ask_to_save();
      else job.child.end();
    }
  }

  void start(std::deque<std::size_t>& waiting) {
    for (std::size_t i = 0; i < waiting.size() && active_.size() < jobs_;) {
      const auto& run = runs_[waiting[i]];
      const auto missing = std::find_if(run.needs.begin(), run.needs.end(), [&](std::int64_t need) { return !study::is_finished(runs_[static_cast<std::size_t>(need)]); });
      if (missing == run.needs.end()) {
        const auto index = waiting[i];
        waiting.erase(waiting.begin() + static_cast<std::ptrdiff_t>(i));
        next_stage(index, 0);
        continue;
      }
      const bool coming = std::find(waiting.begin(), waiting.end(), static_cast<std::size_t>(*missing)) != waiting.end() ||
                          std::any_of(active_.begin(), active_.end(), [&](const Job& job) { return job.run == static_cast<std::size_t>(*missing); });
      if (!coming) {
        fail(static_cast<int>(ErrorCode::kConfig), fmt::format("run {} needs run {} (--index {}), which is not finished; run that first", run.name,
                                                               runs_[static_cast<std::size_t>(*missing)].name, *missing));
        waiting.erase(waiting.begin() + static_cast<std::ptrdiff_t>(i));
        continue;
      }
      ++i;
    }
  }

  /// Starts the first stage from `stage` on that is not finished.
  void next_stage(std::size_t index, std::size_t stage) {
    const auto& run = runs_[index];
    while (stage < run.stages.size() && study::state_of(run.stages[stage]).state == study::State::kFinished) ++stage;
    if (stage == run.stages.size()) {
      ++finished_;
      return;
    }
    auto argv = launch_.before;
    argv.push_back(program_);
    argv.insert(argv.end(), run.stages[stage].argv.begin(), run.stages[stage].argv.end());
    const auto parent = directory_ / "runs" / run.name;
    fs::create_directories(parent);
    log::info("study", "{} {}: {}", run.name, run.stages[stage].stage, study::state_of(run.stages[stage]).state == study::State::kStarted ? "goes on" : "starts");
    study::Child child({.argv = std::move(argv), .log = launch_.logs ? parent / (run.stages[stage].stage + ".log") : fs::path(), .keep_slurm = launch_.keep_slurm});
    if (asked_ > 0) child.ask_to_save();
    active_.push_back({.run = index, .stage = stage, .child = std::move(child), .begin = Clock::now()});
  }

  void after(Job job, int code) {
    const auto& run = runs_[job.run];
    const auto& stage = run.stages[job.stage];
    if (code == 0 && study::state_of(stage).state != study::State::kFinished) {
      fail(static_cast<int>(ErrorCode::kInternal), fmt::format("run {}: {} ended without a result in {}", run.name, stage.stage, stage.directory.string()));
    } else if (code == 0) {
      const auto state = study::state_of(stage);
      log::info("study", "{} {}: finished in {}{}", run.name, stage.stage, format_duration(seconds_since(job.begin)),
                state.loss_nats > 0 ? fmt::format(", loss {:.4f}", state.loss_nats) : "");
      if (asked_ == 0) next_stage(job.run, job.stage + 1);
    } else if (code == static_cast<int>(ErrorCode::kRequeue)) {
      requeue_ = true;
    } else if (asked_ == 0) {
      const auto log_file = directory_ / "runs" / run.name / (stage.stage + ".log");
      const bool ours = code == 2 || code == 3 || code == 4 || code == 5;
      fail(ours ? code : static_cast<int>(ErrorCode::kInternal),
           fmt::format("run {}: {} ended with exit code {}{}", run.name, stage.stage, code, launch_.logs ? fmt::format("; see {}", log_file.string()) : ""));
    }
  }

  void fail(int code, const std::string& text) {
    log::warn("study", "{}", text);
    if (!first_failure_.empty()) return;
    first_failure_ = text;
    failure_code_ = code;
  }

  const std::vector<study::Run>& runs_;
  LaunchWords launch_;
  std::size_t jobs_, total_ = 0, finished_ = 0;
  fs::path directory_;
  std::string program_, first_failure_;
  std::vector<Job> active_;
  int asked_ = 0, failure_code_ = 0;
  bool requeue_ = false;
};

class StudyRunCommand final : public Command {
 public:
  StudyRunCommand() {
    options_.add("study", &study_, "study file", OptionSet::kRequired);
    options_.add("directory", &directory_, "instead of the study file's directory");
    options_.add("launcher", &launcher_, "local (one process a run), mpirun (ranks of the study file), or slurm (array jobs)");
    options_.add("launch", &launch_, "words before the program instead, split at blanks: \"srun --mpi=pmix\"");
    options_.add("jobs", &jobs_, "runs at a time; local and mpirun (> 0)");
    options_.add("index", &index_, "run only this number of runs.json, output on the terminal; -1: all. What an array task of Slurm calls");
    options_.add("sbatch", &sbatch_, "slurm: the template that is submitted, called with the study file and the directory");
    options_.add("sbatch_options", &sbatch_options_, "slurm: words for sbatch, split at blanks: \"--partition=gpu --time=4:00:00\"");
    options_.add("array_limit", &array_limit_, "slurm: most tasks of an array at a time; 0: no limit");
    bind(options_, call_);
    options_.set_transient("directory");
  }
  OptionSet& options() override { return options_; }
  [[nodiscard]] Ranks ranks() const override { return Ranks::kSingle; }

  void run(comm::Session*) override {
    apply(call_);
    UQA_CHECK(launcher_ == "local" || launcher_ == "mpirun" || launcher_ == "slurm", ErrorCode::kConfig, "--launcher = {}, must be local, mpirun or slurm{}", launcher_,
              suggestion(launcher_, {"local", "mpirun", "slurm"}));
    UQA_CHECK(jobs_ > 0, ErrorCode::kConfig, "--jobs = {}, must be above 0", jobs_);
    UQA_CHECK(array_limit_ >= 0, ErrorCode::kConfig, "--array_limit = {}, must be 0 or more", array_limit_);
    UQA_CHECK(launcher_ != "slurm" || launch_.empty(), ErrorCode::kConfig, "--launch is for tasks; with --launcher slurm the template gives it; remove it");
    auto opened = open_study(study_, directory_);
    // Tasks of an array all do what runs.json says: it was written before they were submitted.
    const fs::path written = opened.study.directory / "runs.json";
    const bool is_task = index_ >= 0 && fs::exists(written);
    if (is_task) opened.runs = study::runs_from_json(read_json(written), written.string());
    UQA_CHECK(index_ >= -1 && index_ < static_cast<std::int64_t>(opened.runs.size()), ErrorCode::kConfig, "--index = {}, the study has runs 0 to {}", index_,
              opened.runs.size() - 1);
    std::vector<PlannedRun> planned;
    if (!is_task) {
      planned = plan(opened);
      // Without figures of a machine no layout is better than another: the stages' own defaults hold.
      if (launcher_ != "local" && opened.study.ranks > 1 && fs::exists(hardware_file_of(opened.study))) apply_layouts(opened, planned);
      write_study(opened, planned);
    }
    std::deque<std::size_t> waiting;
    std::size_t over_budget = 0;
    for (std::size_t i = 0; i < opened.runs.size(); ++i) {
      if (index_ >= 0 && static_cast<std::size_t>(index_) != i) continue;
      if (study::is_finished(opened.runs[i])) continue;
      if (!is_task && !planned[i].in_budget) {
        ++over_budget;
        continue;
      }
      waiting.push_back(i);
    }
    if (over_budget > 0) log::warn("study", "{} runs are over the budget and left out", over_budget);
    if (waiting.empty()) {
      log::info("study", "nothing to do: every run in the budget is finished");
    } else if (launcher_ == "slurm" && index_ < 0) {
      submit(opened, waiting);
      return;
    } else {
      execute(opened, std::move(waiting));
    }
    if (index_ < 0) std::printf("%s", study::render_status(opened.runs).c_str());
  }

 private:
  [[nodiscard]] std::vector<PlannedRun> plan(const StudyRuns& opened) const {
    const auto& s = opened.study;
    const auto file = hardware_file_of(s);
    UQA_CHECK(s.budget_hours == 0 || fs::exists(file), ErrorCode::kConfig,
              "budget_hours = {} needs to know how fast this machine is; run `uqa study plan --study {} --calibrate` first, or put a hardware file at {}", s.budget_hours, study_,
              file.string());
    return plan_runs(opened, fs::exists(file) ? study::read_hardware(file) : nominal_hardware(), s.ranks);
  }

  void execute(const StudyRuns& opened, std::deque<std::size_t> waiting) const {
    LaunchWords words{.before = words_of(launch_), .keep_slurm = !launch_.empty() && words_of(launch_).front().ends_with("srun"), .logs = index_ < 0};
    if (launch_.empty() && launcher_ == "mpirun") {
      words.before = {"mpirun", "-np", std::to_string(opened.study.ranks), "--mca", "odls_base_sigkill_timeout", "120"};
    }
    const auto write_points = [&] { write_file_atomic(opened.study.directory / "points.csv", study::points_csv(opened.runs)); };
    try {
      LocalRuns(opened.runs, words, jobs_, opened.study.directory)(std::move(waiting));
    } catch (...) {
      if (index_ < 0) write_points();
      throw;
    }
    if (index_ < 0) write_points();
  }

  void submit(const StudyRuns& opened, const std::deque<std::size_t>& waiting) const {
    UQA_CHECK(fs::is_regular_file(sbatch_), ErrorCode::kConfig, "--sbatch = {}: there is no such template; run from the source directory or give its path", sbatch_);
    const fs::path scratch = opened.study.directory / "submit.out";
    const auto [code, types] = output_of({"srun", "--mpi=list"}, scratch);
    UQA_CHECK(code == 0 && types.find("pmix") != std::string::npos, ErrorCode::kConfig,
              "this Slurm has no PMIx (srun --mpi=list: {}); Open MPI's ranks cannot meet under srun: ask for Slurm's pmix plug-in, or use --launcher mpirun inside an allocation",
              types.substr(0, types.find('\n')));
    std::string phase_job;
    for (std::int64_t phase = 0; phase <= 1; ++phase) {
      std::string array;
      for (const auto i : waiting) {
        if (opened.runs[i].phase != phase) continue;
        if (!array.empty()) array += ',';
        array += std::to_string(i);
      }
      if (array.empty()) continue;
      if (array_limit_ > 0) array += fmt::format("%{}", array_limit_);
      std::vector<std::string> argv{"sbatch", "--parsable", fmt::format("--array={}", array), fmt::format("--job-name=uqa-{}", opened.study.name)};
      if (opened.study.ranks > 1) argv.push_back(fmt::format("--ntasks={}", opened.study.ranks));
      if (!phase_job.empty()) argv.push_back(fmt::format("--dependency=afterok:{}", phase_job));
      for (auto& word : words_of(sbatch_options_)) argv.push_back(std::move(word));
      argv.push_back(sbatch_);
      argv.push_back(fs::absolute(study_).string());
      argv.push_back(fs::absolute(opened.study.directory).string());
      const auto [status, text] = output_of(argv, scratch);
      UQA_CHECK(status == 0, ErrorCode::kConfig, "sbatch refused array {}: {}", array, text.substr(0, text.find('\n')));
      const auto line = text.substr(0, text.find('\n'));
      phase_job = line.substr(0, line.find(';'));
      std::printf("submitted array job %s: tasks %s\n", phase_job.c_str(), array.c_str());
    }
    std::printf("watch it with: uqa study status --study %s --watch\n", study_.c_str());
  }

  std::string study_, directory_, launcher_ = "local", launch_, sbatch_ = "slurm/study.sbatch", sbatch_options_;
  std::int64_t jobs_ = 1, index_ = -1, array_limit_ = 0;
  CallSettings call_;
  OptionSet options_{"study run", "runs what is not finished: one after another, some at a time, or as Slurm array jobs; resumes what was interrupted",
                     "uqa study run --study recipes/studies/widths.ini --jobs 2"};
};

}  // namespace

std::unique_ptr<Command> make_study_run() { return std::make_unique<StudyRunCommand>(); }

}  // namespace uqa::launch
