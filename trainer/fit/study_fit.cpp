#include "trainer/fit/study_fit.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>
#include <set>

#include <boost/math/distributions/fisher_f.hpp>

#include "core/error.h"
#include "trainer/fit/accuracy_table.h"
#include "trainer/fit/holdout.h"
#include "trainer/fit/quantities.h"

namespace uqa::fit {
namespace {

constexpr double kFewDecades = 1.45;  // fewer hardly tell an exponent from the irreducible loss
constexpr int kCurvePoints = 49;

/// One law to fit: which runs, which sizes.
struct Candidate {
  std::string name;                        ///< "L(N, D)"
  std::vector<std::string> axes;           ///< "N", "D", "C"
  std::string n_column;                    ///< convention for N; "" without N
  std::vector<std::string> conventions;    ///< in words, one an axis
  std::vector<std::size_t> runs;           ///< indices into Runs
  LawData data;
  std::string held_fixed;                  ///< "D = 2e10" for a slice
  std::string group = {};                  ///< "encoder = sasrec"
};

std::size_t num_distinct(const std::vector<double>& values) { return std::set<double>(values.begin(), values.end()).size(); }

std::vector<double> logs(const std::vector<double>& values) {
  std::vector<double> out;
  for (const double v : values) out.push_back(std::log(v));
  return out;
}

std::vector<double> pick(const std::vector<double>& values, const std::vector<std::size_t>& indices) {
  std::vector<double> out;
  for (const auto i : indices) out.push_back(values[i]);
  return out;
}

/// Why a law cannot be fitted to these data; "" when it can.
std::string why_not(const LawData& data, const std::vector<std::string>& axes) {
  for (std::size_t k = 0; k < axes.size(); ++k) {
    const auto sizes = num_distinct(data.log_x[k]);
    if (sizes < 3) return fmt::format("{} takes {} different value{}, 3 are needed", axes[k], sizes, sizes == 1 ? "" : "s");
  }
  if (data.num_runs() < data.num_parameters()) return fmt::format("{} runs are fewer than {} parameters", data.num_runs(), data.num_parameters());
  return "";
}

/// Runs of one configuration differ by their seeds alone. When the configurations miss the law by more than that (F test, p < 0.05), the seeds of a
/// configuration are one observation: its mean.
struct Unit {
  LawData data;
  bool configurations = false;
  double seed_spread = 0, p = 1;
};
Unit unit_of(const LawData& data, const LawFit& fit) {
  Unit unit{.data = data};
  std::map<std::vector<double>, std::vector<std::size_t>> groups;
  for (std::size_t i = 0; i < data.num_runs(); ++i) {
    std::vector<double> key;
    for (const auto& log_x : data.log_x) key.push_back(log_x[i]);
    groups[key].push_back(i);
  }
  const double pure_degrees = static_cast<double>(data.num_runs()) - static_cast<double>(groups.size());
  const double lack_degrees = static_cast<double>(groups.size()) - static_cast<double>(data.num_parameters());
  if (pure_degrees < 1 || lack_degrees < 1) return unit;
  double pure = 0, lack = 0;
  LawData means{.log_x = std::vector<std::vector<double>>(data.num_terms()), .log_loss = {}};
  for (const auto& [key, members] : groups) {
    double mean = 0;
    for (const auto i : members) mean += data.log_loss[i] / static_cast<double>(members.size());
    for (const auto i : members) pure += (data.log_loss[i] - mean) * (data.log_loss[i] - mean);
    lack += static_cast<double>(members.size()) * (mean - fit.fitted[members.front()]) * (mean - fit.fitted[members.front()]);
    for (std::size_t k = 0; k < key.size(); ++k) means.log_x[k].push_back(key[k]);
    means.log_loss.push_back(mean);
  }
  unit.seed_spread = std::sqrt(pure / pure_degrees);
  if (!(pure > 0)) return unit;
  const double f = (lack / lack_degrees) / (pure / pure_degrees);
  unit.p = boost::math::cdf(boost::math::complement(boost::math::fisher_f(lack_degrees, pure_degrees), f));
  if (unit.p < 0.05) {
    unit.configurations = true;
    unit.data = means;
  }
  return unit;
}

Json curve_json(const Bootstrap& bootstrap, std::size_t term, std::vector<double> log_at, double low, double high) {
  Json x = Json::array(), loss = Json::array(), lows = Json::array(), highs = Json::array();
  for (int i = 0; i < kCurvePoints; ++i) {
    log_at[term] = low + (high - low) * i / (kCurvePoints - 1);
    const auto& fit = bootstrap.fit();
    const auto estimate = bootstrap.interval({.name = "loss", .value = [&](const Theta& t) { return std::exp(log_prediction(fit, t, log_at)); }, .scale = Scale::kLog});
    x.push_back(std::exp(log_at[term]));
    loss.push_back(estimate.value);
    lows.push_back(estimate.interval ? Json(estimate.interval->low) : Json(nullptr));
    highs.push_back(estimate.interval ? Json(estimate.interval->high) : Json(nullptr));
  }
  return {{"x", x}, {"loss", loss}, {"low", lows}, {"high", highs}};
}

/// Up to four values of an axis at which the other one's curve is drawn.
std::vector<double> levels_of(const std::vector<double>& log_x) {
  const std::set<double> distinct(log_x.begin(), log_x.end());
  if (distinct.size() <= 4) return {distinct.begin(), distinct.end()};
  const std::set<double> levels{quantile(log_x, 0.05), quantile(log_x, 0.5), quantile(log_x, 0.95)};
  return {levels.begin(), levels.end()};
}

Json curves_json(const Bootstrap& bootstrap, const Candidate& candidate) {
  Json curves = Json::array();
  const auto& log_x = candidate.data.log_x;
  for (std::size_t k = 0; k < log_x.size(); ++k) {
    const auto [low, high] = std::minmax_element(log_x[k].begin(), log_x[k].end());
    const double from = *low - std::log(1.5), to = *high + std::log(10.0);
    if (log_x.size() == 1) {
      Json curve = curve_json(bootstrap, k, {0}, from, to);
      curve["axis"] = candidate.axes[k];
      curve["label"] = candidate.held_fixed;
      curves.push_back(std::move(curve));
      continue;
    }
    const std::size_t other = 1 - k;
    for (const double level : levels_of(log_x[other])) {
      std::vector<double> at(2, level);
      Json curve = curve_json(bootstrap, k, at, from, to);
      curve["axis"] = candidate.axes[k];
      curve["label"] = fmt::format("{} = {:.3g}", candidate.axes[other], std::exp(level));
      curves.push_back(std::move(curve));
    }
  }
  return curves;
}

Json frontier_json(const Bootstrap& bootstrap, const std::string& c_name, const ComputeLaw& compute, double log_low, double log_high) {
  const auto& fit = bootstrap.fit();
  Json estimates = Json::array();
  for (const auto& quantity : frontier_quantities(compute)) {
    Json json = to_json(bootstrap.interval(quantity));
    json["name"] = quantity.name;
    estimates.push_back(std::move(json));
  }
  Json curve{{"c", Json::array()}, {"n", Json::array()}, {"d", Json::array()}, {"loss", Json::array()}, {"low", Json::array()}, {"high", Json::array()},
             {"n_low", Json::array()}, {"n_high", Json::array()}};
  if (fit.exponent(0) > 0 && fit.exponent(1) > 0) {
    for (int i = 0; i < kCurvePoints; ++i) {
      const double log_c = log_low + (log_high - log_low) * i / (kCurvePoints - 1);
      const auto n_of = [&](const Theta& t) { return std::exp(optimal_sizes(fit, t, compute, log_c)[0]); };
      const auto loss = bootstrap.interval({.name = "loss", .value = [&](const Theta& t) { return std::exp(log_prediction(fit, t, optimal_sizes(fit, t, compute, log_c))); },
                                            .scale = Scale::kLog});
      const auto n = bootstrap.interval({.name = "N", .value = n_of, .scale = Scale::kLog});
      curve["c"].push_back(std::exp(log_c));
      curve["n"].push_back(n.value);
      curve["d"].push_back(std::exp(optimal_sizes(fit, fit.theta, compute, log_c)[1]));
      curve["loss"].push_back(loss.value);
      curve["low"].push_back(loss.interval ? Json(loss.interval->low) : Json(nullptr));
      curve["high"].push_back(loss.interval ? Json(loss.interval->high) : Json(nullptr));
      curve["n_low"].push_back(n.interval ? Json(n.interval->low) : Json(nullptr));
      curve["n_high"].push_back(n.interval ? Json(n.interval->high) : Json(nullptr));
    }
  }
  return {{"c", c_name}, {"log_k", compute.log_k}, {"p", compute.p}, {"q", compute.q}, {"r_squared", compute.r_squared}, {"estimates", estimates}, {"curve", curve}};
}

Json holdout_json(const Holdout& holdout, const std::vector<std::size_t>& rows) {
  if (holdout.runs.empty()) return {{"done", false}, {"reason", holdout.reason}};
  Json runs = Json::array();
  for (const auto& run : holdout.runs) {
    Json json{{"loss", run.loss}, {"law", run.law}, {"next_largest", run.next_largest}, {"log_line", run.log_line}};
    json["row"] = run.run < rows.size() ? Json(rows[run.run]) : Json(nullptr);
    json["low"] = run.interval ? Json(run.interval->low) : Json(nullptr);
    json["high"] = run.interval ? Json(run.interval->high) : Json(nullptr);
    runs.push_back(std::move(json));
  }
  return {{"done", true}, {"runs", runs}, {"drop_nats", holdout.drop}, {"covered", holdout.covered}, {"with_interval", holdout.with_interval},
          {"reason", holdout.reason},
          {"mean_absolute_error_nats", {{"law", holdout.law_error}, {"next_largest", holdout.next_largest_error}, {"log_line", holdout.log_line_error}}}};
}

/// Sizes of each axis, and what is doubtful about them.
Json sizes_json(const Candidate& candidate, Json& warnings) {
  Json sizes = Json::object();
  for (std::size_t k = 0; k < candidate.axes.size(); ++k) {
    const auto [low, high] = std::minmax_element(candidate.data.log_x[k].begin(), candidate.data.log_x[k].end());
    const double decades = (*high - *low) / std::log(10.0);
    const auto distinct = num_distinct(candidate.data.log_x[k]);
    sizes[candidate.axes[k]] = {{"low", std::exp(*low)}, {"high", std::exp(*high)}, {"decades", decades}, {"different", distinct}};
    if (decades < kFewDecades) {
      warnings.push_back(fmt::format("{} spans {:.1f} decades: too few to tell its exponent from the irreducible loss without trusting the form of the law; "
                                     "extrapolations lean on it (1.5 or more would do)", candidate.axes[k], decades));
    }
    if (distinct == 3) warnings.push_back(fmt::format("{} takes 3 different values: any of them can be met exactly, the form of the law is not tested", candidate.axes[k]));
  }
  return sizes;
}

Json fit_candidate(const Candidate& candidate, const Runs& runs, const std::vector<std::pair<std::string, std::vector<double>>>& compute, const StudyFitOptions& options) {
  auto fit = fit_law(candidate.data, options.law);
  const Unit unit = unit_of(candidate.data, fit);
  if (unit.configurations) fit = fit_law(unit.data, options.law);
  const Bootstrap bootstrap(unit.data, fit, options.bootstrap);
  Json warnings = Json::array();
  Json sizes = sizes_json(candidate, warnings);
  if (unit.configurations) {
    warnings.push_back(fmt::format("configurations miss the law by more than their seeds differ (p = {:.2g}): each configuration's mean counts as one observation", unit.p));
  }
  const double lowest_loss = std::exp(*std::min_element(candidate.data.log_loss.begin(), candidate.data.log_loss.end()));
  if (fit.irreducible() < 1e-3 * lowest_loss) warnings.push_back("E is 0 within rounding: the runs are far from an irreducible loss, and say nothing about it");
  for (std::size_t k = 0; k < candidate.axes.size(); ++k) {
    if (!(fit.exponent(k) > 0)) warnings.push_back(fmt::format("the loss does not fall with {}: exponent {:.3g}", candidate.axes[k], fit.exponent(k)));
  }
  Json estimates = Json::array();
  for (const auto& quantity : law_quantities(fit, candidate.axes)) {
    const auto estimate = bootstrap.interval(quantity);
    Json json = to_json(estimate);
    json["name"] = quantity.name;
    if (estimate.interval) {
      json["runs_to_halve"] = runs_to_halve(static_cast<std::int64_t>(unit.data.num_runs()), static_cast<std::int64_t>(fit.num_parameters()), options.bootstrap.confidence);
    }
    estimates.push_back(std::move(json));
  }
  std::vector<std::size_t> rows;
  for (const auto i : candidate.runs) rows.push_back(runs.row[i]);
  Json points = Json::array();
  for (std::size_t i = 0; i < candidate.runs.size(); ++i) {
    std::vector<double> at;
    Json sizes_of_run = Json::array();
    for (const auto& log_x : candidate.data.log_x) {
      at.push_back(log_x[i]);
      sizes_of_run.push_back(std::exp(log_x[i]));
    }
    points.push_back({{"row", rows[i]}, {"x", sizes_of_run}, {"loss", std::exp(candidate.data.log_loss[i])}, {"fitted", std::exp(log_prediction(fit, at))}});
  }
  Json frontier = Json::array();
  if (candidate.axes == std::vector<std::string>{"N", "D"}) {
    for (const auto& [name, all] : compute) {
      const auto log_c = logs(pick(all, candidate.runs));
      const auto [low, high] = std::minmax_element(log_c.begin(), log_c.end());
      try {
        frontier.push_back(frontier_json(bootstrap, name, fit_compute(candidate.data.log_x[0], candidate.data.log_x[1], log_c), *low, *high + std::log(10.0)));
      } catch (const Error& error) {
        warnings.push_back(fmt::format("no compute-optimal frontier for C = {}: {}", name, error.what()));
      }
    }
  }
  const auto holdout = hold_out_largest(unit.data, options.holdout, options.law, options.bootstrap);
  return {{"name", candidate.name},
          {"axes", candidate.axes},
          {"n", candidate.n_column},
          {"conventions", candidate.conventions},
          {"held_fixed", candidate.held_fixed},
          {"group", candidate.group},
          {"runs", candidate.data.num_runs()},
          {"unit", unit.configurations ? "configuration" : "run"},
          {"observations", unit.data.num_runs()},
          {"parameters", fit.num_parameters()},
          {"degrees_of_freedom", fit.degrees_of_freedom},
          {"sizes", sizes},
          {"noise_log_loss", fit.spread},
          {"seed_noise_log_loss", unit.seed_spread},
          {"huber_delta", fit.delta},
          {"starts", fit.num_starts},
          {"bootstrap", {{"resamples", options.bootstrap.num_resamples}, {"draws", bootstrap.parametric() ? "normal" : "residuals"}, {"confidence", options.bootstrap.confidence},
                         {"degenerate_fraction", bootstrap.degenerate_fraction()}}},
          {"estimates", estimates},
          {"frontier", frontier},
          {"curves", curves_json(bootstrap, candidate)},
          {"points", points},
          {"holdout", holdout_json(holdout, unit.configurations ? std::vector<std::size_t>{} : rows)},
          {"warnings", warnings}};
}

/// Indices of the runs whose value is the largest (within rounding).
std::vector<std::size_t> at_largest(const std::vector<double>& values) {
  const double largest = *std::max_element(values.begin(), values.end());
  std::vector<std::size_t> indices;
  for (std::size_t i = 0; i < values.size(); ++i) {
    if (values[i] >= largest * (1 - 1e-6)) indices.push_back(i);
  }
  return indices;
}

std::vector<std::size_t> all_of(const Runs& runs) {
  std::vector<std::size_t> all(runs.size());
  std::iota(all.begin(), all.end(), std::size_t{0});
  return all;
}

LawData law_data(const Runs& runs, const std::vector<std::size_t>& indices, const std::vector<std::vector<double>>& sizes) {
  LawData data{.log_x = {}, .log_loss = logs(pick(runs.loss, indices))};
  for (const auto& column : sizes) data.log_x.push_back(logs(pick(column, indices)));
  return data;
}

/// Every law that the columns name, the joint one first, over one group of runs.
std::vector<Candidate> candidates(const Runs& runs, const Columns& columns) {
  std::vector<Candidate> all;
  const auto everyone = all_of(runs);
  for (const auto& n_name : columns.n) {
    const auto& n = runs.n.at(n_name);
    auto d = runs.d;
    std::string d_words = "D = " + columns.d;
    if (d.empty() && !columns.c.empty()) {
      const auto& c = runs.c.at(columns.c.front());
      for (std::size_t i = 0; i < c.size(); ++i) d.push_back(c[i] / (6 * n[i]));
      d_words = fmt::format("D = C / (6 N), C = {}", columns.c.front());
    }
    const std::string n_words = "N = " + n_name;
    if (d.empty()) {
      all.push_back({.name = "L(N)", .axes = {"N"}, .n_column = n_name, .conventions = {n_words}, .runs = everyone, .data = law_data(runs, everyone, {n}), .held_fixed = ""});
      continue;
    }
    all.push_back({.name = "L(N, D)", .axes = {"N", "D"}, .n_column = n_name, .conventions = {n_words, d_words}, .runs = everyone, .data = law_data(runs, everyone, {n, d}),
                   .held_fixed = ""});
    const auto most_data = at_largest(d);
    all.push_back({.name = "L(N)", .axes = {"N"}, .n_column = n_name, .conventions = {n_words}, .runs = most_data, .data = law_data(runs, most_data, {n}),
                   .held_fixed = fmt::format("D = {:.3g}", *std::max_element(d.begin(), d.end()))});
    // The width at which data was varied need not be the largest: the N with the most different D.
    std::map<double, std::set<double>> data_by_n;
    for (std::size_t i = 0; i < n.size(); ++i) data_by_n[n[i]].insert(d[i]);
    double at_n = *std::max_element(n.begin(), n.end());
    for (const auto& [value, sizes] : data_by_n) {
      if (sizes.size() >= data_by_n[at_n].size()) at_n = value;
    }
    std::vector<std::size_t> indices;
    for (std::size_t i = 0; i < n.size(); ++i) {
      if (n[i] == at_n) indices.push_back(i);
    }
    if (n_name != columns.n.front() && !runs.d.empty()) continue;  // D does not depend on the convention for N
    all.push_back({.name = "L(D)", .axes = {"D"}, .n_column = n_name, .conventions = {d_words}, .runs = indices, .data = law_data(runs, indices, {d}),
                   .held_fixed = fmt::format("{} = {:.3g}", n_name, at_n)});
  }
  if (columns.n.empty() && !columns.d.empty()) {
    all.push_back({.name = "L(D)", .axes = {"D"}, .n_column = "", .conventions = {"D = " + columns.d}, .runs = everyone, .data = law_data(runs, everyone, {runs.d}), .held_fixed = ""});
  } else if (columns.n.empty()) {
    for (const auto& name : columns.c) {
      all.push_back({.name = "L(C)", .axes = {"C"}, .n_column = "", .conventions = {"C = " + name}, .runs = everyone, .data = law_data(runs, everyone, {runs.c.at(name)}),
                     .held_fixed = ""});
    }
  }
  return all;
}

/// Conventions for the compute of a run, under one convention for N.
std::vector<std::pair<std::string, std::vector<double>>> compute_conventions(const Runs& runs, const Columns& columns, const std::string& n_name) {
  std::vector<std::pair<std::string, std::vector<double>>> all;
  if (n_name.empty()) return all;
  if (!runs.d.empty()) {
    std::vector<double> c;
    for (std::size_t i = 0; i < runs.size(); ++i) c.push_back(6 * runs.n.at(n_name)[i] * runs.d[i]);
    all.emplace_back("6 N D", std::move(c));
  }
  for (const auto& name : columns.c) all.emplace_back(runs.d.empty() ? name + " = 6 N D" : name, runs.c.at(name));
  return all;
}

/// Indices to keep once the outliers are gone.
std::vector<std::size_t> without_outliers(const Runs& runs, const Columns& columns, const StudyFitOptions& options) {
  auto order = all_of(runs);
  std::vector<double> badness = runs.loss;
  if (options.outlier_rule == "residual") {
    const auto first = candidates(runs, columns).front();
    const auto reason = why_not(first.data, first.axes);
    UQA_CHECK(reason.empty(), ErrorCode::kConfig, "--outlier_rule residual needs a fit of {} first: {}; use --outlier_rule loss", first.name, reason);
    const auto fit = fit_law(first.data, options.law);
    for (std::size_t i = 0; i < badness.size(); ++i) badness[i] = std::abs(fit.residual[i]);
  }
  std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) { return badness[a] > badness[b]; });
  order.erase(order.begin(), order.begin() + static_cast<std::ptrdiff_t>(std::min<std::size_t>(order.size(), static_cast<std::size_t>(options.drop_outliers))));
  std::sort(order.begin(), order.end());
  return order;
}

