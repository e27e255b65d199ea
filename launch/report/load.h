// launch/report/load.h - reads what a report shows: runs, evaluations, fits and comparisons, from directories and files of `uqa`.
//
//   Loaded loaded;
//   load({.name = "soft", .path = "runs/align"}, loaded);
#pragma once

#include <string>
#include <vector>

#include "core/file.h"
#include "core/json.h"

namespace uqa::report {

struct Source {
  std::string name;  ///< shown; of `NAME=DIR`, else the directory's own name
  fs::path path;
};
/// "NAME=DIR" or "DIR".
[[nodiscard]] Source parse_source(const std::string& word);

struct RunRecord {
  std::string name;
  fs::path path;
  Json info;                     ///< run.json
  std::vector<Json> train;       ///< records of metrics.jsonl of kind "train", by step
  std::vector<Json> validation;  ///< likewise "validation"
  std::string config_ini;
};
struct EvaluationRecord {
  std::string name;
  Json result;                   ///< format uqa.evaluation
};
struct NamedJson {
  std::string name;
  Json json;
};
struct Loaded {
  std::vector<RunRecord> runs;
  std::vector<EvaluationRecord> evaluations;
  std::vector<NamedJson> fits, comparisons;
};

/// Adds what `source` is: a run directory (with its eval/), an evaluation directory, a study directory (fit/ and every run below it), a directory with a fit.json, or a
/// JSON file of `uqa compare` or `uqa study fit`. Error(kConfig) for anything else and for files of another version; Error(kData) for damaged ones.
void load(const Source& source, Loaded& into);

/// Records of metrics.jsonl. A last line that was cut short is left out; any other bad line is Error(kData) naming it.
[[nodiscard]] std::vector<Json> read_metrics(const fs::path& path);

/// Error(kConfig) unless run.json was written by this version of the format (same major and minor number).
void check_run_version(const Json& run_json, const fs::path& path);

}  // namespace uqa::report
