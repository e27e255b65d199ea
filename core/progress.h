// core/progress.h - a progress line with rate and ETA on stderr: redrawn on a terminal, one line every few seconds elsewhere.
//
//   Progress bar("pretrain", num_steps, "steps");
//   for (...) bar.advance(1, fmt::format("loss {:.3f}", loss));
#pragma once

#include <chrono>
#include <cstdint>
#include <string>

namespace uqa {

/// Not thread-safe; make one on the rank that reports (others pass `visible = false`).
class Progress {
 public:
  /// `total` 0 means unknown: no ETA is shown. `done` counts work done by an earlier run (resume).
  Progress(std::string what, std::int64_t total, std::string unit, bool visible = true, std::int64_t done = 0);
  ~Progress();
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;
  /// Adds `n` to the work done; `note` is shown at the end of the line.
  void advance(std::int64_t n, const std::string& note = "");
  /// Prints the last state and ends the line; later calls do nothing.
  void finish();

 private:
  using Clock = std::chrono::steady_clock;
  void draw(Clock::time_point now);
  std::string what_, unit_, note_;
  std::int64_t total_, start_, done_;
  bool visible_, terminal_, finished_ = false;
  Clock::time_point begin_, last_drawn_;
};

/// "1h02m", "3m05s", "12s"; "?" for what is not a duration (negative, NaN, infinite).
[[nodiscard]] std::string format_duration(double seconds);

}  // namespace uqa
