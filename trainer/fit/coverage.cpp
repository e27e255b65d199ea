#include "trainer/fit/coverage.h"

#include <algorithm>
#include <cmath>
#include <map>

#include "trainer/fit/quantities.h"

namespace uqa::fit {
namespace {

struct Tally {
  std::int64_t covered = 0, stated = 0;
  std::vector<double> widths;
};

}  // namespace

Json measure_coverage(const CoverageOptions& options) {
  const auto runs = static_cast<std::size_t>(options.num_runs);
  const auto rows = static_cast<std::size_t>(std::max(3.0, std::floor(std::sqrt(static_cast<double>(runs)))));
  const std::size_t columns = (runs + rows - 1) / rows;
  LawData truth{.log_x = {{}, {}}, .log_loss = {}};
  const auto loss_at = [&](double log_n, double log_d) {
    return options.e + options.a * std::exp(-options.alpha * log_n) + options.b * std::exp(-options.beta * log_d);
  };
  for (std::size_t i = 0; i < runs; ++i) {
    const double n = static_cast<double>(i % rows) / static_cast<double>(rows - 1), d = static_cast<double>(i / rows) / static_cast<double>(columns - 1);
    truth.log_x[0].push_back(std::log(1e6) + n * std::log(300));
    truth.log_x[1].push_back(std::log(1e7) + d * std::log(300));
    truth.log_loss.push_back(std::log(loss_at(truth.log_x[0].back(), truth.log_x[1].back())));
  }
  const std::vector<double> far{std::log(3e9), std::log(3e10)};
  const double far_loss = loss_at(far[0], far[1]);
  const std::map<std::string, double> expected{{"E", options.e}, {"A", options.a}, {"alpha", options.alpha}, {"B", options.b}, {"beta", options.beta},
                                               {"a", options.beta / (options.alpha + options.beta)}, {"b", options.alpha / (options.alpha + options.beta)},
                                               {"loss_at_10x", far_loss}};
  std::map<std::string, Tally> tallies;
  const auto count = [&](const std::string& name, const Estimate& estimate, double value) {
    auto& tally = tallies[name];
    if (!estimate.interval) return;
    ++tally.stated;
    if (estimate.interval->low <= value && value <= estimate.interval->high) ++tally.covered;
    tally.widths.push_back(estimate.interval->high - estimate.interval->low);
  };
  // Every size and noise has draws of its own: their results are independent of each other.
  const auto key = stream_key(options.seed, fmt::format("fit/coverage/{}/{}", options.num_runs, options.noise));
  for (std::int64_t study = 0; study < options.num_studies; ++study) {
    PhiloxStream random(mix_key(key, static_cast<std::uint64_t>(study)));
    auto data = truth;
    for (auto& y : data.log_loss) y += options.noise * draw_normal(random);
    const auto fit = fit_law(data, {});
    auto bootstrap_options = options.bootstrap;
    bootstrap_options.seed = static_cast<std::uint64_t>(study) + 1;
    const Bootstrap bootstrap(data, fit, bootstrap_options);
    auto quantities = law_quantities(fit, {"N", "D"});
    for (auto& quantity : frontier_quantities({})) quantities.push_back(std::move(quantity));
    quantities.push_back({.name = "loss_at_10x", .value = [&](const Theta& t) { return std::exp(log_prediction(fit, t, far)); }});
    for (const auto& quantity : quantities) count(quantity.name, bootstrap.interval(quantity), expected.at(quantity.name));
    count("new_run_at_10x", bootstrap.new_run(far), std::log(far_loss) + options.noise * draw_normal(random));
  }
  Json result{{"runs", options.num_runs}, {"studies", options.num_studies}, {"noise", options.noise}, {"resamples", options.bootstrap.num_resamples},
              {"truth", expected}, {"coverage", Json::object()}, {"with_interval", Json::object()}, {"median_width", Json::object()}};
  for (const auto& [name, tally] : tallies) {
    result["with_interval"][name] = tally.stated;
    result["coverage"][name] = tally.stated == 0 ? Json(nullptr) : Json(static_cast<double>(tally.covered) / static_cast<double>(tally.stated));
    result["median_width"][name] = tally.stated == 0 ? Json(nullptr) : Json(quantile(tally.widths, 0.5));
  }
  return result;
}

}  // namespace uqa::fit
