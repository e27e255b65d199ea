#include "data/split.h"

#include <map>
#include <set>

#include "tests/unit/data/fixture.h"

namespace uqa::data {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::StartsWith;

class SplitTest : public DataTest {
 protected:
  /// User k of `lengths` is named u<k> and has interactions at times 10, 20, ...
  Dataset with_lengths(const std::vector<int>& lengths) const {
    std::string csv = "user,item,time,tags\n";
    for (std::size_t u = 0; u < lengths.size(); ++u) {
      for (int t = 1; t <= lengths[u]; ++t) csv += fmt::format("u{},i{},{},\n", u, t, 10 * t);
    }
    const std::string name = fmt::format("s{}", num_made_++);
    (void)import_files(csv_schema(), {write(name + ".csv", csv)}, name);
    return Dataset::open(dir_ / name);
  }
  mutable int num_made_ = 0;
  static std::vector<std::string> show(const std::vector<Span>& spans) {
    std::vector<std::string> out;
    for (const auto& s : spans) out.push_back(fmt::format("{}[{},{})", s.user, s.begin, s.end));
    return out;
  }
  using Shown = std::vector<std::string>;
};

TEST_F(SplitTest, LeaveOneOutHoldsTheLastTwoItemsOut) {
  const auto splits = make_splits(with_lengths({2, 3, 4, 9}), parse_split("leave_one_out"), 3);
  EXPECT_EQ(show(splits.train), (Shown{"0[0,2)", "2[0,2)", "3[3,7)"}));
  EXPECT_EQ(show(splits.valid), (Shown{"1[0,2)", "2[0,3)", "3[4,8)"}));
  EXPECT_EQ(show(splits.test), (Shown{"1[0,3)", "2[0,4)", "3[5,9)"}));
  EXPECT_EQ(splits.users_without_eval, 1);
  EXPECT_EQ(splits.users_without_train, 1);
}

TEST_F(SplitTest, TargetsOfValidationAreNeverTrained) {
  const auto data = with_lengths({3, 4, 5, 12, 40});
  for (const auto* text : {"leave_one_out", "time:45"}) {
    const auto splits = make_splits(data, parse_split(text), 7);
    std::map<std::int64_t, std::int64_t> train_end;
    for (const auto& s : splits.train) {
      train_end[s.user] = s.end;
      EXPECT_LE(s.end - s.begin, 8);
      EXPECT_GE(s.end - s.begin, 2);
    }
    for (const auto* part : {&splits.valid, &splits.test}) {
      for (const auto& s : *part) {
        EXPECT_LE(s.end - s.begin, 8);
        EXPECT_GE(s.end - s.begin, 2);
        if (train_end.contains(s.user)) {
          EXPECT_LE(train_end[s.user], s.end - 1);
        }
      }
    }
  }
}

TEST_F(SplitTest, RatioPutsEveryUserInOnePart) {
  const auto data = with_lengths(std::vector<int>(20, 3));
  const auto splits = make_splits(data, parse_split("ratio:0.7:5"), 10);
  EXPECT_EQ(splits.train.size(), 14U);
  EXPECT_EQ(splits.valid.size(), 3U);
  EXPECT_EQ(splits.test.size(), 3U);
  std::set<std::int64_t> users;
  for (const auto* part : {&splits.train, &splits.valid, &splits.test}) {
    for (const auto& s : *part) EXPECT_TRUE(users.insert(s.user).second);
  }
  EXPECT_EQ(users.size(), 20U);
  EXPECT_EQ(show(make_splits(data, parse_split("ratio:0.7:5"), 10).valid), show(splits.valid));
  EXPECT_NE(show(make_splits(data, parse_split("ratio:0.7:6"), 10).train), show(splits.train));
}

TEST_F(SplitTest, TimeSeparatesTestFromTraining) {
  const auto splits = make_splits(with_lengths({2, 3, 5, 9}), parse_split("time:30"), 10);
  // u0 ends before; u1 and u2, u3 have 2 interactions before time 30: both train, the third is tested.
  EXPECT_EQ(show(splits.train), (Shown{"0[0,2)", "1[0,2)", "2[0,2)", "3[0,2)"}));
  EXPECT_EQ(show(splits.valid), (Shown{}));
  EXPECT_EQ(show(splits.test), (Shown{"1[0,3)", "2[0,3)", "3[0,3)"}));
  const auto later = make_splits(with_lengths({2, 3, 5, 9}), parse_split("time:45"), 2);
  EXPECT_EQ(show(later.train), (Shown{"0[0,2)", "1[0,3)", "2[0,3)", "3[0,3)"}));
  EXPECT_EQ(show(later.valid), (Shown{"2[1,4)", "3[1,4)"}));
  EXPECT_EQ(show(later.test), (Shown{"2[2,5)", "3[2,5)"}));
  EXPECT_EQ(later.users_without_eval, 2);
  EXPECT_THAT(error_of([&] { (void)make_splits(with_lengths({2, 3}), parse_split("time:5"), 2); }), AllOf(StartsWith("3: "), HasSubstr("no user")));
}

TEST_F(SplitTest, TimeWithoutTimestampsIsRefused) {
  const auto schema = SourceSchema::from_json(Json::parse(R"({"name": "t", "layout": "events", "format": "csv",
    "interactions": {"user": "u", "item": "i"}, "features": [{"name": "i", "table": "item"}]})"),
                                              "schema");
  (void)import_files(schema, {write("n.csv", "u,i\na,1\na,2\n")}, "n");
  const auto data = Dataset::open(dir_ / "n");
  EXPECT_THAT(error_of([&] { (void)make_splits(data, parse_split("time:5"), 2); }), AllOf(StartsWith("3: "), HasSubstr("no timestamps")));
}

