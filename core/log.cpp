#include "core/log.h"

#include <atomic>

#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>

namespace uqa::log {
namespace {

std::atomic<int> rank_{0};
std::atomic<bool> all_ranks_{false};

spdlog::logger& logger() {
  static const auto instance = [] {
    auto made = std::make_shared<spdlog::logger>("uqa", std::make_shared<spdlog::sinks::stderr_sink_mt>());
    made->set_pattern("%Y-%m-%dT%H:%M:%S.%eZ %L r00 %v", spdlog::pattern_time_type::utc);
    made->flush_on(spdlog::level::trace);
    return made;
  }();
  return *instance;
}

spdlog::level::level_enum to_spdlog(Level level) {
  switch (level) {
    case Level::kDebug: return spdlog::level::debug;
    case Level::kInfo: return spdlog::level::info;
    case Level::kWarn: return spdlog::level::warn;
    case Level::kError: return spdlog::level::err;
  }
  return spdlog::level::info;
}

}  // namespace

void set_rank(int rank, int world_size) {
  rank_ = rank;
  logger().set_pattern(fmt::format("%Y-%m-%dT%H:%M:%S.%eZ %L r{:02}/{:02} %v", rank, world_size),
                       spdlog::pattern_time_type::utc);
}

void configure(Level level, bool all_ranks) {
  all_ranks_ = all_ranks;
  logger().set_level(to_spdlog(level));
}

void write(Level level, std::string_view component, const std::string& text) {
  if (level < Level::kWarn && rank_ != 0 && !all_ranks_) return;
  logger().log(to_spdlog(level), "{} {}", component, text);
}

}  // namespace uqa::log
