#include "data/import/table_ids.h"

#include <algorithm>
#include <limits>

#include "core/error.h"
#include "core/text.h"

namespace uqa::data::import {

std::int64_t Vocabulary::add(std::string_view text) {
  if (const auto at = numbers_.find(text); at != numbers_.end()) return at->second;
  const std::int64_t number = size();
  numbers_.emplace(texts_.emplace_back(text), number);
  return number;
}

std::optional<std::int64_t> Vocabulary::find(std::string_view text) const {
  const auto at = numbers_.find(text);
  if (at == numbers_.end()) return std::nullopt;
  return at->second;
}

std::int32_t TableIds::parse(std::string_view text, const ValuePlace& place) const {
  const auto value = parse_int(text);
  UQA_CHECK(value.has_value(), ErrorCode::kData,
            "{} row {}: column '{}' = '{}' is not an integer, and table '{}' has declared rows; correct it, or remove the table from 'tables' to "
            "number its texts",
            place.file.string(), place.row, place.column, text, name_);
  return id(static_cast<std::int64_t>(*value), place);
}

std::int32_t TableIds::id(std::int64_t value, const ValuePlace& place) const {
  UQA_CHECK(value >= 0 && value < *declared_rows_, ErrorCode::kData,
            "{} row {}: column '{}' has id {}, outside table '{}' with {} rows; correct the id or the table's rows in the schema file",
            place.file.string(), place.row, place.column, value, name_, *declared_rows_);
  return static_cast<std::int32_t>(value);
}

std::int32_t TableIds::id(std::string_view text, const ValuePlace& place) {
  if (declared()) return parse(text, place);
  const std::int64_t number = vocabulary_.add(text);
  UQA_CHECK(number < std::numeric_limits<std::int32_t>::max(), ErrorCode::kData, "table '{}' has more than 2^31 - 1 ids", name_);
  return static_cast<std::int32_t>(number);
}

std::optional<std::int32_t> TableIds::find(std::string_view text, const ValuePlace& place) const {
  if (declared()) return parse(text, place);
  const auto number = vocabulary_.find(text);
  if (!number) return std::nullopt;
  return static_cast<std::int32_t>(*number);
}

std::int64_t TableIds::rows() const { return declared() ? *declared_rows_ : std::max<std::int64_t>(1, vocabulary_.size()); }

}  // namespace uqa::data::import
