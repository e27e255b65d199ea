#include "trainer/fit/accuracy.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <set>

#include <boost/math/distributions/chi_squared.hpp>
#include <boost/math/distributions/students_t.hpp>
#include <lbfgs.h>

#include "core/error.h"

namespace uqa::fit {
namespace {

/// x = (log k, (L0 - center) / spread, logit of the ceiling above chance); the last one only with a free ceiling.
struct Sigmoid {
  const std::vector<AccuracyRun>* runs;
  std::vector<double> correct;  ///< expected or drawn number of right answers
  double chance, center, spread;
  bool free_ceiling;

  [[nodiscard]] std::size_t size() const { return free_ceiling ? 3 : 2; }
  [[nodiscard]] double ceiling(const double* x) const { return free_ceiling ? chance + (1 - chance) / (1 + std::exp(-x[2])) : 1; }
  [[nodiscard]] double accuracy(const double* x, double loss) const {
    return chance + (ceiling(x) - chance) / (1 + std::exp(std::exp(x[0]) * ((loss - center) / spread - x[1])));
  }

  static lbfgsfloatval_t evaluate(void* self, const lbfgsfloatval_t* x, lbfgsfloatval_t* g, int n, lbfgsfloatval_t) {
    const auto& s = *static_cast<const Sigmoid*>(self);
    double total = 0, sum = 0;
    std::fill(g, g + n, 0.0);
    const double k = std::exp(x[0]), top = s.ceiling(x) - s.chance;
    for (std::size_t i = 0; i < s.runs->size(); ++i) {
      const auto& run = (*s.runs)[i];
      const double z = (run.loss - s.center) / s.spread - x[1];
      const double share = 1 / (1 + std::exp(k * z));
      const double p = std::clamp(s.chance + top * share, 1e-9, 1 - 1e-9);
      sum -= s.correct[i] * std::log(p) + (run.num_questions - s.correct[i]) * std::log(1 - p);
      total += run.num_questions;
      const double by_p = -s.correct[i] / p + (run.num_questions - s.correct[i]) / (1 - p);
      const double by_argument = -by_p * top * share * (1 - share);  // argument = k z
      g[0] += by_argument * k * z;
      g[1] -= by_argument * k;
      if (s.free_ceiling) {
        const double u = 1 / (1 + std::exp(-x[2]));
        g[2] += by_p * share * (1 - s.chance) * u * (1 - u);
      }
    }
    // A weak prior (a thousandth of a question's weight) keeps a ceiling or slope that the runs do not determine from running away.
    const double weight = 1e-3;
    for (int j = 0; j < n; ++j) {
      sum += 0.5 * weight * x[j] * x[j];
      g[j] = (g[j] + weight * x[j]) / total;
    }
    return sum / total;
  }

