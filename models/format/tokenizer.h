// models/format/tokenizer.h - byte-level BPE from a Hugging Face tokenizer.json; same ids and texts as the `tokenizers` library.
// One known difference: NFC orders combining marks by the Unicode version of utf8proc, the library by an older one, so texts with
// marks that were added since (Lao U+0EBA, Sogdian, a few more) can differ.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "core/file.h"

namespace uqa::format {

/// Immutable after loading; safe to use from several threads.
class Tokenizer {
 public:
  /// Supports model BPE; pre-tokenizers ByteLevel, Digits, Split(Regex, Isolated) and sequences of them; normalizer NFC or
  /// none; added tokens. Anything else is refused: Error(kData) naming the file, the feature and what is supported.
  [[nodiscard]] static Tokenizer load(const fs::path& tokenizer_json);
  [[nodiscard]] static Tokenizer parse(std::string_view json, const std::string& what);

  /// Ids of `text`; added tokens inside the text are recognised; none are added around it. Throws Error(kData) if the text is not
  /// valid UTF-8 or longer than 1 GiB.
  [[nodiscard]] std::vector<std::int64_t> encode(std::string_view text) const;
  /// Text of `ids`; special tokens are left out when `skip_special`, ids without a token always (as in the library). Bytes that are
  /// not UTF-8 become U+FFFD.
  [[nodiscard]] std::string decode(const std::vector<std::int64_t>& ids, bool skip_special = false) const;
  /// Id of an exact token or added token; -1 if there is none.
  [[nodiscard]] std::int64_t token_id(std::string_view token) const;
  [[nodiscard]] std::int64_t vocab_size() const;  ///< highest id + 1, added tokens included

 private:
  struct Impl;
  std::shared_ptr<const Impl> impl_;
};

}  // namespace uqa::format
