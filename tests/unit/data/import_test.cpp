#include <condition_variable>
#include <mutex>
#include <optional>
#include <thread>

#include "data/import/columns.h"
#include "data/import/items.h"
#include "tests/support/source_dir.h"
#include "tests/unit/data/fixture.h"

namespace uqa::data {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

class ImportTest : public DataTest {
 protected:
  static SourceSchema recbole_schema() { return SourceSchema::read(tests::source_dir() / "recipes/ml-100k.schema.json"); }
  std::vector<fs::path> recbole_files() const {
    return {write("ml.inter",
                  "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
                  "196\t242\t3\t881250949\n"
                  "186\t302\t3\t891717742\n"
                  "196\t302\t1\t881250948\n"
                  "186\t7\t2\t891717742\n"),
            write("ml.item",
                  "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n"
                  "302\tL.A. \"Confidential\"\t1997\tCrime Film-Noir\n"
                  "1\tToy Story\t1995\tAnimation\n"
                  "242\tKolya, or so\t1996\tComedy Crime\n")};
  }
};

TEST_F(ImportTest, TinyCsvGivesTheKnownAnswer) {
  const auto input = write("tiny.csv", kCsv);
  const auto report = import_files(csv_schema(), {input}, "out");
  EXPECT_EQ(report.num_users, 2);
  EXPECT_EQ(report.num_interactions, 5);
  EXPECT_EQ(report.num_items, 4);
  EXPECT_EQ(report.dropped_users, 1);
  EXPECT_EQ(report.dropped_interactions, 1);
  const auto data = Dataset::open(dir_ / "out");
  ASSERT_EQ(data.num_users(), 2);
  EXPECT_EQ(data.num_interactions(), 5);
  EXPECT_EQ(data.raw_user_id(0), "bob");
  EXPECT_EQ(data.raw_user_id(1), "ann");
  // i9 = 0, i1 = 1, i5 = 2, i2 = 3; x = 0, y = 1, z = 2.
  EXPECT_THAT(data.items().raw_ids, ElementsAre("i9", "i1", "i5", "i2"));
  EXPECT_THAT(as_vector(data.values(0, 0, 0, 3)), ElementsAre(1, 3, 0));
  EXPECT_EQ(data.timestamp(0, 0), 10);
  EXPECT_EQ(data.timestamp(0, 2), 30);
  EXPECT_THAT(as_vector(data.values(1, 0, 0)), ElementsAre(1));
  EXPECT_THAT(as_vector(data.values(1, 0, 1)), ElementsAre(0, 2, 1));
  EXPECT_THAT(as_vector(data.values(1, 0, 2)), ElementsAre(0, 1));
  EXPECT_EQ(data.schema().table("tag").rows, 3);
  EXPECT_TRUE(data.schema().features[1].multi_valued);
}

TEST_F(ImportTest, EqualTimesKeepTheOrderOfTheInput) {
  std::string csv = "user,item,time,tags\n";
  for (int i = 0; i < 50; ++i) csv += fmt::format("u,item{},{},\n", i, i % 2 == 0 ? 5 : 4);
  (void)import_files(csv_schema(), {write("ties.csv", csv)}, "out");
  const auto data = Dataset::open(dir_ / "out");
  std::vector<std::int64_t> expected;
  for (int i = 1; i < 50; i += 2) expected.push_back(i);
  for (int i = 0; i < 50; i += 2) expected.push_back(i);
  EXPECT_EQ(as_vector(data.values(0, 0, 0, 50)), expected);
}

TEST_F(ImportTest, BagsWithoutValuesStayEmpty) {
  const auto data = tiny();
  EXPECT_EQ(data.length(1), 2);
  EXPECT_TRUE(data.values(1, 1, 0).empty());
  EXPECT_THAT(as_vector(data.values(1, 1, 1)), ElementsAre(0));
}

TEST_F(ImportTest, RecboleFilesGiveTitlesAttributesAndJoinedFeatures) {
  const auto report = import_files(recbole_schema(), recbole_files(), "out");
  EXPECT_EQ(report.num_users, 2);
  EXPECT_EQ(report.num_items, 3);
  EXPECT_EQ(report.items_without_row, 1);
  EXPECT_EQ(report.unused_item_rows, 1);
  const auto data = Dataset::open(dir_ / "out");
  const auto& items = data.items();
  EXPECT_THAT(items.raw_ids, ElementsAre("242", "302", "7"));
  EXPECT_THAT(items.titles, ElementsAre("Kolya, or so", "L.A. \"Confidential\"", "7"));
  const auto* genre = items.find("genre");
  ASSERT_NE(genre, nullptr);
  EXPECT_THAT(genre->vocabulary, ElementsAre("Comedy", "Crime", "Film-Noir"));
  EXPECT_THAT(as_vector(genre->of(1)), ElementsAre(1, 2));
  EXPECT_TRUE(genre->of(2).empty());
  const auto* year = items.find("year");
  ASSERT_NE(year, nullptr);
  EXPECT_EQ(year->vocabulary.at(static_cast<std::size_t>(year->of(1)[0])), "1997");
  EXPECT_TRUE(year->of(2).empty());
  EXPECT_EQ(items.find("brand"), nullptr);
  // User 196: item 302 (earlier), then 242.
  EXPECT_THAT(as_vector(data.values(0, 0, 0, 2)), ElementsAre(1, 0));
  EXPECT_THAT(as_vector(data.values(1, 0, 0)), ElementsAre(1, 2));
  EXPECT_THAT(as_vector(data.values(1, 0, 1)), ElementsAre(0, 1));
  EXPECT_TRUE(data.values(1, 1, 1).empty());
}

TEST_F(ImportTest, DigestAndContentDoNotDependOnTheNumberOfShards) {
  const auto files = recbole_files();
  const auto one = import_files(recbole_schema(), files, "s1", 1);
  for (const int shards : {2, 3, 7}) {
    const auto name = fmt::format("s{}", shards);
    const auto many = import_files(recbole_schema(), files, name, shards);
    EXPECT_EQ(many.digest, one.digest);
    const auto a = Dataset::open(dir_ / "s1"), b = Dataset::open(dir_ / name);
    ASSERT_EQ(a.num_users(), b.num_users());
    for (std::int64_t u = 0; u < a.num_users(); ++u) {
      EXPECT_EQ(a.raw_user_id(u), b.raw_user_id(u));
      ASSERT_EQ(a.length(u), b.length(u));
      for (std::size_t f = 0; f < 2; ++f) {
        EXPECT_EQ(as_vector(a.values(f, u, 0, a.length(u))), as_vector(b.values(f, u, 0, b.length(u))));
      }
    }
  }
}

TEST_F(ImportTest, DigestChangesWithOneValue) {
  const auto one = import_files(csv_schema(), {write("a.csv", kCsv)}, "a");
  std::string changed = kCsv;
  changed.replace(changed.find("bob,i9,30"), 9, "bob,i9,31");
  const auto two = import_files(csv_schema(), {write("b.csv", changed)}, "b");
  EXPECT_NE(one.digest, two.digest);
}

/// Ranks as threads that agree through this object.
class Agreement {
 public:
  explicit Agreement(int size) : size_(size) {}
  void operator()(const Error* own) {
    std::unique_lock lock(mutex_);
    if (own != nullptr && !error_) error_ = *own;
    const int round = round_;
    if (++arrived_ == size_) {
      arrived_ = 0;
      ++round_;
      changed_.notify_all();
    } else {
      changed_.wait(lock, [&] { return round_ != round; });
    }
    if (error_) throw Error(*error_);
  }

