// models/format/utf8.h - UTF-8 as the tokenizer needs it: decode, check, repair, compose (NFC).
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace uqa::format {

/// One code point at the front of `text`: its value and length in bytes. For ill-formed bytes `valid` is false and `length` (>= 1)
/// is the maximal ill-formed part that one U+FFFD stands for (Unicode 15, section 3.9, table 3-8). `text` must not be empty.
struct CodePoint {
  char32_t value = 0;
  std::size_t length = 0;
  bool valid = false;
};
[[nodiscard]] CodePoint first_code_point(std::string_view text);

/// Position of the first ill-formed byte; npos if there is none.
[[nodiscard]] std::size_t find_invalid_utf8(std::string_view text);
/// `bytes` with U+FFFD for each maximal ill-formed part.
[[nodiscard]] std::string to_valid_utf8(std::string_view bytes);
/// Appends `value` (a Unicode scalar value) to `text`.
void append_utf8(std::string& text, char32_t value);

/// Normalization form C; `text` must be valid UTF-8. Throws Error(kData) if the text cannot be normalized.
[[nodiscard]] std::string to_nfc(std::string_view text);

}  // namespace uqa::format
