#include "data/import/table_reader.h"

#include <algorithm>
#include <cstring>
#include <functional>
#include <optional>
#include <set>
#include <utility>

#include <arrow/api.h>
#include <arrow/csv/api.h>
#include <arrow/io/api.h>
#include <arrow/ipc/api.h>
#include <fmt/ranges.h>
#include <parquet/arrow/reader.h>
#include <parquet/exception.h>
#include <parquet/file_reader.h>

#include "core/error.h"
#include "core/text.h"
#include "data/import/columns.h"

namespace uqa::data::import {
namespace {

constexpr std::int64_t kFlatRows = 65536;  ///< rows converted at a time
constexpr std::int64_t kListRows = 512;    ///< the same where a row is a whole history
constexpr std::int32_t kCsvBlockBytes = 8 << 20;

std::string one_line(std::string text) {
  std::replace(text.begin(), text.end(), '\n', ' ');
  return text;
}

template <typename T>
T value_or_throw(arrow::Result<T> result, const fs::path& path, const char* format) {
  UQA_CHECK(result.ok(), ErrorCode::kData, "{} cannot be read as {}: {}; the file may be cut or damaged", path.string(), format,
            one_line(result.status().message()));
  return std::move(result).ValueUnsafe();
}

void ok_or_throw(const arrow::Status& status, const fs::path& path, const char* format) {
  UQA_CHECK(status.ok(), ErrorCode::kData, "{} cannot be read as {}: {}; the file may be cut or damaged", path.string(), format,
            one_line(status.message()));
}

/// Position of each requested column among `names`.
std::vector<int> find_columns(const std::vector<ColumnRequest>& requests, const std::vector<std::string>& names, const fs::path& path) {
  std::vector<int> out;
  for (const auto& request : requests) {
    const auto at = std::find(names.begin(), names.end(), request.name);
    UQA_CHECK(at != names.end(), ErrorCode::kData, "{} has no column '{}'{}; it has {}: correct the schema file", path.string(), request.name,
              suggestion(request.name, names), fmt::join(names, ", "));
    UQA_CHECK(std::find(at + 1, names.end(), request.name) == names.end(), ErrorCode::kData, "{} has column '{}' twice; rename one", path.string(),
              request.name);
    out.push_back(static_cast<int>(at - names.begin()));
  }
  return out;
}

/// Turns a source of record batches into columns of bounded size.
class BatchTableReader : public TableReader {
 public:
  /// Returns null at the end.
  using Source = std::function<std::shared_ptr<arrow::RecordBatch>()>;

  BatchTableReader(fs::path path, std::vector<ColumnRequest> requests, TimeUnit unit, std::vector<std::string> stored_names, const char* format,
                   Source source, std::function<double()> fraction)
      : TableReader(std::move(path), std::move(requests), unit),
        stored_names_(std::move(stored_names)),
        format_(format),
        source_(std::move(source)),
        fraction_(std::move(fraction)) {
    const bool lists = std::any_of(requests_.begin(), requests_.end(), [](const auto& r) { return r.kind == ColumnKind::kIntegerLists; });
    rows_at_a_time_ = lists ? kListRows : kFlatRows;
  }
  [[nodiscard]] double fraction() const override { return std::clamp(fraction_(), 0.0, 1.0); }

 protected:
  std::int64_t load() override {
    while (batch_ == nullptr || at_ == batch_->num_rows()) {
      batch_ = source_();
      at_ = 0;
      if (batch_ == nullptr) return 0;
      // Offsets and lengths inside a damaged file must not lead outside of it.
      ok_or_throw(batch_->ValidateFull(), path_, format_);
    }
    const std::int64_t num = std::min(rows_at_a_time_, batch_->num_rows() - at_);
    for (std::size_t i = 0; i < requests_.size(); ++i) {
      const auto array = batch_->GetColumnByName(stored_names_[i]);
      UQA_CHECK(array != nullptr, ErrorCode::kData, "{} has no column '{}' in every part; the file is damaged", path_.string(), requests_[i].name);
      convert_column(array->Slice(at_, num), requests_[i].kind, time_unit_,
                     {.file = path_.string(), .column = requests_[i].name, .first_row = rows_done_}, columns_[i]);
    }
    at_ += num;
    rows_done_ += num;
    return num;
  }

