// trainer/study/calibrate.h - measures this machine for plan: real training steps of the encoders that a study runs.
#pragma once

#include <vector>

#include "trainer/pretrain.h"
#include "trainer/study/hardware.h"
#include "trainer/study/plan.h"

namespace uqa::trainer::study {

struct CalibrationCase {
  PretrainConfig config;
  DataShape shape;
};

/// Trains each case for about `seconds` on random histories of its mean length, in this process and with its own threads; the rest of
/// Hardware (bandwidth, memory, matrix products) is measured too, in about two seconds. Ranks are processes of this machine.
[[nodiscard]] Hardware calibrate(const std::vector<CalibrationCase>& cases, double seconds);

}  // namespace uqa::trainer::study
