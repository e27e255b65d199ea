// launch/study_common.h - what the actions of `uqa study` share: the study file, its runs, and their command lines checked as the stages will.
#pragma once

#include <string>
#include <vector>

#include "trainer/align.h"
#include "trainer/pretrain.h"
#include "trainer/study/hardware.h"
#include "trainer/study/plan.h"
#include "trainer/study/study_file.h"

namespace uqa::launch {

/// A study and its runs, every command line parsed and checked by its stage's own options: nothing that starts later is refused for its words.
struct StudyRuns {
  trainer::study::Study study;
  std::vector<trainer::study::Run> runs;
};
/// `directory` not empty takes the place of the file's. Error(kConfig) names run, stage and option.
[[nodiscard]] StudyRuns open_study(const std::string& file, const std::string& directory = "");

/// The checked settings that the words after `uqa pretrain` and `uqa align` give; in cmd_pretrain.cpp and cmd_align.cpp.
[[nodiscard]] trainer::PretrainConfig parse_pretrain(const std::vector<std::string>& words);
[[nodiscard]] trainer::AlignConfig parse_align(const std::vector<std::string>& words);

struct PlannedRun {
  std::vector<trainer::study::StagePlan> stages;  ///< pretrain and align; an evaluation is not planned
  bool in_budget = true;
  [[nodiscard]] double flops() const;
  [[nodiscard]] double seconds() const;
};
/// Plans every run and applies the budget: runs count in the order of the file while their sum fits. Error(kConfig) when none fits.
[[nodiscard]] std::vector<PlannedRun> plan_runs(const StudyRuns& study, const trainer::study::Hardware& hardware, std::int64_t ranks);

/// Figures of "a machine of which nothing is known": FLOPs and parameters are right, times mean nothing. For budgets in FLOPs.
[[nodiscard]] trainer::study::Hardware nominal_hardware();
/// hardware.ini in the study's directory, where plan --calibrate puts it.
[[nodiscard]] fs::path hardware_file_of(const trainer::study::Study& study);

/// Gives the stages of every run the words of the layout that was planned for them. A stage whose study file sets a layout keeps it, and so does one that
/// has begun: its words are those of runs.json.
void apply_layouts(StudyRuns& study, const std::vector<PlannedRun>& planned);

/// Writes runs.json and study.json. Error(kConfig) when a run that has begun would have other settings now.
void write_study(const StudyRuns& study, const std::vector<PlannedRun>& planned);

}  // namespace uqa::launch
