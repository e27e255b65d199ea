// models/format/bpe.h - byte-level byte-pair encoding: vocabulary, merges, and the byte alphabet of GPT-2.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

namespace uqa::format {

/// Printable stand-ins for the 256 bytes: bytes that print as themselves stay, the rest become U+0100 and up, in order.
/// Source: GPT-2's bytes_to_unicode, the alphabet of every byte-level vocabulary.
struct ByteAlphabet {
  ByteAlphabet();
  std::array<std::string, 256> text;                      ///< byte -> UTF-8 of its character
  std::unordered_map<char32_t, unsigned char> byte_of;    ///< the inverse
};
[[nodiscard]] const ByteAlphabet& byte_alphabet();

/// Bytes that a token stands for: its characters through the alphabet, or its own bytes if one of them is not in it.
[[nodiscard]] std::string token_bytes(std::string_view token);

/// Vocabulary and merge table; immutable after construction.
class Bpe {
 public:
  using Id = std::int32_t;
  static constexpr Id kNone = -1;

  struct Options {
    bool ignore_merges = false;  ///< a piece that is a token as a whole is that token, whatever the merges say
  };
  /// `merges[r]` is the pair with rank r (lower goes first; the last of equal pairs counts). Throws Error(kData) naming `what` if a
  /// pair or its concatenation is not in the vocabulary.
  Bpe(std::unordered_map<std::string, Id> vocab, const std::vector<std::pair<std::string, std::string>>& merges, Options options,
      const std::string& what);

  /// Appends the ids of one pre-tokenized piece (raw bytes). Bytes without a token are left out, as in the `tokenizers` library
  /// when there is no unknown token.
  void encode_piece(std::string_view piece, std::vector<std::int64_t>& ids) const;
  [[nodiscard]] Id find(std::string_view token) const;  ///< kNone if there is none
  [[nodiscard]] bool has_every_byte() const;
  [[nodiscard]] const std::unordered_map<std::string, Id>& vocab() const { return vocab_; }

 private:
  struct Merge {
    std::int32_t rank;
    Id id;
  };
  [[nodiscard]] const Merge* find_merge(Id left, Id right) const;

  std::unordered_map<std::string, Id> vocab_;
  std::unordered_map<std::uint64_t, Merge> merges_;
  std::array<Id, 256> byte_ids_{};
  Options options_;
};

}  // namespace uqa::format
