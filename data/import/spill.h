// data/import/spill.h - interactions on their way from pass 1 to pass 2: one file a shard, records in input order.
//
// A record: int64 user, int64 time_us, then for each stored feature int32 id, or int32 count and that many ids.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "core/file.h"

namespace uqa::data::import {

/// Ids of the stored (not joined) features of one interaction, in their order.
struct SpillRecord {
  std::int64_t user = 0;  ///< by first appearance, users that are dropped later included
  std::int64_t time_us = 0;
  std::vector<std::vector<std::int32_t>> ids;
};

[[nodiscard]] fs::path spill_name(std::int64_t shard);

/// Appends to one file a shard. Throws Error(kData) when the disk is full.
class SpillWriter {
 public:
  /// `multi_valued`: one entry a stored feature.
  SpillWriter(const fs::path& directory, std::int64_t num_shards, std::vector<bool> multi_valued);
  ~SpillWriter();
  SpillWriter(const SpillWriter&) = delete;
  SpillWriter& operator=(const SpillWriter&) = delete;
  void add(const SpillRecord& record);
  /// Writes out what is buffered; call before the files are read.
  void finish();

 private:
  struct Part {
    fs::path path;
    int fd = -1;
    std::string buffer;
  };
  void flush(Part& part);
  std::vector<Part> parts_;
  std::vector<bool> multi_valued_;
  std::size_t buffer_bytes_;
};

/// One spill file, mapped.
class SpillReader {
 public:
  SpillReader(const fs::path& path, std::vector<bool> multi_valued);
  /// A record's place and sort key.
  struct Entry {
    std::int64_t user = 0;
    std::int64_t time_us = 0;
    std::size_t offset = 0;  ///< of its first id
  };
  /// All records in input order.
  [[nodiscard]] std::vector<Entry> entries() const;
  /// The ids of one stored feature after another, from `entry` on; call once a stored feature, in order.
  [[nodiscard]] std::span<const std::int32_t> next_ids(std::size_t& offset, bool multi_valued) const;

 private:
  [[nodiscard]] std::int32_t word(std::size_t offset) const;
  MappedFile file_;
  std::vector<bool> multi_valued_;
};

}  // namespace uqa::data::import