TEST_F(SplitTest, FilesNameUsersByTheirSourceId) {
  const auto data = with_lengths({3, 4, 5, 6});
  const auto train = write("train.txt", "u0\r\nu3\n\n"), valid = write("valid.txt", "u1\n");
  const auto splits = make_splits(data, parse_split(fmt::format("files:{},{}", train.string(), valid.string())), 3);
  EXPECT_EQ(show(splits.train), (Shown{"0[0,3)", "3[2,6)"}));
  EXPECT_EQ(show(splits.valid), (Shown{"1[0,4)"}));
  EXPECT_TRUE(splits.test.empty());
  EXPECT_EQ(splits.users_left_out, 1);
  const auto twice = write("twice.txt", "u2\nu0\n"), unknown = write("unknown.txt", "u2\nu9\n");
  EXPECT_THAT(error_of([&] { (void)make_splits(data, parse_split(fmt::format("files:{},{}", train.string(), twice.string())), 3); }),
              AllOf(StartsWith("3: "), HasSubstr("twice.txt line 2"), HasSubstr("train.txt")));
  EXPECT_THAT(error_of([&] { (void)make_splits(data, parse_split(fmt::format("files:{},{}", train.string(), unknown.string())), 3); }),
              AllOf(StartsWith("3: "), HasSubstr("unknown.txt line 2"), HasSubstr("'u9'")));
}

TEST_F(SplitTest, TextFormsAreParsedOrRefused) {
  EXPECT_EQ(parse_split("leave_one_out").kind, SplitKind::kLeaveOneOut);
  EXPECT_EQ(parse_split("ratio:0.9").train_share, 0.9);
  EXPECT_EQ(parse_split("ratio:0.9:17").seed, 17U);
  EXPECT_EQ(parse_split("time:-5").time_s, -5);
  EXPECT_EQ(parse_split("files:a,b,c").files.size(), 3U);
  for (const char* bad : {"", "ratio", "ratio:", "ratio:1", "ratio:0", "ratio:x", "ratio:nan", "ratio:0.5:-1", "ratio:0.5:1:2", "time:", "time:1.5",
                          "files:", "files:a", "files:a,,b", "files:a,b,c,d", "leave_one_out:1", "leave_two_out"}) {
    EXPECT_THAT(error_of([&] { (void)parse_split(bad); }), AllOf(StartsWith("2: "), HasSubstr(bad))) << bad;
  }
  EXPECT_THAT(error_of([&] { (void)parse_split("leave_one_ot"); }), HasSubstr("did you mean 'leave_one_out'"));
}

TEST_F(SplitTest, MaxLenBelowOneIsRefused) {
  EXPECT_THAT(error_of([&] { (void)make_splits(with_lengths({5}), {}, 0); }), AllOf(StartsWith("2: "), HasSubstr("max_len = 0")));
}

}  // namespace
}  // namespace uqa::data
