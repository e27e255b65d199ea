#include "data/import/handover.h"

#include <algorithm>
#include <tuple>

#include "core/error.h"
#include "data/digest.h"
#include "data/h5.h"
#include "data/import/spill.h"

namespace uqa::data::import {
namespace {

fs::path digest_name(std::int64_t shard) { return fmt::format("digest-{:05d}.h5", shard); }

std::int64_t floor_seconds(std::int64_t us) {
  constexpr std::int64_t kUs = 1'000'000;
  return us >= 0 ? us / kUs : -((-us + kUs - 1) / kUs);
}

}  // namespace

std::vector<bool> Handover::stored_multi_valued() const {
  std::vector<bool> out;
  for (std::size_t f = 0; f < schema.features.size(); ++f) {
    if (!from_items[f]) out.push_back(schema.features[f].multi_valued);
  }
  return out;
}

void write_handover(const fs::path& path, const Handover& handover) {
  auto file = h5::File::create(path);
  file.set_attribute("schema", handover.schema.to_json().dump());
  file.set_attribute("source_hash", handover.source_hash);
  file.set_attribute("has_timestamps", std::int64_t{handover.has_timestamps});
  file.set_attribute("num_shards", handover.num_shards);
  std::vector<std::int32_t> from_items(handover.from_items.begin(), handover.from_items.end());
  file.write("from_items", from_items);
  for (std::size_t j = 0; j < handover.joined.size(); ++j) {
    file.write(fmt::format("joined/{}/values", j), handover.joined[j].values);
    file.write(fmt::format("joined/{}/offsets", j), handover.joined[j].offsets);
  }
  file.write("final_index", handover.final_index);
  file.write("user_id", handover.user_id.bytes);
  file.write("user_id_offsets", handover.user_id.offsets);
  file.close();
}

Handover read_handover(const fs::path& path) {
  const auto file = h5::File::open(path);
  Handover out;
  out.schema = Schema::from_json(parse_json(file.text_attribute("schema"), path.string()), path.string());
  out.source_hash = file.text_attribute("source_hash");
  out.has_timestamps = file.integer_attribute("has_timestamps") != 0;
  out.num_shards = file.integer_attribute("num_shards");
  for (const auto flag : file.read<std::int32_t>("from_items")) {
    out.from_items.push_back(flag != 0);
    if (flag == 0) continue;
    const std::string group = fmt::format("joined/{}/", out.joined.size());
    out.joined.push_back({.values = file.read<std::int32_t>(group + "values"), .offsets = file.read<std::int64_t>(group + "offsets")});
  }
  out.final_index = file.read<std::int64_t>("final_index");
  out.user_id = {.bytes = file.read<char>("user_id"), .offsets = file.read<std::int64_t>("user_id_offsets")};
  return out;
}

std::int64_t write_one_shard(const Handover& handover, std::int64_t shard, const fs::path& spill, const fs::path& directory) {
  const auto stored_multi = handover.stored_multi_valued();
  const SpillReader records(spill / spill_name(shard), stored_multi);
  auto entries = records.entries();
  std::erase_if(entries, [&](const auto& e) { return handover.final_index[static_cast<std::size_t>(e.user)] < 0; });
  // Stable: equal times keep the order of the input. First appearance orders users as their final index does.
  std::stable_sort(entries.begin(), entries.end(),
                   [](const auto& a, const auto& b) { return std::tie(a.user, a.time_us) < std::tie(b.user, b.time_us); });

  const auto& features = handover.schema.features;
  ShardContent content;
  content.features.resize(features.size());
  for (std::size_t f = 0; f < features.size(); ++f) {
    if (features[f].multi_valued) {
      content.features[f].offsets.reserve(entries.size() + 1);
      content.features[f].offsets.push_back(0);
    } else {
      content.features[f].values.reserve(entries.size());
    }
  }
  for (std::size_t i = 0; i < entries.size(); ++i) {
    const auto& entry = entries[i];
    if (i == 0 || entry.user != entries[i - 1].user) {
      const auto user = static_cast<std::size_t>(entry.user);
      if (i > 0) content.offsets.push_back(static_cast<std::int64_t>(i));
      content.user_index.push_back(handover.final_index[user]);
      content.user_id.push_back(handover.user_id[user]);
    }
    std::size_t at = entry.offset, joined = 0;
    std::int32_t item = 0;
    for (std::size_t f = 0; f < features.size(); ++f) {
      auto& out = content.features[f];
      std::span<const std::int32_t> ids;
      if (handover.from_items[f]) {
        const auto& table = handover.joined[joined++];
        const auto from = static_cast<std::size_t>(table.offsets.at(static_cast<std::size_t>(item)));
        const auto to = static_cast<std::size_t>(table.offsets.at(static_cast<std::size_t>(item) + 1));
        ids = std::span(table.values).subspan(from, to - from);
      } else {
        ids = records.next_ids(at, features[f].multi_valued);
      }
      if (f == 0) item = ids.front();
      out.values.insert(out.values.end(), ids.begin(), ids.end());
      if (features[f].multi_valued) out.offsets.push_back(static_cast<std::int64_t>(out.values.size()));
    }
    if (handover.has_timestamps) content.timestamps.push_back(floor_seconds(entry.time_us));
  }
  if (!entries.empty()) content.offsets.push_back(static_cast<std::int64_t>(entries.size()));

  std::vector<std::int64_t> digests;
  std::string buffer;
  for (std::size_t i = 0; i < content.user_index.size(); ++i) digests.push_back(digest_user(content, handover.schema, i, buffer));
  auto digest_file = h5::File::create(spill / digest_name(shard));
  digest_file.write("index", content.user_index);
  digest_file.write("digest", digests);
  digest_file.close();

  write_shard(directory / shard_name(shard), handover.schema, content,
              {.source_hash = handover.source_hash, .shard = shard, .num_shards = handover.num_shards, .has_timestamps = handover.has_timestamps});
  return content.offsets.back();
}

std::vector<std::int64_t> read_user_digests(const fs::path& spill, std::int64_t num_shards, std::int64_t num_users) {
  std::vector<std::int64_t> out(static_cast<std::size_t>(num_users), 0);
  for (std::int64_t s = 0; s < num_shards; ++s) {
    const auto file = h5::File::open(spill / digest_name(s));
    const auto index = file.read<std::int64_t>("index");
    const auto digest = file.read<std::int64_t>("digest");
    for (std::size_t i = 0; i < index.size(); ++i) out.at(static_cast<std::size_t>(index[i])) = digest.at(i);
  }
  return out;
}

}  // namespace uqa::data::import
