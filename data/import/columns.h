// data/import/columns.h - Arrow arrays to the plain columns of table_reader.h.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include <arrow/type_fwd.h>

#include "data/import/table_reader.h"

namespace uqa::data::import {

/// What a message needs to say where it happened.
struct ColumnPlace {
  std::string file;
  std::string column;
  std::int64_t first_row = 0;  ///< rows of the file before this array
};

/// Throws Error(kData) when `array` is of a type that `kind` cannot come from, or holds a null or value that it may not.
void convert_column(const std::shared_ptr<arrow::Array>& array, ColumnKind kind, TimeUnit unit, const ColumnPlace& place, Column& out);

/// Microseconds since the epoch from an integer or decimal number of `unit`s, or "YYYY-MM-DD[( |T)HH:MM[:SS[.fraction]]][Z]" in UTC.
/// nullopt when it is neither or does not fit.
[[nodiscard]] std::optional<std::int64_t> parse_time_us(std::string_view text, TimeUnit unit);

}  // namespace uqa::data::import
