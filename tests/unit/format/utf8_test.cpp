#include "models/format/utf8.h"

#include <gtest/gtest.h>

#include "models/format/bpe.h"

namespace uqa::format {
namespace {

constexpr const char* kBad = "\xEF\xBF\xBD";  // U+FFFD

TEST(Utf8, DecodesEveryLength) {
  const auto expect = [](std::string_view text, char32_t value) {
    const auto point = first_code_point(text);
    EXPECT_TRUE(point.valid) << text;
    EXPECT_EQ(point.value, value);
    EXPECT_EQ(point.length, text.size());
    std::string again;
    append_utf8(again, value);
    EXPECT_EQ(again, text);
  };
  expect("A", U'A');
  expect("é", U'é');
  expect("中", U'中');
  expect("🧑", U'🧑');
  expect("\xF4\x8F\xBF\xBF", 0x10FFFF);
}

TEST(Utf8, IllFormedPartsBecomeOneReplacementEach) {
  const auto expect = [](std::string_view bytes, const std::string& text) { EXPECT_EQ(to_valid_utf8(bytes), text); };
  const std::string bad(kBad);
  expect("a\x80z", "a" + bad + "z");                       // a continuation byte alone
  expect("\xC0\xAF", bad + bad);                           // overlong
  expect("\xE0\x80\x80", bad + bad + bad);                 // overlong
  expect("\xED\xA0\x80", bad + bad + bad);                 // a surrogate
  expect("\xF4\x90\x80\x80", bad + bad + bad + bad);       // above U+10FFFF
  expect("\xE4\xB8", bad);                                 // truncated: one maximal part
  expect("\xF0\x9F\xA7z", bad + "z");
  expect("\xF0\x9F\xE4\xB8\xAD", bad + "中");
  expect("中é", "中é");
  EXPECT_EQ(find_invalid_utf8("ab\xFFz"), 2u);
  EXPECT_EQ(find_invalid_utf8("中"), std::string_view::npos);
}

TEST(Utf8, NfcComposesAndReorders) {
  EXPECT_EQ(to_nfc("e\u0301"), "é");
  EXPECT_EQ(to_nfc("q\u0307\u0323"), "q\u0323\u0307");
  EXPECT_EQ(to_nfc("\u1112\u1161\u11AB"), "한");
  EXPECT_EQ(to_nfc("ﬁ①"), "ﬁ①");  // compatibility characters stay
  EXPECT_EQ(to_nfc(std::string_view("a\0e\u0301", 5)), std::string_view("a\0é", 4));
  EXPECT_EQ(to_nfc(""), "");
}

TEST(ByteAlphabet, IsTheOneOfGpt2) {
  const auto& alphabet = byte_alphabet();
  EXPECT_EQ(alphabet.text[' '], "Ġ");
  EXPECT_EQ(alphabet.text['\n'], "Ċ");
  EXPECT_EQ(alphabet.text['a'], "a");
  EXPECT_EQ(alphabet.text[0xAD], "Ń");
  EXPECT_EQ(alphabet.text[0xFF], "ÿ");
  EXPECT_EQ(alphabet.byte_of.size(), 256u);
  EXPECT_EQ(token_bytes("Ġhi"), " hi");
  EXPECT_EQ(token_bytes("ä¸Ń"), "中");
  EXPECT_EQ(token_bytes("a b"), "a b");  // a space is not in the alphabet, so the text stands for itself
}

}  // namespace
}  // namespace uqa::format