 private:
  std::vector<std::string> stored_names_;
  const char* format_;
  Source source_;
  std::function<double()> fraction_;
  std::int64_t rows_at_a_time_;
  std::shared_ptr<arrow::RecordBatch> batch_;
  std::int64_t at_ = 0;
  std::int64_t rows_done_ = 0;
};

std::shared_ptr<arrow::csv::StreamingReader> open_csv(const fs::path& path, const arrow::csv::ParseOptions& parse,
                                                      const arrow::csv::ConvertOptions& convert) {
  const auto input = value_or_throw(arrow::io::ReadableFile::Open(path.string()), path, "CSV");
  auto read = arrow::csv::ReadOptions::Defaults();
  read.use_threads = false;  // no read-ahead: bounded memory
  read.block_size = kCsvBlockBytes;
  return value_or_throw(arrow::csv::StreamingReader::Make(arrow::io::default_io_context(), input, read, parse, convert), path, "CSV");
}

/// RecBole's header has `name:type`; the part before the last colon is the name.
std::string plain_name(const std::string& stored, SourceFormat format) {
  return format == SourceFormat::kRecbole ? stored.substr(0, stored.rfind(':')) : stored;
}

std::unique_ptr<TableReader> open_text(const fs::path& path, const SourceSchema& schema, std::vector<ColumnRequest> requests) {
  const bool recbole = schema.format == SourceFormat::kRecbole;
  auto parse = arrow::csv::ParseOptions::Defaults();
  parse.delimiter = recbole ? '\t' : schema.csv_separator;
  parse.quoting = !recbole;
  parse.newlines_in_values = !recbole;
  auto convert = arrow::csv::ConvertOptions::Defaults();

  std::vector<std::string> stored, names;
  const auto layout = open_csv(path, parse, convert)->schema();
  for (const auto& field : layout->fields()) {
    stored.push_back(field->name());
    names.push_back(plain_name(field->name(), schema.format));
  }
  std::vector<std::string> wanted;
  for (const int i : find_columns(requests, names, path)) {
    wanted.push_back(stored[static_cast<std::size_t>(i)]);
    convert.column_types[wanted.back()] = arrow::utf8();  // never guessed: "007" is not 7
  }
  // A column may be asked for twice (as time and as feature); included twice, it could not be found by its name.
  for (const auto& name : wanted) {
    if (std::find(convert.include_columns.begin(), convert.include_columns.end(), name) == convert.include_columns.end()) convert.include_columns.push_back(name);
  }
  convert.strings_can_be_null = false;
  const auto reader = open_csv(path, parse, convert);
  return std::make_unique<BatchTableReader>(
      path, std::move(requests), schema.time_unit, std::move(wanted), "CSV",
      [path, reader] {
        std::shared_ptr<arrow::RecordBatch> batch;
        ok_or_throw(reader->ReadNext(&batch), path, "CSV");
        return batch;
      },
      [reader, size = static_cast<double>(fs::file_size(path))] { return static_cast<double>(reader->bytes_read()) / size; });
}

std::unique_ptr<TableReader> open_arrow(const fs::path& path, const SourceSchema& schema, std::vector<ColumnRequest> requests) {
  const auto input = value_or_throw(arrow::io::MemoryMappedFile::Open(path.string(), arrow::io::FileMode::READ), path, "Arrow IPC file");
  const auto layout = value_or_throw(arrow::ipc::RecordBatchFileReader::Open(input), path, "Arrow IPC file");
  const auto columns = find_columns(requests, layout->schema()->field_names(), path);
  auto options = arrow::ipc::IpcReadOptions::Defaults();
  options.included_fields = columns;
  options.use_threads = false;
  const auto reader = value_or_throw(arrow::ipc::RecordBatchFileReader::Open(input, options), path, "Arrow IPC file");
  std::vector<std::string> wanted;
  for (const auto& request : requests) wanted.push_back(request.name);
  const auto next = std::make_shared<int>(0);
  return std::make_unique<BatchTableReader>(
      path, std::move(requests), schema.time_unit, std::move(wanted), "Arrow IPC file",
      [path, reader, next]() -> std::shared_ptr<arrow::RecordBatch> {
        if (*next == reader->num_record_batches()) return nullptr;
        return value_or_throw(reader->ReadRecordBatch((*next)++), path, "Arrow IPC file");
      },
      [reader, next] { return static_cast<double>(*next) / std::max(1, reader->num_record_batches()); });
}

std::unique_ptr<TableReader> open_parquet(const fs::path& path, const SourceSchema& schema, std::vector<ColumnRequest> requests) {
  constexpr const char* kFormat = "Parquet";
  parquet::arrow::FileReaderBuilder builder;
  ok_or_throw(builder.OpenFile(path.string()), path, kFormat);
  auto properties = parquet::default_arrow_reader_properties();
  const bool lists = std::any_of(requests.begin(), requests.end(), [](const auto& r) { return r.kind == ColumnKind::kIntegerLists; });
  properties.set_batch_size(lists ? kListRows : kFlatRows);
  properties.set_use_threads(false);
  builder.properties(properties);
  std::unique_ptr<parquet::arrow::FileReader> built;
  ok_or_throw(builder.Build(&built), path, kFormat);
  const std::shared_ptr<parquet::arrow::FileReader> file = std::move(built);
  std::shared_ptr<arrow::Schema> layout;
  ok_or_throw(file->GetSchema(&layout), path, kFormat);
  (void)find_columns(requests, layout->field_names(), path);
  // A list column is stored as a leaf below its name.
  std::set<std::string> names;
  for (const auto& request : requests) names.insert(request.name);
  const auto metadata = file->parquet_reader()->metadata();
  std::vector<int> leaves, groups;
  for (int i = 0; i < metadata->num_columns(); ++i) {
    if (names.contains(metadata->schema()->Column(i)->path()->ToDotVector().front())) leaves.push_back(i);
  }
  for (int i = 0; i < metadata->num_row_groups(); ++i) groups.push_back(i);
  const std::shared_ptr<arrow::RecordBatchReader> reader = value_or_throw(file->GetRecordBatchReader(groups, leaves), path, kFormat);
  std::vector<std::string> wanted;
  for (const auto& request : requests) wanted.push_back(request.name);
  const auto rows_read = std::make_shared<std::int64_t>(0);
  const auto num_rows = static_cast<double>(std::max<std::int64_t>(1, metadata->num_rows()));
  // The batches come from `file`, so it is kept as long as they are asked for.
  return std::make_unique<BatchTableReader>(
      path, std::move(requests), schema.time_unit, std::move(wanted), kFormat,
      [path, file, reader, rows_read] {
        std::shared_ptr<arrow::RecordBatch> batch;
        ok_or_throw(reader->ReadNext(&batch), path, kFormat);
        if (batch != nullptr) *rows_read += batch->num_rows();
        return batch;
      },
      [rows_read, num_rows] { return static_cast<double>(*rows_read) / num_rows; });
}

}  // namespace

std::unique_ptr<TableReader> TableReader::open(const fs::path& path, const SourceSchema& schema, std::vector<ColumnRequest> columns) {
  std::error_code ec;
  UQA_CHECK(fs::is_regular_file(path, ec), ErrorCode::kData, "input {} is not a file; give the path of an existing one", path.string());
  UQA_CHECK(fs::file_size(path) > 0, ErrorCode::kData, "input {} is empty (0 bytes); give a file with rows", path.string());
  try {
    switch (schema.format) {
      case SourceFormat::kRecbole:
      case SourceFormat::kCsv: return open_text(path, schema, std::move(columns));
      case SourceFormat::kParquet: return open_parquet(path, schema, std::move(columns));
      case SourceFormat::kArrow: return open_arrow(path, schema, std::move(columns));
    }
  } catch (const parquet::ParquetException& e) {
    UQA_FAIL(ErrorCode::kData, "{} cannot be read as Parquet: {}; the file may be cut or damaged", path.string(), one_line(e.what()));
  }
  UQA_FAIL(ErrorCode::kInternal, "source format {} is not handled", static_cast<int>(schema.format));
}

bool TableReader::next() {
  first_row_ += num_rows_;
  columns_.assign(requests_.size(), {});
  try {
    num_rows_ = load();
  } catch (const parquet::ParquetException& e) {
    UQA_FAIL(ErrorCode::kData, "{} cannot be read as Parquet: {}; the file may be cut or damaged", path_.string(), one_line(e.what()));
  }
  return num_rows_ > 0;
}

}  // namespace uqa::data::import
