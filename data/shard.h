// data/shard.h - the HDF5 files of a data directory: shard-<k>.h5 with some users' histories, items.h5 with the catalogue.
//
//   /users/index int64 [n]        the users' numbers in the data set, ascending
//   /users/id byte [.]            their ids in the source, end to end; /users/id_offsets int64 [n + 1]
//   /users/offsets int64 [n + 1]  user i owns interactions [offsets[i], offsets[i + 1])
//   /features/<k>/values int32    one a interaction; multi-valued: any number, delimited by
//   /features/<k>/offsets int64   [interactions + 1]
//   /timestamps int64             seconds since the epoch, if the source has them
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "data/dataset.h"
#include "data/schema.h"

namespace uqa::data {

/// Texts end to end.
struct TextColumn {
  std::vector<char> bytes;
  std::vector<std::int64_t> offsets{0};
  void push_back(std::string_view text);
  [[nodiscard]] std::size_t size() const { return offsets.size() - 1; }
  [[nodiscard]] std::string_view operator[](std::size_t i) const;
};

/// A shard in memory, before it is written.
struct ShardContent {
  struct Feature {
    std::vector<std::int32_t> values;
    std::vector<std::int64_t> offsets;  ///< multi-valued: [interactions + 1]; else empty
  };
  std::vector<std::int64_t> user_index;
  TextColumn user_id;
  std::vector<std::int64_t> offsets{0};
  std::vector<Feature> features;         ///< in schema order
  std::vector<std::int64_t> timestamps;  ///< empty when the source has none
};

struct ShardOrigin {
  std::string source_hash;
  std::int64_t shard = 0;
  std::int64_t num_shards = 1;
  bool has_timestamps = false;
};

/// Name of shard `k` in its directory.
[[nodiscard]] std::string shard_name(std::int64_t k);
inline constexpr const char* kItemsName = "items.h5";

void write_shard(const fs::path& path, const Schema& schema, const ShardContent& content, const ShardOrigin& origin);

/// One open shard. The spans point into a mapping or into memory owned by this object.
class Shard {
 public:
  struct Feature {
    std::span<const std::int32_t> values;
    std::span<const std::int64_t> offsets;
  };
  /// Checks attributes, types, places, sizes, and that users' offsets ascend. Throws Error(kData).
  /// `schema` null takes the schema stored in the file.
  [[nodiscard]] static Shard open(const fs::path& path, ReadMode mode, const Schema* schema);

  [[nodiscard]] const Schema& schema() const { return schema_; }
  [[nodiscard]] std::int64_t num_users() const { return static_cast<std::int64_t>(user_index.size()); }
  [[nodiscard]] std::int64_t num_interactions() const { return offsets.back(); }
  [[nodiscard]] const fs::path& path() const { return path_; }

  std::span<const std::int64_t> user_index, id_offsets, offsets, timestamps;
  std::span<const char> id_bytes;
  std::vector<Feature> features;

 private:
  fs::path path_;
  Schema schema_;
  MappedFile file_;
  std::vector<std::shared_ptr<const void>> copies_;  ///< ReadMode::kRead: what the spans point into
};

/// The catalogue. `source_hash` ties it to its shards.
void write_items(const fs::path& path, const ItemCatalog& items, std::int64_t num_items, const std::string& source_hash);
[[nodiscard]] ItemCatalog read_items(const fs::path& path, std::int64_t num_items);

}  // namespace uqa::data
