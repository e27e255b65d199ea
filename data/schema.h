// data/schema.h - what the columns of an interaction log mean: features, the tables they index, item attributes.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "core/json.h"

namespace uqa::data {

/// One embedding table. Its width is a model setting, not a data one.
struct TableSpec {
  std::string name;
  std::int64_t rows = 0;  ///< ids are in [0, rows)
};

/// One input column of every interaction: one id (`multi_valued` false) or a bag of ids of `table`.
struct FeatureSpec {
  std::string name;
  std::string table;
  bool multi_valued = false;
};

/// What an imported data set holds, stored as JSON in its manifest and in every shard.
struct Schema {
  std::vector<TableSpec> tables;
  std::vector<FeatureSpec> features;  ///< in concatenation order; the first one is the item id that is predicted
  [[nodiscard]] const TableSpec& table(const std::string& name) const;  ///< Error(kData) if absent
  [[nodiscard]] std::int64_t num_items() const { return table(features.front().table).rows; }
  [[nodiscard]] Json to_json() const;
  [[nodiscard]] static Schema from_json(const Json& json, const std::string& what);
  bool operator==(const Schema&) const = default;
};
inline bool operator==(const TableSpec& a, const TableSpec& b) { return a.name == b.name && a.rows == b.rows; }
inline bool operator==(const FeatureSpec& a, const FeatureSpec& b) {
  return a.name == b.name && a.table == b.table && a.multi_valued == b.multi_valued;
}

}  // namespace uqa::data
