// trainer/study/study_file.h - the INI file of a scaling study, and the runs that it asks for. Torch-free.
//
//   [study]                      [axes.width]                 [pretrain]
//   stages = pretrain            width = 8, 12, 16            batch.global_users = 64
//   data = data/synth            seed = 1, 2                  train.epochs = 1
//   lr_rule = mup                [axes.data]
//   peak_lr = 4e-3               width = 16
//   lr_base_width = 16           fraction = 0.25, 0.5
//
//   const auto study = study::read_study("study.ini");
//   const auto runs = study::expand(study);           // every [axes...] section is a grid of its own; equal runs of two grids are one
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "core/file.h"
#include "core/json.h"

namespace uqa::trainer::study {

/// Options of a stage in the order of the file: name without dashes, value.
using Options = std::vector<std::pair<std::string, std::string>>;

/// The learning rate over width.
struct LrRule {
  std::string kind = "constant";        ///< "constant"; "mup": peak_lr * base_width / width; "table": by width
  double peak_lr = 0;                   ///< 0: the stage's own optim.peak_lr (only "constant")
  std::int64_t base_width = 0;          ///< "mup"
  std::map<std::int64_t, double> table; ///< "table"
  /// One sentence for the log and study.json.
  [[nodiscard]] std::string describe() const;
};

/// Values of one axis, as texts: encoder, width, depth, max_len, fraction, llm, adapter, tokens, seed.
struct Axis {
  std::string name;
  std::vector<std::string> values;
};
struct Grid {
  std::string section;
  std::vector<Axis> axes;
};

struct Study {
  fs::path file;
  std::string name;                          ///< default: the file's name without suffix
  fs::path directory;                        ///< where everything goes; default: studies/<name>
  std::vector<std::string> stages{"pretrain"};  ///< a beginning of pretrain, align, evaluate
  std::string data, questions;               ///< given to every stage that reads them
  std::int64_t ranks = 1;                    ///< of one run, for plan
  double budget_flops = 0, budget_hours = 0; ///< of all runs together; 0: none
  double rows_per_question = 150;            ///< LLM rows of one training question: plan's assumption where nothing was tokenised yet
  LrRule lr;
  std::vector<Grid> grids;
  std::map<std::string, Options> fixed;      ///< by stage
  Options data_shape;                        ///< [data]: what plan takes where the data set is not here
};

/// Error(kConfig) naming line, section or key, and the nearest known one.
[[nodiscard]] Study read_study(const fs::path& file);
[[nodiscard]] Study parse_study(const std::string& text, const fs::path& file);

struct StageCommand {
  std::string stage;                ///< "pretrain", "align", "evaluate"
  std::vector<std::string> argv;    ///< words after `uqa`, one value a word
  fs::path directory;               ///< run or evaluation directory: holds result.json once the stage is done
};

struct Run {
  std::string name;
  std::map<std::string, std::string> values;  ///< by axis
  std::vector<StageCommand> stages;
  std::int64_t phase = 0;           ///< 1: waits for the pre-training of another run
  std::vector<std::int64_t> needs;  ///< numbers of runs that must be finished before
};

/// Every run in the order of the file. When several alignments start from the same encoder, its pre-training is a run of its own (phase 0)
/// and the alignments need it. Error(kConfig): an empty axis or grid, a value that occurs twice, two runs with one name.
[[nodiscard]] std::vector<Run> expand(const Study& study);

/// runs.json: {"runs": [{"name", "phase", "needs", "values", "stages", "directories", "argv": [[word, ...] per stage]}]}.
[[nodiscard]] Json to_json(const std::vector<Run>& runs);
[[nodiscard]] std::vector<Run> runs_from_json(const Json& json, const std::string& what);

}  // namespace uqa::trainer::study
