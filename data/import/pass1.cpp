#include "data/import/pass1.h"

#include <algorithm>
#include <map>
#include <memory>
#include <optional>
#include <utility>

#include "core/error.h"
#include "core/hash.h"
#include "core/log.h"
#include "core/progress.h"
#include "data/import/spill.h"
#include "data/import/table_reader.h"

namespace uqa::data::import {
namespace {

/// State that grows while rows are read.
class Collector {
 public:
  Collector(const SourceSchema& source, SpillWriter& spill) : source_(source), spill_(spill) {
    for (const auto& feature : source.features) {
      const auto rows = source.tables.find(feature.table);
      tables_.try_emplace(feature.table, feature.table, rows == source.tables.end() ? std::nullopt : std::optional(rows->second));
      if (!feature.from_items) ++num_stored_;
    }
    record_.ids.resize(num_stored_);
  }

  void read_events(TableReader& table, const std::vector<std::size_t>& feature_columns, std::optional<std::size_t> time_column);
  void read_user_rows(TableReader& table, std::size_t first_list, bool has_user_column);

  [[nodiscard]] std::map<std::string, TableIds>& tables() { return tables_; }
  [[nodiscard]] const Vocabulary& users() const { return users_; }
  [[nodiscard]] const std::vector<std::int64_t>& counts() const { return counts_; }
  [[nodiscard]] std::vector<bool> seen_items(std::int64_t num_items) const {
    auto seen = seen_items_;
    seen.resize(static_cast<std::size_t>(num_items), false);
    return seen;
  }

 private:
  std::int64_t count_user(std::string_view raw_id) {
    const std::int64_t user = users_.add(raw_id);
    if (static_cast<std::size_t>(user) == counts_.size()) counts_.push_back(0);
    return user;
  }
  void spill_record() {
    ++counts_[static_cast<std::size_t>(record_.user)];
    const auto item = static_cast<std::size_t>(record_.ids[0][0]);
    if (item >= seen_items_.size()) seen_items_.resize(std::max(item + 1, 2 * seen_items_.size()), false);
    seen_items_[item] = true;
    spill_.add(record_);
  }

