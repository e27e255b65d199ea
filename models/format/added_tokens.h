// models/format/added_tokens.h - tokens that are looked for in the text before it is cut into pieces ("<|im_start|>").
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

namespace uqa::format {

/// A set of literal strings with ids; at each position the longest one that matches wins, leftmost first.
class LiteralMatcher {
 public:
  /// `text` must not be empty; of equal texts the first counts.
  void add(std::string text, std::int64_t id);
  /// Calls `gap` with each stretch of `text` between matches (never empty) and `match` with the id of each match, in order.
  void split(std::string_view text, const std::function<void(std::string_view)>& gap,
             const std::function<void(std::int64_t)>& match) const;

 private:
  struct Literal {
    std::string text;
    std::int64_t id;
  };
  std::array<std::vector<Literal>, 256> by_first_byte_;  // each sorted by length, longest first
};

}  // namespace uqa::format
