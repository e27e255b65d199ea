// trainer/schedule.h - the learning rate as a pure function of the step, so that a resume needs no state.
#pragma once

#include <cstdint>

#include "trainer/config.h"

namespace uqa::trainer {

/// Rate of the update that turns step `step` into step + 1; step in [0, num_steps). Warm-up: the first round(warmup_fraction * num_steps)
/// updates rise linearly and reach the peak with the last of them; then constant, or a half cosine that ends at
/// min_lr_fraction * peak with the very last update.
[[nodiscard]] double learning_rate(const OptimConfig& config, std::int64_t step, std::int64_t num_steps);

}  // namespace uqa::trainer
