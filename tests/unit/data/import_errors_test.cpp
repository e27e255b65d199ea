#include <arrow/api.h>
#include <arrow/io/api.h>
#include <arrow/ipc/api.h>
#include <parquet/arrow/writer.h>

#include "data/import/arrow_rows.h"
#include "tests/support/source_dir.h"
#include "tests/unit/data/fixture.h"

namespace uqa::data {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::StartsWith;

class ImportErrorsTest : public DataTest {
 protected:
  std::string error_of_csv(const std::string& csv, const SourceSchema& schema = csv_schema()) const {
    const auto input = write("bad.csv", csv);
    const auto text = error_of([&] { (void)import_files(schema, {input}, "out"); });
    EXPECT_FALSE(fs::exists(dir_ / "out"));
    EXPECT_FALSE(fs::exists(dir_ / "out.tmp"));
    return text;
  }

  static SourceSchema rows_schema(const std::string& format, const std::string& extra = "") {
    return SourceSchema::from_json(Json::parse(R"({"name": "rows", "layout": "user_rows", "format": ")" + format + R"(", )" + extra + R"(
      "tables": {"item": 10, "word": 5},
      "features": [{"name": "items", "table": "item"}, {"name": "words", "table": "word", "multi_valued": true}]})"),
                                   "schema");
  }

  using Lists = std::vector<std::vector<std::vector<std::int64_t>>>;
  static std::shared_ptr<arrow::Array> lists_array(const Lists& rows) {
    auto ids = std::make_shared<arrow::Int64Builder>();
    auto clicks = std::make_shared<arrow::ListBuilder>(arrow::default_memory_pool(), ids);
    arrow::ListBuilder users(arrow::default_memory_pool(), clicks);
    for (const auto& row : rows) {
      EXPECT_TRUE(users.Append().ok());
      for (const auto& click : row) {
        EXPECT_TRUE(clicks->Append().ok());
        EXPECT_TRUE(ids->AppendValues(click).ok());
      }
    }
    return users.Finish().ValueOrDie();
  }
  static std::shared_ptr<arrow::Table> rows_table(const Lists& items, const Lists& words) {
    const auto a = lists_array(items), b = lists_array(words);
    return arrow::Table::Make(arrow::schema({arrow::field("items", a->type()), arrow::field("words", b->type())}), {a, b});
  }
  fs::path write_arrow(const std::string& name, const std::shared_ptr<arrow::Table>& table) const {
    const auto out = arrow::io::FileOutputStream::Open((dir_ / name).string()).ValueOrDie();
    const auto writer = arrow::ipc::MakeFileWriter(out, table->schema()).ValueOrDie();
    EXPECT_TRUE(writer->WriteTable(*table).ok());
    EXPECT_TRUE(writer->Close().ok());
    EXPECT_TRUE(out->Close().ok());
    return dir_ / name;
  }
  fs::path write_parquet(const std::string& name, const std::shared_ptr<arrow::Table>& table) const {
    const auto out = arrow::io::FileOutputStream::Open((dir_ / name).string()).ValueOrDie();
    EXPECT_TRUE(parquet::arrow::WriteTable(*table, arrow::default_memory_pool(), out, 2).ok());
    EXPECT_TRUE(out->Close().ok());
    return dir_ / name;
  }
  static std::shared_ptr<arrow::Table> good_rows() {
    return rows_table({{{1}, {2}, {3}}, {{9}}, {{4}, {5}}}, {{{0, 1}, {}, {4}}, {{}}, {{2}, {3, 3}}});
  }
  std::string error_of_rows(const std::shared_ptr<arrow::Table>& table) const {
    const auto input = write_arrow("bad.arrow", table);
    return error_of([&] { (void)import_files(rows_schema("arrow"), {input}, "out"); });
  }
};

TEST_F(ImportErrorsTest, AbsentColumnIsNamedWithThoseThereAre) {
  EXPECT_THAT(error_of_csv("user,itm,time,tags\n1,2,3,4\n"),
              AllOf(StartsWith("3: "), HasSubstr("bad.csv has no column 'item'"), HasSubstr("'itm'"), HasSubstr("user, itm, time, tags")));
}

TEST_F(ImportErrorsTest, EmptyAndMissingFilesAreRefused) {
  EXPECT_THAT(error_of_csv(""), AllOf(StartsWith("3: "), HasSubstr("empty")));
  EXPECT_THAT(error_of_csv("user,item,time,tags\n"), AllOf(StartsWith("3: "), HasSubstr("no interaction")));
  EXPECT_THAT(error_of([&] { (void)import_files(csv_schema(), {dir_ / "absent.csv"}, "out"); }), AllOf(StartsWith("3: "), HasSubstr("absent.csv")));
  EXPECT_THAT(error_of([&] { (void)import_files(csv_schema(), {}, "out"); }), AllOf(StartsWith("2: "), HasSubstr("--input")));
}

