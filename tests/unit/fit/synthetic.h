// tests/unit/fit/synthetic.h - runs that follow a known law.
#pragma once

#include <cmath>

#include "core/random.h"
#include "core/statistics.h"
#include "trainer/fit/law.h"

namespace uqa::fit {

struct Truth {
  double e = 1.8, a = 480, alpha = 0.35, b = 2000, beta = 0.37;
  [[nodiscard]] double loss(double log_n, double log_d) const { return e + a * std::exp(-alpha * log_n) + b * std::exp(-beta * log_d); }
};

/// rows x columns runs, N from 1e6 and D from 1e7 on, each over `decades`.
inline LawData grid(int rows, int columns, double noise, std::uint64_t seed, const Truth& truth = {}, double decades = 2.5) {
  PhiloxStream random(stream_key(seed, "tests/fit"));
  LawData data{.log_x = {{}, {}}, .log_loss = {}};
  for (int i = 0; i < rows; ++i) {
    for (int j = 0; j < columns; ++j) {
      data.log_x[0].push_back(std::log(1e6) + std::log(10.0) * decades * i / (rows - 1));
      data.log_x[1].push_back(std::log(1e7) + std::log(10.0) * decades * j / (columns - 1));
      const double z = normal_quantile(0.5e-9 + (1 - 1e-9) * random.uniform_double());
      data.log_loss.push_back(std::log(truth.loss(data.log_x[0].back(), data.log_x[1].back())) + noise * z);
    }
  }
  return data;
}

}  // namespace uqa::fit
