#include "data/digest.h"

#include <span>

#include "core/hash.h"

namespace uqa::data {
namespace {

template <typename T>
void append(std::string& out, std::span<const T> values) {
  out.append(reinterpret_cast<const char*>(values.data()), values.size_bytes());
}
void append(std::string& out, std::int64_t value) { append(out, std::span<const std::int64_t>(&value, 1)); }

std::string digest_items(const ItemCatalog& items) {
  Json json = {{"titles", items.titles}, {"raw_ids", items.raw_ids}, {"attributes", Json::array()}};
  for (const auto& a : items.attributes) {
    json["attributes"].push_back({{"name", a.name}, {"vocabulary", a.vocabulary}, {"offsets", a.offsets}, {"values", a.values}});
  }
  return hash_hex(json.dump());
}

}  // namespace

std::int64_t digest_user(const ShardContent& content, const Schema& schema, std::size_t i, std::string& buffer) {
  buffer.clear();
  const auto id = content.user_id[i];
  append(buffer, static_cast<std::int64_t>(id.size()));
  buffer += id;
  const auto begin = static_cast<std::size_t>(content.offsets[i]), end = static_cast<std::size_t>(content.offsets[i + 1]);
  append(buffer, static_cast<std::int64_t>(end - begin));
  for (std::size_t f = 0; f < schema.features.size(); ++f) {
    const auto& feature = content.features[f];
    const std::span values(feature.values);
    if (schema.features[f].multi_valued) {
      for (std::size_t t = begin; t < end; ++t) append(buffer, feature.offsets[t + 1] - feature.offsets[t]);
      const auto from = static_cast<std::size_t>(feature.offsets[begin]), to = static_cast<std::size_t>(feature.offsets[end]);
      append<std::int32_t>(buffer, values.subspan(from, to - from));
    } else {
      append<std::int32_t>(buffer, values.subspan(begin, end - begin));
    }
  }
  if (!content.timestamps.empty()) append<std::int64_t>(buffer, std::span(content.timestamps).subspan(begin, end - begin));
  return static_cast<std::int64_t>(hash64(buffer));
}

std::string digest_data(const Schema& schema, const ItemCatalog& items, bool has_timestamps, const std::vector<std::int64_t>& user_digests) {
  const Json head = {{"schema", schema.to_json()}, {"items", digest_items(items)}, {"has_timestamps", has_timestamps}};
  std::string text = head.dump();
  text.append(reinterpret_cast<const char*>(user_digests.data()), user_digests.size() * sizeof(std::int64_t));
  return hash_hex(text);
}

}  // namespace uqa::data
