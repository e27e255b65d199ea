// core/log.h - log lines on stderr: time, level, rank, component, text. Results never go through the logger.
//
//   log::info("data", "{} users in {} shards", num_users, num_shards);   // rank 0 only
//   log::warn("comm", "waited {} s", seconds);                           // every rank
#pragma once

#include <string>
#include <string_view>

#include <fmt/format.h>

namespace uqa::log {

enum class Level { kDebug, kInfo, kWarn, kError };

/// Sets who is speaking. Call once after the world is known; before that the process speaks as rank 0 of 1.
void set_rank(int rank, int world_size);
/// Lines below `level` are dropped (default kInfo). `all_ranks` lets info lines through from every rank.
void configure(Level level, bool all_ranks);
/// Writes one line; thread-safe. Info and debug lines of ranks above 0 are dropped unless all ranks were asked for.
void write(Level level, std::string_view component, const std::string& text);

template <typename... Args>
void debug(std::string_view component, fmt::format_string<Args...> text, Args&&... args) {
  write(Level::kDebug, component, fmt::format(text, std::forward<Args>(args)...));
}
template <typename... Args>
void info(std::string_view component, fmt::format_string<Args...> text, Args&&... args) {
  write(Level::kInfo, component, fmt::format(text, std::forward<Args>(args)...));
}
template <typename... Args>
void warn(std::string_view component, fmt::format_string<Args...> text, Args&&... args) {
  write(Level::kWarn, component, fmt::format(text, std::forward<Args>(args)...));
}
template <typename... Args>
void error(std::string_view component, fmt::format_string<Args...> text, Args&&... args) {
  write(Level::kError, component, fmt::format(text, std::forward<Args>(args)...));
}

}  // namespace uqa::log