 private:
  int size_;
  std::mutex mutex_;
  std::condition_variable changed_;
  int arrived_ = 0, round_ = 0;
  std::optional<Error> error_;
};

TEST_F(ImportTest, SeveralRanksWriteTheSameDataSet) {
  const auto files = recbole_files();
  const auto one = import_files(recbole_schema(), files, "one");
  constexpr int kSize = 3;
  Agreement agreement(kSize);
  std::vector<import::ImportReport> reports(kSize);
  std::vector<std::thread> ranks;
  for (int r = 0; r < kSize; ++r) {
    ranks.emplace_back([&, r] {
      reports[static_cast<std::size_t>(r)] = import::run_import(
          recbole_schema(),
          {.inputs = files, .output = dir_ / "many", .num_shards = 5, .rank = r, .size = kSize, .agree = [&](const Error* e) { agreement(e); }});
    });
  }
  for (auto& rank : ranks) rank.join();
  for (const auto& report : reports) {
    EXPECT_EQ(report.digest, one.digest);
    EXPECT_EQ(report.num_shards, 5);
    EXPECT_EQ(report.items_without_row, 1);
  }
  EXPECT_EQ(Dataset::open(dir_ / "many").num_interactions(), 4);
}

TEST_F(ImportTest, AllRanksFailTogetherAndLeaveNothing) {
  constexpr int kSize = 2;
  const auto input = write("bad.csv", "user,wrong\n1,2\n");
  Agreement agreement(kSize);
  std::vector<std::string> errors(kSize);
  std::vector<std::thread> ranks;
  for (int r = 0; r < kSize; ++r) {
    ranks.emplace_back([&, r] {
      errors[static_cast<std::size_t>(r)] = error_of([&] {
        (void)import::run_import(csv_schema(), {.inputs = {input}, .output = dir_ / "out", .num_shards = 2, .rank = r, .size = kSize,
                                                .agree = [&](const Error* e) { agreement(e); }});
      });
    });
  }
  for (auto& rank : ranks) rank.join();
  for (const auto& error : errors) EXPECT_THAT(error, HasSubstr("has no column 'item'"));
  EXPECT_FALSE(fs::exists(dir_ / "out"));
  EXPECT_FALSE(fs::exists(dir_ / "out.tmp"));
}

TEST_F(ImportTest, SecondImportIsRefusedUnlessOverwriting) {
  const auto input = write("tiny.csv", kCsv);
  (void)import_files(csv_schema(), {input}, "out");
  EXPECT_THAT(error_of([&] { (void)import_files(csv_schema(), {input}, "out"); }), HasSubstr("--overwrite"));
  EXPECT_EQ(Dataset::open(dir_ / "out").num_users(), 2);
  (void)import::run_import(csv_schema(), {.inputs = {input}, .output = dir_ / "out", .overwrite = true});
  EXPECT_EQ(Dataset::open(dir_ / "out").num_users(), 2);
}

TEST_F(ImportTest, NoSpillFilesStay) {
  (void)tiny();
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(dir_ / "tiny")) names.push_back(entry.path().filename().string());
  EXPECT_THAT(names, ::testing::UnorderedElementsAre("shard-00000.h5", "items.h5", "manifest.json", ".uqa-kind"));
}