TEST_F(ImportErrorsTest, DataSetOfSingleInteractionUsersIsRefused) {
  EXPECT_THAT(error_of_csv("user,item,time,tags\na,1,1,\nb,1,1,\n"), AllOf(StartsWith("3: "), HasSubstr("all 2 users"), HasSubstr("fewer than 2")));
}

TEST_F(ImportErrorsTest, EmptyIdsAndBadTimesNameTheirRow) {
  EXPECT_THAT(error_of_csv("user,item,time,tags\na,1,1,\n,1,1,\n"), AllOf(StartsWith("3: "), HasSubstr("row 2"), HasSubstr("'user' is empty")));
  EXPECT_THAT(error_of_csv("user,item,time,tags\na,1,1,\nb,,1,\n"), AllOf(StartsWith("3: "), HasSubstr("row 2"), HasSubstr("'item' is empty")));
  EXPECT_THAT(error_of_csv("user,item,time,tags\na,1,1,\na,1,noon,\n"), AllOf(StartsWith("3: "), HasSubstr("row 2"), HasSubstr("'noon'")));
  EXPECT_THAT(error_of_csv("user,item,time,tags\na,1,1,\na,1,,\n"), AllOf(StartsWith("3: "), HasSubstr("row 2"), HasSubstr("'time'")));
}

TEST_F(ImportErrorsTest, CsvRowsOfAnotherLengthAreRefused) {
  EXPECT_THAT(error_of_csv("user,item,time,tags\na,1,1\n"), AllOf(StartsWith("3: "), HasSubstr("bad.csv"), HasSubstr("CSV")));
}

TEST_F(ImportErrorsTest, DeclaredIdsMustBeIntegersInsideTheTable) {
  const auto schema = SourceSchema::from_json(Json::parse(R"({"name": "t", "layout": "events", "format": "csv", "tables": {"item": 10},
    "interactions": {"user": "u", "item": "i"}, "features": [{"name": "i", "table": "item"}]})"),
                                              "schema");
  EXPECT_THAT(error_of_csv("u,i\na,9\na,10\n", schema), AllOf(StartsWith("3: "), HasSubstr("row 2"), HasSubstr("id 10"), HasSubstr("10 rows")));
  EXPECT_THAT(error_of_csv("u,i\na,9\na,-1\n", schema), AllOf(StartsWith("3: "), HasSubstr("id -1")));
  EXPECT_THAT(error_of_csv("u,i\na,x1\na,1\n", schema), AllOf(StartsWith("3: "), HasSubstr("row 1"), HasSubstr("'x1' is not an integer")));
}

TEST_F(ImportErrorsTest, ItemWithTwoRowsIsRefused) {
  const auto schema = SourceSchema::read(tests::source_dir() / "recipes/ml-100k.schema.json");
  const auto inter = write("a.inter", "user_id:token\titem_id:token\ttimestamp:float\n1\t5\t1\n1\t6\t2\n");
  const std::string header = "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n";
  const auto items = write("a.item", header + "5\tA\t1990\tX\n6\tB\t1990\tX\n5\tC\t1991\tY\n");
  EXPECT_THAT(error_of([&] { (void)import_files(schema, {inter, items}, "out"); }),
              AllOf(StartsWith("3: "), HasSubstr("row 3"), HasSubstr("item '5'"), HasSubstr("row 1")));
  EXPECT_THAT(error_of([&] { (void)import_files(schema, {inter}, "out"); }), AllOf(StartsWith("2: "), HasSubstr("*.item")));
  EXPECT_THAT(error_of([&] { (void)import_files(schema, {items}, "out"); }), AllOf(StartsWith("2: "), HasSubstr("file of interactions")));
  EXPECT_THAT(error_of([&] { (void)import_files(schema, {inter, inter, items}, "out"); }), AllOf(StartsWith("2: "), HasSubstr("twice")));
}

TEST_F(ImportErrorsTest, ArrowAndParquetRowsGiveTheSameDataSet) {
  const auto a = write_arrow("rows.arrow", good_rows());
  const auto p = write_parquet("rows.parquet", good_rows());
  const auto from_arrow = import_files(rows_schema("arrow"), {a}, "a", 2);
  const auto from_parquet = import_files(rows_schema("parquet"), {p}, "p", 1);
  EXPECT_EQ(from_arrow.digest, from_parquet.digest);
  EXPECT_EQ(from_arrow.dropped_users, 1);
  const auto data = Dataset::open(dir_ / "a");
  EXPECT_EQ(data.num_users(), 2);
  EXPECT_EQ(data.raw_user_id(1), "2");
  EXPECT_THAT(as_vector(data.values(0, 0, 0, 3)), ElementsAre(1, 2, 3));
  EXPECT_THAT(as_vector(data.values(1, 0, 0, 3)), ElementsAre(0, 1, 4));
  EXPECT_TRUE(data.values(1, 0, 1).empty());
  EXPECT_THAT(as_vector(data.values(1, 1, 1)), ElementsAre(3, 3));
  EXPECT_EQ(data.schema().num_items(), 10);
}

