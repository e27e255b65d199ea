// trainer/fit/bootstrap.h - intervals for anything that follows from a fitted law: bootstrap-t over runs.
//
// Runs keep their sizes; their noise is drawn anew, the law is refitted, and (estimate* - estimate) / standard error* is collected. Its quantiles, times
// the fit's own standard error, give the interval: the small-sample widening (Student's, for a straight line) comes out of the
// refits themselves. See docs/design/0013-fit-and-report.md.
//
//   const Bootstrap bootstrap(data, fit, {});
//   const auto alpha = bootstrap.interval({.name = "alpha", .value = [](const Theta& t) { return t[2]; }});
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "core/json.h"
#include "core/random.h"
#include "core/statistics.h"
#include "trainer/fit/law.h"

namespace uqa::fit {

struct BootstrapOptions {
  std::int64_t num_resamples = 2000;  ///< refits; >= 200
  double confidence = 0.95;           ///< of every interval; in (0.5, 1)
  std::uint64_t seed = 1;
  void validate() const;              ///< Error(kConfig) naming the option
};

/// How a quantity is shown; its pivot is taken on the scale where it is closest to symmetric.
enum class Scale { kPlain, kLog, kLogit };

/// A number that follows from theta, on its plain scale.
struct Quantity {
  std::string name;
  std::function<double(const Theta&)> value;
  Scale scale = Scale::kPlain;
  double lowest = -1e300;  ///< an interval is cut here: no quantity of this name lies below
};

/// An estimate and what can be said about it.
struct Estimate {
  double value = 0;
  double standard_error = 0;          ///< on the plain scale, by the delta method; 0 when unknown
  std::optional<Interval> interval;   ///< absent: the runs cannot say
  std::string reason;                 ///< why not, in words; empty with an interval
};

class Bootstrap {
 public:
  /// Does the refits. With fewer than kMinDegreesOfFreedom left over, none are made and every interval is absent.
  Bootstrap(const LawData& data, const LawFit& fit, const BootstrapOptions& options);
  static constexpr std::int64_t kMinDegreesOfFreedom = 3;
  /// Below it the noise is drawn from a normal with the fit's spread: fewer residuals are too few to draw from.
  static constexpr std::int64_t kMinResidualDraws = 20;

  /// Interval of the quantity itself (a parameter, or the law's value at some size).
  [[nodiscard]] Estimate interval(const Quantity& quantity) const;
  /// Interval that one new run's log loss at these log sizes falls into: the law's uncertainty and the noise of one run.
  [[nodiscard]] Estimate new_run(std::span<const double> log_x) const;

  [[nodiscard]] const LawFit& fit() const { return fit_; }
  [[nodiscard]] bool parametric() const { return fit_.degrees_of_freedom < kMinResidualDraws; }
  /// Refits that ended where the law falls apart: an exponent at or below 0, or no covariance.
  [[nodiscard]] double degenerate_fraction() const;

 private:
  struct Refit {
    Theta theta;
    Matrix covariance;
    double spread = 0;
    double new_noise = 0;  ///< noise of a run that was not fitted, for new_run()
    bool degenerate = false;
  };
  [[nodiscard]] std::string refusal() const;

  LawFit fit_;
  BootstrapOptions options_;
  std::vector<Refit> refits_;
};

/// {"value", "standard_error", "low", "high", "reason"}; low and high are null without an interval.
[[nodiscard]] Json to_json(const Estimate& estimate);
/// A standard normal number.
[[nodiscard]] double draw_normal(PhiloxStream& random);
/// Sorts `values`; linear between order statistics, as numpy's default.
[[nodiscard]] double quantile(std::vector<double> values, double p);

}  // namespace uqa::fit
