// data/synth/oracle.h - means over generated positions of what the exact next-item distribution says, with errors by user.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "core/json.h"
#include "data/synth/process.h"

namespace uqa::data::synth {

/// A mean over positions whose standard error respects that positions of one user are alike (ratio estimator over users).
class ClusteredMean {
 public:
  void add_user(double sum, double count);
  [[nodiscard]] double mean() const;
  [[nodiscard]] double standard_error() const;
  [[nodiscard]] Json to_json() const { return {{"mean", mean()}, {"standard_error", standard_error()}}; }

 private:
  std::vector<double> sums_, counts_;
};

class Oracle {
 public:
  explicit Oracle(const Process& process) : process_(process) {}
  /// Every position but the first, which no model predicts.
  void add_user(std::span<const std::int32_t> history);
  [[nodiscard]] Json to_json() const;

 private:
  const Process& process_;
  ClusteredMean entropy_, cross_entropy_, item_, category_, brand_, shop_;
  std::int64_t users_ = 0, positions_ = 0;
};

}  // namespace uqa::data::synth