/// The first of each set of runs that are the same in every identity column and in loss.
std::vector<std::size_t> distinct_runs(const Table& table, const Runs& runs, const std::vector<std::string>& identity) {
  if (identity.empty()) return all_of(runs);
  std::vector<std::size_t> columns;
  for (const auto& name : identity) columns.push_back(table.find(name, "telling runs apart"));
  std::set<std::vector<std::string>> seen;
  std::vector<std::size_t> indices;
  for (std::size_t i = 0; i < runs.size(); ++i) {
    std::vector<std::string> key{fmt::format("{}", runs.loss[i])};
    for (const auto column : columns) key.push_back(table.rows[runs.row[i]][column]);
    if (seen.insert(key).second) indices.push_back(i);
  }
  return indices;
}

}  // namespace

StudyFitOptions for_study(StudyFitOptions options) {
  if (options.group.empty()) options.group = {"encoder", "max_len"};
  options.identity = {"encoder", "width", "depth", "max_len", "fraction", "n_total", "seed"};
  return options;
}

void StudyFitOptions::validate() const {
  bootstrap.validate();
  UQA_CHECK(drop_outliers >= 0, ErrorCode::kConfig, "drop_outliers = {}, must be at least 0", drop_outliers);
  UQA_CHECK(outlier_rule == "loss" || outlier_rule == "residual", ErrorCode::kConfig, "outlier_rule = {}, must be loss or residual", outlier_rule);
  UQA_CHECK(holdout >= -1, ErrorCode::kConfig, "holdout = {}, must be a number of runs, 0 for none, -1 for a tenth", holdout);
  UQA_CHECK(law.huber_delta >= 0 && std::isfinite(law.huber_delta), ErrorCode::kConfig, "huber_delta = {}, must be above 0, or 0 for one that follows the noise", law.huber_delta);
  UQA_CHECK(chance >= 0 && chance < 1, ErrorCode::kConfig, "chance = {}, must lie in [0, 1)", chance);
}

