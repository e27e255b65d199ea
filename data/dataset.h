// data/dataset.h - a read-only view of imported interactions: users' histories, oldest first, and the item catalogue.
//
//   const auto data = data::Dataset::open("ml-100k");
//   for (std::int64_t t = 0; t < data.length(u); ++t) use(data.item(u, t));
//   const auto genres = data.values(/*feature=*/1, u, t);
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/file.h"
#include "data/schema.h"

namespace uqa::data {

enum class ReadMode {
  kMap,   ///< map the shard files (default)
  kRead,  ///< copy them into memory, for file systems that dislike mapping
};

/// Titles and attributes of the items, by item id.
class ItemCatalog {
 public:
  struct Attribute {
    std::string name;                           ///< for example "genre", "year", "brand"
    std::vector<std::string> vocabulary;        ///< text of each value
    std::vector<std::int64_t> offsets;          ///< [num_items + 1] into `values`
    std::vector<std::int32_t> values;           ///< indices into `vocabulary`
    [[nodiscard]] std::span<const std::int32_t> of(std::int64_t item) const {
      return std::span(values).subspan(static_cast<std::size_t>(offsets[static_cast<std::size_t>(item)]),
                                       static_cast<std::size_t>(offsets[static_cast<std::size_t>(item) + 1] - offsets[static_cast<std::size_t>(item)]));
    }
  };
  std::vector<std::string> titles;    ///< [num_items]; empty when the data set has none
  std::vector<std::string> raw_ids;   ///< [num_items] ids of the source; empty when ids were integers already
  std::vector<Attribute> attributes;
  [[nodiscard]] const Attribute* find(const std::string& name) const;  ///< nullptr if absent
};

/// Cheap to copy (shared state); safe to read from several threads. Users are numbered 0 ... num_users() - 1 in the order
/// of their first appearance in the input.
class Dataset {
 public:
  /// Opens a directory written by `uqa import` or `uqa synth`. The manifest's sizes and checksums are verified first
  /// (`verify` false skips the checksums). Throws Error(kData) naming the file and what is wrong with it.
  [[nodiscard]] static Dataset open(const fs::path& directory, ReadMode mode = ReadMode::kMap, bool verify = true);

  /// The same histories with the named features only, whatever the order of `names` in schema order. The item feature must be among them;
  /// "item" names it, too. Items and digest() stay those of the whole data set. Error(kConfig) for an unknown name (the nearest is suggested),
  /// one given twice, and a list without the item.
  [[nodiscard]] Dataset with_features(const std::vector<std::string>& names) const;

  [[nodiscard]] const Schema& schema() const;
  [[nodiscard]] const ItemCatalog& items() const;
  [[nodiscard]] std::int64_t num_users() const;
  [[nodiscard]] std::int64_t num_interactions() const;
  /// Number of interactions of `user`; at least 2.
  [[nodiscard]] std::int64_t length(std::int64_t user) const;
  /// The source's id of `user`.
  [[nodiscard]] std::string_view raw_user_id(std::int64_t user) const;
  /// Item id (feature 0) of interaction t of `user`.
  [[nodiscard]] std::int64_t item(std::int64_t user, std::int64_t t) const;
  /// Ids of one feature at one interaction: one for single-valued features, any number (also none) for bags.
  [[nodiscard]] std::span<const std::int32_t> values(std::size_t feature, std::int64_t user, std::int64_t t) const;
  /// Ids of one feature over interactions [begin, end) of `user`, laid end to end.
  [[nodiscard]] std::span<const std::int32_t> values(std::size_t feature, std::int64_t user, std::int64_t begin, std::int64_t end) const;
  /// For a multi-valued feature: end - begin + 1 offsets (absolute within the shard) delimiting values(); empty for single-valued.
  [[nodiscard]] std::span<const std::int64_t> offsets(std::size_t feature, std::int64_t user, std::int64_t begin, std::int64_t end) const;
  /// Seconds since the epoch of interactions [begin, end); empty if the source had none.
  [[nodiscard]] std::span<const std::int64_t> timestamps(std::int64_t user, std::int64_t begin, std::int64_t end) const;
  /// Seconds since the epoch of interaction t, if the source had them.
  [[nodiscard]] std::optional<std::int64_t> timestamp(std::int64_t user, std::int64_t t) const;
  /// Digest of the content: equal for the same input and schema whatever the number of shards and ranks.
  [[nodiscard]] const std::string& digest() const;

 private:
  struct Impl;
  struct View;
  [[nodiscard]] std::size_t column_of(std::size_t feature) const;
  std::shared_ptr<const Impl> impl_;
  std::shared_ptr<const View> view_;  ///< null: every feature
};

}  // namespace uqa::data
