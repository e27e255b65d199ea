#include "data/import_schema.h"

#include <algorithm>
#include <array>
#include <limits>
#include <set>
#include <utility>

#include <fmt/ranges.h>

#include "core/text.h"

namespace uqa::data {
namespace {

/// One JSON object of the schema file, with the path to it for messages.
class Section {
 public:
  Section(const Json& json, std::string where, const std::vector<std::string>& known) : json_(json), where_(std::move(where)) {
    UQA_CHECK(json_.is_object(), ErrorCode::kConfig, "{} must be a JSON object, is {}", where_, json_.type_name());
    for (const auto& entry : json_.items()) {
      UQA_CHECK(std::find(known.begin(), known.end(), entry.key()) != known.end(), ErrorCode::kConfig, "{}: key '{}' is unknown{}; known are {}",
                where_, entry.key(), suggestion(entry.key(), known), fmt::join(known, ", "));
    }
  }
  [[nodiscard]] bool has(const char* key) const { return json_.contains(key); }
  [[nodiscard]] const Json& at(const char* key) const {
    UQA_CHECK(has(key), ErrorCode::kConfig, "{}: key '{}' is missing; add it", where_, key);
    return json_.at(key);
  }
  /// A text that is not empty.
  [[nodiscard]] std::string text(const char* key) const {
    const Json& value = at(key);
    UQA_CHECK(value.is_string() && !value.get_ref<const std::string&>().empty(), ErrorCode::kConfig, "{}: '{}' = {} must be a text, not empty",
              where_, key, value.dump());
    return value.get<std::string>();
  }
  [[nodiscard]] std::string text_or(const char* key, const std::string& fallback) const { return has(key) ? text(key) : fallback; }
  [[nodiscard]] bool flag_or(const char* key, bool fallback) const {
    if (!has(key)) return fallback;
    UQA_CHECK(at(key).is_boolean(), ErrorCode::kConfig, "{}: '{}' = {} must be true or false", where_, key, at(key).dump());
    return at(key).get<bool>();
  }
  template <typename E, std::size_t N>
  [[nodiscard]] E choice(const char* key, const std::array<std::pair<const char*, E>, N>& choices, std::optional<E> fallback = {}) const {
    if (!has(key) && fallback) return *fallback;
    const std::string value = text(key);
    std::vector<std::string> names;
    for (const auto& [name, e] : choices) {
      if (value == name) return e;
      names.emplace_back(name);
    }
    UQA_FAIL(ErrorCode::kConfig, "{}: '{}' = \"{}\" is unknown{}; use one of {}", where_, key, value, suggestion(value, names),
             fmt::join(names, ", "));
  }
  [[nodiscard]] std::string below(const char* key) const { return where_ + ", " + key; }
  /// Elements of an array, each with its path.
  template <typename F>
  void each(const char* key, F&& visit) const {
    const Json& list = at(key);
    UQA_CHECK(list.is_array(), ErrorCode::kConfig, "{}: '{}' must be a JSON array, is {}", where_, key, list.type_name());
    for (std::size_t i = 0; i < list.size(); ++i) visit(list[i], fmt::format("{}, {}[{}]", where_, key, i));
  }
  [[nodiscard]] const std::string& where() const { return where_; }

