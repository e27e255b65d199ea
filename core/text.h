// core/text.h - small text helpers: splitting, nearest names for suggestions, whole-text number parsing.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace uqa {

/// Pieces between separators; "a,,b" gives an empty middle piece, "" gives no piece.
[[nodiscard]] std::vector<std::string> split(std::string_view text, char separator);
/// Edit distance (insert, delete, replace, swap of neighbours).
[[nodiscard]] std::size_t edit_distance(std::string_view a, std::string_view b);
/// The candidate closest to `name`, if it is close enough to be a likely slip (a third of its length, at least 2).
[[nodiscard]] std::optional<std::string> nearest_name(std::string_view name, const std::vector<std::string>& candidates);
/// "; did you mean '--x'?" or "".
[[nodiscard]] std::string suggestion(std::string_view name, const std::vector<std::string>& candidates, std::string_view prefix = "");
/// The number that is the whole of `text`; nullopt otherwise.
[[nodiscard]] std::optional<double> parse_double(std::string_view text);
[[nodiscard]] std::optional<long long> parse_int(std::string_view text);

/// "512 B", "1.5 MiB".
[[nodiscard]] std::string bytes_text(std::int64_t bytes);

}  // namespace uqa