Json fit_study(const Table& table, const Columns& columns, const StudyFitOptions& options) {
  options.validate();
  const auto every = select_runs(table, columns);
  UQA_CHECK(every.size() > 0, ErrorCode::kConfig, "{} has no run with a loss ({} rows without one); finish some runs first", table.source, every.without_loss);
  UQA_CHECK(static_cast<std::int64_t>(every.size()) > options.drop_outliers, ErrorCode::kConfig, "drop_outliers = {}, there are {} runs; drop fewer", options.drop_outliers,
            every.size());
  const auto kept = without_outliers(every, columns, options);
  const auto runs = keep_runs(every, kept);
  const auto observations = keep_runs(runs, distinct_runs(table, runs, options.identity));
  Json outliers = Json::array();
  for (std::size_t i = 0; i < every.size(); ++i) {
    if (!std::binary_search(kept.begin(), kept.end(), i)) outliers.push_back({{"row", every.row[i]}, {"loss", every.loss[i]}});
  }
  Json laws = Json::array(), not_fitted = Json::array();
  std::string reasons;
  for (const auto& [group, members] : group_runs(table, observations, options.group)) {
    const auto group_of = keep_runs(observations, members);
    for (auto& candidate : candidates(group_of, columns)) {
      candidate.group = group;
      const auto reason = why_not(candidate.data, candidate.axes);
      if (reason.empty()) {
        laws.push_back(fit_candidate(candidate, group_of, compute_conventions(group_of, columns, candidate.n_column), options));
        continue;
      }
      not_fitted.push_back({{"name", candidate.name}, {"n", candidate.n_column}, {"held_fixed", candidate.held_fixed}, {"group", group}, {"reason", reason}});
      if (reasons.empty()) reasons = fmt::format("{}{}: {}", candidate.name, candidate.held_fixed.empty() ? "" : " at " + candidate.held_fixed, reason);
    }
  }
  UQA_CHECK(!laws.empty(), ErrorCode::kConfig, "no law can be fitted to the {} runs of {} ({}); add runs", observations.size(), table.source, reasons);
  Json columns_json{{"n", columns.n}, {"c", columns.c}, {"d", columns.d}, {"loss", columns.loss}};
  return {{"format", "uqa.fit"},
          {"version", kFitVersion},
          {"source", table.source},
          {"columns", columns_json},
          {"rows", table.rows.size()},
          {"rows_without_loss", every.without_loss},
          {"runs", observations.size()},
          {"outliers", {{"rule", options.outlier_rule}, {"runs", outliers}}},
          {"laws", laws},
          {"not_fitted", not_fitted},
          {"accuracy", fit_accuracies(table, runs, columns, options.chance, options.bootstrap)}};
}

}  // namespace uqa::fit
