#include "data/dataset.h"

#include <algorithm>

#include <fmt/ranges.h>

#include "core/text.h"
#include "data/manifest.h"
#include "data/shard.h"

namespace uqa::data {

const ItemCatalog::Attribute* ItemCatalog::find(const std::string& name) const {
  const auto at = std::find_if(attributes.begin(), attributes.end(), [&](const Attribute& a) { return a.name == name; });
  return at == attributes.end() ? nullptr : &*at;
}

struct Dataset::Impl {
  /// Where a user's history lies.
  struct Place {
    std::int32_t shard = -1;
    std::int32_t row = 0;
  };
  Manifest manifest;
  ItemCatalog items;
  std::vector<Shard> shards;
  std::vector<Place> places;  ///< [num_users]

  [[nodiscard]] Place place(std::int64_t user) const {
    UQA_CHECK(user >= 0 && user < manifest.num_users, ErrorCode::kInternal, "user = {}, must be in [0, {})", user, manifest.num_users);
    return places[static_cast<std::size_t>(user)];
  }
  [[nodiscard]] static std::int64_t first(const Shard& shard, Place at) { return shard.offsets[static_cast<std::size_t>(at.row)]; }
  [[nodiscard]] static std::int64_t length(const Shard& shard, Place at) {
    return shard.offsets[static_cast<std::size_t>(at.row) + 1] - first(shard, at);
  }

