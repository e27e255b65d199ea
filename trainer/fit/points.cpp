#include "trainer/fit/points.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>

#include "core/error.h"
#include "core/text.h"

namespace uqa::fit {
namespace {

std::string row_name(const Table& table, std::size_t row) { return fmt::format("{}, run {}", table.source, row + 1); }

std::string trimmed(std::string_view text) {
  while (!text.empty() && (text.front() == ' ' || text.front() == '\t')) text.remove_prefix(1);
  while (!text.empty() && (text.back() == ' ' || text.back() == '\t')) text.remove_suffix(1);
  return std::string(text);
}

double positive_at(const Table& table, std::size_t row, std::size_t column) {
  const auto value = number_at(table, row, column);
  UQA_CHECK(value && *value > 0, ErrorCode::kData, "{}: {} = '{}', must be a number above 0; correct or remove the run", row_name(table, row),
            table.columns[column], table.rows[row][column]);
  return *value;
}

}  // namespace

bool Table::has(const std::string& column) const { return std::find(columns.begin(), columns.end(), column) != columns.end(); }

std::size_t Table::find(const std::string& column, const std::string& role) const {
  const auto found = std::find(columns.begin(), columns.end(), column);
  if (found != columns.end()) return static_cast<std::size_t>(found - columns.begin());
  std::string all;
  for (const auto& name : columns) all += (all.empty() ? "" : ", ") + name;
  UQA_FAIL(ErrorCode::kConfig, "column '{}' for {} is not in {}{}; it has: {}", column, role, source, suggestion(column, columns), all);
}

Table read_table(const fs::path& path) {
  const std::string text = read_file(path);
  Table table{.source = path.string(), .columns = {}, .rows = {}};
  std::vector<std::string> cells;
  std::string cell;
  std::size_t line = 1, row_line = 1;
  bool quoted = false, was_quoted = false;
  const auto end_cell = [&] {
    cells.push_back(was_quoted ? cell : trimmed(cell));
    cell.clear();
    was_quoted = false;
  };
  const auto end_row = [&] {
    end_cell();
    const bool blank = cells.size() == 1 && cells.front().empty();
    if (!blank && table.columns.empty()) {
      table.columns = cells;
    } else if (!blank) {
      UQA_CHECK(cells.size() == table.columns.size(), ErrorCode::kData, "{}, line {}: {} cells, the header has {}", table.source, row_line, cells.size(),
                table.columns.size());
      table.rows.push_back(cells);
    }
    cells.clear();
    row_line = line;
  };
  std::size_t i = text.starts_with("\xEF\xBB\xBF") ? 3 : 0;
  for (; i < text.size(); ++i) {
    const char c = text[i];
    if (c == '\n') ++line;
    if (quoted) {
      if (c != '"') {
        cell += c;
      } else if (i + 1 < text.size() && text[i + 1] == '"') {
        cell += text[++i];
      } else {
        quoted = false;
      }
    } else if (c == '"' && trimmed(cell).empty()) {
      cell.clear();
      quoted = was_quoted = true;
    } else if (c == ',') {
      end_cell();
    } else if (c == '\n') {
      end_row();
    } else if (c != '\r') {
      cell += c;
    }
  }
  UQA_CHECK(!quoted, ErrorCode::kData, "{}, line {}: a quoted cell has no end", table.source, row_line);
  if (!cell.empty() || !cells.empty()) end_row();
  UQA_CHECK(!table.columns.empty(), ErrorCode::kData, "{}: no header line, the first line must name the columns", table.source);
  auto sorted = table.columns;
  std::sort(sorted.begin(), sorted.end());
  const auto twice = std::adjacent_find(sorted.begin(), sorted.end());
  UQA_CHECK(twice == sorted.end(), ErrorCode::kData, "{}: column '{}' occurs twice", table.source, *twice);
  return table;
}

Columns parse_columns(const std::string& text) {
  Columns columns;
  for (const auto& part : split(text, ',')) {
    const auto equals = part.find('=');
    UQA_CHECK(equals != std::string::npos && equals > 0 && equals + 1 < part.size(), ErrorCode::kConfig,
              "--columns has '{}', must be ROLE=COLUMN with a role of n, d, c, loss", part);
    const auto role = trimmed(part.substr(0, equals)), column = trimmed(part.substr(equals + 1));
    if (role == "n") {
      columns.n.push_back(column);
    } else if (role == "c") {
      columns.c.push_back(column);
    } else if (role == "d" || role == "loss") {
      auto& field = role == "d" ? columns.d : columns.loss;
      UQA_CHECK(field.empty(), ErrorCode::kConfig, "--columns has {} twice ('{}' and '{}'); only n and c may name several conventions", role, field, column);
      field = column;
    } else {
      UQA_FAIL(ErrorCode::kConfig, "--columns has unknown role '{}'{}; roles are n, d, c, loss", role, suggestion(role, {"n", "d", "c", "loss"}));
    }
  }
  UQA_CHECK(!columns.loss.empty(), ErrorCode::kConfig, "--columns names no loss; add loss=COLUMN");
  UQA_CHECK(!columns.n.empty() || !columns.d.empty() || !columns.c.empty(), ErrorCode::kConfig, "--columns names no size; add n=COLUMN, d=COLUMN or c=COLUMN");
  return columns;
}

Columns study_columns(const Table& table) {
  Columns columns{.n = {}, .c = {}, .d = "d_interactions", .loss = "loss_nats"};
  for (const char* n : {"n_backbone", "n_total"}) columns.n.emplace_back(n);
  for (const char* c : {"c_flops", "c_flops_no_softmax"}) columns.c.emplace_back(c);
  for (const auto& n : columns.n) (void)table.find(n, "N");
  for (const auto& c : columns.c) (void)table.find(c, "C");
  return columns;
}

std::optional<double> number_at(const Table& table, std::size_t row, std::size_t column) {
  const auto& text = table.rows[row][column];
  if (text.empty()) return std::nullopt;
  const auto value = parse_double(text);
  if (value && std::isfinite(*value)) return value;
  char* end = nullptr;  // strtod also knows nan, inf and what overflows
  const bool whole = !std::isfinite(std::strtod(text.c_str(), &end)) && *end == '\0';
  UQA_FAIL(ErrorCode::kData, "{}: {} = '{}' is {}; correct or remove the run", row_name(table, row), table.columns[column], text, whole ? "not finite" : "not a number");
}

Runs select_runs(const Table& table, const Columns& columns) {
  const std::size_t loss = table.find(columns.loss, "loss");
  std::map<std::string, std::size_t> n, c;
  for (const auto& name : columns.n) n[name] = table.find(name, "n");
  for (const auto& name : columns.c) c[name] = table.find(name, "c");
  const std::size_t d = columns.d.empty() ? loss : table.find(columns.d, "d");
  Runs runs;
  for (std::size_t row = 0; row < table.rows.size(); ++row) {
    if (!number_at(table, row, loss)) {
      ++runs.without_loss;
      continue;
    }
    runs.row.push_back(row);
    runs.loss.push_back(positive_at(table, row, loss));
    for (const auto& [name, column] : n) runs.n[name].push_back(positive_at(table, row, column));
    for (const auto& [name, column] : c) runs.c[name].push_back(positive_at(table, row, column));
    if (!columns.d.empty()) runs.d.push_back(positive_at(table, row, d));
  }
  return runs;
}

std::map<std::string, std::vector<std::size_t>> group_runs(const Table& table, const Runs& runs, const std::vector<std::string>& columns) {
  std::vector<std::size_t> varying;
  for (const auto& name : columns) {
    const auto column = table.find(name, "grouping");
    const bool differs = std::any_of(runs.row.begin(), runs.row.end(), [&](std::size_t row) { return table.rows[row][column] != table.rows[runs.row.front()][column]; });
    if (differs) varying.push_back(column);
  }
  std::map<std::string, std::vector<std::size_t>> groups;
  for (std::size_t i = 0; i < runs.size(); ++i) {
    std::string name;
    for (const auto column : varying) name += fmt::format("{}{} = {}", name.empty() ? "" : ", ", table.columns[column], table.rows[runs.row[i]][column]);
    groups[name].push_back(i);
  }
  return groups;
}

Runs keep_runs(const Runs& runs, const std::vector<std::size_t>& indices) {
  Runs kept{.without_loss = runs.without_loss};
  for (const auto i : indices) {
    kept.row.push_back(runs.row[i]);
    kept.loss.push_back(runs.loss[i]);
    if (!runs.d.empty()) kept.d.push_back(runs.d[i]);
    for (const auto& [name, values] : runs.n) kept.n[name].push_back(values[i]);
    for (const auto& [name, values] : runs.c) kept.c[name].push_back(values[i]);
  }
  return kept;
}

}  // namespace uqa::fit