TEST_F(ImportTest, DeclaredTablesTakeIntegerIdsAsTheyAre) {
  const auto schema = SourceSchema::from_json(
      Json::parse(R"({"name": "t", "layout": "events", "format": "csv", "separator": ";", "tables": {"item": 100},
        "interactions": {"user": "u", "item": "i"},
        "items": {"file": "items.csv", "id": "id", "title": "t"},
        "features": [{"name": "i", "table": "item"}, {"name": "kind", "table": "kind", "from": "items", "column": "k"}]})"),
      "schema");
  const auto events = write("e.csv", "u;i\nu1;42\nu1;7\nu2;7\nu2;99\n");
  const auto items = write("items.csv", "id;t;k\n42;forty;even\n7;seven;odd\n50;unseen;even\n");
  const auto report = import_files(schema, {events, items}, "out");
  EXPECT_EQ(report.num_items, 100);
  EXPECT_EQ(report.items_without_row, 1);
  EXPECT_EQ(report.unused_item_rows, 1);
  const auto data = Dataset::open(dir_ / "out");
  EXPECT_THAT(as_vector(data.values(0, 0, 0, 2)), ElementsAre(42, 7));
  EXPECT_FALSE(data.timestamp(0, 0).has_value());
  EXPECT_TRUE(data.items().raw_ids.empty());
  EXPECT_EQ(data.items().titles[42], "forty");
  EXPECT_EQ(data.items().titles[99], "99");
  EXPECT_NE(data.values(1, 0, 0)[0], data.values(1, 0, 1)[0]);
  EXPECT_EQ(data.values(1, 0, 1)[0], data.values(1, 1, 0)[0]);
}

TEST_F(ImportTest, TimesOfEveryFormAreSecondsSinceTheEpoch) {
  using import::parse_time_us;
  EXPECT_EQ(parse_time_us("881250949", TimeUnit::kSeconds), 881250949'000'000);
  EXPECT_EQ(parse_time_us("881250949.25", TimeUnit::kSeconds), 881250949'250'000);
  EXPECT_EQ(parse_time_us("1500", TimeUnit::kMilliseconds), 1'500'000);
  EXPECT_EQ(parse_time_us("-1", TimeUnit::kNanoseconds), -1);
  EXPECT_EQ(parse_time_us("1970-01-02", TimeUnit::kSeconds), 86400'000'000);
  EXPECT_EQ(parse_time_us("2000-03-01T12:34:56.5Z", TimeUnit::kSeconds), 951914096'500'000);
  EXPECT_EQ(parse_time_us("1969-12-31 23:59", TimeUnit::kSeconds), -60'000'000);
  for (const char* bad : {"", "soon", "2000-13-01", "2000-02-30", "2000-01-01T25:00", "2000-01-01x", "nan", "1e300", "9223372036854775807"}) {
    EXPECT_FALSE(parse_time_us(bad, TimeUnit::kSeconds).has_value()) << bad;
  }
}

TEST_F(ImportTest, TextsAreSplitTrimmedAndReducedToAYear) {
  std::vector<std::string_view> out;
  import::split_values("a|| b |", {.column = "c", .separator = "|"}, out);
  EXPECT_THAT(out, ElementsAre("a", "b"));
  import::split_values("a b", {.column = "c", .separator = ""}, out);
  EXPECT_THAT(out, ElementsAre("a b"));
  import::split_values("Se7en 12345 (1995) 2001", {.column = "c", .separator = "", .transform = Transform::kYear}, out);
  EXPECT_THAT(out, ElementsAre("1995"));
  import::split_values("unknown", {.column = "c", .separator = "", .transform = Transform::kYear}, out);
  EXPECT_THAT(out, ElementsAre(""));
}

}  // namespace
}  // namespace uqa::data
