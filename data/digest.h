// data/digest.h - digests of what a data directory holds: the same for the same content, however it was divided into shards.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "data/dataset.h"
#include "data/shard.h"

namespace uqa::data {

/// Digest of user `i` of a shard; does not depend on which shard holds it. `buffer` is scratch memory.
[[nodiscard]] std::int64_t digest_user(const ShardContent& content, const Schema& schema, std::size_t i, std::string& buffer);
/// Digest of a whole data set; `user_digests` in the order of users.
[[nodiscard]] std::string digest_data(const Schema& schema, const ItemCatalog& items, bool has_timestamps, const std::vector<std::int64_t>& user_digests);

}  // namespace uqa::data