TEST_F(ImportErrorsTest, UserRowsNeedIdsInsideTablesAndEqualLengths) {
  EXPECT_THAT(error_of_rows(rows_table({{{1}, {10}}}, {{{}, {}}})), AllOf(StartsWith("3: "), HasSubstr("row 1"), HasSubstr("id 10")));
  EXPECT_THAT(error_of_rows(rows_table({{{1}, {-1}}}, {{{}, {}}})), AllOf(StartsWith("3: "), HasSubstr("id -1")));
  EXPECT_THAT(error_of_rows(rows_table({{{1}, {2}}}, {{{5}, {}}})), AllOf(StartsWith("3: "), HasSubstr("'words'"), HasSubstr("id 5")));
  EXPECT_THAT(error_of_rows(rows_table({{{1}, {2}}}, {{{}}})), AllOf(StartsWith("3: "), HasSubstr("has 1 clicks"), HasSubstr("has 2")));
  EXPECT_THAT(error_of_rows(rows_table({{{1}, {2, 3}}}, {{{}, {}}})), AllOf(StartsWith("3: "), HasSubstr("2 ids in click 2")));
}

TEST_F(ImportErrorsTest, UserRowsWithFloatsOrTextsAreRefused) {
  const auto numbers = std::make_shared<arrow::DoubleBuilder>();
  EXPECT_TRUE(numbers->Append(1.0).ok());
  const auto array = numbers->Finish().ValueOrDie();
  EXPECT_THAT(error_of_rows(arrow::Table::Make(arrow::schema({arrow::field("items", array->type()), arrow::field("words", array->type())}),
                                               {array, array})),
              AllOf(StartsWith("3: "), HasSubstr("type double"), HasSubstr("list of lists of integers")));
}

TEST_F(ImportErrorsTest, TruncatedArrowAndParquetFilesAreDataErrors) {
  for (const bool parquet : {false, true}) {
    const auto whole = read_file(parquet ? write_parquet("rows.parquet", good_rows()) : write_arrow("rows.arrow", good_rows()));
    for (std::size_t size = 0; size < whole.size(); size += 7) {
      const auto input = write("cut", whole.substr(0, size));
      const auto text = error_of([&] { (void)import_files(rows_schema(parquet ? "parquet" : "arrow"), {input}, "out"); });
      EXPECT_THAT(text, AllOf(StartsWith("3: "), HasSubstr("cut"))) << size;
      EXPECT_EQ(text.find('\n'), std::string::npos);
    }
  }
}

TEST_F(ImportErrorsTest, DamagedArrowFilesNeverDoMoreThanThrow) {
  const auto whole = read_file(write_arrow("rows.arrow", good_rows()));
  int refused = 0;
  for (std::size_t at = 0; at < whole.size(); ++at) {
    auto damaged = whole;
    damaged[at] = static_cast<char>(damaged[at] ^ 0x55);
    const auto input = write("damaged", damaged);
    const auto text = error_of([&] {
      (void)import::run_import(rows_schema("arrow"), {.inputs = {input}, .output = dir_ / "damaged_out", .overwrite = true, .num_shards = 1});
    });
    refused += text == "no error" ? 0 : 1;
    EXPECT_TRUE(text == "no error" || text.starts_with("3: ")) << "byte " << at << ": " << text;
  }
  EXPECT_GT(refused, 100);  // padding and values inside the tables may change unnoticed
}

TEST_F(ImportErrorsTest, TextColumnIsReadOrNamed) {
  arrow::StringBuilder builder;
  ASSERT_TRUE(builder.Append("one").ok());
  ASSERT_TRUE(builder.Append("zwei ü").ok());
  const auto array = builder.Finish().ValueOrDie();
  const auto path = write_arrow("text.arrow", arrow::Table::Make(arrow::schema({arrow::field("text", array->type())}), {array}));
  EXPECT_THAT(import::read_text_column(path), ElementsAre("one", "zwei ü"));
  EXPECT_THAT(error_of([&] { (void)import::read_text_column(path, "test"); }), AllOf(StartsWith("3: "), HasSubstr("did you mean 'text'")));
}

}  // namespace
}  // namespace uqa::data
