#include "data/import/items.h"

#include <algorithm>

#include "core/error.h"
#include "data/import/table_reader.h"

namespace uqa::data::import {
namespace {

std::string_view trim(std::string_view text) {
  while (!text.empty() && text.front() == ' ') text.remove_prefix(1);
  while (!text.empty() && text.back() == ' ') text.remove_suffix(1);
  return text;
}

bool is_digit(char c) { return c >= '0' && c <= '9'; }

/// The first run of exactly four digits that is a year of our time; empty if there is none.
std::string_view find_year(std::string_view text) {
  for (std::size_t begin = 0; begin < text.size();) {
    if (!is_digit(text[begin])) {
      ++begin;
      continue;
    }
    std::size_t end = begin;
    while (end < text.size() && is_digit(text[end])) ++end;
    const auto run = text.substr(begin, end - begin);
    if (run.size() == 4 && run >= "1800" && run <= "2199") return run;
    begin = end;
  }
  return {};
}

std::string_view transformed(std::string_view text, Transform transform) { return transform == Transform::kYear ? find_year(text) : text; }

/// The columns that the schema takes from the item file, each once.
struct WantedColumns {
  std::vector<ColumnRequest> requests;
  std::size_t add(const std::string& name) {
    for (std::size_t i = 0; i < requests.size(); ++i) {
      if (requests[i].name == name) return i;
    }
    requests.push_back({.name = name, .kind = ColumnKind::kText});
    return requests.size() - 1;
  }
};

ItemCatalog::Attribute make_attribute(const SourceAttribute& source, const std::vector<std::string>& texts) {
  ItemCatalog::Attribute attribute{.name = source.name, .vocabulary = {}, .offsets = {0}, .values = {}};
  Vocabulary vocabulary;
  std::vector<std::string_view> values;
  for (const auto& text : texts) {
    split_values(text, source.source, values);
    for (const auto value : values) {
      if (!value.empty()) attribute.values.push_back(static_cast<std::int32_t>(vocabulary.add(value)));
    }
    attribute.offsets.push_back(static_cast<std::int64_t>(attribute.values.size()));
  }
  attribute.vocabulary.assign(vocabulary.texts().begin(), vocabulary.texts().end());
  return attribute;
}

}  // namespace

void split_values(std::string_view text, const SourceColumn& source, std::vector<std::string_view>& out) {
  out.clear();
  if (source.separator.empty()) {
    out.push_back(transformed(text, source.transform));
    return;
  }
  while (true) {
    const auto at = text.find(source.separator);
    const auto piece = transformed(trim(text.substr(0, at)), source.transform);
    if (!piece.empty()) out.push_back(piece);
    if (at == std::string_view::npos) return;
    text.remove_prefix(at + source.separator.size());
  }
}

ItemTable read_item_files(const SourceSchema& schema, const std::vector<fs::path>& inputs, std::map<std::string, TableIds>& tables,
                          const std::vector<bool>& seen) {
  const TableIds& item_ids = tables.at(schema.features.front().table);
  const auto num_items = static_cast<std::size_t>(item_ids.rows());
  ItemTable out;
  out.catalog.raw_ids.assign(item_ids.texts().begin(), item_ids.texts().end());
  if (!schema.items) return out;

  const auto& items = *schema.items;
  WantedColumns wanted;
  const std::size_t id_column = wanted.add(items.id);
  if (!items.title.empty()) wanted.add(items.title);
  for (const auto& attribute : items.attributes) wanted.add(attribute.source.column);
  for (const auto& feature : schema.features) {
    if (feature.from_items) wanted.add(feature.source.column);
  }

  // By column and item; the id column's text is not needed again.
  std::vector<std::vector<std::string>> texts(wanted.requests.size(), std::vector<std::string>(num_items));
  std::vector<std::int64_t> row_of(num_items, 0);
  bool any_file = false;
  for (const auto& path : inputs) {
    if (!schema.is_item_file(path)) continue;
    any_file = true;
    const auto table = TableReader::open(path, schema, wanted.requests);
    while (table->next()) {
      for (std::int64_t r = 0; r < table->num_rows(); ++r) {
        const auto row = static_cast<std::size_t>(r);
        const ValuePlace place{path, table->first_row() + r + 1, items.id};
        const auto raw_id = table->column(id_column).text[row];
        UQA_CHECK(!raw_id.empty(), ErrorCode::kData, "{} row {}: column '{}' is empty; every item needs an id", path.string(), place.row, items.id);
        const auto item = item_ids.find(raw_id, place);
        if (!item || !seen[static_cast<std::size_t>(*item)]) ++out.unused_item_rows;
        if (!item) continue;
        auto& first_row = row_of[static_cast<std::size_t>(*item)];
        UQA_CHECK(first_row == 0, ErrorCode::kData, "{} row {}: item '{}' was described before in row {}; keep one of the rows", path.string(),
                  place.row, raw_id, first_row);
        first_row = place.row;
        for (std::size_t c = 0; c < texts.size(); ++c) {
          if (c != id_column) texts[c][static_cast<std::size_t>(*item)] = table->column(c).text[row];
        }
      }
    }
  }
  UQA_CHECK(any_file, ErrorCode::kConfig, "the schema describes an item file '{}', but no input is named so; add it to --input", items.file);
  for (std::size_t i = 0; i < num_items; ++i) out.items_without_row += seen[i] && row_of[i] == 0 ? 1 : 0;

  if (!items.title.empty()) {
    out.catalog.titles = texts[wanted.add(items.title)];
    for (std::size_t i = 0; i < num_items; ++i) {
      if (out.catalog.titles[i].empty()) out.catalog.titles[i] = out.catalog.raw_ids.empty() ? std::to_string(i) : out.catalog.raw_ids[i];
    }
  }
  for (const auto& attribute : items.attributes) {
    out.catalog.attributes.push_back(make_attribute(attribute, texts[wanted.add(attribute.source.column)]));
  }
  std::vector<std::string_view> values;
  for (const auto& feature : schema.features) {
    if (!feature.from_items) continue;
    auto& joined = out.joined.emplace_back();
    auto& ids = tables.at(feature.table);
    const auto& column = texts[wanted.add(feature.source.column)];
    const fs::path file = items.file;
    for (std::size_t i = 0; i < num_items; ++i) {
      split_values(column[i], feature.source, values);
      for (const auto value : values) {
        if (!seen[i] && value.empty()) {
          joined.values.push_back(0);  // a declared row that no interaction uses: never looked up
        } else {
          joined.values.push_back(ids.id(value, {file, row_of[i], feature.source.column}));
        }
      }
      joined.offsets.push_back(static_cast<std::int64_t>(joined.values.size()));
    }
  }
  return out;
}

}  // namespace uqa::data::import
