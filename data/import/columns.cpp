#include "data/import/columns.h"

#include <charconv>
#include <chrono>
#include <cmath>
#include <limits>

#include <arrow/api.h>

#include "core/error.h"
#include "core/text.h"

namespace uqa::data::import {
namespace {

std::int64_t row_of(const ColumnPlace& place, std::int64_t i) { return place.first_row + i + 1; }

[[noreturn]] void wrong_type(const arrow::Array& array, const ColumnPlace& place, const char* wanted) {
  UQA_FAIL(ErrorCode::kData, "{}: column '{}' is of type {}, must be {}; convert the column", place.file, place.column, array.type()->ToString(),
           wanted);
}

[[noreturn]] void missing_value(const ColumnPlace& place, std::int64_t i) {
  UQA_FAIL(ErrorCode::kData, "{} row {}: column '{}' has no value; remove the row or fill it in", place.file, row_of(place, i), place.column);
}

/// Calls `visit` with the array as its concrete integer type; false when it is not an integer array.
template <typename F>
bool visit_integers(const arrow::Array& array, F&& visit) {
  switch (array.type_id()) {
    case arrow::Type::INT8: visit(static_cast<const arrow::Int8Array&>(array)); return true;
    case arrow::Type::INT16: visit(static_cast<const arrow::Int16Array&>(array)); return true;
    case arrow::Type::INT32: visit(static_cast<const arrow::Int32Array&>(array)); return true;
    case arrow::Type::INT64: visit(static_cast<const arrow::Int64Array&>(array)); return true;
    case arrow::Type::UINT8: visit(static_cast<const arrow::UInt8Array&>(array)); return true;
    case arrow::Type::UINT16: visit(static_cast<const arrow::UInt16Array&>(array)); return true;
    case arrow::Type::UINT32: visit(static_cast<const arrow::UInt32Array&>(array)); return true;
    case arrow::Type::UINT64: visit(static_cast<const arrow::UInt64Array&>(array)); return true;
    default: return false;
  }
}

template <typename A>
void views(const A& array, std::vector<std::string_view>& out) {
  for (std::int64_t i = 0; i < array.length(); ++i) out.push_back(array.IsNull(i) ? std::string_view() : array.GetView(i));
}

void convert_text(const arrow::Array& array, const ColumnPlace& place, Column& out) {
  out.text.reserve(static_cast<std::size_t>(array.length()));
  if (array.type_id() == arrow::Type::STRING) return views(static_cast<const arrow::StringArray&>(array), out.text);
  if (array.type_id() == arrow::Type::LARGE_STRING) return views(static_cast<const arrow::LargeStringArray&>(array), out.text);
  if (array.type_id() == arrow::Type::DICTIONARY) {
    const auto& coded = static_cast<const arrow::DictionaryArray&>(array);
    Column words;
    convert_text(*coded.dictionary(), place, words);
    for (auto& word : words.text) {
      // The dictionary may hold integers, whose digits live in `words`.
      if (!words.storage.empty()) word = out.storage.emplace_back(word);
    }
    for (std::int64_t i = 0; i < coded.length(); ++i) {
      out.text.push_back(coded.IsNull(i) ? std::string_view() : words.text.at(static_cast<std::size_t>(coded.GetValueIndex(i))));
    }
    return;
  }
  const bool integers = visit_integers(array, [&](const auto& ints) {
    for (std::int64_t i = 0; i < ints.length(); ++i) {
      out.text.push_back(ints.IsNull(i) ? std::string_view() : std::string_view(out.storage.emplace_back(std::to_string(ints.Value(i)))));
    }
  });
  if (!integers) wrong_type(array, place, "text or integer");
}

std::int64_t units_per_second(TimeUnit unit) {
  switch (unit) {
    case TimeUnit::kSeconds: return 1;
    case TimeUnit::kMilliseconds: return 1'000;
    case TimeUnit::kMicroseconds: return 1'000'000;
    case TimeUnit::kNanoseconds: return 1'000'000'000;
  }
  return 1;
}

std::optional<std::int64_t> to_us(std::int64_t value, TimeUnit unit) {
  constexpr std::int64_t kUs = 1'000'000;
  const std::int64_t per_second = units_per_second(unit);
  if (per_second > kUs) return (value >= 0 ? value : value - (per_second / kUs - 1)) / (per_second / kUs);  // towards the past
  const std::int64_t factor = kUs / per_second;
  if (value > std::numeric_limits<std::int64_t>::max() / factor || value < std::numeric_limits<std::int64_t>::min() / factor) return std::nullopt;
  return value * factor;
}

std::optional<std::int64_t> to_us(double value, TimeUnit unit) {
  const double us = std::floor(value / static_cast<double>(units_per_second(unit)) * 1e6 + 0.5);
  if (!(std::abs(us) < 9e18)) return std::nullopt;  // also NaN
  return static_cast<std::int64_t>(us);
}

std::optional<std::int64_t> digits(std::string_view& text, std::size_t count) {
  if (text.size() < count) return std::nullopt;
  std::int64_t value = 0;
  for (std::size_t i = 0; i < count; ++i) {
    if (text[i] < '0' || text[i] > '9') return std::nullopt;
    value = value * 10 + (text[i] - '0');
  }
  text.remove_prefix(count);
  return value;
}

bool skip(std::string_view& text, char c) {
  if (text.empty() || text.front() != c) return false;
  text.remove_prefix(1);
  return true;
}

std::optional<std::int64_t> parse_iso_us(std::string_view text) {
  const auto year = digits(text, 4);
  if (!year || !skip(text, '-')) return std::nullopt;
  const auto month = digits(text, 2);
  if (!month || !skip(text, '-')) return std::nullopt;
  const auto day = digits(text, 2);
  if (!day) return std::nullopt;
  const std::chrono::year_month_day date{std::chrono::year(static_cast<int>(*year)), std::chrono::month(static_cast<unsigned>(*month)),
                                         std::chrono::day(static_cast<unsigned>(*day))};
  if (!date.ok()) return std::nullopt;
  std::int64_t us = std::chrono::sys_days(date).time_since_epoch().count() * std::int64_t{86'400'000'000};
  if (skip(text, 'T') || skip(text, ' ')) {
    const auto hour = digits(text, 2);
    if (!hour || *hour > 23 || !skip(text, ':')) return std::nullopt;
    const auto minute = digits(text, 2);
    if (!minute || *minute > 59) return std::nullopt;
    us += (*hour * 60 + *minute) * 60'000'000;
    if (skip(text, ':')) {
      const auto second = digits(text, 2);
      if (!second || *second > 60) return std::nullopt;
      us += *second * 1'000'000;
      if (skip(text, '.')) {
        if (text.empty() || text.front() < '0' || text.front() > '9') return std::nullopt;
        for (std::int64_t scale = 100'000; !text.empty() && text.front() >= '0' && text.front() <= '9'; scale /= 10) {
          us += (text.front() - '0') * scale;  // beyond microseconds scale is 0
          text.remove_prefix(1);
        }
      }
    }
  }
  skip(text, 'Z');
  if (!text.empty()) return std::nullopt;
  return us;
}

TimeUnit unit_of(arrow::TimeUnit::type unit) {
  switch (unit) {
    case arrow::TimeUnit::SECOND: return TimeUnit::kSeconds;
    case arrow::TimeUnit::MILLI: return TimeUnit::kMilliseconds;
    case arrow::TimeUnit::MICRO: return TimeUnit::kMicroseconds;
    case arrow::TimeUnit::NANO: return TimeUnit::kNanoseconds;
  }
  return TimeUnit::kSeconds;
}

void convert_time(const arrow::Array& array, TimeUnit unit, const ColumnPlace& place, Column& out) {
  const auto push = [&](std::int64_t i, std::optional<std::int64_t> us, const auto& shown) {
    UQA_CHECK(us.has_value(), ErrorCode::kData,
              "{} row {}: column '{}' = '{}' is not a time; give a number of the schema's time_unit or YYYY-MM-DD HH:MM:SS", place.file,
              row_of(place, i), place.column, shown);
    out.time_us.push_back(*us);
  };
  const auto each = [&](const auto& values, TimeUnit of) {
    for (std::int64_t i = 0; i < values.length(); ++i) {
      if (values.IsNull(i)) missing_value(place, i);
      if constexpr (std::is_floating_point_v<std::decay_t<decltype(values.Value(i))>>) {
        push(i, to_us(static_cast<double>(values.Value(i)), of), values.Value(i));
      } else {
        const auto value = static_cast<std::int64_t>(values.Value(i));
        // Unsigned values above the signed range turn negative: not a time.
        const bool fits = std::is_signed_v<std::decay_t<decltype(values.Value(i))>> || value >= 0;
        push(i, fits ? to_us(value, of) : std::nullopt, values.Value(i));
      }
    }
  };
  out.time_us.reserve(static_cast<std::size_t>(array.length()));
  switch (array.type_id()) {
    case arrow::Type::STRING:
    case arrow::Type::LARGE_STRING: {
      Column words;
      convert_text(array, place, words);
      for (std::size_t i = 0; i < words.text.size(); ++i) {
        if (words.text[i].empty()) missing_value(place, static_cast<std::int64_t>(i));
        push(static_cast<std::int64_t>(i), parse_time_us(words.text[i], unit), words.text[i]);
      }
      return;
    }
    case arrow::Type::FLOAT: return each(static_cast<const arrow::FloatArray&>(array), unit);
    case arrow::Type::DOUBLE: return each(static_cast<const arrow::DoubleArray&>(array), unit);
    case arrow::Type::TIMESTAMP:
      return each(static_cast<const arrow::TimestampArray&>(array), unit_of(static_cast<const arrow::TimestampType&>(*array.type()).unit()));
    default: break;
  }
  if (!visit_integers(array, [&](const auto& ints) { each(ints, unit); })) wrong_type(array, place, "a number, a timestamp or a text");
}

struct Flat {
  std::shared_ptr<arrow::Array> values;  ///< of the rows of the array, from its first offset on
  std::vector<std::int64_t> offsets;     ///< [rows + 1], from 0
};

template <typename A>
Flat flatten(const A& lists) {
  Flat flat;
  const std::int64_t begin = lists.length() == 0 ? 0 : lists.value_offset(0);
  const std::int64_t end = lists.length() == 0 ? 0 : lists.value_offset(lists.length());
  flat.values = lists.values()->Slice(begin, end - begin);
  flat.offsets.reserve(static_cast<std::size_t>(lists.length()) + 1);
  flat.offsets.push_back(0);
  for (std::int64_t i = 1; i <= lists.length(); ++i) flat.offsets.push_back(lists.value_offset(i) - begin);
  return flat;
}

Flat flatten_lists(const arrow::Array& array, const arrow::Array& whole, const ColumnPlace& place) {
  if (array.type_id() == arrow::Type::LIST) return flatten(static_cast<const arrow::ListArray&>(array));
  if (array.type_id() == arrow::Type::LARGE_LIST) return flatten(static_cast<const arrow::LargeListArray&>(array));
  wrong_type(whole, place, "list of lists of integers");
}

void convert_lists(const arrow::Array& array, const ColumnPlace& place, Column& out) {
  auto outer = flatten_lists(array, array, place);
  for (std::int64_t i = 0; i < array.length(); ++i) {
    if (array.IsNull(i)) missing_value(place, i);
  }
  auto inner = flatten_lists(*outer.values, array, place);
  // A null click would silently become an empty bag, or worse, ids that a null slot happens to span.
  UQA_CHECK(outer.values->null_count() == 0 && inner.values->null_count() == 0, ErrorCode::kData,
            "{} rows {} to {}: column '{}' has nulls inside its lists; fill them in", place.file, place.first_row + 1,
            place.first_row + array.length(), place.column);
  out.outer = std::move(outer.offsets);
  out.inner = std::move(inner.offsets);
  out.values.reserve(static_cast<std::size_t>(inner.values->length()));
  const bool integers = visit_integers(*inner.values, [&](const auto& ints) {
    for (std::int64_t i = 0; i < ints.length(); ++i) out.values.push_back(static_cast<std::int64_t>(ints.Value(i)));
  });
  if (!integers) wrong_type(array, place, "list of lists of integers");
}

}  // namespace

std::optional<std::int64_t> parse_time_us(std::string_view text, TimeUnit unit) {
  if (const auto integer = parse_int(text)) return to_us(static_cast<std::int64_t>(*integer), unit);
  if (const auto decimal = parse_double(text)) return to_us(*decimal, unit);
  return parse_iso_us(text);
}

void convert_column(const std::shared_ptr<arrow::Array>& array, ColumnKind kind, TimeUnit unit, const ColumnPlace& place, Column& out) {
  switch (kind) {
    case ColumnKind::kText: return convert_text(*array, place, out);
    case ColumnKind::kTime: return convert_time(*array, unit, place, out);
    case ColumnKind::kIntegerLists: return convert_lists(*array, place, out);
  }
}

}  // namespace uqa::data::import