 private:
  const Json& json_;
  std::string where_;
};

constexpr std::array kLayouts{std::pair{"events", Layout::kEvents}, std::pair{"user_rows", Layout::kUserRows}};
constexpr std::array kFormats{std::pair{"recbole", SourceFormat::kRecbole}, std::pair{"csv", SourceFormat::kCsv},
                              std::pair{"parquet", SourceFormat::kParquet}, std::pair{"arrow", SourceFormat::kArrow}};
constexpr std::array kTransforms{std::pair{"none", Transform::kNone}, std::pair{"year", Transform::kYear}};
constexpr std::array kTimeUnits{std::pair{"s", TimeUnit::kSeconds}, std::pair{"ms", TimeUnit::kMilliseconds},
                                std::pair{"us", TimeUnit::kMicroseconds}, std::pair{"ns", TimeUnit::kNanoseconds}};

SourceColumn read_column(const Section& section, const std::string& column) {
  return {.column = column,
          .separator = section.text_or("separator", ""),
          .transform = section.choice<Transform>("transform", kTransforms, Transform::kNone)};
}

SourceItems read_items_section(const Json& json, const std::string& where, SourceFormat format) {
  const Section section(json, where, {"file", "id", "title", "attributes"});
  SourceItems items;
  items.file = format == SourceFormat::kRecbole ? section.text_or("file", "*.item") : section.text("file");
  UQA_CHECK(items.file != "*", ErrorCode::kConfig, "{}: 'file' = \"*\" matches every input; give a name or \"*SUFFIX\"", where);
  items.id = section.text("id");
  items.title = section.text_or("title", "");
  std::set<std::string> names;
  if (section.has("attributes")) {
    section.each("attributes", [&](const Json& entry, const std::string& at) {
      const Section attribute(entry, at, {"name", "column", "separator", "transform"});
      const auto name = attribute.text("name");
      UQA_CHECK(names.insert(name).second, ErrorCode::kConfig, "{}: attribute '{}' occurs twice; rename one", at, name);
      items.attributes.push_back({.name = name, .source = read_column(attribute, attribute.text_or("column", name))});
    });
  }
  return items;
}

SourceFeature read_event_feature(const Json& entry, const std::string& at, const SourceSchema& schema, bool first) {
  const Section section(entry, at, {"name", "table", "from", "column", "separator", "transform"});
  constexpr std::array kFrom{std::pair{"interactions", false}, std::pair{"items", true}};
  SourceFeature feature{.name = section.text("name"), .table = section.text("table"), .from_items = section.choice<bool>("from", kFrom, false),
                        .source = {}, .multi_valued = false};
  feature.source = read_column(section, section.text_or("column", first ? schema.item : feature.name));
  feature.multi_valued = !feature.source.separator.empty();
  if (first) {
    UQA_CHECK(!feature.from_items && feature.source.column == schema.item && !feature.multi_valued &&
                  feature.source.transform == Transform::kNone,
              ErrorCode::kConfig, "{}: the first feature is the item id: it must be column '{}' of the interactions as it is", at, schema.item);
  }
  UQA_CHECK(!feature.from_items || schema.items.has_value(), ErrorCode::kConfig,
            "{}: feature '{}' is from the items, but the schema has no 'items' section; add one", at, feature.name);
  return feature;
}

SourceFeature read_row_feature(const Json& entry, const std::string& at, bool first) {
  const Section section(entry, at, {"name", "table", "column", "multi_valued"});
  SourceFeature feature{.name = section.text("name"), .table = section.text("table"), .from_items = false, .source = {},
                        .multi_valued = section.flag_or("multi_valued", false)};
  feature.source.column = section.text_or("column", feature.name);
  UQA_CHECK(!first || !feature.multi_valued, ErrorCode::kConfig, "{}: the first feature is the item id and cannot be multi-valued", at);
  return feature;
}

}  // namespace

SourceSchema SourceSchema::from_json(const Json& json, const std::string& what) {
  UQA_CHECK(json.is_object(), ErrorCode::kConfig, "{} must hold a JSON object, holds {}", what, json.type_name());
  // The layout decides which keys there are, so it is looked at first.
  SourceSchema schema;
  const std::vector<std::string> event_keys{"name", "comment", "layout", "format", "separator", "interactions", "items", "tables", "features"};
  const std::vector<std::string> row_keys{"name", "comment", "layout", "format", "user", "items", "tables", "features"};
  const bool rows = json.contains("layout") && json["layout"] == "user_rows";
  const Section top(json, what, rows ? row_keys : event_keys);
  schema.json = json;
  schema.name = top.text("name");
  schema.layout = top.choice<Layout>("layout", kLayouts);
  schema.format = top.choice<SourceFormat>("format", kFormats);

  if (top.has("tables")) {
    const Json& tables = top.at("tables");
    UQA_CHECK(tables.is_object(), ErrorCode::kConfig, "{}: 'tables' must be a JSON object {{name: rows}}, is {}", what, tables.type_name());
    for (const auto& entry : tables.items()) {
      UQA_CHECK(entry.value().is_number_integer() && entry.value().get<std::int64_t>() >= 1 &&
                    entry.value().get<std::int64_t>() <= std::numeric_limits<std::int32_t>::max(),
                ErrorCode::kConfig, "{}: rows of table '{}' = {} must be an integer in [1, 2^31)", what, entry.key(), entry.value().dump());
      schema.tables[entry.key()] = entry.value().get<std::int64_t>();
    }
  }

  if (schema.layout == Layout::kEvents) {
    const Section events(top.at("interactions"), top.below("interactions"), {"user", "item", "time", "time_unit"});
    schema.user = events.text("user");
    schema.item = events.text("item");
    schema.time = events.text_or("time", "");
    schema.time_unit = events.choice<TimeUnit>("time_unit", kTimeUnits, TimeUnit::kSeconds);
    if (top.has("separator")) {
      const auto separator = top.text("separator");
      UQA_CHECK(schema.format == SourceFormat::kCsv && separator.size() == 1, ErrorCode::kConfig,
                "{}: 'separator' = \"{}\" must be one character, and only for format csv", what, separator);
      schema.csv_separator = separator[0];
    }
    if (top.has("items")) schema.items = read_items_section(top.at("items"), top.below("items"), schema.format);
  } else {
    UQA_CHECK(schema.format == SourceFormat::kArrow || schema.format == SourceFormat::kParquet, ErrorCode::kConfig,
              "{}: layout user_rows has lists in its columns: 'format' must be arrow or parquet", what);
    schema.user = top.text_or("user", "");
    // A file with a row an item: titles and attributes, but no features from it.
    if (top.has("items")) schema.items = read_items_section(top.at("items"), top.below("items"), schema.format);
  }

  std::set<std::string> names;
  std::set<std::string> used_tables;
  top.each("features", [&](const Json& entry, const std::string& at) {
    const bool first = schema.features.empty();
    auto feature = schema.layout == Layout::kEvents ? read_event_feature(entry, at, schema, first) : read_row_feature(entry, at, first);
    UQA_CHECK(names.insert(feature.name).second, ErrorCode::kConfig, "{}: feature '{}' occurs twice; rename one", at, feature.name);
    UQA_CHECK(schema.layout == Layout::kEvents || schema.tables.contains(feature.table), ErrorCode::kConfig,
              "{}: table '{}' must be among 'tables' with its rows: ids of user_rows are integers already", at, feature.table);
    used_tables.insert(feature.table);
    schema.features.push_back(std::move(feature));
  });
  UQA_CHECK(!schema.features.empty(), ErrorCode::kConfig, "{}: 'features' is empty; the first feature is the item id", what);
  const std::vector<std::string> used(used_tables.begin(), used_tables.end());
  for (const auto& [table, num_rows] : schema.tables) {
    UQA_CHECK(used_tables.contains(table), ErrorCode::kConfig, "{}: table '{}' ({} rows) is used by no feature{}; remove it", what, table, num_rows,
              suggestion(table, used));
  }
  return schema;
}

SourceSchema SourceSchema::read(const fs::path& path) {
  const std::string text = read_file(path);
  try {
    return from_json(Json::parse(text), path.string());
  } catch (const Json::parse_error& e) {
    UQA_FAIL(ErrorCode::kConfig, "{} is not valid JSON at byte {}; correct the file", path.string(), e.byte);
  }
}

bool SourceSchema::is_item_file(const fs::path& path) const {
  if (!items) return false;
  const std::string file_name = path.filename().string();
  return items->file.starts_with('*') ? file_name.ends_with(items->file.substr(1)) : file_name == items->file;
}

}  // namespace uqa::data
