#include "trainer/fit/points.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/support/expect_error.h"
#include "tests/support/temp_dir.h"

namespace uqa::fit {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

class Points : public testing::Test {
 protected:
  Table table(const std::string& text) {
    write_file_atomic(dir_.path() / "runs.csv", text);
    return read_table(dir_.path() / "runs.csv");
  }
  tests::TempDir dir_;
};

TEST_F(Points, ReadsQuotedCells) {
  const auto t = table("\xEF\xBB\xBF" "name, \"Model, Size\",loss\r\n\"a \"\"b\"\"\",10,3\n\n\"two\nlines\", 20 ,2\n");
  EXPECT_THAT(t.columns, ElementsAre("name", "Model, Size", "loss"));
  ASSERT_EQ(t.rows.size(), 2u);
  EXPECT_THAT(t.rows[0], ElementsAre("a \"b\"", "10", "3"));
  EXPECT_THAT(t.rows[1], ElementsAre("two\nlines", "20", "2"));
}

TEST_F(Points, NamesTheLineOfABadTable) {
  EXPECT_UQA_ERROR((void)table("a,b\n1,2\n\n3\n"), ErrorCode::kData, "line 4: 1 cells, the header has 2");
  EXPECT_UQA_ERROR((void)table("a,b\n1,\"2\n"), ErrorCode::kData, "quoted cell has no end");
  EXPECT_UQA_ERROR((void)table(""), ErrorCode::kData, "no header");
  EXPECT_UQA_ERROR((void)table("a,a\n1,2\n"), ErrorCode::kData, "'a' occurs twice");
}

TEST_F(Points, SuggestsTheNearestColumnAndRole) {
  const auto t = table("parameters,tokens,loss\n1,2,3\n");
  EXPECT_UQA_ERROR((void)select_runs(t, parse_columns("n=parameter,loss=loss")), ErrorCode::kConfig, "did you mean 'parameters'");
  EXPECT_UQA_ERROR((void)parse_columns("n=a,los=b"), ErrorCode::kConfig, "did you mean 'loss'");
  EXPECT_UQA_ERROR((void)parse_columns("n=a"), ErrorCode::kConfig, "no loss");
  EXPECT_UQA_ERROR((void)parse_columns("loss=a"), ErrorCode::kConfig, "no size");
  EXPECT_UQA_ERROR((void)parse_columns("n=a,d=b,d=c,loss=e"), ErrorCode::kConfig, "d twice");
  EXPECT_UQA_ERROR((void)parse_columns("n"), ErrorCode::kConfig, "ROLE=COLUMN");
}

TEST_F(Points, LeavesOutUnfinishedRunsAndRefusesBadNumbers) {
  const auto columns = parse_columns("n=n,n=m,d=d,loss=loss");
  const auto runs = select_runs(table("n,m,d,loss\n10,11,5,3\n20,21,5,\n30,31,5,2\n"), columns);
  EXPECT_EQ(runs.size(), 2u);
  EXPECT_EQ(runs.without_loss, 1);
  EXPECT_THAT(runs.row, ElementsAre(0u, 2u));
  EXPECT_THAT(runs.n.at("m"), ElementsAre(11, 31));
  EXPECT_UQA_ERROR((void)select_runs(table("n,m,d,loss\n10,1,5,nan\n"), columns), ErrorCode::kData, "run 1: loss = 'nan' is not finite");
  EXPECT_UQA_ERROR((void)select_runs(table("n,m,d,loss\n10,1,5,x\n"), columns), ErrorCode::kData, "'x' is not a number");
  EXPECT_UQA_ERROR((void)select_runs(table("n,m,d,loss\n10,1,5,1\n0,1,5,1\n"), columns), ErrorCode::kData, "run 2: n = '0', must be a number above 0");
}

TEST_F(Points, GroupsByTheColumnsThatVary) {
  const auto t = table("enc,len,n,loss\nsasrec,64,1,3\nhstu,64,2,2\nsasrec,64,3,1\n");
  const auto runs = select_runs(t, parse_columns("n=n,loss=loss"));
  const auto groups = group_runs(t, runs, {"enc", "len"});
  ASSERT_EQ(groups.size(), 2u);
  EXPECT_THAT(groups.at("enc = sasrec"), ElementsAre(0u, 2u));
  EXPECT_EQ(group_runs(t, runs, {"len"}).begin()->first, "");
  EXPECT_UQA_ERROR((void)group_runs(t, runs, {"lem"}), ErrorCode::kConfig, "did you mean 'len'");
}

}  // namespace
}  // namespace uqa::fit
