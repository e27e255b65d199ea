// trainer/study/ini.h - the small INI dialect of study and hardware files. Torch-free.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace uqa::trainer::study {

struct IniSection {
  std::string name;
  std::int64_t line = 0;
  std::vector<std::pair<std::string, std::string>> options;  ///< in the order of the file
};

/// Sections of an INI file; comments begin with # or ; at the start of a line, or with " #" behind a value. Error(kConfig) naming `what` and
/// the line: no section, no '=', a section or an option twice.
[[nodiscard]] std::vector<IniSection> parse_ini(const std::string& text, const std::string& what);

/// Without the blanks around it.
[[nodiscard]] std::string ini_trim(std::string_view text);
/// Values between commas, trimmed.
[[nodiscard]] std::vector<std::string> ini_values(const std::string& text);
/// Error(kConfig) naming `where` unless the text is such a number.
double ini_positive(const std::string& text, const std::string& where);
std::int64_t ini_positive_int(const std::string& text, const std::string& where);

}  // namespace uqa::trainer::study
