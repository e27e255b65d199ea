#include "trainer/fit/bootstrap.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "core/error.h"

namespace uqa::fit {
namespace {

double to_scale(Scale scale, double value) {
  switch (scale) {
    case Scale::kPlain: return value;
    case Scale::kLog: return std::log(value);
    case Scale::kLogit: return std::log(value / (1 - value));
  }
  return value;
}

double from_scale(Scale scale, double value) {
  switch (scale) {
    case Scale::kPlain: return value;
    case Scale::kLog: return std::exp(value);
    case Scale::kLogit: return 1 / (1 + std::exp(-value));
  }
  return value;
}

/// d value / d scaled value, for a standard error on the plain scale.
double slope(Scale scale, double value) {
  switch (scale) {
    case Scale::kPlain: return 1;
    case Scale::kLog: return value;
    case Scale::kLogit: return value * (1 - value);
  }
  return 1;
}

/// Standard error of f(theta) by the delta method; central differences, steps of a hundredth of each parameter's own standard error.
double delta_error(const std::function<double(const Theta&)>& f, const Theta& theta, const Matrix& covariance, std::size_t p) {
  Theta gradient{};
  for (std::size_t j = 0; j < p; ++j) {
    const double step = 1e-2 * std::sqrt(covariance[j][j]);
    if (!(step > 0)) continue;
    auto up = theta, down = theta;
    up[j] += step;
    down[j] -= step;
    gradient[j] = (f(up) - f(down)) / (2 * step);
  }
  double variance = 0;
  for (std::size_t a = 0; a < p; ++a) {
    for (std::size_t b = 0; b < p; ++b) variance += gradient[a] * covariance[a][b] * gradient[b];
  }
  return std::sqrt(std::max(variance, 0.0));
}

}  // namespace

Json to_json(const Estimate& estimate) {
  Json json{{"value", estimate.value}, {"standard_error", estimate.standard_error}};
  json["low"] = estimate.interval ? Json(estimate.interval->low) : Json(nullptr);
  json["high"] = estimate.interval ? Json(estimate.interval->high) : Json(nullptr);
  if (!estimate.interval) json["reason"] = estimate.reason;
  return json;
}

double draw_normal(PhiloxStream& random) { return normal_quantile(std::clamp(random.uniform_double(), 1e-12, 1 - 1e-12)); }

double quantile(std::vector<double> values, double p) {
  std::sort(values.begin(), values.end());
  const double at = p * static_cast<double>(values.size() - 1);
  const auto low = static_cast<std::size_t>(at);
  const auto high = std::min(low + 1, values.size() - 1);
  return values[low] + (at - static_cast<double>(low)) * (values[high] - values[low]);
}

void BootstrapOptions::validate() const {
  UQA_CHECK(num_resamples >= 200, ErrorCode::kConfig, "resamples = {}, must be at least 200 for the ends of an interval; change --resamples", num_resamples);
  UQA_CHECK(confidence > 0.5 && confidence < 1, ErrorCode::kConfig, "confidence = {}, must lie in (0.5, 1); change --confidence", confidence);
}

Bootstrap::Bootstrap(const LawData& data, const LawFit& fit, const BootstrapOptions& options) : fit_(fit), options_(options) {
  options.validate();
  if (fit.degrees_of_freedom < kMinDegreesOfFreedom || !(fit.spread > 0)) return;
  const std::size_t n = data.num_runs();
  // Residuals are smaller than the noise by sqrt(1 - leverage); centred, since the law has no free shift on the log scale.
  std::vector<double> pool(n);
  for (std::size_t i = 0; i < n; ++i) pool[i] = fit.residual[i] / std::sqrt(std::max(1 - fit.leverage[i], 1e-4));
  const double mean = std::accumulate(pool.begin(), pool.end(), 0.0) / static_cast<double>(n);
  for (auto& r : pool) r -= mean;
  PhiloxStream random(stream_key(options.seed, "fit/bootstrap"));
  const auto draw = [&] {
    if (!parametric()) return pool[random.below(n)];
    return fit.spread * draw_normal(random);
  };
  auto resampled = data;
  refits_.reserve(static_cast<std::size_t>(options.num_resamples));
  for (std::int64_t b = 0; b < options.num_resamples; ++b) {
    for (std::size_t i = 0; i < n; ++i) resampled.log_loss[i] = fit.fitted[i] + draw();
    const auto refit = refit_law(resampled, fit);
    Refit kept{.theta = refit.theta, .covariance = refit.covariance, .spread = refit.spread, .new_noise = draw()};
    kept.degenerate = !(refit.spread > 0) || !(refit.covariance[0][0] > 0);
    for (std::size_t k = 0; k < fit.num_terms; ++k) kept.degenerate = kept.degenerate || !(refit.exponent(k) > 0);
    refits_.push_back(kept);
  }
}

double Bootstrap::degenerate_fraction() const {
  if (refits_.empty()) return 0;
  const auto count = std::count_if(refits_.begin(), refits_.end(), [](const Refit& r) { return r.degenerate; });
  return static_cast<double>(count) / static_cast<double>(refits_.size());
}

std::string Bootstrap::refusal() const {
  if (fit_.degrees_of_freedom < kMinDegreesOfFreedom) {
    return fmt::format("{} run{} for {} parameters leave {} degree{} of freedom, an interval needs {}", fit_.fitted.size(), fit_.fitted.size() == 1 ? "" : "s",
                       fit_.num_parameters(), fit_.degrees_of_freedom, fit_.degrees_of_freedom == 1 ? "" : "s", kMinDegreesOfFreedom);
  }
  if (refits_.empty()) return "the noise cannot be estimated (E, A and alpha cannot be told apart, or the residuals are all zero)";
  // More than half a tail of one side: the end of an interval would lie among fits that are no power law.
  if (degenerate_fraction() > (1 - options_.confidence) / 4) {
    return fmt::format("{:.1f} % of the refits are no power law that falls: E, the coefficients and the exponents cannot be told apart", 100 * degenerate_fraction());
  }
  return "";
}

Estimate Bootstrap::interval(const Quantity& quantity) const {
  const auto scaled = [&](const Theta& theta) { return to_scale(quantity.scale, quantity.value(theta)); };
  const std::size_t p = fit_.num_parameters();
  Estimate estimate{.value = quantity.value(fit_.theta), .reason = refusal()};
  const double center = scaled(fit_.theta);
  if (!std::isfinite(center)) {
    estimate.reason = fmt::format("{} = {} is outside its range", quantity.name, estimate.value);
    return estimate;
  }
  if (fit_.spread > 0) estimate.standard_error = slope(quantity.scale, estimate.value) * delta_error(scaled, fit_.theta, fit_.covariance, p);
  if (!estimate.reason.empty()) return estimate;
  std::vector<double> pivots;
  for (const auto& refit : refits_) {
    if (refit.degenerate) continue;
    const double value = scaled(refit.theta), error = delta_error(scaled, refit.theta, refit.covariance, p);
    if (std::isfinite(value) && error > 0) pivots.push_back((value - center) / error);
  }
  if (static_cast<double>(pivots.size()) < (1 - (1 - options_.confidence) / 4) * static_cast<double>(refits_.size())) {
    estimate.reason = fmt::format("{} has no finite value in {:.1f} % of the refits", quantity.name,
                                  100 - 100 * static_cast<double>(pivots.size()) / static_cast<double>(refits_.size()));
    return estimate;
  }
  const double error = delta_error(scaled, fit_.theta, fit_.covariance, p), tail = (1 - options_.confidence) / 2;
  const double low = from_scale(quantity.scale, center - quantile(pivots, 1 - tail) * error);
  const double high = from_scale(quantity.scale, center - quantile(pivots, tail) * error);
  estimate.interval = Interval{std::max(low, quantity.lowest), std::max(high, quantity.lowest)};
  return estimate;
}

Estimate Bootstrap::new_run(std::span<const double> log_x) const {
  const auto predicted = [&](const Theta& theta) { return log_prediction(fit_, theta, log_x); };
  const std::size_t p = fit_.num_parameters();
  Estimate estimate{.value = predicted(fit_.theta), .reason = refusal()};
  const auto error_of = [&](const Theta& theta, const Matrix& covariance, double spread) {
    const double error = delta_error(predicted, theta, covariance, p);
    return std::sqrt(error * error + spread * spread);
  };
  if (fit_.spread > 0) estimate.standard_error = error_of(fit_.theta, fit_.covariance, fit_.spread);
  if (!estimate.reason.empty()) return estimate;
  std::vector<double> pivots;
  for (const auto& refit : refits_) {
    if (refit.degenerate) continue;
    pivots.push_back((estimate.value + refit.new_noise - predicted(refit.theta)) / error_of(refit.theta, refit.covariance, refit.spread));
  }
  const double tail = (1 - options_.confidence) / 2;
  estimate.interval = Interval{estimate.value + quantile(pivots, tail) * estimate.standard_error,
                               estimate.value + quantile(pivots, 1 - tail) * estimate.standard_error};
  return estimate;
}

}  // namespace uqa::fit
