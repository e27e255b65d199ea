// data/import/items.h - the item file: titles, attributes, and features that are joined to interactions by item id.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "data/dataset.h"
#include "data/import/table_ids.h"
#include "data/import_schema.h"

namespace uqa::data::import {

/// The values in a source text. Without a separator exactly one, which may be empty; with one, the pieces without the blanks around
/// them and without empty pieces. The views point into `text`.
void split_values(std::string_view text, const SourceColumn& source, std::vector<std::string_view>& out);

/// A feature's ids by item: item i has values[offsets[i] ... offsets[i + 1]).
struct JoinedFeature {
  std::vector<std::int32_t> values;
  std::vector<std::int64_t> offsets{0};
};

struct ItemTable {
  ItemCatalog catalog;
  std::vector<JoinedFeature> joined;      ///< one for each feature that is from the items, in schema order
  std::int64_t items_without_row = 0;
  std::int64_t unused_item_rows = 0;
};

/// Reads the item files among `inputs` after the interactions gave out the item ids. Values of attributes and joined features are
/// numbered by first appearance in the order of item ids. An item without a row gets its id as title and no values; in a
/// single-valued feature its value is the empty text, or an error when the table's ids are integers. `seen[i]`: item i occurs in the
/// interactions. Throws Error(kData): an item with two rows; a missing integer id.
[[nodiscard]] ItemTable read_item_files(const SourceSchema& schema, const std::vector<fs::path>& inputs,
                                        std::map<std::string, TableIds>& tables, const std::vector<bool>& seen);

}  // namespace uqa::data::import
