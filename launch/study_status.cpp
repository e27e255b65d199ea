// `uqa study status`: how far every run is.
#include <cstdio>
#include <thread>

#include <unistd.h>

#include "launch/bind.h"
#include "launch/study.h"
#include "launch/study_common.h"
#include "trainer/study/child.h"
#include "trainer/study/points.h"

namespace uqa::launch {
namespace {

class StudyStatusCommand final : public Command {
 public:
  StudyStatusCommand() {
    options_.add("study", &study_, "study file", OptionSet::kRequired);
    options_.add("directory", &directory_, "instead of the study file's directory");
    options_.add("watch", &watch_, "show it again every interval_s until every run is finished");
    options_.add("interval_s", &interval_s_, "> 0");
    bind(options_, call_);
  }
  OptionSet& options() override { return options_; }
  [[nodiscard]] Ranks ranks() const override { return Ranks::kSingle; }

  void run(comm::Session*) override {
    apply(call_);
    UQA_CHECK(interval_s_ > 0, ErrorCode::kConfig, "--interval_s = {}, must be above 0", interval_s_);
    const auto opened = open_study(study_, directory_);
    const fs::path path = opened.study.directory / "runs.json";
    UQA_CHECK(fs::exists(path), ErrorCode::kConfig, "{} has not been started: there is no {}; start it with uqa study run", study_, path.string());
    // What was started counts, whatever the file says now.
    const auto runs = trainer::study::runs_from_json(read_json(path), path.string());
    const bool redraw = watch_ && ::isatty(STDOUT_FILENO) != 0;
    if (watch_) trainer::study::count_stop_signals();
    std::int64_t shown = -1;
    while (true) {
      std::int64_t finished = 0;
      const auto table = trainer::study::render_status(runs, &finished);
      if (finished != shown) write_file_atomic(opened.study.directory / "points.csv", trainer::study::points_csv(runs));
      shown = finished;
      std::printf("%s%s", redraw ? "\033[H\033[2J" : "", table.c_str());
      std::fflush(stdout);
      if (!watch_ || finished == static_cast<std::int64_t>(runs.size()) || trainer::study::stop_signals() > 0) return;
      const auto steps = static_cast<int>(interval_s_ * 20) + 1;
      for (int i = 0; i < steps && trainer::study::stop_signals() == 0; ++i) std::this_thread::sleep_for(std::chrono::milliseconds(50));
    }
  }

 private:
  std::string study_, directory_;
  bool watch_ = false;
  double interval_s_ = 5;
  CallSettings call_;
  OptionSet options_{"study status", "shows how far every run of a study is, and writes points.csv", "uqa study status --study recipes/studies/widths.ini --watch"};
};

}  // namespace

std::unique_ptr<Command> make_study_status() { return std::make_unique<StudyStatusCommand>(); }

}  // namespace uqa::launch
