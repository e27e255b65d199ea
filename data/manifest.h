// data/manifest.h - manifest.json of a data directory: what is in it, and the size and checksum of every file.
//
//   const auto manifest = data::read_manifest(directory);   // its own checksum is verified
//   data::verify_files(directory, manifest, /*checksums=*/true);
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/file.h"
#include "core/json.h"
#include "data/schema.h"

namespace uqa::data {

inline constexpr std::int64_t kFormatVersion = 1;
inline constexpr const char* kDataKind = "uqa.data";  ///< OutputDir kind of a data directory

struct Manifest {
  struct Entry {
    std::string name;  ///< relative to the directory
    std::int64_t size_bytes = 0;
    std::string xxh128;
  };
  std::string name;  ///< the source schema's name
  Schema schema;
  std::int64_t num_users = 0;
  std::int64_t num_interactions = 0;
  bool has_timestamps = false;
  std::string digest;       ///< of the content: independent of the number of shards and ranks
  std::string source_hash;  ///< of the input files and the source schema
  Json report;              ///< what the import counted
  std::vector<std::string> shards;  ///< file names, in order
  std::string items;                ///< file name
  std::vector<Entry> files;         ///< every file of the directory but the manifest
};

/// Writes `directory`/manifest.json, whole or not at all.
void write_manifest(const fs::path& directory, const Manifest& manifest);
/// Reads it and verifies its own checksum and format version. Throws Error(kData).
[[nodiscard]] Manifest read_manifest(const fs::path& directory);
/// Checks that every listed file is there with its size, and with its checksum if asked. Throws Error(kData) naming the file.
void verify_files(const fs::path& directory, const Manifest& manifest, bool checksums);

}  // namespace uqa::data
