// trainer/export_tensorboard.h - metrics.jsonl of a run as TensorBoard event files.
//
//   write_tensorboard("runs/trm", "tb/trm", {});      // tensorboard --logdir tb
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "core/json.h"

namespace uqa::trainer {

struct TensorboardResult {
  std::int64_t records = 0;  ///< lines of metrics.jsonl
  std::int64_t scalars = 0;  ///< values written
};

/// Writes `directory`/events.out.tfevents.<start>.<host>: one scalar a number of each record, tagged "<kind>/<key>", at the record's step. Records carry no clock, so
/// the wall time is that of the run's start (config.ini's modification time) plus the seconds trained so far. Whole or not at all; Error(kConfig) when `directory`
/// is not empty, unless `overwrite`; Error(kData) for a damaged metrics.jsonl.
TensorboardResult write_tensorboard(const fs::path& run, const fs::path& directory, bool overwrite);

/// CRC-32C (Castagnoli) of the bytes, and TensorBoard's masked form of it.
[[nodiscard]] std::uint32_t crc32c(std::string_view bytes);
[[nodiscard]] std::uint32_t masked_crc32c(std::string_view bytes);

}  // namespace uqa::trainer
