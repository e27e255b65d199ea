#include "trainer/fit/holdout.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <set>

#include "core/error.h"

namespace uqa::fit {
namespace {

constexpr double kSameSize = 1e-6;  // of a sum of log sizes: sizes that differ by less are equal

LawData subset(const LawData& data, const std::vector<std::size_t>& indices) {
  LawData part{.log_x = std::vector<std::vector<double>>(data.num_terms()), .log_loss = {}};
  for (const auto i : indices) {
    part.log_loss.push_back(data.log_loss[i]);
    for (std::size_t k = 0; k < data.num_terms(); ++k) part.log_x[k].push_back(data.log_x[k][i]);
  }
  return part;
}

double size_of(const LawData& data, std::size_t i) {
  double sum = 0;
  for (const auto& log_x : data.log_x) sum += log_x[i];
  return sum;
}

std::vector<double> at(const LawData& data, std::size_t i) {
  std::vector<double> log_x;
  for (const auto& column : data.log_x) log_x.push_back(column[i]);
  return log_x;
}

/// Mean loss of the runs from `begin` on that have the size of the first of them.
double mean_of_group(const LawData& data, const std::vector<std::size_t>& order, std::size_t begin) {
  double sum = 0;
  std::size_t count = 0;
  for (std::size_t j = begin; j < order.size() && std::abs(size_of(data, order[j]) - size_of(data, order[begin])) < kSameSize; ++j, ++count) {
    sum += std::exp(data.log_loss[order[j]]);
  }
  return sum / static_cast<double>(count);
}

}  // namespace

std::vector<double> fit_log_line(const LawData& data) {
  // Normal equations on centred columns: at most two slopes.
  const std::size_t terms = data.num_terms(), n = data.num_runs();
  const auto mean = [&](const std::vector<double>& v) { return std::accumulate(v.begin(), v.end(), 0.0) / static_cast<double>(n); };
  std::vector<double> center(terms), slope(terms, 0);
  for (std::size_t k = 0; k < terms; ++k) center[k] = mean(data.log_x[k]);
  const double mean_y = mean(data.log_loss);
  double xx[2][2] = {}, xy[2] = {};
  for (std::size_t i = 0; i < n; ++i) {
    for (std::size_t a = 0; a < terms; ++a) {
      xy[a] += (data.log_x[a][i] - center[a]) * (data.log_loss[i] - mean_y);
      for (std::size_t b = 0; b < terms; ++b) xx[a][b] += (data.log_x[a][i] - center[a]) * (data.log_x[b][i] - center[b]);
    }
  }
  const double determinant = xx[0][0] * xx[1][1] - xx[0][1] * xx[1][0];
  if (terms == 2 && determinant > 1e-9 * xx[0][0] * xx[1][1]) {
    slope[0] = (xy[0] * xx[1][1] - xy[1] * xx[0][1]) / determinant;
    slope[1] = (xy[1] * xx[0][0] - xy[0] * xx[0][1]) / determinant;
  } else if (xx[0][0] > 0) {
    slope[0] = xy[0] / xx[0][0];
  }
  double intercept = mean_y;
  for (std::size_t k = 0; k < terms; ++k) intercept -= slope[k] * center[k];
  std::vector<double> line{intercept};
  line.insert(line.end(), slope.begin(), slope.end());
  return line;
}

Holdout hold_out_largest(const LawData& data, std::int64_t num_held, const LawOptions& law, const BootstrapOptions& options) {
  Holdout holdout;
  if (num_held == 0) {
    holdout.reason = "not asked for (--holdout 0)";
    return holdout;
  }
  if (num_held < 0) num_held = std::max<std::int64_t>(1, std::llround(0.1 * static_cast<double>(data.num_runs())));
  std::vector<std::size_t> order(data.num_runs());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) { return size_of(data, a) > size_of(data, b); });
  std::size_t cut = std::min(order.size(), static_cast<std::size_t>(num_held));
  while (cut < order.size() && std::abs(size_of(data, order[cut]) - size_of(data, order[cut - 1])) < kSameSize) ++cut;
  const std::vector<std::size_t> held(order.begin(), order.begin() + static_cast<std::ptrdiff_t>(cut)), kept(order.begin() + static_cast<std::ptrdiff_t>(cut), order.end());
  const auto rest = subset(data, kept);
  const auto needed = rest.num_parameters() + 1;
  if (rest.num_runs() < needed) {
    holdout.reason = fmt::format("{} runs would remain for {} parameters, {} are needed", rest.num_runs(), rest.num_parameters(), needed);
    return holdout;
  }
  for (const auto& log_x : rest.log_x) {
    if (const auto sizes = std::set<double>(log_x.begin(), log_x.end()).size(); sizes < 3) {
      holdout.reason = fmt::format("{} different sizes would remain, 3 are needed", sizes);
      return holdout;
    }
  }
  const auto fit = fit_law(rest, law);
  const Bootstrap bootstrap(rest, fit, options);
  const auto line = fit_log_line(rest);
  const double next_largest = mean_of_group(data, order, cut);
  auto backwards = order;
  std::reverse(backwards.begin(), backwards.end());
  holdout.drop = mean_of_group(data, backwards, 0) - mean_of_group(data, order, 0);
  const double share = 1.0 / static_cast<double>(held.size());
  for (const auto i : held) {
    const auto log_x = at(data, i);
    const auto estimate = bootstrap.new_run(log_x);
    HeldRun run{.run = i, .loss = std::exp(data.log_loss[i]), .law = std::exp(estimate.value), .interval = std::nullopt, .next_largest = next_largest, .log_line = line[0]};
    if (estimate.interval) {
      run.interval = Interval{std::exp(estimate.interval->low), std::exp(estimate.interval->high)};
      ++holdout.with_interval;
      if (run.interval->low <= run.loss && run.loss <= run.interval->high) ++holdout.covered;
    } else {
      holdout.reason = estimate.reason;
    }
    for (std::size_t k = 0; k < log_x.size(); ++k) run.log_line += line[1 + k] * log_x[k];
    run.log_line = std::exp(run.log_line);
    holdout.law_error += share * std::abs(run.law - run.loss);
    holdout.next_largest_error += share * std::abs(run.next_largest - run.loss);
    holdout.log_line_error += share * std::abs(run.log_line - run.loss);
    holdout.runs.push_back(run);
  }
  return holdout;
}

}  // namespace uqa::fit
