// The published Arrow files in miniature: what is imported equals what a plain walk over the Arrow scalars gives.
#include <algorithm>
#include <map>
#include <string>
#include <vector>

#include <arrow/api.h>
#include <arrow/io/api.h>
#include <arrow/ipc/api.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include "core/error.h"
#include "core/json.h"
#include "data/dataset.h"
#include "data/import/arrow_rows.h"
#include "data/import/import.h"
#include "tests/support/fixtures.h"
#include "tests/support/source_dir.h"

namespace uqa::data {
namespace {

/// clicks[t] are the ids of click t.
using Row = std::vector<std::vector<std::int64_t>>;

std::shared_ptr<arrow::Table> read_table(const fs::path& path) {
  const auto file = arrow::io::ReadableFile::Open(path.string()).ValueOrDie();
  return arrow::ipc::RecordBatchFileReader::Open(file).ValueOrDie()->ToTable().ValueOrDie();
}

std::shared_ptr<arrow::Array> list_value(const arrow::Scalar& scalar) { return dynamic_cast<const arrow::BaseListScalar&>(scalar).value; }

/// Goes through scalars and text, so it shares no code with the importer and takes any integer width.
Row read_row(const arrow::ChunkedArray& column, std::int64_t row) {
  Row out;
  const auto clicks = list_value(*column.GetScalar(row).ValueOrDie());
  for (std::int64_t t = 0; t < clicks->length(); ++t) {
    const auto ids = list_value(*clicks->GetScalar(t).ValueOrDie());
    auto& click = out.emplace_back();
    for (std::int64_t i = 0; i < ids->length(); ++i) click.push_back(std::stoll(ids->GetScalar(i).ValueOrDie()->ToString()));
  }
  return out;
}

class ArrowGoldenTest : public ::testing::Test {
 protected:
  ArrowGoldenTest() {
    std::string name = (fs::temp_directory_path() / "uqa_arrow_XXXXXX").string();
    dir_ = ::mkdtemp(name.data());
  }
  ~ArrowGoldenTest() override {
    std::error_code ec;
    fs::remove_all(dir_, ec);
  }
  static std::vector<fs::path> files() {
    std::vector<fs::path> out;
    const fs::path folder = tests::fixtures() / "arrow";
    if (fs::is_directory(folder)) {
      for (const auto& entry : fs::directory_iterator(folder)) {
        if (entry.path().extension() == ".arrow") out.push_back(entry.path());
      }
    }
    std::sort(out.begin(), out.end());
    return out;
  }
  /// The shipped schema, with tables widened where a file's ids need it.
  static SourceSchema schema_for(const arrow::Table& table) {
    auto json = read_json(tests::source_dir() / "recipes/uqabench.schema.json");
    for (const auto& feature : json["features"]) {
      const auto column = table.GetColumnByName(feature["name"]);
      if (column == nullptr) continue;
      for (std::int64_t r = 0; r < table.num_rows(); ++r) {
        for (const auto& click : read_row(*column, r)) {
          for (const auto id : click) {
            auto& rows = json["tables"][feature["table"].get<std::string>()];
            rows = std::max(rows.get<std::int64_t>(), id + 1);
          }
        }
      }
    }
    return SourceSchema::from_json(json, "uqabench.schema.json");
  }
  fs::path dir_;
};

TEST_F(ArrowGoldenTest, EveryRowIsImportedAsItIs) {
  const auto paths = files();
  ASSERT_FALSE(paths.empty()) << "no .arrow file in " << tests::fixtures() / "arrow";
  std::int64_t ids_compared = 0;
  for (const auto& path : paths) {
    SCOPED_TRACE(path.string());
    const auto table = read_table(path);
    const auto schema = schema_for(*table);
    const fs::path output = dir_ / path.stem();
    const auto report = import::run_import(schema, {.inputs = {path}, .output = output, .num_shards = 3});
    const auto data = Dataset::open(output);
    ASSERT_EQ(report.num_users + report.dropped_users, table->num_rows());
    std::int64_t user = 0;
    for (std::int64_t r = 0; r < table->num_rows(); ++r) {
      std::vector<Row> expected;
      for (const auto& feature : schema.features) expected.push_back(read_row(*table->GetColumnByName(feature.source.column), r));
      const auto length = static_cast<std::int64_t>(expected[0].size());
      if (length < 2) continue;
      ASSERT_LT(user, data.num_users());
      ASSERT_EQ(data.length(user), length);
      EXPECT_EQ(data.raw_user_id(user), std::to_string(r));
      for (std::size_t f = 0; f < expected.size(); ++f) {
        for (std::int64_t t = 0; t < length; ++t) {
          const auto got = data.values(f, user, t);
          ASSERT_EQ(std::vector<std::int64_t>(got.begin(), got.end()), expected[f][static_cast<std::size_t>(t)])
              << "row " << r << ", feature " << f << ", click " << t;
          ids_compared += static_cast<std::int64_t>(got.size());
        }
      }
      ++user;
    }
    EXPECT_EQ(user, data.num_users());
  }
  EXPECT_GT(ids_compared, 0);
}

TEST_F(ArrowGoldenTest, TheTextColumnOfTheAlignFilesIsReadWhole) {
  int align_files = 0;
  for (const auto& path : files()) {
    const auto table = read_table(path);
    const auto column = table->GetColumnByName("text");
    if (column == nullptr) {
      EXPECT_THROW((void)import::read_text_column(path), Error);
      continue;
    }
    ++align_files;
    const auto texts = import::read_text_column(path);
    ASSERT_EQ(static_cast<std::int64_t>(texts.size()), table->num_rows());
    for (std::int64_t r = 0; r < table->num_rows(); ++r) {
      EXPECT_EQ(texts[static_cast<std::size_t>(r)], column->GetScalar(r).ValueOrDie()->ToString());
      EXPECT_TRUE(parse_json(texts[static_cast<std::size_t>(r)], "text").is_array());
    }
  }
  EXPECT_GT(align_files, 0) << "no file with a text column in " << tests::fixtures() / "arrow";
}

TEST_F(ArrowGoldenTest, TrainAndEvalFilesTogetherKeepTheirOrder) {
  std::vector<fs::path> inputs;
  std::int64_t num_rows = 0;
  for (const auto& path : files()) {
    if (!path.filename().string().starts_with("pretrain")) continue;
    inputs.push_back(path);
    num_rows += read_table(path)->num_rows();
  }
  ASSERT_GE(inputs.size(), 2U);
  const auto schema = SourceSchema::read(tests::source_dir() / "recipes/uqabench.schema.json");
  const auto one = import::run_import(schema, {.inputs = inputs, .output = dir_ / "one", .num_shards = 1});
  const auto many = import::run_import(schema, {.inputs = inputs, .output = dir_ / "many", .num_shards = 4});
  EXPECT_EQ(one.num_users + one.dropped_users, num_rows);
  EXPECT_EQ(one.digest, many.digest);
  std::reverse(inputs.begin(), inputs.end());
  EXPECT_NE(import::run_import(schema, {.inputs = inputs, .output = dir_ / "reversed"}).digest, one.digest);
}

}  // namespace
}  // namespace uqa::data