  /// A user's shard and the rows [begin, end) of it that the user's interactions [begin, end) are.
  struct Rows {
    const Shard* shard;
    std::size_t begin, end;
  };
  [[nodiscard]] Rows rows(std::int64_t user, std::int64_t begin, std::int64_t end) const {
    const auto at = place(user);
    const auto& shard = shards[static_cast<std::size_t>(at.shard)];
    UQA_CHECK(0 <= begin && begin <= end && end <= length(shard, at), ErrorCode::kInternal, "interactions [{}, {}) of user {}, who has {}", begin,
              end, user, length(shard, at));
    const auto base = static_cast<std::size_t>(first(shard, at));
    return {&shard, base + static_cast<std::size_t>(begin), base + static_cast<std::size_t>(end)};
  }
};

/// Some of the features.
struct Dataset::View {
  Schema schema;
  std::vector<std::size_t> columns;  ///< of the shards, by feature of `schema`
};

Dataset Dataset::open(const fs::path& directory, ReadMode mode, bool verify) {
  auto impl = std::make_shared<Impl>();
  impl->manifest = read_manifest(directory);
  const auto& manifest = impl->manifest;
  verify_files(directory, manifest, verify);
  impl->items = read_items(directory / manifest.items, manifest.schema.num_items());

  impl->places.resize(static_cast<std::size_t>(manifest.num_users));
  std::int64_t num_interactions = 0, num_users = 0;
  for (const auto& name : manifest.shards) {
    auto shard = Shard::open(directory / name, mode, &manifest.schema);
    UQA_CHECK(!manifest.has_timestamps || static_cast<std::int64_t>(shard.timestamps.size()) == shard.num_interactions(),
              ErrorCode::kData, "{}: timestamps are missing; import the data again", shard.path().string());
    for (std::size_t row = 0; row < shard.user_index.size(); ++row) {
      const auto user = shard.user_index[row];
      UQA_CHECK(user >= 0 && user < manifest.num_users && impl->places[static_cast<std::size_t>(user)].shard < 0, ErrorCode::kData,
                "{}: user {} is out of range or stored twice; import the data again", shard.path().string(), user);
      impl->places[static_cast<std::size_t>(user)] = {.shard = static_cast<std::int32_t>(impl->shards.size()),
                                                       .row = static_cast<std::int32_t>(row)};
    }
    num_users += shard.num_users();
    num_interactions += shard.num_interactions();
    impl->shards.push_back(std::move(shard));
  }
  UQA_CHECK(num_users == manifest.num_users && num_interactions == manifest.num_interactions, ErrorCode::kData,
            "{}: the shards hold {} users and {} interactions, the manifest says {} and {}; import the data again", directory.string(), num_users,
            num_interactions, manifest.num_users, manifest.num_interactions);
  Dataset dataset;
  dataset.impl_ = std::move(impl);
  return dataset;
}

Dataset Dataset::with_features(const std::vector<std::string>& names) const {
  const Schema& all = schema();
  std::vector<std::string> known;
  for (const auto& feature : all.features) known.push_back(feature.name);
  const bool has_item = std::find(known.begin(), known.end(), "item") != known.end();
  std::vector<bool> chosen(known.size());
  for (const auto& name : names) {
    const auto at = std::find(known.begin(), known.end(), name == "item" && !has_item ? known.front() : name);
    UQA_CHECK(at != known.end(), ErrorCode::kConfig, "features: '{}' is not a feature of the data set, which has {}{}; change --features", name,
              fmt::join(known, ", "), suggestion(name, known));
    const auto index = static_cast<std::size_t>(at - known.begin());
    UQA_CHECK(!chosen[index], ErrorCode::kConfig, "features: '{}' is given twice; name it once in --features", *at);
    chosen[index] = true;
  }
  UQA_CHECK(chosen.front(), ErrorCode::kConfig, "features = {}, leaves out the item feature '{}', which is predicted; give --features {}", fmt::join(names, ","),
            known.front(), names.empty() ? known.front() : fmt::format("{},{}", known.front(), fmt::join(names, ",")));
  auto view = std::make_shared<View>();
  for (std::size_t f = 0; f < known.size(); ++f) {
    if (!chosen[f]) continue;
    view->schema.features.push_back(all.features[f]);
    view->columns.push_back(column_of(f));
  }
  for (const auto& table : all.tables) {
    const bool used = std::any_of(view->schema.features.begin(), view->schema.features.end(), [&](const auto& f) { return f.table == table.name; });
    if (used) view->schema.tables.push_back(table);
  }
  Dataset dataset;
  dataset.impl_ = impl_;
  dataset.view_ = std::move(view);
  return dataset;
}

std::size_t Dataset::column_of(std::size_t feature) const { return view_ == nullptr ? feature : view_->columns.at(feature); }

const Schema& Dataset::schema() const { return view_ == nullptr ? impl_->manifest.schema : view_->schema; }
const ItemCatalog& Dataset::items() const { return impl_->items; }
std::int64_t Dataset::num_users() const { return impl_->manifest.num_users; }
std::int64_t Dataset::num_interactions() const { return impl_->manifest.num_interactions; }
const std::string& Dataset::digest() const { return impl_->manifest.digest; }

std::int64_t Dataset::length(std::int64_t user) const {
  const auto at = impl_->place(user);
  return Impl::length(impl_->shards[static_cast<std::size_t>(at.shard)], at);
}

std::string_view Dataset::raw_user_id(std::int64_t user) const {
  const auto at = impl_->place(user);
  const auto& shard = impl_->shards[static_cast<std::size_t>(at.shard)];
  const auto row = static_cast<std::size_t>(at.row);
  const auto begin = static_cast<std::size_t>(shard.id_offsets[row]);
  return {shard.id_bytes.data() + begin, static_cast<std::size_t>(shard.id_offsets[row + 1]) - begin};
}

std::int64_t Dataset::item(std::int64_t user, std::int64_t t) const {
  const auto rows = impl_->rows(user, t, t + 1);
  return rows.shard->features[0].values[rows.begin];
}

std::span<const std::int32_t> Dataset::values(std::size_t feature, std::int64_t user, std::int64_t t) const {
  return values(feature, user, t, t + 1);
}

std::span<const std::int32_t> Dataset::values(std::size_t feature, std::int64_t user, std::int64_t begin, std::int64_t end) const {
  const auto rows = impl_->rows(user, begin, end);
  const auto& column = rows.shard->features.at(column_of(feature));
  if (!schema().features[feature].multi_valued) return column.values.subspan(rows.begin, rows.end - rows.begin);
  const auto from = column.offsets[rows.begin], to = column.offsets[rows.end];
  UQA_CHECK(0 <= from && from <= to && to <= static_cast<std::int64_t>(column.values.size()), ErrorCode::kData,
            "{}: offsets of feature '{}' are damaged; import the data again", rows.shard->path().string(), schema().features[feature].name);
  return column.values.subspan(static_cast<std::size_t>(from), static_cast<std::size_t>(to - from));
}

std::span<const std::int64_t> Dataset::offsets(std::size_t feature, std::int64_t user, std::int64_t begin, std::int64_t end) const {
  const auto rows = impl_->rows(user, begin, end);
  if (!schema().features.at(feature).multi_valued) return {};
  return rows.shard->features[column_of(feature)].offsets.subspan(rows.begin, rows.end - rows.begin + 1);
}

std::span<const std::int64_t> Dataset::timestamps(std::int64_t user, std::int64_t begin, std::int64_t end) const {
  const auto rows = impl_->rows(user, begin, end);
  if (!impl_->manifest.has_timestamps) return {};
  return rows.shard->timestamps.subspan(rows.begin, rows.end - rows.begin);
}

std::optional<std::int64_t> Dataset::timestamp(std::int64_t user, std::int64_t t) const {
  const auto one = timestamps(user, t, t + 1);
  return one.empty() ? std::nullopt : std::optional(one.front());
}

}  // namespace uqa::data
