#include "launch/report/load.h"

#include <algorithm>

#include "core/error.h"
#include "core/text.h"

namespace uqa::report {
namespace {

constexpr int kMaxDepth = 4;  // of a study's runs below its directory

std::string name_of(const Json& json, const std::string& key) { return json.is_object() && json.contains(key) && json[key].is_string() ? json[key].get<std::string>() : ""; }

void check_version(const Json& json, const fs::path& path, const std::string& remedy) {
  const auto version = get<std::int64_t>(json, "version", path.string());
  UQA_CHECK(version == 1, ErrorCode::kConfig, "{} has version {} of format {}, this program reads version 1; {}", path.string(), version, name_of(json, "format"), remedy);
}

void add_evaluation(const std::string& name, const fs::path& path, Json json, Loaded& into) {
  check_version(json, path, "evaluate again");
  (void)get<Json>(json, "rules", path.string());
  into.evaluations.push_back({name, std::move(json)});
}

void add_fit(const std::string& name, const fs::path& path, Json json, Loaded& into) {
  UQA_CHECK(name_of(json, "format") == "uqa.fit", ErrorCode::kConfig, "{} is not a fit of `uqa study fit`", path.string());
  check_version(json, path, "fit again");
  into.fits.push_back({name, std::move(json)});
}

void add_comparison(const std::string& name, const fs::path& path, const Json& json, Loaded& into) {
  const Json report = get<Json>(json, "comparisons", path.string());
  check_version(report, path, "compare again");
  into.comparisons.push_back({name, report});
  for (const auto& arm : get<Json>(json, "evaluations", path.string())) {
    add_evaluation(name + ": " + get<std::string>(arm, "name", path.string()), path, get<Json>(arm, "mean", path.string()), into);
  }
}

bool is_evaluation(const fs::path& directory) {
  const auto path = directory / "result.json";
  return fs::is_regular_file(path) && name_of(read_json(path), "format") == "uqa.evaluation";
}

void add_run(const std::string& name, const fs::path& directory, Loaded& into) {
  RunRecord run{.name = name, .path = directory, .info = read_json(directory / "run.json"), .train = {}, .validation = {}, .config_ini = {}};
  (void)get<std::string>(run.info, "stage", (directory / "run.json").string());
  check_run_version(run.info, directory / "run.json");
  if (fs::exists(directory / "config.ini")) run.config_ini = read_file(directory / "config.ini");
  if (fs::exists(directory / "metrics.jsonl")) {
    for (auto& record : read_metrics(directory / "metrics.jsonl")) {
      const auto kind = name_of(record, "kind");
      if (kind == "train") run.train.push_back(std::move(record));
      if (kind == "validation") run.validation.push_back(std::move(record));
    }
  }
  into.runs.push_back(std::move(run));
  if (!fs::is_directory(directory / "eval")) return;
  std::vector<fs::path> evaluations;
  for (const auto& entry : fs::directory_iterator(directory / "eval")) evaluations.push_back(entry.path());
  std::sort(evaluations.begin(), evaluations.end());
  for (const auto& path : evaluations) {
    if (is_evaluation(path)) add_evaluation(name + "/" + path.filename().string(), path / "result.json", read_json(path / "result.json"), into);
  }
}

/// Runs and evaluations below a study directory, in the order of their names.
void add_below(const std::string& prefix, const fs::path& directory, int depth, Loaded& into) {
  if (depth > kMaxDepth) return;
  std::vector<fs::path> entries;
  for (const auto& entry : fs::directory_iterator(directory)) {
    if (entry.is_directory()) entries.push_back(entry.path());
  }
  std::sort(entries.begin(), entries.end());
  for (const auto& path : entries) {
    const auto name = (prefix.empty() ? "" : prefix + "/") + path.filename().string();
    if (fs::exists(path / "run.json")) {
      add_run(name, path, into);
    } else if (is_evaluation(path)) {
      add_evaluation(name, path / "result.json", read_json(path / "result.json"), into);
    } else {
      add_below(name, path, depth + 1, into);
    }
  }
}

void load_file(const Source& source, Loaded& into) {
  const Json json = read_json(source.path);
  const auto format = name_of(json, "format");
  if (format == "uqa.fit") return add_fit(source.name, source.path, json, into);
  if (format == "uqa.evaluation") return add_evaluation(source.name, source.path, json, into);
  if (json.is_object() && json.contains("comparisons")) return add_comparison(source.name, source.path, json, into);
  UQA_FAIL(ErrorCode::kConfig, "{} is no result of `uqa compare`, `uqa study fit` or `uqa evaluate`; give one of them or a directory", source.path.string());
}

/// "0.1" of "0.1.7".
std::string format_of(const std::string& version) {
  const auto parts = split(version, '.');
  return parts.size() < 2 ? version : parts[0] + "." + parts[1];
}

}  // namespace

void check_run_version(const Json& run_json, const fs::path& path) {
  const Json versions = get_or<Json>(run_json, "versions", Json::object(), path.string());
  const auto written = get_or<std::string>(versions, "uqa", UQA_VERSION, path.string());
  UQA_CHECK(format_of(written) == format_of(UQA_VERSION), ErrorCode::kConfig, "{} was written by uqa {}, this is uqa {}; use that version, or run again", path.string(), written,
            UQA_VERSION);
}

Source parse_source(const std::string& word) {
  const auto equals = word.find('=');
  if (equals != std::string::npos && equals > 0) return {word.substr(0, equals), word.substr(equals + 1)};
  auto path = fs::path(word).lexically_normal();
  if (!path.has_filename()) path = path.parent_path();
  const auto name = path.filename().string();
  return {name == "." || name == ".." || name.empty() ? fs::absolute(path).lexically_normal().filename().string() : name, word};
}

std::vector<Json> read_metrics(const fs::path& path) {
  const std::string text = read_file(path);
  std::vector<Json> records;
  std::size_t begin = 0, line = 0;
  while (begin < text.size()) {
    ++line;
    const auto end = text.find('\n', begin);
    const auto piece = std::string_view(text).substr(begin, end == std::string::npos ? std::string::npos : end - begin);
    begin = end == std::string::npos ? text.size() : end + 1;
    if (piece.empty()) continue;
    auto record = Json::parse(piece, nullptr, /*allow_exceptions=*/false);
    if (record.is_discarded() && end == std::string::npos) break;
    UQA_CHECK(record.is_object(), ErrorCode::kData, "{}, line {}: not a JSON object", path.string(), line);
    records.push_back(std::move(record));
  }
  return records;
}

void load(const Source& source, Loaded& into) {
  const auto& path = source.path;
  UQA_CHECK(fs::exists(path), ErrorCode::kConfig, "{} does not exist; give run, evaluation or study directories, or results of `uqa compare`", path.string());
  if (!fs::is_directory(path)) return load_file(source, into);
  if (fs::exists(path / "run.json")) return add_run(source.name, path, into);
  if (is_evaluation(path)) return add_evaluation(source.name, path / "result.json", read_json(path / "result.json"), into);
  if (fs::exists(path / "fit.json")) return add_fit(source.name, path / "fit.json", read_json(path / "fit.json"), into);
  const auto before = into.runs.size() + into.evaluations.size() + into.fits.size();
  if (fs::exists(path / "fit" / "fit.json")) add_fit(source.name, path / "fit" / "fit.json", read_json(path / "fit" / "fit.json"), into);
  add_below("", path, 0, into);
  UQA_CHECK(into.runs.size() + into.evaluations.size() + into.fits.size() > before, ErrorCode::kConfig,
            "{} holds no run, evaluation, fit or study; give directories that hold run.json, result.json or fit.json", path.string());
}

}  // namespace uqa::report
