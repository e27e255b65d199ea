// data/import/table_reader.h - rows of a CSV, RecBole, Parquet or Arrow IPC file in bounded batches, as plain vectors.
//
//   auto table = import::TableReader::open(path, schema, {{"user_id", ColumnKind::kText}, {"timestamp", ColumnKind::kTime}});
//   while (table->next()) for (std::int64_t row = 0; row < table->num_rows(); ++row) use(table->column(0).text[row]);
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "core/file.h"
#include "data/import_schema.h"

namespace uqa::data::import {

enum class ColumnKind {
  kText,          ///< text, or integers as their decimal digits
  kTime,          ///< integer, decimal, timestamp, or ISO 8601 text
  kIntegerLists,  ///< list of lists of integers
};

struct ColumnRequest {
  std::string name;
  ColumnKind kind = ColumnKind::kText;
};

/// One column of one batch; which members are filled depends on the kind.
struct Column {
  std::vector<std::string_view> text;  ///< kText: missing values are empty; valid until the next batch
  std::vector<std::int64_t> time_us;   ///< kTime: microseconds since the epoch
  /// kIntegerLists: row r has the clicks [outer[r], outer[r + 1]); click c has the ids values[inner[c] ... inner[c + 1]).
  std::vector<std::int64_t> outer, inner, values;
  std::deque<std::string> storage;     ///< texts that the file does not hold as such
};

/// Reads one file once, in order. Every message names the file, and the row (from 1, the header not counted) or column.
/// Throws Error(kData): absent column (with the columns there are), wrong type, empty, truncated or corrupt file.
class TableReader {
 public:
  [[nodiscard]] static std::unique_ptr<TableReader> open(const fs::path& path, const SourceSchema& schema,
                                                         std::vector<ColumnRequest> columns);
  virtual ~TableReader() = default;
  /// Loads the next batch; false at the end of the file.
  [[nodiscard]] bool next();
  [[nodiscard]] std::int64_t num_rows() const noexcept { return num_rows_; }
  /// Rows of the batches before this one.
  [[nodiscard]] std::int64_t first_row() const noexcept { return first_row_; }
  /// Share of the file that was read, in [0, 1]; for progress.
  [[nodiscard]] virtual double fraction() const = 0;
  [[nodiscard]] const Column& column(std::size_t i) const { return columns_.at(i); }
  [[nodiscard]] const fs::path& path() const noexcept { return path_; }

 protected:
  TableReader(fs::path path, std::vector<ColumnRequest> requests, TimeUnit unit)
      : path_(std::move(path)), requests_(std::move(requests)), time_unit_(unit) {}
  /// Fills columns_ (cleared before) with the next rows and returns how many; 0 at the end.
  virtual std::int64_t load() = 0;

  fs::path path_;
  std::vector<ColumnRequest> requests_;
  TimeUnit time_unit_;
  std::vector<Column> columns_;

 private:
  std::int64_t num_rows_ = 0;
  std::int64_t first_row_ = 0;
};

}  // namespace uqa::data::import
