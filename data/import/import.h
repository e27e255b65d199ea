// data/import/import.h - an interaction log to a data directory of HDF5 shards, in two passes with bounded memory.
//
//   const auto schema = data::SourceSchema::read("recipes/ml-100k.schema.json");
//   const auto report = data::import::run_import(schema, {.inputs = {"ml-100k.inter", "ml-100k.item"}, .output = "ml-100k"});
//
// Pass 1 (rank 0) reads the input once, in the order given: ids by first appearance, one spill file a shard, by user. Pass 2 (shard s
// by rank s mod size) loads one spill file at a time, sorts each user's interactions by time (input order breaks ties), writes the shard.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "core/error.h"
#include "core/file.h"
#include "core/json.h"
#include "data/import_schema.h"

namespace uqa::data::import {

struct ImportOptions {
  std::vector<fs::path> inputs;  ///< interactions and item files, in input order
  fs::path output;               ///< the data directory; refused if it exists and is not empty, unless overwrite
  bool overwrite = false;
  /// Files to write; 0: one for every 256 MiB of input, at least one a rank. Memory of pass 2 is about one shard's interactions.
  int num_shards = 0;
  int rank = 0;  ///< all ranks must see the same file system
  int size = 1;
  /// Called by every rank at the same points, with its own error or null: must return on every rank, or throw on every rank when any
  /// rank has an error. Also a barrier. Empty (one rank): throws the error.
  std::function<void(const Error* own)> agree = nullptr;
  bool progress = false;  ///< progress lines on rank 0
};

/// What was imported; the same on every rank.
struct ImportReport {
  std::int64_t num_users = 0;
  std::int64_t num_interactions = 0;
  std::int64_t num_items = 0;             ///< rows of the item table
  std::int64_t dropped_users = 0;         ///< with fewer than 2 interactions: left out
  std::int64_t dropped_interactions = 0;  ///< theirs
  std::int64_t items_without_row = 0;     ///< items of interactions that no item file describes: titled by their id, no attributes
  std::int64_t unused_item_rows = 0;      ///< rows of item files whose item occurs in no interaction: left out
  std::int64_t num_shards = 0;
  std::string digest;
  [[nodiscard]] Json to_json() const;
  [[nodiscard]] static ImportReport from_json(const Json& json, const std::string& what);
};

/// Every rank must call it, with the same options but for `rank`. The output appears whole or not at all.
/// Throws Error(kData) about the input, naming file, row and column; Error(kConfig) about the options or an output that exists.
[[nodiscard]] ImportReport run_import(const SourceSchema& schema, const ImportOptions& options);

}  // namespace uqa::data::import
