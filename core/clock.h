// core/clock.h - wall time that never runs backwards.
//
//   const auto begin = Clock::now();
//   const double elapsed_s = seconds_since(begin);
#pragma once

#include <chrono>

namespace uqa {

using Clock = std::chrono::steady_clock;

/// Seconds from `begin` to now.
[[nodiscard]] inline double seconds_since(Clock::time_point begin) { return std::chrono::duration<double>(Clock::now() - begin).count(); }

}  // namespace uqa
