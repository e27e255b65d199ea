#include "core/text.h"

#include <gtest/gtest.h>

namespace uqa {
namespace {

using Pieces = std::vector<std::string>;

TEST(Split, KeepsEmptyPiecesBetweenSeparators) {
  EXPECT_EQ(split("a,,b", ','), (Pieces{"a", "", "b"}));
  EXPECT_EQ(split("", ','), Pieces{});
  EXPECT_EQ(split(",", ','), (Pieces{"", ""}));
  EXPECT_EQ(split("abc", ','), (Pieces{"abc"}));
}

TEST(EditDistance, CountsInsertDeleteReplaceAndSwap) {
  EXPECT_EQ(edit_distance("", ""), 0u);
  EXPECT_EQ(edit_distance("abc", "abc"), 0u);
  EXPECT_EQ(edit_distance("abc", "abcd"), 1u);
  EXPECT_EQ(edit_distance("abc", "ac"), 1u);
  EXPECT_EQ(edit_distance("abc", "axc"), 1u);
  EXPECT_EQ(edit_distance("abc", "acb"), 1u);
  EXPECT_EQ(edit_distance("kitten", "sitting"), 3u);
  EXPECT_EQ(edit_distance("", "abc"), 3u);
}

TEST(NearestName, SuggestsLikelySlipsOnly) {
  const Pieces names{"optim.peak_lr", "encoder", "batch.global_users"};
  EXPECT_EQ(nearest_name("encodr", names), "encoder");
  EXPECT_EQ(nearest_name("optim.peek_lr", names), "optim.peak_lr");
  EXPECT_EQ(nearest_name("peak_lr", names), "optim.peak_lr");
  EXPECT_EQ(nearest_name("zzzzzz", names), std::nullopt);
  EXPECT_EQ(nearest_name("encoder", {}), std::nullopt);
  EXPECT_EQ(suggestion("encodr", names, "--"), "; did you mean '--encoder'?");
  EXPECT_EQ(suggestion("zzzzzz", names), "");
}

TEST(ParseNumbers, TakeTheWholeTextOrNothing) {
  EXPECT_EQ(parse_double("1.5e-3"), 1.5e-3);
  EXPECT_EQ(parse_double("1.5x"), std::nullopt);
  EXPECT_EQ(parse_double(""), std::nullopt);
  EXPECT_EQ(parse_double("inf"), std::nullopt);
  EXPECT_EQ(parse_double("nan"), std::nullopt);
  EXPECT_EQ(parse_int("-42"), -42);
  EXPECT_EQ(parse_int("2.5e3"), 2500);
  EXPECT_EQ(parse_int("2.5"), std::nullopt);
  EXPECT_EQ(parse_int("1e300"), std::nullopt);
  EXPECT_EQ(parse_int("9223372036854775808"), std::nullopt);
  EXPECT_EQ(parse_int(" 1"), std::nullopt);
}

}  // namespace
}  // namespace uqa
