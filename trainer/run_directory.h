// trainer/run_directory.h - the record of one run: config.ini, run.json, metrics.jsonl, checkpoints/, eval/.
#pragma once

#include <string>

#include "comm/communicator.h"
#include "core/file.h"
#include "core/json.h"

namespace uqa::trainer {

/// Rank 0 writes; the other ranks hold the same object with `writer` false and write nothing but their checkpoint parts.
class RunDirectory {
 public:
  /// Makes or re-opens `path`. A directory that holds something other than a run of `stage` is refused (Error(kConfig)) unless
  /// `overwrite`, which starts it anew. A run of the same stage that has records or a checkpoint is resumed only if `config_ini` is the
  /// stored one (else Error(kConfig) naming the first difference). Call on rank 0 first, agreed with the others.
  RunDirectory(fs::path path, const std::string& stage, const std::string& config_ini, bool overwrite, bool writer);
  [[nodiscard]] const fs::path& path() const { return path_; }
  [[nodiscard]] fs::path checkpoints() const { return path_ / "checkpoints"; }
  [[nodiscard]] bool writer() const { return writer_; }
  /// Merges keys into run.json (atomically). Writer only; others: no-op.
  void write_run_json(const Json& values);
  /// Appends one record to metrics.jsonl and flushes it. Keys carry units. Writer only; others: no-op.
  void append_metrics(const Json& record);
  /// Drops records after `step` (a resume repeats them). Writer only.
  void truncate_metrics(std::int64_t step);
  [[nodiscard]] static Json read_run_json(const fs::path& path);

 private:
  fs::path path_;
  bool writer_;
};

/// Makes or re-opens a run directory on every rank, on rank 0 first. Collective over `world`; refusals are agreed. See RunDirectory's constructor.
[[nodiscard]] RunDirectory open_run_directory(const fs::path& path, const std::string& stage, const std::string& config_ini, bool overwrite, const comm::Communicator& world);

}  // namespace uqa::trainer
