#include "data/shard.h"

#include <algorithm>

#include "data/h5.h"
#include "data/manifest.h"

namespace uqa::data {
namespace {

constexpr const char* kShardKind = "uqa.shard";
constexpr const char* kItemsKind = "uqa.items";

void check_header(const h5::File& file, const char* kind) {
  const std::string path = file.path().string();
  const auto stored = file.text_attribute("format");
  UQA_CHECK(stored == kind, ErrorCode::kData, "{}: format is '{}', must be '{}'", path, stored, kind);
  const auto version = file.integer_attribute("format_version");
  UQA_CHECK(version == kFormatVersion, ErrorCode::kData, "{}: format_version = {}, this program reads {}; import the data again", path, version,
            kFormatVersion);
}

/// Offsets must begin at 0, ascend, and end at `total`.
void check_offsets(std::span<const std::int64_t> offsets, std::int64_t total, const std::string& path, const std::string& name) {
  UQA_CHECK(!offsets.empty() && offsets.front() == 0 && offsets.back() == total && std::is_sorted(offsets.begin(), offsets.end()),
            ErrorCode::kData, "{}: '{}' must ascend from 0 to {}; the file is damaged: import the data again", path, name, total);
}

void check_count(std::size_t got, std::int64_t wanted, const std::string& path, const std::string& name) {
  UQA_CHECK(static_cast<std::int64_t>(got) == wanted, ErrorCode::kData, "{}: '{}' has {} elements, must have {}; import the data again", path, name,
            got, wanted);
}

void write_texts(h5::File& file, const std::string& name, const TextColumn& texts) {
  file.write(name, texts.bytes);
  file.write(name + "_offsets", texts.offsets);
}

void write_texts(h5::File& file, const std::string& name, const std::vector<std::string>& texts) {
  TextColumn column;
  for (const auto& text : texts) column.push_back(text);
  write_texts(file, name, column);
}

std::vector<std::string> read_texts(const h5::File& file, const std::string& name) {
  const auto bytes = file.read<char>(name);
  const auto offsets = file.read<std::int64_t>(name + "_offsets");
  check_offsets(offsets, static_cast<std::int64_t>(bytes.size()), file.path().string(), name + "_offsets");
  std::vector<std::string> out;
  out.reserve(offsets.size() - 1);
  for (std::size_t i = 0; i + 1 < offsets.size(); ++i) {
    out.emplace_back(bytes.begin() + offsets[i], bytes.begin() + offsets[i + 1]);
  }
  return out;
}

}  // namespace

void TextColumn::push_back(std::string_view text) {
  bytes.insert(bytes.end(), text.begin(), text.end());
  offsets.push_back(static_cast<std::int64_t>(bytes.size()));
}

std::string_view TextColumn::operator[](std::size_t i) const {
  const auto begin = static_cast<std::size_t>(offsets.at(i));
  return {bytes.data() + begin, static_cast<std::size_t>(offsets.at(i + 1)) - begin};
}

std::string shard_name(std::int64_t k) { return fmt::format("shard-{:05d}.h5", k); }

void write_shard(const fs::path& path, const Schema& schema, const ShardContent& content, const ShardOrigin& origin) {
  auto file = h5::File::create(path);
  file.set_attribute("format", kShardKind);
  file.set_attribute("format_version", kFormatVersion);
  file.set_attribute("schema", schema.to_json().dump());
  file.set_attribute("source_hash", origin.source_hash);
  file.set_attribute("shard", origin.shard);
  file.set_attribute("num_shards", origin.num_shards);
  file.set_attribute("num_users", static_cast<std::int64_t>(content.user_index.size()));
  file.set_attribute("num_interactions", content.offsets.back());
  file.write("users/index", content.user_index);
  write_texts(file, "users/id", content.user_id);
  file.write("users/offsets", content.offsets);
  for (std::size_t f = 0; f < schema.features.size(); ++f) {
    const std::string group = fmt::format("features/{}/", f);
    file.write(group + "values", content.features[f].values);
    if (schema.features[f].multi_valued) file.write(group + "offsets", content.features[f].offsets);
  }
  if (origin.has_timestamps) file.write("timestamps", content.timestamps);
  file.close();
}

Shard Shard::open(const fs::path& path, ReadMode mode, const Schema* schema) {
  Shard shard;
  shard.path_ = path;
  const std::string name = path.string();
  const auto file = h5::File::open(path);
  check_header(file, kShardKind);
  shard.schema_ = Schema::from_json(parse_json(file.text_attribute("schema"), name + " attribute schema"), name + " attribute schema");
  UQA_CHECK(schema == nullptr || *schema == shard.schema_, ErrorCode::kData,
            "{}: its schema is not the manifest's; the file belongs to another data set", name);
  if (mode == ReadMode::kMap) shard.file_ = MappedFile(path);

  const auto load = [&]<typename T>(const std::string& array, std::span<const T>& out) {
    if (mode == ReadMode::kMap) {
      const auto place = file.array<T>(array);
      // The file may have been cut since its size was checked: compare with what is mapped.
      UQA_CHECK(static_cast<std::uint64_t>(place.offset_bytes) + static_cast<std::uint64_t>(place.count) * sizeof(T) <= shard.file_.bytes().size(),
                ErrorCode::kData, "{}: array '{}' reaches beyond the end of the file", name, array);
      out = {reinterpret_cast<const T*>(shard.file_.bytes().data() + place.offset_bytes), static_cast<std::size_t>(place.count)};
    } else {
      const auto copy = std::make_shared<const std::vector<T>>(file.read<T>(array));
      out = *copy;
      shard.copies_.push_back(copy);
    }
  };
  load("users/index", shard.user_index);
  load("users/id", shard.id_bytes);
  load("users/id_offsets", shard.id_offsets);
  load("users/offsets", shard.offsets);
  const auto num_users = file.integer_attribute("num_users");
  const auto num_interactions = file.integer_attribute("num_interactions");
  check_count(shard.user_index.size(), num_users, name, "users/index");
  check_count(shard.id_offsets.size(), num_users + 1, name, "users/id_offsets");
  check_count(shard.offsets.size(), num_users + 1, name, "users/offsets");
  check_offsets(shard.id_offsets, static_cast<std::int64_t>(shard.id_bytes.size()), name, "users/id_offsets");
  check_offsets(shard.offsets, num_interactions, name, "users/offsets");

  shard.features.resize(shard.schema_.features.size());
  for (std::size_t f = 0; f < shard.features.size(); ++f) {
    const std::string group = fmt::format("features/{}/", f);
    auto& feature = shard.features[f];
    load(group + "values", feature.values);
    if (shard.schema_.features[f].multi_valued) {
      load(group + "offsets", feature.offsets);
      check_count(feature.offsets.size(), num_interactions + 1, name, group + "offsets");
      // Reading all of them would touch the whole file; the manifest's checksum stands for what lies between the ends.
      UQA_CHECK(feature.offsets.front() == 0 && feature.offsets.back() == static_cast<std::int64_t>(feature.values.size()), ErrorCode::kData,
                "{}: '{}offsets' must run from 0 to {}; import the data again", name, group, feature.values.size());
    } else {
      check_count(feature.values.size(), num_interactions, name, group + "values");
    }
  }
  if (file.contains("timestamps")) {
    load("timestamps", shard.timestamps);
    check_count(shard.timestamps.size(), num_interactions, name, "timestamps");
  }
  return shard;
}

void write_items(const fs::path& path, const ItemCatalog& items, std::int64_t num_items, const std::string& source_hash) {
  auto file = h5::File::create(path);
  file.set_attribute("format", kItemsKind);
  file.set_attribute("format_version", kFormatVersion);
  file.set_attribute("source_hash", source_hash);
  file.set_attribute("num_items", num_items);
  file.set_attribute("num_attributes", static_cast<std::int64_t>(items.attributes.size()));
  write_texts(file, "items/title", items.titles);
  write_texts(file, "items/id", items.raw_ids);
  for (std::size_t a = 0; a < items.attributes.size(); ++a) {
    const auto& attribute = items.attributes[a];
    const std::string group = fmt::format("items/attributes/{}/", a);
    file.set_attribute(fmt::format("attribute_{}", a), attribute.name);
    write_texts(file, group + "vocabulary", attribute.vocabulary);
    file.write(group + "values", attribute.values);
    file.write(group + "offsets", attribute.offsets);
  }
  file.close();
}

ItemCatalog read_items(const fs::path& path, std::int64_t num_items) {
  const std::string name = path.string();
  const auto file = h5::File::open(path);
  check_header(file, kItemsKind);
  const auto stored = file.integer_attribute("num_items");
  UQA_CHECK(stored == num_items, ErrorCode::kData, "{}: it describes {} items, the schema has {}", name, stored, num_items);
  ItemCatalog items;
  items.titles = read_texts(file, "items/title");
  items.raw_ids = read_texts(file, "items/id");
  if (!items.titles.empty()) check_count(items.titles.size(), num_items, name, "items/title");
  if (!items.raw_ids.empty()) check_count(items.raw_ids.size(), num_items, name, "items/id");
  const auto num_attributes = file.integer_attribute("num_attributes");
  for (std::int64_t a = 0; a < num_attributes; ++a) {
    const std::string group = fmt::format("items/attributes/{}/", a);
    ItemCatalog::Attribute attribute{.name = file.text_attribute(fmt::format("attribute_{}", a)),
                                     .vocabulary = read_texts(file, group + "vocabulary"),
                                     .offsets = file.read<std::int64_t>(group + "offsets"),
                                     .values = file.read<std::int32_t>(group + "values")};
    check_count(attribute.offsets.size(), num_items + 1, name, group + "offsets");
    check_offsets(attribute.offsets, static_cast<std::int64_t>(attribute.values.size()), name, group + "offsets");
    const auto size = static_cast<std::int64_t>(attribute.vocabulary.size());
    UQA_CHECK(std::all_of(attribute.values.begin(), attribute.values.end(), [&](std::int32_t v) { return v >= 0 && v < size; }), ErrorCode::kData,
              "{}: a value of attribute '{}' is outside its vocabulary of {}", name, attribute.name, size);
    items.attributes.push_back(std::move(attribute));
  }
  return items;
}

}  // namespace uqa::data
