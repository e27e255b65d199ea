// models/format/regex_split.h - cuts a text at the matches of a regular expression, as the `tokenizers` library's Split with
// behaviour Isolated does: every match is a piece, and so is every stretch between two matches.
//
//   const RegexSplit digits(R"(\p{N})", "digits");
//   digits.for_each_piece("a12", [](std::string_view piece) { ... });   // "a", "1", "2"
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <string_view>

namespace uqa::format {

/// Immutable after construction; safe to use from several threads.
class RegexSplit {
 public:
  /// `pattern` is in Oniguruma's Ruby syntax, of which the part is supported that means the same here: literals, classes, groups,
  /// alternation, quantifiers, look-around, \s \S \d \D \p{..} \P{..} and character escapes. Anything else: Error(kData) naming
  /// `what` and the feature.
  RegexSplit(std::string_view pattern, const std::string& what);

  /// Calls `use` with each piece of `text` (valid UTF-8) from left to right; pieces are never empty and cover the text.
  /// Throws Error(kData) when the expression needs more steps or memory than the library's limits.
  void for_each_piece(std::string_view text, const std::function<void(std::string_view)>& use) const;

 private:
  struct Code;
  std::shared_ptr<const Code> code_;
  std::string what_;
};

/// `pattern` rewritten for PCRE2 (exposed for tests).
[[nodiscard]] std::string to_pcre2_syntax(std::string_view pattern, const std::string& what);

}  // namespace uqa::format