  [[nodiscard]] std::array<double, 3> maximize(std::array<double, 3> start) const {
    lbfgs_parameter_t parameters;
    lbfgs_parameter_init(&parameters);
    parameters.epsilon = 1e-8;
    parameters.max_iterations = 500;
    lbfgsfloatval_t value = 0;
    auto* self = const_cast<Sigmoid*>(this);  // liblbfgs passes a plain void*; evaluate() only reads it
    lbfgs(static_cast<int>(size()), start.data(), &value, evaluate, nullptr, self, &parameters);
    return start;
  }
  [[nodiscard]] double loss_of(const std::array<double, 3>& x) const {
    std::array<double, 3> unused{};
    return evaluate(const_cast<Sigmoid*>(this), x.data(), unused.data(), static_cast<int>(size()), 0);
  }
};

double student_quantile(double p, double degrees) { return boost::math::quantile(boost::math::students_t(degrees), p); }

/// Empty when the accuracies differ by more than independent draws (and users) explain, p < 0.05.
std::string why_flat(const std::vector<AccuracyRun>& runs) {
  double correct = 0, questions = 0, statistic = 0;
  for (const auto& run : runs) {
    correct += run.accuracy * run.num_questions / run.users_effect;
    questions += run.num_questions / run.users_effect;
  }
  const double mean = correct / questions;
  if (!(mean > 0 && mean < 1)) return fmt::format("every run has accuracy {:.0f} %", 100 * mean);
  for (const auto& run : runs) {
    statistic += run.num_questions / run.users_effect * (run.accuracy - mean) * (run.accuracy - mean) / (mean * (1 - mean));
  }
  const double p = boost::math::cdf(boost::math::complement(boost::math::chi_squared(static_cast<double>(runs.size() - 1)), statistic));
  if (p < 0.05) return "";
  return fmt::format("the accuracies ({:.1f} % on average) do not differ by more than chance explains (p = {:.2f})", 100 * mean, p);
}

}  // namespace

double users_effect(const std::vector<std::pair<std::int64_t, bool>>& answers) {
  std::map<std::int64_t, std::pair<double, double>> by_user;  // right, asked
  double right = 0;
  for (const auto& [user, correct] : answers) {
    by_user[user].first += correct ? 1 : 0;
    by_user[user].second += 1;
    right += correct ? 1 : 0;
  }
  const double n = static_cast<double>(answers.size()), users = static_cast<double>(by_user.size());
  if (by_user.size() < 2 || right == 0 || right == n) return 1;
  // Linearized variance of a ratio of sums over users, over the binomial one.
  const double p = right / n;
  double squares = 0;
  for (const auto& [user, counts] : by_user) squares += (counts.first - p * counts.second) * (counts.first - p * counts.second);
  return std::max(1.0, squares * users / (users - 1) / (n * p * (1 - p)));
}

SigmoidFit fit_sigmoid(const std::vector<AccuracyRun>& runs, double chance, const BootstrapOptions& options) {
  options.validate();
  UQA_CHECK(chance >= 0 && chance < 1, ErrorCode::kConfig, "chance = {}, must lie in [0, 1); change --chance", chance);
  SigmoidFit fit{.reason = "", .chance = chance, .ceiling = {}, .k = {}, .midpoint = {}, .curve = {}};
  std::set<double> losses;
  for (const auto& run : runs) losses.insert(run.loss);
  fit.free_ceiling = losses.size() >= 8;
  const std::size_t parameters = fit.free_ceiling ? 3 : 2;
  if (losses.size() < parameters + 2) {
    fit.reason = fmt::format("{} different losses, a sigmoid of {} parameters needs {}", losses.size(), parameters, parameters + 2);
    return fit;
  }
  fit.reason = why_flat(runs);
  if (!fit.reason.empty()) return fit;
  Sigmoid sigmoid{.runs = &runs, .correct = {}, .chance = chance, .center = 0, .spread = 0, .free_ceiling = fit.free_ceiling};
  const double low = *losses.begin(), high = *losses.rbegin();
  sigmoid.center = (low + high) / 2;
  sigmoid.spread = (high - low) / 2;
  for (const auto& run : runs) sigmoid.correct.push_back(run.accuracy * run.num_questions);
  std::array<double, 3> best{};
  double best_value = std::numeric_limits<double>::infinity();
  for (const double log_k : {-1.0, 0.0, 1.0}) {
    for (const double midpoint : {-2.0, 0.0, 2.0}) {
      const auto x = sigmoid.maximize({log_k, midpoint, 0.5});
      const double value = sigmoid.loss_of(x);
      if (value < best_value) {
        best_value = value;
        best = x;
      }
    }
  }
  const double degrees = static_cast<double>(runs.size() - parameters);
  double pearson = 0, users = 1;
  for (const auto& run : runs) {
    const double p = sigmoid.accuracy(best.data(), run.loss);
    pearson += run.num_questions * (run.accuracy - p) * (run.accuracy - p) / (p * (1 - p)) / degrees;
    users = std::max(users, run.users_effect);
  }
  fit.overdispersion = std::max(users, pearson);
  PhiloxStream random(stream_key(options.seed, "fit/accuracy"));
  std::vector<std::array<double, 3>> refits;
  auto drawn = sigmoid;
  for (std::int64_t b = 0; b < options.num_resamples; ++b) {
    for (std::size_t i = 0; i < runs.size(); ++i) {
      const double p = sigmoid.accuracy(best.data(), runs[i].loss), n = runs[i].num_questions;
      drawn.correct[i] = std::clamp(n * p + std::sqrt(fit.overdispersion * n * p * (1 - p)) * draw_normal(random), 0.0, n);
    }
    refits.push_back(drawn.maximize(best));
  }
  // Percentiles at levels whose normal quantile is Student's: the spread was estimated from few runs unless questions or users set it.
  const double tail = (1 - options.confidence) / 2;
  const double level = pearson > users ? 0.5 * std::erfc(student_quantile(1 - tail, degrees) / std::sqrt(2.0)) : tail;
  const auto estimate = [&](auto&& value) {
    Estimate e{.value = value(best), .reason = ""};
    std::vector<double> values;
    double mean = 0, square = 0;
    for (const auto& x : refits) {
      values.push_back(value(x));
      mean += values.back() / static_cast<double>(refits.size());
      square += values.back() * values.back() / static_cast<double>(refits.size());
    }
    e.standard_error = std::sqrt(std::max(square - mean * mean, 0.0));
    e.interval = Interval{quantile(values, level), quantile(values, 1 - level)};
    return e;
  };
  fit.ceiling = estimate([&](const auto& x) { return sigmoid.ceiling(x.data()); });
  fit.k = estimate([&](const auto& x) { return std::exp(x[0]) / sigmoid.spread; });
  fit.midpoint = estimate([&](const auto& x) { return sigmoid.center + sigmoid.spread * x[1]; });
  if (!fit.free_ceiling) {
    fit.ceiling.interval.reset();
    fit.ceiling.standard_error = 0;
    fit.ceiling.reason = "set to 1: fewer than 8 different losses";
  }
  const double margin = 0.15 * (high - low);
  for (int i = 0; i <= 40; ++i) {
    const double loss = low - margin + (high - low + 2 * margin) * i / 40.0;
    const auto at = estimate([&](const auto& x) { return sigmoid.accuracy(x.data(), loss); });
    fit.curve.push_back({loss, at.value, at.interval->low, at.interval->high});
  }
  fit.fitted = true;
  return fit;
}

AccuracyTrend fit_accuracy_trend(const std::vector<AccuracyRun>& runs, const std::vector<std::string>& axes, double confidence) {
  AccuracyTrend trend;
  std::vector<std::size_t> columns;
  for (std::size_t a = 0; a < axes.size(); ++a) {
    std::set<double> values;
    for (const auto& run : runs) values.insert(run.log10_sizes.at(a));
    if (values.size() >= 2) columns.push_back(a);
  }
  for (const auto a : columns) trend.axes.push_back(axes[a]);
  const std::size_t p = columns.size() + 1;
  if (columns.empty()) {
    trend.reason = "no size varies";
    return trend;
  }
  if (runs.size() < p + 2) {
    trend.reason = fmt::format("{} runs for {} slopes and a level, {} are needed", runs.size(), columns.size(), p + 2);
    return trend;
  }
  // Weighted least squares by Gauss-Jordan; weights: questions over the users' effect, at the mean accuracy.
  double correct = 0, questions = 0;
  for (const auto& run : runs) {
    correct += run.accuracy * run.num_questions;
    questions += run.num_questions;
  }
  const double mean = std::clamp(correct / questions, 1e-3, 1 - 1e-3);
  std::vector<double> center(columns.size(), 0);
  for (const auto& run : runs) {
    for (std::size_t j = 0; j < columns.size(); ++j) center[j] += run.log10_sizes[columns[j]] / static_cast<double>(runs.size());
  }
  const auto row_of = [&](const AccuracyRun& run) {
    std::vector<double> row{1};
    for (std::size_t j = 0; j < columns.size(); ++j) row.push_back(run.log10_sizes[columns[j]] - center[j]);
    return row;
  };
  const auto weight_of = [&](const AccuracyRun& run) { return run.num_questions / run.users_effect / (mean * (1 - mean)); };
  std::vector<std::vector<double>> a(p, std::vector<double>(p + 1 + p, 0));  // [normal matrix | right side | identity]
  for (const auto& run : runs) {
    const auto row = row_of(run);
    const double w = weight_of(run);
    for (std::size_t i = 0; i < p; ++i) {
      for (std::size_t j = 0; j < p; ++j) a[i][j] += w * row[i] * row[j];
      a[i][p] += w * row[i] * run.accuracy;
    }
  }
  for (std::size_t i = 0; i < p; ++i) a[i][p + 1 + i] = 1;
  for (std::size_t i = 0; i < p; ++i) {
    std::size_t pivot = i;
    for (std::size_t r = i + 1; r < p; ++r) {
      if (std::abs(a[r][i]) > std::abs(a[pivot][i])) pivot = r;
    }
    std::swap(a[i], a[pivot]);
    if (!(std::abs(a[i][i]) > 1e-9 * static_cast<double>(runs.size()))) {
      trend.reason = "sizes grow together in all runs: their effects cannot be told apart";
      return trend;
    }
    const double scale = a[i][i];
    for (auto& value : a[i]) value /= scale;
    for (std::size_t r = 0; r < p; ++r) {
      const double factor = a[r][i];
      if (r == i || factor == 0) continue;
      for (std::size_t c = 0; c < a[r].size(); ++c) a[r][c] -= factor * a[i][c];
    }
  }
  const double degrees = static_cast<double>(runs.size() - p);
  double pearson = 0;
  for (const auto& run : runs) {
    const auto row = row_of(run);
    double fitted = 0;
    for (std::size_t i = 0; i < p; ++i) fitted += a[i][p] * row[i];
    pearson += weight_of(run) * (run.accuracy - fitted) * (run.accuracy - fitted) / degrees;
  }
  const double t = pearson > 1 ? student_quantile(1 - (1 - confidence) / 2, degrees) : normal_quantile(1 - (1 - confidence) / 2);
  for (std::size_t j = 1; j < p; ++j) {
    const double error = std::sqrt(a[j][p + 1 + j] * std::max(1.0, pearson));
    trend.per_decade.push_back({.value = a[j][p], .standard_error = error, .interval = Interval{a[j][p] - t * error, a[j][p] + t * error}, .reason = ""});
  }
  return trend;
}

}  // namespace uqa::fit
