#include "models/format/regex_split.h"

#include <vector>

#include <gtest/gtest.h>

#include "tests/support/expect_error.h"

namespace uqa::format {
namespace {

using Pieces = std::vector<std::string>;

Pieces pieces_of(std::string_view pattern, std::string_view text) {
  Pieces pieces;
  RegexSplit(pattern, "test").for_each_piece(text, [&](std::string_view piece) { pieces.emplace_back(piece); });
  return pieces;
}

TEST(RegexSplit, MatchesAndGapsAreBothPieces) {
  EXPECT_EQ(pieces_of(R"(\p{N})", "ab12c"), (Pieces{"ab", "1", "2", "c"}));
  EXPECT_EQ(pieces_of(R"(\p{N}+)", "ab12c"), (Pieces{"ab", "12", "c"}));
  EXPECT_EQ(pieces_of(R"(\p{N})", "abc"), (Pieces{"abc"}));
  EXPECT_EQ(pieces_of(R"(\p{N})", ""), Pieces{});
  EXPECT_EQ(pieces_of(R"(\s+(?!\S)|\s+)", "a   b"), (Pieces{"a", "  ", " ", "b"}));
}

TEST(RegexSplit, EmptyMatchesCutBetweenCharacters) {
  EXPECT_EQ(pieces_of("x*", "axxé"), (Pieces{"a", "xx", "é"}));
  EXPECT_EQ(pieces_of("(?=中)", "a中中"), (Pieces{"a", "中", "中"}));
}

TEST(RegexSplit, WhiteSpaceIsUnicodesAndNotPcres) {
  EXPECT_EQ(pieces_of(R"(\s)", "a\u0085b\u00A0c\u3000d\u2028e"), (Pieces{"a", "\u0085", "b", "\u00A0", "c", "\u3000", "d", "\u2028", "e"}));
  EXPECT_EQ(pieces_of(R"(\s)", "a\u180Eb\u200Bc"), (Pieces{"a\u180Eb\u200Bc"}));
  EXPECT_EQ(pieces_of(R"([^\s]+)", "a\u180E b"), (Pieces{"a\u180E", " ", "b"}));
  EXPECT_EQ(pieces_of(R"(\S)", "\u180E "), (Pieces{"\u180E", " "}));
}

TEST(RegexSplit, DigitsAreUnicodes) {
  EXPECT_EQ(pieces_of(R"(\d)", "a7\u0663½"), (Pieces{"a", "7", "\u0663", "½"}));
  EXPECT_EQ(pieces_of(R"(\D)", "\u0663a"), (Pieces{"\u0663", "a"}));
}

TEST(RegexSplit, IgnoresCaseInTheGroupThatSaysSo) {
  EXPECT_EQ(pieces_of("(?i:'s|'ll)|x", "I'LLx'S"), (Pieces{"I", "'LL", "x", "'S"}));
}

TEST(RegexSplit, HandlesLongRunsWithoutRunningOutOfStack) {
  const std::string spaces(2'000'000, ' ');
  EXPECT_EQ(pieces_of(R"(\s*[\r\n]+|\s+(?!\S)|\s+)", spaces + "a").size(), 3u);
  const std::string letters(2'000'000, 'x');
  EXPECT_EQ(pieces_of(R"((?:\p{L}|y)+)", letters), (Pieces{letters}));
}

TEST(RegexSplit, AnExplodingExpressionIsAnErrorAndNotAHang) {
  EXPECT_UQA_ERROR(pieces_of("(?:a+)+[bc]", std::string(40, 'a')), ErrorCode::kData, "exceeds its limits");
}

TEST(RegexSplit, RefusesWhatMeansSomethingElseElsewhere) {
  const auto expect_refused = [](std::string_view pattern, const std::string& part) {
    EXPECT_UQA_ERROR(RegexSplit(pattern, "tok.json"), ErrorCode::kData, part);
    EXPECT_UQA_ERROR(RegexSplit(pattern, "tok.json"), ErrorCode::kData, "tok.json: ");
  };
  expect_refused(R"(\w+)", "'\\w'");
  expect_refused(R"(\bx)", "'\\b'");
  expect_refused(R"(\h)", "'\\h'");
  expect_refused(R"((a)\1)", "'\\1'");
  expect_refused("[[:alpha:]]", "nested or intersected");
  expect_refused("[a&&b]", "nested or intersected");
  expect_refused("^a", "'^'");
  expect_refused("a$", "'$'");
  expect_refused("(*COMMIT)a", "(*");
  expect_refused("(?<name>a)", "(?<n");
  expect_refused("(?R)", "(?R");
  expect_refused("a{,3}", "'{,'");
  expect_refused("a{1,3}+", "'}+'");
  expect_refused("a\\", "ends in a backslash");
  expect_refused(R"(\p{L)", "without '}'");
  expect_refused(R"(\p{NoSuchProperty})", "not valid near byte");
  expect_refused("(", "not valid near byte");
  expect_refused("[a", "not valid near byte");
  expect_refused("\xFF", "not valid UTF-8");
  expect_refused(std::string(20'000, 'a'), "20000 bytes");
}

TEST(RegexSplit, AcceptsTheSplitsOfKnownModels) {
  // Qwen2 and Llama 3.
  EXPECT_EQ(pieces_of(R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)",
                      "It's 42!\n\n  ok"),
            (Pieces{"It", "'s", " ", "4", "2", "!\n\n", " ", " ok"}));
  EXPECT_EQ(pieces_of(R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)",
                      "12345"),
            (Pieces{"123", "45"}));
}

}  // namespace
}  // namespace uqa::format
