#include "trainer/study/ini.h"

#include <sstream>

#include "core/error.h"
#include "core/text.h"

namespace uqa::trainer::study {

std::string ini_trim(std::string_view text) {
  const auto begin = text.find_first_not_of(" \t\r");
  if (begin == std::string_view::npos) return {};
  return std::string(text.substr(begin, text.find_last_not_of(" \t\r") - begin + 1));
}

std::vector<IniSection> parse_ini(const std::string& text, const std::string& what) {
  std::vector<IniSection> sections;
  std::istringstream lines(text);
  std::int64_t number = 0;
  for (std::string raw; std::getline(lines, raw);) {
    ++number;
    if (const auto comment = raw.find(" #"); comment != std::string::npos) raw.resize(comment);
    const auto line = ini_trim(raw);
    if (line.empty() || line[0] == '#' || line[0] == ';') continue;
    if (line.front() == '[') {
      UQA_CHECK(line.back() == ']' && line.size() > 2, ErrorCode::kConfig, "{} line {}: '{}' is no section; write [name]", what, number, line);
      const auto name = ini_trim(std::string_view(line).substr(1, line.size() - 2));
      for (const auto& other : sections) {
        UQA_CHECK(other.name != name, ErrorCode::kConfig, "{} line {}: section [{}] was there before in line {}; join them", what, number, name, other.line);
      }
      sections.push_back({.name = name, .line = number, .options = {}});
      continue;
    }
    const auto equals = line.find('=');
    UQA_CHECK(equals != std::string::npos && equals > 0, ErrorCode::kConfig, "{} line {}: '{}' is neither a section nor NAME = VALUE", what, number, line);
    UQA_CHECK(!sections.empty(), ErrorCode::kConfig, "{} line {}: '{}' stands before any section; put it into [study]", what, number, line);
    const auto name = ini_trim(line.substr(0, equals));
    for (const auto& [other, value] : sections.back().options) {
      UQA_CHECK(other != name, ErrorCode::kConfig, "{} line {}: [{}] has '{}' twice; keep one", what, number, sections.back().name, name);
    }
    sections.back().options.emplace_back(name, ini_trim(line.substr(equals + 1)));
  }
  return sections;
}

double ini_positive(const std::string& text, const std::string& where) {
  const auto value = parse_double(ini_trim(text));
  UQA_CHECK(value.has_value() && *value > 0, ErrorCode::kConfig, "{} = {}, must be a number above 0", where, text);
  return *value;
}

std::int64_t ini_positive_int(const std::string& text, const std::string& where) {
  const auto value = parse_int(ini_trim(text));
  UQA_CHECK(value.has_value() && *value > 0, ErrorCode::kConfig, "{} = {}, must be a whole number above 0", where, text);
  return *value;
}

std::vector<std::string> ini_values(const std::string& text) {
  std::vector<std::string> values;
  for (const auto& piece : split(text, ',')) values.push_back(ini_trim(piece));
  return values;
}

}  // namespace uqa::trainer::study
