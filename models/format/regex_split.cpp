#include "models/format/regex_split.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <algorithm>
#include <array>

#include "core/error.h"
#include "models/format/utf8.h"

namespace uqa::format {
namespace {

constexpr std::size_t kMaxPatternBytes = 16'384;

/// Rewrites one escape (the text after the backslash); returns how many bytes of `rest` it takes.
std::size_t translate_escape(std::string_view rest, std::string& out, const std::string& what) {
  UQA_CHECK(!rest.empty(), ErrorCode::kData, "{}: the regular expression ends in a backslash; the file is damaged", what);
  const char c = rest.front();
  // \s of PCRE2 holds U+180E too, which is not White_Space.
  if (c == 's' || c == 'S') {
    out += c == 's' ? "\\p{White_Space}" : "\\P{White_Space}";
    return 1;
  }
  if (c == 'v') {  // a vertical tab there, a class here
    out += "\\x0B";
    return 1;
  }
  const bool letter = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
  const bool digit = c >= '0' && c <= '9';
  if (letter || digit) {
    UQA_CHECK(std::string_view("dDpPrntfx").find(c) != std::string_view::npos, ErrorCode::kData,
              "{}: regular expression escape '\\{}' is not supported; supported are \\s \\S \\d \\D \\p \\P \\r \\n \\t \\v \\f \\x", what, c);
  }
  std::size_t length = 1;
  if (rest.substr(1, 1) == "{" && (c == 'p' || c == 'P' || c == 'x')) {
    const auto end = rest.find('}');
    UQA_CHECK(end != std::string_view::npos, ErrorCode::kData, "{}: the regular expression has '\\{}{{' without '}}'; the file is damaged",
              what, c);
    length = end + 1;
  }
  out += '\\';
  out += rest.substr(0, length);
  return length;
}

}  // namespace

std::string to_pcre2_syntax(std::string_view pattern, const std::string& what) {
  UQA_CHECK(pattern.size() <= kMaxPatternBytes, ErrorCode::kData, "{}: regular expression of {} bytes, at most {} are supported", what,
            pattern.size(), kMaxPatternBytes);
  std::string out;
  bool in_class = false;
  std::size_t class_begin = 0;
  for (std::size_t i = 0; i < pattern.size(); ++i) {
    const char c = pattern[i];
    if (c == '\\') {
      i += translate_escape(pattern.substr(i + 1), out, what);
      continue;
    }
    if (in_class) {
      UQA_CHECK(c != '[' && pattern.substr(i, 2) != "&&", ErrorCode::kData,
                "{}: nested or intersected character classes are not supported in a regular expression; write them out", what);
      if (c == ']' && i > class_begin) in_class = false;
    } else if (c == '[') {
      in_class = true;
      class_begin = i + 1;
      if (pattern.substr(i + 1, 1) == "^") {
        ++class_begin;
        out += c;
        ++i;
        out += '^';
        continue;
      }
    } else if (c == '(' && pattern.substr(i + 1, 1) == "*") {
      UQA_FAIL(ErrorCode::kData, "{}: '(*' is not supported in a regular expression", what);
    } else if (c == '(' && pattern.substr(i + 1, 1) == "?") {
      const std::string_view group = pattern.substr(i + 2, 2);
      const bool known = group.starts_with(':') || group.starts_with('=') || group.starts_with('!') || group.starts_with('>') ||
                         group == "<=" || group == "<!" || group == "i:";
      UQA_CHECK(known, ErrorCode::kData,
                "{}: regular expression group '(?{}' is not supported; supported are (?: (?= (?! (?> (?<= (?<! (?i:", what, group);
    } else {
      UQA_CHECK(c != '^' && c != '$', ErrorCode::kData, "{}: the anchor '{}' is not supported in a regular expression", what, c);
      UQA_CHECK(pattern.substr(i, 2) != "{," && pattern.substr(i, 2) != "}+", ErrorCode::kData,
                "{}: '{}' is not supported in a regular expression (its meaning differs between engines)", what, pattern.substr(i, 2));
    }
    out += c;
  }
  return out;
}

struct RegexSplit::Code {
  explicit Code(pcre2_code* made) : compiled(made) {}
  ~Code() { pcre2_code_free(compiled); }
  Code(const Code&) = delete;
  Code& operator=(const Code&) = delete;
  pcre2_code* compiled;
};

RegexSplit::RegexSplit(std::string_view pattern, const std::string& what) : what_(what) {
  const std::size_t invalid = find_invalid_utf8(pattern);
  UQA_CHECK(invalid == std::string_view::npos, ErrorCode::kData, "{}: the regular expression is not valid UTF-8 at byte {}", what, invalid);
  const std::string translated = to_pcre2_syntax(pattern, what);
  int error = 0;
  std::size_t offset = 0;
  const std::unique_ptr<pcre2_compile_context, decltype(&pcre2_compile_context_free)> context(pcre2_compile_context_create(nullptr),
                                                                                            &pcre2_compile_context_free);
  UQA_CHECK(context != nullptr, ErrorCode::kInternal, "out of memory for a regular expression");
  pcre2_set_newline(context.get(), PCRE2_NEWLINE_LF);
  pcre2_code* const compiled = pcre2_compile(reinterpret_cast<PCRE2_SPTR>(translated.data()), translated.size(),
                                             PCRE2_UTF | PCRE2_UCP | PCRE2_NEVER_BACKSLASH_C, &error, &offset, context.get());
  if (compiled == nullptr) {
    std::array<PCRE2_UCHAR, 256> text{};
    pcre2_get_error_message(error, text.data(), text.size());
    UQA_FAIL(ErrorCode::kData, "{}: regular expression is not valid near byte {}: {}", what, offset,
             reinterpret_cast<const char*>(text.data()));
  }
  code_ = std::make_shared<const Code>(compiled);
  pcre2_jit_compile(compiled, PCRE2_JIT_COMPLETE);  // without JIT the interpreter gives the same matches, more slowly
}

void RegexSplit::for_each_piece(std::string_view text, const std::function<void(std::string_view)>& use) const {
  const std::unique_ptr<pcre2_match_data, decltype(&pcre2_match_data_free)> match(
      pcre2_match_data_create_from_pattern(code_->compiled, nullptr), &pcre2_match_data_free);
  UQA_CHECK(match != nullptr, ErrorCode::kInternal, "out of memory for a regular expression");
  const auto subject = reinterpret_cast<PCRE2_SPTR>(text.data());
  const std::size_t* const span = pcre2_get_ovector_pointer(match.get());
  std::size_t done = 0, from = 0;  // text before `done` was handed out; the next match starts at `from` or later
  const auto cut = [&](std::size_t at) {
    if (at > done) use(text.substr(done, at - done));
    done = std::max(done, at);
  };
  while (from < text.size()) {
    int found = pcre2_match(code_->compiled, subject, text.size(), from, PCRE2_NO_UTF_CHECK, match.get(), nullptr);
    if (found == PCRE2_ERROR_JIT_STACKLIMIT) {  // the interpreter keeps its state on the heap
      found = pcre2_match(code_->compiled, subject, text.size(), from, PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT, match.get(), nullptr);
    }
    if (found == PCRE2_ERROR_NOMATCH) break;
    UQA_CHECK(found > 0, ErrorCode::kData,
              "{}: the regular expression exceeds its limits (code {}) on a text of {} bytes; use a simpler expression or a shorter text",
              what_, found, text.size());
    cut(span[0]);
    cut(span[1]);
    // An empty match ends a piece as well; the search then goes on one character later.
    from = span[1] > span[0] ? span[1] : span[1] + (span[1] < text.size() ? first_code_point(text.substr(span[1])).length : 1);
  }
  cut(text.size());
}

}  // namespace uqa::format
