// core/csv.h - one field of a CSV line (RFC 4180).
//
//   line += csv_field(title) + ",";
#pragma once

#include <string>

namespace uqa {

/// `text` as it stands, or in quotes with its own quotes doubled where it holds a comma, a quote or a line break.
[[nodiscard]] inline std::string csv_field(const std::string& text) {
  if (text.find_first_of(",\"\r\n") == std::string::npos) return text;
  std::string field(1, '"');
  for (const char c : text) {
    if (c == '"') field += '"';
    field += c;
  }
  field += '"';
  return field;
}

}  // namespace uqa
