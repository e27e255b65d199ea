#include "core/hash.h"

#include <gtest/gtest.h>

#include "tests/support/expect_error.h"
#include "tests/support/temp_dir.h"

namespace uqa {
namespace {

TEST(Hash, MatchesThePublishedXxh3Vectors) {
  EXPECT_EQ(hash64(std::string_view()), 0x2d06800538d394c2u);
  EXPECT_EQ(hash_hex(std::string_view()), "99aa06d3014798d86001c324468d497f");
}

TEST(Hash, BytesTextAndFileAgree) {
  const std::string text("a\0b\xff", 4);
  const auto bytes = std::as_bytes(std::span(text.data(), text.size()));
  EXPECT_EQ(hash64(text), hash64(bytes));
  EXPECT_NE(hash64(text), hash64(text, 1));
  EXPECT_EQ(hash_hex(text), hash_hex(bytes));
  EXPECT_EQ(hash_hex(text).size(), 32u);
  const tests::TempDir dir;
  write_file_atomic(dir.path() / "f", text);
  EXPECT_EQ(hash_file(dir.path() / "f"), hash_hex(text));
  EXPECT_UQA_ERROR(hash_file(dir.path() / "absent"), ErrorCode::kData, "absent");
}

TEST(Hash, ChangesWithEveryBit) {
  std::string text(300, 'x');
  const auto before = hash_hex(text);
  for (std::size_t i = 0; i < text.size(); i += 37) {
    text[i] = static_cast<char>(text[i] ^ 1);
    EXPECT_NE(hash_hex(text), before) << i;
    text[i] = static_cast<char>(text[i] ^ 1);
  }
  EXPECT_EQ(hash_hex(text), before);
}

}  // namespace
}  // namespace uqa
