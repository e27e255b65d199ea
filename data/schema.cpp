#include "data/schema.h"

#include <algorithm>
#include <limits>
#include <set>

namespace uqa::data {

const TableSpec& Schema::table(const std::string& name) const {
  const auto at = std::find_if(tables.begin(), tables.end(), [&](const TableSpec& t) { return t.name == name; });
  UQA_CHECK(at != tables.end(), ErrorCode::kData, "schema: table '{}' is used but not declared; add it to the tables", name);
  return *at;
}

Json Schema::to_json() const {
  Json json = {{"tables", Json::array()}, {"features", Json::array()}};
  for (const auto& t : tables) json["tables"].push_back({{"name", t.name}, {"rows", t.rows}});
  for (const auto& f : features) json["features"].push_back({{"name", f.name}, {"table", f.table}, {"multi_valued", f.multi_valued}});
  return json;
}

Schema Schema::from_json(const Json& json, const std::string& what) {
  Schema schema;
  std::set<std::string> table_names, feature_names;
  for (const auto& t : get<Json>(json, "tables", what)) {
    TableSpec table{.name = get<std::string>(t, "name", what), .rows = get<std::int64_t>(t, "rows", what)};
    UQA_CHECK(table.rows >= 1 && table.rows <= std::numeric_limits<std::int32_t>::max(), ErrorCode::kData,
              "{}: table '{}' has rows = {}, must be in [1, 2^31)", what, table.name, table.rows);
    UQA_CHECK(table_names.insert(table.name).second, ErrorCode::kData, "{}: table '{}' occurs twice", what, table.name);
    schema.tables.push_back(std::move(table));
  }
  for (const auto& f : get<Json>(json, "features", what)) {
    FeatureSpec feature{.name = get<std::string>(f, "name", what),
                        .table = get<std::string>(f, "table", what),
                        .multi_valued = get<bool>(f, "multi_valued", what)};
    UQA_CHECK(table_names.contains(feature.table), ErrorCode::kData, "{}: feature '{}' uses table '{}', which is not among the tables", what,
              feature.name, feature.table);
    UQA_CHECK(feature_names.insert(feature.name).second, ErrorCode::kData, "{}: feature '{}' occurs twice", what, feature.name);
    schema.features.push_back(std::move(feature));
  }
  UQA_CHECK(!schema.features.empty(), ErrorCode::kData, "{}: there is no feature; the first one is the item id", what);
  UQA_CHECK(!schema.features.front().multi_valued, ErrorCode::kData, "{}: feature '{}' is the item id and must be single-valued", what,
            schema.features.front().name);
  return schema;
}

}  // namespace uqa::data
