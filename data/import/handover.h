// data/import/handover.h - what pass 1 leaves for pass 2, on any rank: a file beside the spilled interactions.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/file.h"
#include "data/import/items.h"
#include "data/schema.h"
#include "data/shard.h"

namespace uqa::data::import {

struct Handover {
  Schema schema;
  std::vector<bool> from_items;            ///< by schema feature: joined by item id, else stored in the spilled records
  std::vector<JoinedFeature> joined;       ///< in the order of the features that are from_items
  std::vector<std::int64_t> final_index;   ///< by user in order of first appearance; -1: left out
  TextColumn user_id;                      ///< likewise
  bool has_timestamps = false;
  std::int64_t num_shards = 1;
  std::string source_hash;

  /// Whether the ids of each stored (not joined) feature are bags, in order: the layout of spilled records.
  [[nodiscard]] std::vector<bool> stored_multi_valued() const;
};

void write_handover(const fs::path& path, const Handover& handover);
[[nodiscard]] Handover read_handover(const fs::path& path);

/// Pass 2 for one shard: reads its spilled interactions from `spill`, writes `directory`/shard-<k>.h5, and a digest for each of its
/// users into `spill`. Returns its number of interactions.
std::int64_t write_one_shard(const Handover& handover, std::int64_t shard, const fs::path& spill, const fs::path& directory);

/// The digests of all users by final index, from what write_one_shard left.
[[nodiscard]] std::vector<std::int64_t> read_user_digests(const fs::path& spill, std::int64_t num_shards, std::int64_t num_users);

}  // namespace uqa::data::import
