#include "core/progress.h"

#include <cstdio>

#include <fmt/format.h>
#include <unistd.h>

namespace uqa {

std::string format_duration(double seconds) {
  constexpr double kLongest = 1e15;  // far beyond any run, and safe to convert
  if (!(seconds >= 0 && seconds <= kLongest)) return "?";
  const auto s = static_cast<std::int64_t>(seconds + 0.5);
  if (s >= 3600) return fmt::format("{}h{:02}m", s / 3600, s / 60 % 60);
  if (s >= 60) return fmt::format("{}m{:02}s", s / 60, s % 60);
  return fmt::format("{}s", s);
}

Progress::Progress(std::string what, std::int64_t total, std::string unit, bool visible, std::int64_t done)
    : what_(std::move(what)), unit_(std::move(unit)), total_(total), start_(done), done_(done), visible_(visible),
      terminal_(::isatty(STDERR_FILENO) == 1), begin_(Clock::now()), last_drawn_(begin_) {}

Progress::~Progress() { finish(); }

void Progress::advance(std::int64_t n, const std::string& note) {
  done_ += n;
  note_ = note;
  if (!visible_) return;
  const auto now = Clock::now();
  if (now - last_drawn_ >= (terminal_ ? std::chrono::milliseconds(200) : std::chrono::milliseconds(10'000))) draw(now);
}

void Progress::finish() {
  if (finished_) return;
  finished_ = true;
  if (!visible_) return;
  draw(Clock::now());
  if (terminal_) std::fputc('\n', stderr);
}

void Progress::draw(Clock::time_point now) {
  last_drawn_ = now;
  const double elapsed = std::chrono::duration<double>(now - begin_).count();
  const double rate = elapsed > 0 ? static_cast<double>(done_ - start_) / elapsed : 0;
  std::string line = total_ > 0 ? fmt::format("{}: {}/{} {} ({:.0f} %)", what_, done_, total_, unit_,
                                              100.0 * static_cast<double>(done_) / static_cast<double>(total_))
                                : fmt::format("{}: {} {}", what_, done_, unit_);
  line += fmt::format(", {:.4g}/s, {} elapsed", rate, format_duration(elapsed));
  if (total_ > done_ && rate > 0) line += ", ETA " + format_duration(static_cast<double>(total_ - done_) / rate);
  if (!note_.empty()) line += ", " + note_;
  std::fputs(terminal_ ? ("\r\033[K" + line).c_str() : (line + "\n").c_str(), stderr);
  std::fflush(stderr);
}

}  // namespace uqa
