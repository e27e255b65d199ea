#include "data/inspect.h"

#include <algorithm>
#include <array>
#include <map>
#include <string_view>
#include <vector>

#include "core/error.h"
#include "core/json.h"
#include "core/text.h"
#include "data/dataset.h"
#include "data/h5.h"
#include "data/manifest.h"
#include "data/question.h"
#include "data/shard.h"

namespace uqa::data {
namespace {

void line(std::string& out, std::string_view key, const std::string& value) { out += fmt::format("{:<16}{}\n", key, value); }

void print_schema(std::string& out, const Schema& schema) {
  for (const auto& t : schema.tables) line(out, "table", fmt::format("{}, {} rows", t.name, t.rows));
  for (const auto& f : schema.features) {
    line(out, "feature", fmt::format("{} -> {}{}{}", f.name, f.table, f.multi_valued ? ", multi-valued" : "",
                                     &f == &schema.features.front() ? ", predicted" : ""));
  }
}

/// Nearest-rank quantiles of `lengths`, and the mean.
void print_lengths(std::string& out, std::vector<std::int64_t> lengths) {
  if (lengths.empty()) return;
  std::sort(lengths.begin(), lengths.end());
  const auto quantile = [&](double q) { return lengths[static_cast<std::size_t>(q * static_cast<double>(lengths.size() - 1) + 0.5)]; };
  double sum = 0;
  for (const auto length : lengths) sum += static_cast<double>(length);
  line(out, "history length", fmt::format("min {}, 10% {}, median {}, 90% {}, max {}, mean {:.1f}", lengths.front(), quantile(0.1), quantile(0.5),
                                          quantile(0.9), lengths.back(), sum / static_cast<double>(lengths.size())));
}

void print_files(std::string& out, const fs::path& directory) {
  std::vector<fs::path> paths;
  for (const auto& entry : fs::directory_iterator(directory)) {
    if (entry.is_regular_file()) paths.push_back(entry.path());
  }
  std::sort(paths.begin(), paths.end());
  for (const auto& path : paths) line(out, "file", fmt::format("{}, {}", path.filename().string(), bytes_text(static_cast<std::int64_t>(fs::file_size(path)))));
}

void print_items(std::string& out, const ItemCatalog& items) {
  line(out, "titles", items.titles.empty() ? "none" : std::to_string(items.titles.size()));
  for (const auto& a : items.attributes) {
    line(out, "attribute", fmt::format("{}, {} distinct values, {} in all", a.name, a.vocabulary.size(), a.values.size()));
  }
}

std::string inspect_data(const fs::path& directory) {
  const auto manifest = read_manifest(directory);
  const auto data = Dataset::open(directory);
  std::string out;
  line(out, "data set", manifest.name);
  line(out, "format", fmt::format("{} version {}, {} shards, checksums agree", kDataKind, kFormatVersion, manifest.shards.size()));
  line(out, "digest", manifest.digest);
  line(out, "users", std::to_string(data.num_users()));
  line(out, "interactions", std::to_string(data.num_interactions()));
  line(out, "items", std::to_string(data.schema().num_items()));
  if (manifest.report.contains("dropped_users")) {
    line(out, "left out", fmt::format("{} users with fewer than 2 interactions", manifest.report["dropped_users"].dump()));
  }
  std::vector<std::int64_t> lengths;
  for (std::int64_t u = 0; u < data.num_users(); ++u) lengths.push_back(data.length(u));
  print_lengths(out, std::move(lengths));
  if (manifest.has_timestamps) {
    std::int64_t first = *data.timestamp(0, 0), last = first;
    for (std::int64_t u = 0; u < data.num_users(); ++u) {
      first = std::min(first, *data.timestamp(u, 0));
      last = std::max(last, *data.timestamp(u, data.length(u) - 1));
    }
    line(out, "timestamps", fmt::format("{} to {} (seconds since the epoch)", first, last));
  } else {
    line(out, "timestamps", "none");
  }
  print_schema(out, data.schema());
  print_items(out, data.items());
  print_files(out, directory);
  return out;
}

std::string inspect_h5(const fs::path& path) {
  std::string out;
  const std::string format = h5::File::open(path).text_attribute("format");
  if (format == "uqa.items") {
    const auto num_items = h5::File::open(path).integer_attribute("num_items");
    line(out, "items", std::to_string(num_items));
    print_items(out, read_items(path, num_items));
    return out;
  }
  const auto shard = Shard::open(path, ReadMode::kMap, nullptr);
  const auto file = h5::File::open(path);
  line(out, "shard", fmt::format("{} of {}", file.integer_attribute("shard"), file.integer_attribute("num_shards")));
  line(out, "source hash", file.text_attribute("source_hash"));
  line(out, "users", std::to_string(shard.num_users()));
  line(out, "interactions", std::to_string(shard.num_interactions()));
  std::vector<std::int64_t> lengths;
  for (std::size_t i = 0; i + 1 < shard.offsets.size(); ++i) lengths.push_back(shard.offsets[i + 1] - shard.offsets[i]);
  print_lengths(out, std::move(lengths));
  line(out, "timestamps", shard.timestamps.empty() ? "none" : "yes");
  print_schema(out, shard.schema());
  for (std::size_t f = 0; f < shard.features.size(); ++f) {
    line(out, "ids", fmt::format("{}: {}", shard.schema().features[f].name, shard.features[f].values.size()));
  }
  return out;
}

std::string inspect_questions(const fs::path& directory) {
  const auto set = read_questions(directory);
  std::string out;
  line(out, "question set", set.digest);
  line(out, "language", set.language);
  line(out, "data digest", set.data_digest);
  const auto print = [&](const char* name, const std::vector<Question>& questions) {
    std::map<QuestionType, std::int64_t> counts;
    for (const auto& q : questions) ++counts[q.type];
    std::string by_type;
    for (const auto type : kQuestionTypes) by_type += fmt::format("{}{} {}", by_type.empty() ? "" : ", ", code_of(type), counts[type]);
    line(out, name, fmt::format("{} questions: {}", questions.size(), by_type));
  };
  print("train", set.train);
  print("test", set.test);
  print_files(out, directory);
  return out;
}

void print_json(std::string& out, const Json& json, const std::string& prefix = "") {
  for (const auto& entry : json.items()) {
    const std::string key = prefix.empty() ? entry.key() : prefix + "." + entry.key();
    if (entry.value().is_object()) {
      print_json(out, entry.value(), key);
    } else {
      out += fmt::format("{} = {}\n", key, entry.value().is_string() ? entry.value().get<std::string>() : entry.value().dump());
    }
  }
}

std::string inspect_run(const fs::path& directory) {
  std::string out;
  line(out, "run", directory.string());
  print_json(out, read_json(directory / "run.json"));
  if (fs::exists(directory / "metrics.jsonl")) {
    const std::string text = read_file(directory / "metrics.jsonl");
    const auto lines = split(text, '\n');
    const auto last = std::find_if(lines.rbegin(), lines.rend(), [](const auto& l) { return !l.empty(); });
    line(out, "metrics", fmt::format("{} records", std::count_if(lines.begin(), lines.end(), [](const auto& l) { return !l.empty(); })));
    if (last != lines.rend()) line(out, "last record", *last);
  }
  if (fs::is_directory(directory / "checkpoints")) {
    std::vector<std::string> names;
    for (const auto& entry : fs::directory_iterator(directory / "checkpoints")) {
      if (entry.is_directory()) names.push_back(entry.path().filename().string());
    }
    std::sort(names.begin(), names.end());
    for (const auto& name : names) line(out, "checkpoint", name);
  }
  print_files(out, directory);
  return out;
}

std::string inspect_checkpoint(const fs::path& directory, const Json& manifest) {
  std::string out;
  const std::string what = (directory / "manifest.json").string();
  line(out, "checkpoint", directory.string());
  if (manifest.contains("step")) line(out, "step", manifest["step"].dump());
  const auto tensors = get<Json>(manifest, "tensors", what);
  for (const auto& entry : tensors.items()) {
    line(out, "tensor", fmt::format("{} {} {}", entry.key(), get_or<std::string>(entry.value(), "dtype", "?", what),
                                    get<Json>(entry.value(), "shape", what).dump()));
  }
  print_files(out, directory);
  return out;
}

std::string inspect_evaluation(const fs::path& directory) {
  std::string out;
  line(out, "evaluation", directory.string());
  print_json(out, read_json(directory / "result.json"));
  print_files(out, directory);
  return out;
}

}  // namespace

std::string inspect(const fs::path& path) {
  UQA_CHECK(fs::exists(path), ErrorCode::kData, "{} does not exist; give an existing path", path.string());
  if (fs::is_directory(path)) {
    if (fs::exists(path / "questions.json")) return inspect_questions(path);
    if (fs::exists(path / "run.json")) return inspect_run(path);
    if (fs::exists(path / "result.json")) return inspect_evaluation(path);
    if (fs::exists(path / "manifest.json")) {
      const Json manifest = read_json(path / "manifest.json");
      return manifest.contains("tensors") ? inspect_checkpoint(path, manifest) : inspect_data(path);
    }
  } else if (path.extension() == ".h5") {
    return inspect_h5(path);
  }
  UQA_FAIL(ErrorCode::kData,
           "{} is not recognised; inspect reads a data directory or a .h5 file of it, a question set, a run, a checkpoint and an evaluation directory",
           path.string());
}

}  // namespace uqa::data