  const SourceSchema& source_;
  SpillWriter& spill_;
  std::map<std::string, TableIds> tables_;
  std::size_t num_stored_ = 0;
  Vocabulary users_;
  std::vector<std::int64_t> counts_;  ///< interactions, by user
  std::vector<bool> seen_items_;
  SpillRecord record_;
};

void Collector::read_events(TableReader& table, const std::vector<std::size_t>& feature_columns, std::optional<std::size_t> time_column) {
  const fs::path& file = table.path();
  std::vector<std::string_view> values;
  for (std::int64_t r = 0; r < table.num_rows(); ++r) {
    const auto row = static_cast<std::size_t>(r);
    const std::int64_t row_number = table.first_row() + r + 1;
    const auto raw_user = table.column(0).text[row];
    UQA_CHECK(!raw_user.empty(), ErrorCode::kData, "{} row {}: column '{}' is empty; every interaction needs a user", file.string(), row_number,
              source_.user);
    const auto raw_item = table.column(1).text[row];
    UQA_CHECK(!raw_item.empty(), ErrorCode::kData, "{} row {}: column '{}' is empty; every interaction needs an item", file.string(), row_number,
              source_.item);
    record_.user = count_user(raw_user);
    record_.time_us = time_column ? table.column(*time_column).time_us[row] : 0;
    std::size_t stored = 0;
    for (const auto& feature : source_.features) {
      if (feature.from_items) continue;
      auto& ids = record_.ids[stored];
      ids.clear();
      split_values(table.column(feature_columns[stored]).text[row], feature.source, values);
      auto& table_ids = tables_.at(feature.table);
      for (const auto value : values) ids.push_back(table_ids.id(value, {file, row_number, feature.source.column}));
      ++stored;
    }
    spill_record();
  }
}

void Collector::read_user_rows(TableReader& table, std::size_t first_list, bool has_user_column) {
  const fs::path& file = table.path();
  for (std::int64_t r = 0; r < table.num_rows(); ++r) {
    const auto row = static_cast<std::size_t>(r);
    const std::int64_t row_number = table.first_row() + r + 1;
    const std::string raw_user = has_user_column ? std::string(table.column(0).text[row]) : std::to_string(users_.size());
    UQA_CHECK(!raw_user.empty(), ErrorCode::kData, "{} row {}: column '{}' is empty; every row needs a user", file.string(), row_number,
              source_.user);
    const std::int64_t num_before = users_.size();
    record_.user = count_user(raw_user);
    UQA_CHECK(users_.size() > num_before, ErrorCode::kData, "{} row {}: user '{}' has a row already; one row a user is needed", file.string(),
              row_number, raw_user);
    const auto& items = table.column(first_list);
    const std::int64_t num_clicks = items.outer[row + 1] - items.outer[row];
    for (std::size_t f = 0; f < source_.features.size(); ++f) {
      const auto& lists = table.column(first_list + f);
      UQA_CHECK(lists.outer[row + 1] - lists.outer[row] == num_clicks, ErrorCode::kData,
                "{} row {}: column '{}' has {} clicks and column '{}' has {}; all columns of a row need the same", file.string(), row_number,
                source_.features[f].source.column, lists.outer[row + 1] - lists.outer[row], source_.features[0].source.column, num_clicks);
    }
    for (std::int64_t t = 0; t < num_clicks; ++t) {
      for (std::size_t f = 0; f < source_.features.size(); ++f) {
        const auto& feature = source_.features[f];
        const auto& lists = table.column(first_list + f);
        const auto click = static_cast<std::size_t>(lists.outer[row] + t);
        const auto begin = static_cast<std::size_t>(lists.inner[click]), end = static_cast<std::size_t>(lists.inner[click + 1]);
        UQA_CHECK(feature.multi_valued || end - begin == 1, ErrorCode::kData,
                  "{} row {}: column '{}' has {} ids in click {}, one is needed; declare it \"multi_valued\": true in the schema file", file.string(),
                  row_number, feature.source.column, end - begin, t + 1);
        auto& ids = record_.ids[f];
        ids.clear();
        const auto& table_ids = tables_.at(feature.table);
        for (std::size_t i = begin; i < end; ++i) ids.push_back(table_ids.id(lists.values[i], {file, row_number, feature.source.column}));
      }
      spill_record();
    }
  }
}

/// Progress over the bytes of all inputs, since the number of rows is not known beforehand.
class ByteProgress {
 public:
  ByteProgress(const std::vector<fs::path>& inputs, bool visible) : bar_("import: read", total_kb(inputs), "kB", visible) {}
  void at(const TableReader& table) {
    const auto now = finished_kb_ + static_cast<std::int64_t>(table.fraction() * static_cast<double>(kb(table.path())));
    if (now > shown_kb_) bar_.advance(now - std::exchange(shown_kb_, now));
  }
  void file_done(const fs::path& path) { finished_kb_ += kb(path); }
  void finish() {
    if (finished_kb_ > shown_kb_) bar_.advance(finished_kb_ - shown_kb_);
    bar_.finish();
  }

