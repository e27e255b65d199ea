// data/import_schema.h - the schema file that a user writes for `uqa import`: where features are in the source files.
//
// Two layouts. "events": one row an interaction.
//   {"name": "ml-100k", "layout": "events", "format": "recbole",
//    "interactions": {"user": "user_id", "item": "item_id", "time": "timestamp"},
//    "items": {"id": "item_id", "title": "movie_title", "attributes": [{"name": "genre", "column": "class", "separator": " "}]},
//    "features": [{"name": "item_id", "table": "item_id"},
//                 {"name": "genres", "table": "genre", "from": "items", "column": "class", "separator": " "}]}
// "user_rows" (the published layout): one row a user, a list of clicks a column, a list of ids a click.
//   {"name": "uqabench", "layout": "user_rows", "format": "arrow", "tables": {"item_id": 994447},
//    "features": [{"name": "uni_seq_item_id", "table": "item_id"}]}
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "core/file.h"
#include "core/json.h"

namespace uqa::data {

enum class Layout { kEvents, kUserRows };
enum class SourceFormat {
  kRecbole,  ///< atomic files: tab separated, header `name:type`, no quoting
  kCsv,      ///< header, quoting with "
  kParquet,
  kArrow,    ///< Arrow IPC file
};
enum class Transform {
  kNone,
  kYear,  ///< the first number of four digits from 1800 to 2199 in the text, for example of a date or "Heat (1995)"; none: no value
};
enum class TimeUnit { kSeconds, kMilliseconds, kMicroseconds, kNanoseconds };

/// A column and how its text becomes values: with a separator any number of values, without one exactly one (none when empty).
struct SourceColumn {
  std::string column;
  std::string separator;  ///< empty: single-valued
  Transform transform = Transform::kNone;
};

struct SourceFeature {
  std::string name;
  std::string table;
  bool from_items = false;    ///< joined from the item file by item id; else a column of the interactions
  SourceColumn source;        ///< user_rows: only `column`
  bool multi_valued = false;  ///< events: whether there is a separator
};

struct SourceAttribute {
  std::string name;
  SourceColumn source;
};

/// The item file, one row an item.
struct SourceItems {
  std::string file;   ///< name of the file among the inputs; "*SUFFIX" matches by suffix. RecBole: "*.item" unless given
  std::string id;     ///< column
  std::string title;  ///< column; empty: no titles
  std::vector<SourceAttribute> attributes;
};

struct SourceSchema {
  std::string name;
  Layout layout = Layout::kEvents;
  SourceFormat format = SourceFormat::kCsv;
  char csv_separator = ',';
  std::string user;  ///< column; user_rows: may be empty, then the row number over all files is the id
  std::string item;  ///< column (events)
  std::string time;  ///< column; empty: none, and the order of rows is the order of interactions
  TimeUnit time_unit = TimeUnit::kSeconds;
  std::optional<SourceItems> items;
  /// Tables whose ids are integers in the source, with their rows. Ids of other tables are given out by first appearance.
  std::map<std::string, std::int64_t> tables;
  std::vector<SourceFeature> features;  ///< the first is the item id
  Json json;                            ///< the file as read

  /// Throws Error(kConfig) naming the key that is unknown (with the nearest known one), missing or wrong.
  [[nodiscard]] static SourceSchema from_json(const Json& json, const std::string& what);
  [[nodiscard]] static SourceSchema read(const fs::path& path);
  /// Whether `path` is the item file.
  [[nodiscard]] bool is_item_file(const fs::path& path) const;
};

}  // namespace uqa::data
