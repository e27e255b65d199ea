// trainer/fit/points.h - a table of runs to fit: any CSV file with one run a line, or points.csv of a study.
//
//   const auto table = read_table("points.csv");
//   const auto runs = select_runs(table, parse_columns("n=Model Size,c=Training FLOP,loss=loss"));
#pragma once

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "core/file.h"

namespace uqa::fit {

/// A CSV file as text; every row has as many cells as there are columns.
struct Table {
  std::string source;
  std::vector<std::string> columns;
  std::vector<std::vector<std::string>> rows;
  [[nodiscard]] bool has(const std::string& column) const;
  /// Index of a column; Error(kConfig) naming the nearest one when it is missing.
  [[nodiscard]] std::size_t find(const std::string& column, const std::string& role) const;
};
/// Reads CSV as RFC 4180 (quotes, quoted commas and line ends, "" inside). Error(kData) naming file and line.
[[nodiscard]] Table read_table(const fs::path& path);

/// Which columns hold what. `n` and `c` may name several conventions: the first is the main one.
struct Columns {
  std::vector<std::string> n, c;
  std::string d, loss;
};
/// "n=COL,d=COL,loss=COL"; n and c may be repeated. Error(kConfig) for an unknown role, a role twice, or no loss.
[[nodiscard]] Columns parse_columns(const std::string& text);
/// The columns of a study's points.csv.
[[nodiscard]] Columns study_columns(const Table& table);

/// Runs with a loss. All vectors have one entry a run.
struct Runs {
  std::vector<std::size_t> row;                          ///< in the table, from 0
  std::map<std::string, std::vector<double>> n, c;       ///< by column
  std::vector<double> d;                                 ///< empty without a column for it
  std::vector<double> loss;
  std::int64_t without_loss = 0;                         ///< rows left out since their loss is empty (not finished)
  [[nodiscard]] std::size_t size() const { return loss.size(); }
};
/// Error(kData) naming row and column for a value that is not a finite number above 0.
[[nodiscard]] Runs select_runs(const Table& table, const Columns& columns);
/// Runs by the values of these columns: "encoder = sasrec, max_len = 64" -> indices; values that are the same for all runs are left out of the name. One group
/// with an empty name without columns. Error(kConfig) naming a column that is missing.
[[nodiscard]] std::map<std::string, std::vector<std::size_t>> group_runs(const Table& table, const Runs& runs, const std::vector<std::string>& columns);
/// Leaves only these runs.
[[nodiscard]] Runs keep_runs(const Runs& runs, const std::vector<std::size_t>& indices);

/// A cell as a finite number, nullopt when it is empty; Error(kData) naming row and column otherwise.
[[nodiscard]] std::optional<double> number_at(const Table& table, std::size_t row, std::size_t column);

}  // namespace uqa::fit
