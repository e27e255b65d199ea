#include <numeric>

#include <arrow/api.h>
#include <arrow/io/file.h>
#include <arrow/ipc/writer.h>

#include "data/synth/sinks.h"
#include "data/synth/write.h"

namespace uqa::data::synth {
namespace {

template <typename T>
T value_of(arrow::Result<T> result, const fs::path& path) {
  UQA_CHECK(result.ok(), ErrorCode::kData, "cannot write {}: {}", path.string(), result.status().message());
  return std::move(result).ValueUnsafe();
}
void check(const arrow::Status& status, const fs::path& path) {
  UQA_CHECK(status.ok(), ErrorCode::kData, "cannot write {}: {}; free some space and run again", path.string(), status.message());
}

/// An Arrow IPC file, one record batch after the other.
class File {
 public:
  File(fs::path path, std::shared_ptr<arrow::Schema> schema) : path_(std::move(path)), schema_(std::move(schema)) {
    stream_ = value_of(arrow::io::FileOutputStream::Open(path_.string()), path_);
    writer_ = value_of(arrow::ipc::MakeFileWriter(stream_, schema_), path_);
  }
  void write(std::int64_t rows, std::vector<std::shared_ptr<arrow::Array>> columns) {
    check(writer_->WriteRecordBatch(*arrow::RecordBatch::Make(schema_, rows, std::move(columns))), path_);
  }
  void close() {
    check(writer_->Close(), path_);
    check(stream_->Close(), path_);
  }

 private:
  fs::path path_;
  std::shared_ptr<arrow::Schema> schema_;
  std::shared_ptr<arrow::io::FileOutputStream> stream_;
  std::shared_ptr<arrow::ipc::RecordBatchWriter> writer_;
};

template <typename T>
std::shared_ptr<arrow::Array> numbers(std::vector<T> values) {
  const auto count = static_cast<std::int64_t>(values.size());
  return std::make_shared<typename arrow::CTypeTraits<T>::ArrayType>(count, arrow::Buffer::FromVector(std::move(values)));
}

std::shared_ptr<arrow::Array> list(std::span<const std::int64_t> offsets, std::shared_ptr<arrow::Array> values) {
  std::vector<std::int32_t> narrow(offsets.begin(), offsets.end());
  return std::make_shared<arrow::ListArray>(arrow::list(values->type()), static_cast<std::int64_t>(offsets.size()) - 1,
                                            arrow::Buffer::FromVector(std::move(narrow)), values);
}

std::shared_ptr<arrow::Array> texts(std::int64_t count, const std::function<std::string(std::int64_t)>& text, const fs::path& path) {
  arrow::StringBuilder builder;
  for (std::int64_t i = 0; i < count; ++i) check(builder.Append(text(i)), path);
  std::shared_ptr<arrow::Array> array;
  check(builder.Finish(&array), path);
  return array;
}

class ArrowSink final : public Sink {
 public:
  ArrowSink(const Process& process, fs::path directory) : process_(process), directory_(std::move(directory)), schema_(schema_of(process.config())) {
    std::vector<std::shared_ptr<arrow::Field>> fields;
    for (const auto& feature : schema_.features) fields.push_back(arrow::field(feature.name, arrow::list(arrow::list(arrow::int64()))));
    train_ = std::make_unique<File>(directory_ / "pretrain_data_train.arrow", arrow::schema(fields));
    eval_ = std::make_unique<File>(directory_ / "pretrain_data_eval.arrow", arrow::schema(fields));
  }

  void write(const ShardContent& part) override {
    const auto num_interactions = static_cast<std::size_t>(part.offsets.back());
    std::vector<std::int64_t> single(num_interactions + 1);
    std::iota(single.begin(), single.end(), 0);
    std::vector<std::shared_ptr<arrow::Array>> columns;
    for (std::size_t f = 0; f < part.features.size(); ++f) {
      const auto& feature = part.features[f];
      auto values = numbers(std::vector<std::int64_t>(feature.values.begin(), feature.values.end()));
      columns.push_back(list(part.offsets, list(schema_.features[f].multi_valued ? feature.offsets : single, std::move(values))));
    }
    auto& file = part.user_index.front() < first_eval_user(process_.config()) ? *train_ : *eval_;
    file.write(static_cast<std::int64_t>(part.user_index.size()), std::move(columns));
  }

  void finish(Json& report) override {
    train_->close();
    eval_->close();
    write_items();
    write_file_atomic(directory_ / "schema.json", arrow_schema(process_.config()).dump(2) + "\n");
    write_file_atomic(directory_ / "generator.json", report.dump(2) + "\n");
  }

 private:
  void write_items() const {
    const fs::path path = directory_ / "items.arrow";
    const auto& catalog = process_.catalog();
    File file(path, arrow::schema({arrow::field("item_id", arrow::int64()), arrow::field("title", arrow::utf8()), arrow::field("category", arrow::utf8()),
                                   arrow::field("brand", arrow::utf8()), arrow::field("shop", arrow::utf8())}));
    constexpr std::int64_t kRows = 100'000;
    for (std::int64_t first = 0; first < catalog.num_items(); first += kRows) {
      const auto count = std::min(kRows, catalog.num_items() - first);
      std::vector<std::int64_t> ids(static_cast<std::size_t>(count));
      std::iota(ids.begin(), ids.end(), first);
      const auto item = [&](std::int64_t i) { return static_cast<std::int32_t>(first + i); };
      file.write(count, {numbers(std::move(ids)), texts(count, [&](std::int64_t i) { return catalog.title(item(i)); }, path),
                         texts(count, [&](std::int64_t i) { return Catalog::category_name(catalog.category(item(i))); }, path),
                         texts(count, [&](std::int64_t i) { return Catalog::brand_name(catalog.brand(item(i))); }, path),
                         texts(count, [&](std::int64_t i) { return Catalog::shop_name(catalog.shop(item(i))); }, path)});
    }
    file.close();
  }

  const Process& process_;
  fs::path directory_;
  Schema schema_;
  std::unique_ptr<File> train_, eval_;
};

}  // namespace

std::unique_ptr<Sink> make_arrow_sink(const Process& process, const fs::path& directory) { return std::make_unique<ArrowSink>(process, directory); }

}  // namespace uqa::data::synth
