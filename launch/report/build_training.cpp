// Training curves.
#include <algorithm>
#include <cmath>
#include <set>

#include "launch/report/build.h"

namespace uqa::report {
namespace {

constexpr std::size_t kAllPoints = 40'000;  // of one plot: the page stays small and the browser quick

/// At most `limit` of n indices, evenly spread, first and last among them.
std::vector<std::size_t> spread(std::size_t n, std::size_t limit) {
  std::vector<std::size_t> indices;
  if (n <= limit) {
    for (std::size_t i = 0; i < n; ++i) indices.push_back(i);
    return indices;
  }
  for (std::size_t j = 0; j < limit; ++j) indices.push_back(static_cast<std::size_t>(std::llround(static_cast<double>(j) * static_cast<double>(n - 1) / static_cast<double>(limit - 1))));
  return indices;
}

Plot curves(const Loaded& loaded, const std::string& id, const std::string& title, const std::string& stage, const std::string& key, const std::string& y_title, bool validation) {
  Plot plot{.id = id, .title = title, .note = "", .x_title = "step", .y_title = y_title, .variants = {Variant{}}};
  std::size_t runs = 0;
  for (const auto& run : loaded.runs) runs += run.info.at("stage") == stage ? 1 : 0;
  const auto limit = std::clamp<std::size_t>(kAllPoints / std::max<std::size_t>(runs, 1), 40, 500);
  bool thinned = false;
  for (const auto& run : loaded.runs) {
    if (run.info.at("stage") != stage) continue;
    Series series{.name = run.name, .mark = Mark::kLine, .color = static_cast<std::int64_t>(plot.variants[0].series.size())};
    const auto& records = validation ? run.validation : run.train;
    std::vector<std::size_t> usable;
    for (std::size_t i = 0; i < records.size(); ++i) {
      if (std::isfinite(number_or_nan(records[i], key)) && std::isfinite(number_or_nan(records[i], "step"))) usable.push_back(i);
    }
    thinned = thinned || usable.size() > limit;
    for (const auto j : spread(usable.size(), limit)) {
      series.x.push_back(number_or_nan(records[usable[j]], "step"));
      series.y.push_back(number_or_nan(records[usable[j]], key));
    }
    if (series.x.size() == 1) series.mark = Mark::kPoints;
    if (!series.x.empty()) plot.variants[0].series.push_back(std::move(series));
  }
  if (thinned) plot.note = fmt::format("At most {} evenly spread records a run.", limit);
  if (plot.variants[0].series.size() > 16) {
    for (auto& series : plot.variants[0].series) series.in_legend = false;
  }
  return plot;
}

}  // namespace

Section training_section(const Loaded& loaded) {
  Section section{.id = "training", .title = "Training"};
  std::set<std::string> stages;
  for (const auto& run : loaded.runs) stages.insert(run.info.at("stage").get<std::string>());
  // pretrain before align, as they run
  std::vector<std::string> order(stages.rbegin(), stages.rend());
  for (const auto& stage : order) {
    std::string id;
    for (const char c : stage) id += (c >= 'a' && c <= 'z') ? c : '-';
    std::set<std::string> metrics;
    for (const auto& run : loaded.runs) {
      if (run.info.at("stage") != stage) continue;
      for (const auto& record : run.validation) {
        if (record.contains("metric") && record["metric"].is_string()) metrics.insert(record["metric"].get<std::string>());
      }
    }
    std::vector<Plot> plots{curves(loaded, id + "-loss", stage + ": training loss", stage, "loss_nats", "loss, nats", false)};
    std::size_t number = 0;
    for (const auto& metric : metrics) {
      plots.push_back(curves(loaded, fmt::format("{}-validation-{}", id, ++number), stage + ": validation " + metric, stage, metric, metric, true));
    }
    plots.push_back(curves(loaded, id + "-speed", stage + ": interactions/s", stage, "interactions_per_s", "interactions/s", false));
    for (auto& plot : plots) {
      if (!plot.variants[0].series.empty()) section.plots.push_back(std::move(plot));
    }
  }
  return section;
}

}  // namespace uqa::report
