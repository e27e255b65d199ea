#include "core/progress.h"

#include <cmath>
#include <limits>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace uqa {
namespace {

TEST(FormatDuration, ShowsTheTwoLargestUnits) {
  EXPECT_EQ(format_duration(0), "0s");
  EXPECT_EQ(format_duration(0.4), "0s");
  EXPECT_EQ(format_duration(12.3), "12s");
  EXPECT_EQ(format_duration(59.4), "59s");
  EXPECT_EQ(format_duration(59.6), "1m00s");
  EXPECT_EQ(format_duration(185), "3m05s");
  EXPECT_EQ(format_duration(3599.6), "1h00m");
  EXPECT_EQ(format_duration(3725), "1h02m");
  EXPECT_EQ(format_duration(360'000), "100h00m");
}

TEST(FormatDuration, SurvivesWhatIsNotADuration) {
  EXPECT_EQ(format_duration(-5), "?");
  EXPECT_EQ(format_duration(std::nan("")), "?");
  EXPECT_EQ(format_duration(std::numeric_limits<double>::infinity()), "?");
}

TEST(Progress, FinishPrintsOneLastLine) {
  ::testing::internal::CaptureStderr();
  {
    Progress bar("import", 10, "users");
    bar.advance(4, "loss 1.5");
    bar.finish();
    bar.finish();
  }
  const std::string text = ::testing::internal::GetCapturedStderr();
  EXPECT_THAT(text, ::testing::HasSubstr("import: 4/10 users (40 %)"));
  EXPECT_THAT(text, ::testing::HasSubstr("ETA"));
  EXPECT_THAT(text, ::testing::EndsWith("loss 1.5\n"));
  EXPECT_EQ(text.find('\n'), text.size() - 1);
}

TEST(Progress, OtherRanksAreSilentAndUnknownTotalsHaveNoEta) {
  ::testing::internal::CaptureStderr();
  { Progress("x", 10, "steps", false).advance(3); }
  EXPECT_EQ(::testing::internal::GetCapturedStderr(), "");
  ::testing::internal::CaptureStderr();
  { Progress("x", 0, "steps").advance(3); }
  const std::string text = ::testing::internal::GetCapturedStderr();
  EXPECT_THAT(text, ::testing::StartsWith("x: 3 steps, "));
  EXPECT_THAT(text, ::testing::Not(::testing::HasSubstr("ETA")));
}

}  // namespace
}  // namespace uqa