 private:
  static std::int64_t kb(const fs::path& path) { return static_cast<std::int64_t>(fs::file_size(path) / 1024) + 1; }
  static std::int64_t total_kb(const std::vector<fs::path>& inputs) {
    std::int64_t total = 0;
    for (const auto& path : inputs) total += kb(path);
    return total;
  }
  Progress bar_;
  std::int64_t finished_kb_ = 0, shown_kb_ = 0;
};

/// The columns to ask for, and where each stored feature is among them.
struct Plan {
  std::vector<ColumnRequest> requests;
  std::vector<std::size_t> feature_columns;
  std::optional<std::size_t> time_column;
};

Plan plan_columns(const SourceSchema& schema) {
  Plan plan;
  if (schema.layout == Layout::kUserRows) {
    if (!schema.user.empty()) plan.requests.push_back({.name = schema.user, .kind = ColumnKind::kText});
    for (const auto& feature : schema.features) plan.requests.push_back({.name = feature.source.column, .kind = ColumnKind::kIntegerLists});
    return plan;
  }
  plan.requests.push_back({.name = schema.user, .kind = ColumnKind::kText});
  plan.requests.push_back({.name = schema.item, .kind = ColumnKind::kText});
  for (const auto& feature : schema.features) {
    if (feature.from_items) continue;
    std::size_t at = 0;
    while (at < plan.requests.size() && plan.requests[at].name != feature.source.column) ++at;
    if (at == plan.requests.size()) plan.requests.push_back({.name = feature.source.column, .kind = ColumnKind::kText});
    plan.feature_columns.push_back(at);
  }
  if (!schema.time.empty()) {
    plan.time_column = plan.requests.size();
    plan.requests.push_back({.name = schema.time, .kind = ColumnKind::kTime});
  }
  return plan;
}

std::string hash_source(const SourceSchema& schema, const std::vector<fs::path>& inputs) {
  std::string text = schema.json.dump();
  for (const auto& path : inputs) text += hash_file(path);
  return hash_hex(text);
}

}  // namespace

Pass1 run_pass1(const SourceSchema& schema, const ImportOptions& options, std::int64_t num_shards, const fs::path& spill) {
  Pass1 out;
  auto& handover = out.handover;
  handover.num_shards = num_shards;
  handover.has_timestamps = !schema.time.empty();
  std::vector<bool> stored_multi;
  for (const auto& feature : schema.features) {
    handover.from_items.push_back(feature.from_items);
    if (!feature.from_items) stored_multi.push_back(feature.multi_valued);
  }

  SpillWriter writer(spill, num_shards, stored_multi);
  Collector collector(schema, writer);
  const Plan plan = plan_columns(schema);
  ByteProgress progress(options.inputs, options.progress);
  for (const auto& path : options.inputs) {
    if (schema.is_item_file(path)) {
      progress.file_done(path);
      continue;
    }
    const auto table = TableReader::open(path, schema, plan.requests);
    while (table->next()) {
      if (schema.layout == Layout::kEvents) {
        collector.read_events(*table, plan.feature_columns, plan.time_column);
      } else {
        collector.read_user_rows(*table, schema.user.empty() ? 0 : 1, !schema.user.empty());
      }
      progress.at(*table);
    }
    progress.file_done(path);
  }
  writer.finish();
  progress.finish();

  auto& report = out.report;
  for (std::size_t u = 0; u < collector.counts().size(); ++u) {
    const std::int64_t count = collector.counts()[u];
    handover.final_index.push_back(count < 2 ? -1 : report.num_users);
    handover.user_id.push_back(collector.users().texts()[u]);
    if (count < 2) {
      ++report.dropped_users;
      report.dropped_interactions += count;
    } else {
      ++report.num_users;
      report.num_interactions += count;
    }
  }
  UQA_CHECK(!collector.counts().empty(), ErrorCode::kData, "the input holds no interaction ({} files); give files with rows", options.inputs.size());
  UQA_CHECK(report.num_users > 0, ErrorCode::kData, "all {} users of the input have fewer than 2 interactions; next items need at least 2",
            report.dropped_users);

  const std::int64_t num_items = collector.tables().at(schema.features[0].table).rows();
  auto items = read_item_files(schema, options.inputs, collector.tables(), collector.seen_items(num_items));
  handover.joined = std::move(items.joined);
  out.catalog = std::move(items.catalog);
  report.num_items = num_items;
  report.items_without_row = items.items_without_row;
  report.unused_item_rows = items.unused_item_rows;
  report.num_shards = num_shards;

  for (const auto& feature : schema.features) {
    auto& tables = handover.schema.tables;
    if (std::none_of(tables.begin(), tables.end(), [&](const auto& t) { return t.name == feature.table; })) {
      tables.push_back({.name = feature.table, .rows = collector.tables().at(feature.table).rows()});
    }
    handover.schema.features.push_back({.name = feature.name, .table = feature.table, .multi_valued = feature.multi_valued});
  }
  handover.source_hash = hash_source(schema, options.inputs);
  return out;
}

}  // namespace uqa::data::import
