#include "trainer/run_directory.h"

#include <cerrno>
#include <cstring>
#include <optional>
#include <sstream>

#include <fcntl.h>
#include <unistd.h>

namespace uqa::trainer {
namespace {

constexpr const char* kRunJson = "run.json";
constexpr const char* kConfigIni = "config.ini";
constexpr const char* kMetrics = "metrics.jsonl";

/// "line 3: stored `a=1`, given `a=2`"; empty when equal.
std::string first_difference(const std::string& stored, const std::string& given) {
  std::istringstream a(stored), b(given);
  std::string line_a, line_b;
  for (int number = 1;; ++number) {
    const bool more_a = static_cast<bool>(std::getline(a, line_a));
    const bool more_b = static_cast<bool>(std::getline(b, line_b));
    if (!more_a && !more_b) return {};
    if (!more_a) line_a = "(end)";
    if (!more_b) line_b = "(end)";
    if (line_a != line_b) return fmt::format("line {}: stored `{}`, given `{}`", number, line_a, line_b);
  }
}

std::string run_of(const std::string& stage) { return fmt::format("{} {} run", stage.starts_with('a') || stage.starts_with('i') ? "an" : "a", stage); }

void remove_content(const fs::path& directory) {
  std::error_code ec;
  for (const auto& entry : fs::directory_iterator(directory)) {
    fs::remove_all(entry.path(), ec);
    UQA_CHECK(!ec, ErrorCode::kData, "cannot remove {}: {}", entry.path().string(), ec.message());
  }
}

void write_all(int fd, std::string_view bytes, const fs::path& path) {
  for (std::size_t done = 0; done < bytes.size();) {
    const auto n = ::write(fd, bytes.data() + done, bytes.size() - done);
    if (n < 0 && errno == EINTR) continue;
    UQA_CHECK(n > 0, ErrorCode::kData, "cannot write {}: {}; free some space and run again", path.string(), std::strerror(errno));
    done += static_cast<std::size_t>(n);
  }
}

}  // namespace

RunDirectory::RunDirectory(fs::path path, const std::string& stage, const std::string& config_ini, bool overwrite, bool writer)
    : path_(std::move(path)), writer_(writer) {
  if (!writer_) return;
  std::error_code ec;
  fs::create_directories(path_, ec);
  UQA_CHECK(!ec && fs::is_directory(path_), ErrorCode::kConfig, "run directory {} cannot be made: {}; give another --run", path_.string(),
            ec ? ec.message() : "it is not a directory");
  if (overwrite) remove_content(path_);
  if (fs::is_empty(path_)) {
    // run.json first: without it the directory would be taken for someone else's after a crash between the two.
    write_file_atomic(path_ / kRunJson, Json{{"stage", stage}}.dump(2) + "\n");
    write_file_atomic(path_ / kConfigIni, config_ini);
  }
  const bool is_run = fs::is_regular_file(path_ / kRunJson);
  const std::string stored_stage = is_run ? get_or<std::string>(read_run_json(path_), "stage", "", (path_ / kRunJson).string()) : "";
  UQA_CHECK(stored_stage == stage, ErrorCode::kConfig, "run directory {} holds {}, not {}; give another --run or --overwrite",
            path_.string(), stored_stage.empty() ? "something else" : run_of(stored_stage), run_of(stage));
  // A run that ended before it had anything to resume (wrong --data, say) may be started with other settings.
  if (!fs::exists(checkpoints() / "latest") && !fs::exists(path_ / kMetrics)) write_file_atomic(path_ / kConfigIni, config_ini);
  const std::string difference = first_difference(read_file(path_ / kConfigIni), config_ini);
  UQA_CHECK(difference.empty(), ErrorCode::kConfig,
            "run directory {} was made with other settings ({}); repeat them to resume, or give another --run or --overwrite", path_.string(),
            difference);
  fs::create_directories(checkpoints(), ec);
  UQA_CHECK(!ec, ErrorCode::kData, "cannot create {}: {}", checkpoints().string(), ec.message());
}

void RunDirectory::write_run_json(const Json& values) {
  if (!writer_) return;
  Json all = read_run_json(path_);
  all.update(values);
  write_file_atomic(path_ / kRunJson, all.dump(2) + "\n");
}

void RunDirectory::append_metrics(const Json& record) {
  if (!writer_) return;
  const fs::path path = path_ / kMetrics;
  const int fd = ::open(path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
  UQA_CHECK(fd >= 0, ErrorCode::kData, "cannot open {}: {}", path.string(), std::strerror(errno));
  try {
    write_all(fd, record.dump() + "\n", path);
  } catch (...) {
    ::close(fd);
    throw;
  }
  UQA_CHECK(::close(fd) == 0, ErrorCode::kData, "cannot write {}: {}; free some space and run again", path.string(), std::strerror(errno));
}

void RunDirectory::truncate_metrics(std::int64_t step) {
  const fs::path path = path_ / kMetrics;
  if (!writer_ || !fs::exists(path)) return;
  const std::string text = read_file(path);
  std::istringstream lines(text);
  std::string kept;
  for (std::string line; std::getline(lines, line);) {
    // A line that a crash or a full disk cut short is no record.
    const Json record = Json::parse(line, nullptr, /*allow_exceptions=*/false);
    if (!record.is_object() || record.value("step", step + 1) > step) continue;
    kept += line + "\n";
  }
  if (kept != text) write_file_atomic(path, kept);
}

Json RunDirectory::read_run_json(const fs::path& path) { return read_json(path / kRunJson); }

RunDirectory open_run_directory(const fs::path& path, const std::string& stage, const std::string& config_ini, bool overwrite, const comm::Communicator& world) {
  std::optional<RunDirectory> run;
  // Rank 0 makes the directory before the others look at it.
  for (const bool writer : {true, false}) {
    comm::run_agreed(world, [&] {
      if (writer == (world.rank() == 0)) run.emplace(path, stage, config_ini, writer && overwrite, writer);
    });
  }
  return std::move(*run);
}

}  // namespace uqa::trainer
