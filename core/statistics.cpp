#include "core/statistics.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "core/error.h"
#include "core/random.h"

namespace uqa {

double normal_quantile(double p) {
  UQA_CHECK(p > 0 && p < 1, ErrorCode::kInternal, "normal_quantile needs 0 < p < 1, got {}", p);
  // Bisection on erfc keeps full accuracy in both tails; 100 halvings of [-40, 40] are far below double rounding.
  double low = -40, high = 40;
  for (int i = 0; i < 100; ++i) {
    const double mid = 0.5 * (low + high);
    (0.5 * std::erfc(-mid / std::sqrt(2.0)) < p ? low : high) = mid;
  }
  return 0.5 * (low + high);
}

Interval wilson_interval(std::int64_t correct, std::int64_t n, double confidence) {
  UQA_CHECK(n >= 0 && correct >= 0 && correct <= n, ErrorCode::kInternal, "wilson_interval({}, {})", correct, n);
  if (n == 0) return {0, 1};
  const double z = normal_quantile(0.5 + confidence / 2), count = static_cast<double>(n);
  const double p = static_cast<double>(correct) / count, z2 = z * z;
  const double centre = (p + z2 / (2 * count)) / (1 + z2 / count);
  const double half = z / (1 + z2 / count) * std::sqrt(p * (1 - p) / count + z2 / (4 * count * count));
  return {correct == 0 ? 0.0 : centre - half, correct == n ? 1.0 : centre + half};
}

Interval mean_proportion_interval(const std::vector<Proportion>& proportions, double confidence) {
  UQA_CHECK(!proportions.empty(), ErrorCode::kInternal, "mean_proportion_interval needs a proportion");
  double mean = 0, below = 0, above = 0;
  for (const auto& [correct, n] : proportions) {
    const double p = n == 0 ? 0.5 : static_cast<double>(correct) / static_cast<double>(n);
    const auto interval = wilson_interval(correct, n, confidence);
    mean += p;
    below += (p - interval.low) * (p - interval.low);
    above += (interval.high - p) * (interval.high - p);
  }
  const double count = static_cast<double>(proportions.size());
  return {std::max(0.0, (mean - std::sqrt(below)) / count), std::min(1.0, (mean + std::sqrt(above)) / count)};
}

double mcnemar_exact_p(std::int64_t only_first, std::int64_t only_second) {
  const std::int64_t n = only_first + only_second, least = std::min(only_first, only_second);
  if (n == 0) return 1;
  double tail = 0;
  for (std::int64_t k = 0; k <= least; ++k) {
    const double m = static_cast<double>(n), i = static_cast<double>(k);
    tail += std::exp(std::lgamma(m + 1) - std::lgamma(i + 1) - std::lgamma(m - i + 1) - m * std::log(2.0));
  }
  return std::min(1.0, 2 * tail);
}

PairedTest sign_flip_test(const std::vector<double>& difference_sums, std::int64_t num_questions, std::int64_t num_permutations,
                          std::uint64_t seed) {
  UQA_CHECK(num_questions > 0, ErrorCode::kInternal, "sign_flip_test needs questions");
  PairedTest result;
  const double observed = std::accumulate(difference_sums.begin(), difference_sums.end(), 0.0);
  result.difference = observed / static_cast<double>(num_questions);
  std::vector<double> moving;  // users without a difference never change the sum
  for (const double d : difference_sums) {
    if (d != 0) moving.push_back(d);
  }
  PhiloxStream random(stream_key(seed, "sign_flip_test"));
  // Sums of halves and integers are exact in double, so ">=" needs only a tolerance against averaged (non-dyadic) inputs.
  const double bound = std::abs(observed) - 1e-9 * (1 + std::abs(observed));
  std::int64_t hits = 0;
  for (std::int64_t i = 0; i < num_permutations; ++i) {
    double sum = 0;
    std::uint32_t bits = 0;
    for (std::size_t u = 0; u < moving.size(); ++u) {
      if (u % 32 == 0) bits = random();
      sum += (bits >> (u % 32) & 1u) != 0 ? moving[u] : -moving[u];
    }
    if (std::abs(sum) >= bound) ++hits;
  }
  result.p = static_cast<double>(1 + hits) / static_cast<double>(1 + num_permutations);
  double sum_squares = 0;
  for (const double d : moving) sum_squares += d * d;
  result.detectable = (normal_quantile(0.975) + normal_quantile(0.8)) * std::sqrt(sum_squares) / static_cast<double>(num_questions);
  return result;
}

std::vector<double> holm_adjust(const std::vector<double>& p_values) {
  std::vector<std::size_t> order(p_values.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) { return p_values[a] < p_values[b]; });
  std::vector<double> adjusted(p_values.size());
  double running = 0;
  for (std::size_t i = 0; i < order.size(); ++i) {
    running = std::max(running, std::min(1.0, static_cast<double>(order.size() - i) * p_values[order[i]]));
    adjusted[order[i]] = running;
  }
  return adjusted;
}

}  // namespace uqa
