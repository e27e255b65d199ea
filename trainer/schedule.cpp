#include "trainer/schedule.h"

#include <cmath>
#include <numbers>

#include "core/error.h"

namespace uqa::trainer {

double learning_rate(const OptimConfig& config, std::int64_t step, std::int64_t num_steps) {
  UQA_CHECK(step >= 0 && step < num_steps, ErrorCode::kInternal, "learning rate of step = {}, must be in [0, {})", step, num_steps);
  const auto warmup = static_cast<std::int64_t>(std::llround(config.warmup_fraction * static_cast<double>(num_steps)));
  if (step < warmup) return config.peak_lr * static_cast<double>(step + 1) / static_cast<double>(warmup);
  if (config.schedule == "constant") return config.peak_lr;
  // The first update after warm-up is already one part down; the last one is at the end of the half wave.
  const double done = static_cast<double>(step + 1 - warmup) / static_cast<double>(num_steps - warmup);
  const double floor = config.min_lr_fraction;
  return config.peak_lr * (floor + (1 - floor) * 0.5 * (1 + std::cos(std::numbers::pi * done)));
}

}  // namespace uqa::trainer
