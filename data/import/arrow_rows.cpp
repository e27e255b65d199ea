#include "data/import/arrow_rows.h"

#include "data/import/table_reader.h"

namespace uqa::data::import {

std::vector<std::string> read_text_column(const fs::path& path, const std::string& column) {
  SourceSchema schema;
  schema.format = SourceFormat::kArrow;
  const auto table = TableReader::open(path, schema, {{.name = column, .kind = ColumnKind::kText}});
  std::vector<std::string> out;
  while (table->next()) out.insert(out.end(), table->column(0).text.begin(), table->column(0).text.end());
  return out;
}

}  // namespace uqa::data::import
