// core/error.h - the one exception type of uqa, and the checks that throw it.
//
//   UQA_CHECK(num_heads % tp == 0, ErrorCode::kConfig,
//             "model.num_heads = {}, must be divisible by parallel.tp = {}; change one of them", num_heads, tp);
#pragma once

#include <source_location>
#include <stdexcept>
#include <string>
#include <utility>

#include <fmt/format.h>

namespace uqa {

/// Why a run ended; the numbers are the process exit codes (docs/design/exit_codes in README).
enum class ErrorCode : int {
  kConfig = 2,     ///< an option, a configuration file or a combination of them
  kData = 3,       ///< an input or output file
  kComm = 4,       ///< a collective, a peer rank or the launcher
  kNumeric = 5,    ///< a loss, gradient or score that is not finite
  kInternal = 70,  ///< a defect of uqa
  kRequeue = 75,   ///< stopped on request after a checkpoint was written: run the same command again
};

/// Message form: `thing = value, what is required, what to change`. One line, no trailing newline.
class Error : public std::runtime_error {
 public:
  Error(ErrorCode code, const std::string& text, std::source_location where = std::source_location::current())
      : std::runtime_error(text), code_(code), where_(where) {}
  [[nodiscard]] ErrorCode code() const noexcept { return code_; }
  [[nodiscard]] const std::source_location& where() const noexcept { return where_; }

 private:
  ErrorCode code_;
  std::source_location where_;
};

namespace detail {
template <typename... Args>
[[noreturn]] void throw_error(std::source_location where, ErrorCode code, fmt::format_string<Args...> text, Args&&... args) {
  throw Error(code, fmt::format(text, std::forward<Args>(args)...), where);
}
}  // namespace detail

}  // namespace uqa

/// Throws Error(code, fmt::format(...)); always on.
#define UQA_FAIL(code, ...) ::uqa::detail::throw_error(std::source_location::current(), (code), __VA_ARGS__)
/// Throws Error(code, fmt::format(...)) unless `cond`; always on.
#define UQA_CHECK(cond, code, ...) \
  do {                             \
    if (!(cond)) UQA_FAIL((code), __VA_ARGS__); \
  } while (false)
