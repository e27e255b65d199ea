// What `uqa study fit` found: curves with bands, hold-out, frontier, accuracy against loss.
#include <cmath>
#include <limits>
#include <map>

#include "launch/report/build.h"

namespace uqa::report {
namespace {

std::vector<double> numbers(const Json& list) {
  std::vector<double> out;
  for (const auto& value : list) out.push_back(value.is_number() ? value.get<double>() : std::numeric_limits<double>::quiet_NaN());
  return out;
}

bool any_finite(const std::vector<double>& values) {
  for (const double v : values) {
    if (std::isfinite(v)) return true;
  }
  return false;
}

Series band_curve(const std::string& name, std::int64_t color, const Json& x, const Json& curve) {
  Series series{.name = name, .mark = Mark::kLine, .color = color, .x = numbers(x), .y = numbers(curve.at("loss"))};
  const auto low = numbers(curve.at("low"));
  if (any_finite(low)) {
    series.low = low;
    series.high = numbers(curve.at("high"));
  }
  return series;
}

std::string title_of(const Json& law) {
  std::string title = law.at("name").get<std::string>();
  for (const char* key : {"group", "held_fixed"}) {
    if (const auto text = law.at(key).get<std::string>(); !text.empty()) title += ", " + text;
  }
  return title;
}

std::string conventions_of(const Json& law) {
  std::string text;
  for (const auto& one : law.at("conventions")) text += (text.empty() ? "" : "; ") + one.get<std::string>();
  return text;
}

/// Loss over one axis of a law: its curves, the runs, and the runs that were predicted.
Plot curve_plot(const std::string& id, const Json& law, const std::string& axis, std::size_t term) {
  Plot plot{.id = id, .title = title_of(law) + " over " + axis, .note = conventions_of(law), .x_title = axis == "N" ? fmt::format("N ({})", law.at("n").get<std::string>()) : axis, .y_title = "loss, nats", .log_x = true, .log_y = true, .variants = {Variant{}}};
  auto& all = plot.variants[0].series;
  for (const auto& curve : law.at("curves")) {
    if (curve.at("axis") != axis) continue;
    const auto label = curve.at("label").get<std::string>();
    all.push_back(band_curve(label.empty() || law.at("axes").size() == 1 ? "law" : label, static_cast<std::int64_t>(all.size()), curve.at("x"), curve));
  }
  std::map<std::int64_t, const Json*> held;
  const auto& holdout = law.at("holdout");
  if (holdout.at("done").get<bool>()) {
    for (const auto& run : holdout.at("runs")) {
      if (run.at("row").is_number()) held[run.at("row").get<std::int64_t>()] = &run;
    }
  }
  Series fitted{.name = "runs", .mark = Mark::kPoints, .color = 7}, out{.name = "runs held out", .mark = Mark::kOpenPoints, .color = 6};
  Series predicted{.name = "predicted without them", .mark = Mark::kPoints, .color = 6};
  for (const auto& point : law.at("points")) {
    const auto row = point.at("row").get<std::int64_t>();
    const auto at = held.find(row);
    auto& series = at == held.end() ? fitted : out;
    const double x = point.at("x").at(term).get<double>();
    series.x.push_back(x);
    series.y.push_back(point.at("loss").get<double>());
    series.labels.push_back(fmt::format("row {}", row + 1));
    if (at == held.end()) continue;
    const Json& run = *at->second;
    predicted.x.push_back(x);
    predicted.y.push_back(run.at("law").get<double>());
    predicted.low.push_back(number_or_nan(run, "low"));
    predicted.high.push_back(number_or_nan(run, "high"));
    predicted.labels.push_back(fmt::format("row {}", row + 1));
  }
  for (auto* series : {&fitted, &predicted, &out}) {
    if (!series->x.empty()) all.push_back(std::move(*series));
  }
  return plot;
}

/// Loss and N along the compute-optimal frontier, one variant a convention for C.
std::vector<Plot> frontier_plots(const std::string& id, const Json& law) {
  Plot loss{.id = id + "-frontier", .title = title_of(law) + ": least loss for a compute", .note = conventions_of(law), .x_title = "C, FLOPs", .y_title = "loss, nats", .log_x = true, .log_y = true, .variants = {}};
  Plot size{.id = id + "-optimal", .title = title_of(law) + ": compute-optimal N and D", .note = "", .x_title = "C, FLOPs", .y_title = "N, D", .log_x = true, .log_y = true, .variants = {}};
  for (const auto& frontier : law.at("frontier")) {
    const auto& curve = frontier.at("curve");
    if (curve.at("c").empty()) continue;
    const auto name = "C = " + frontier.at("c").get<std::string>();
    loss.variants.push_back({name, {band_curve("frontier", 0, curve.at("c"), curve)}});
    Series n{.name = "N", .mark = Mark::kLine, .color = 0, .x = numbers(curve.at("c")), .y = numbers(curve.at("n"))};
    if (any_finite(numbers(curve.at("n_low")))) {
      n.low = numbers(curve.at("n_low"));
      n.high = numbers(curve.at("n_high"));
    }
    size.variants.push_back({name, {std::move(n), Series{.name = "D", .mark = Mark::kDashes, .color = 1, .x = numbers(curve.at("c")), .y = numbers(curve.at("d"))}}});
  }
  if (loss.variants.empty()) return {};
  return {std::move(loss), std::move(size)};
}

std::string interval_text(const Json& estimate) {
  if (estimate.at("low").is_null()) return "cannot say";
  return fmt::format("[{}, {}]", show(estimate.at("low"), 5), show(estimate.at("high"), 5));
}

void add_estimates(TableView& table, const Json& law) {
  const auto add = [&](const Json& estimate, const std::string& convention) {
    table.rows.push_back({title_of(law), convention, estimate.at("name").get<std::string>(), show(estimate.at("value"), 5), interval_text(estimate), show(estimate.at("standard_error"), 3),
                          estimate.contains("runs_to_halve") ? show(estimate.at("runs_to_halve")) : ""});
  };
  for (const auto& estimate : law.at("estimates")) add(estimate, conventions_of(law));
  for (const auto& frontier : law.at("frontier")) {
    for (const auto& estimate : frontier.at("estimates")) add(estimate, fmt::format("N = {}; C = {}", law.at("n").get<std::string>(), frontier.at("c").get<std::string>()));
  }
}

void add_holdout(TableView& table, const Json& law) {
  const auto& holdout = law.at("holdout");
  if (!holdout.at("done").get<bool>()) return;
  const double drop = holdout.at("drop_nats").get<double>();
  const auto& errors = holdout.at("mean_absolute_error_nats");
  const auto error = [&](const char* key) {
    const double nats = errors.at(key).get<double>();
    return drop > 0 ? fmt::format("{:.4f} ({:.1f} %)", nats, 100 * nats / drop) : fmt::format("{:.4f}", nats);
  };
  table.rows.push_back({title_of(law), law.at("n").get<std::string>(), std::to_string(holdout.at("runs").size()), fmt::format("{:.4f}", drop), error("law"), error("next_largest"), error("log_line"),
                        fmt::format("{} of {}", show(holdout.at("covered")), show(holdout.at("with_interval")))});
}

Section accuracy_fits(const std::string& prefix, const NamedJson& fit) {
  Section section{.id = prefix + "accuracy", .title = fit.name + ": accuracy against loss", .note = "Acc(L) = chance + (ceiling - chance) / (1 + exp(k (L - L0))); one point a run, with its 95 % interval."};
  Plot plot{.id = prefix + "acc-loss", .title = "Accuracy against pre-training loss", .note = "", .x_title = "loss, nats", .y_title = "accuracy", .percent_y = true, .line_at = true, .line_y = 0.25, .variants = {}};
  TableView slopes{.title = "Points of accuracy for 10 times the size", .note = "Weighted regression on all sizes that vary, together.", .head = {"question type", "size", "points", "95 % interval"}, .rows = {}};
  std::map<std::string, bool> seen;
  for (const auto& one : fit.json.at("accuracy")) {
    const auto type = one.at("type").get<std::string>(), group = one.at("group").get<std::string>();
    Variant variant{.name = type + (group.empty() ? "" : ", " + group), .series = {}};
    const auto& sigmoid = one.at("sigmoid");
    if (sigmoid.at("fitted").get<bool>()) {
      Series curve{.name = "sigmoid", .mark = Mark::kLine, .color = 0};
      for (const auto& at : sigmoid.at("curve")) {
        curve.x.push_back(at.at("loss").get<double>());
        curve.y.push_back(at.at("accuracy").get<double>());
        curve.low.push_back(at.at("low").get<double>());
        curve.high.push_back(at.at("high").get<double>());
      }
      plot.line_y = sigmoid.at("chance").get<double>();
      variant.series.push_back(std::move(curve));
    } else {
      section.notes.push_back(fmt::format("{}: no sigmoid, {}", variant.name, sigmoid.at("reason").get<std::string>()));
    }
    Series points{.name = "runs", .mark = Mark::kPoints, .color = 1};
    for (const auto& at : one.at("points")) {
      points.x.push_back(at.at("loss").get<double>());
      points.y.push_back(at.at("accuracy").get<double>());
      points.low.push_back(at.at("low").get<double>());
      points.high.push_back(at.at("high").get<double>());
      points.labels.push_back(fmt::format("row {}", at.at("row").get<std::int64_t>() + 1));
    }
    variant.series.push_back(std::move(points));
    plot.variants.push_back(std::move(variant));
    if (!one.at("trend").at("fitted").get<bool>() || seen[type]) continue;
    seen[type] = true;
    for (const auto& slope : one.at("trend").at("accuracy_per_decade")) {
      slopes.rows.push_back({type, slope.at("axis").get<std::string>(), fmt::format("{:+.2f}", 100 * slope.at("value").get<double>()),
                             fmt::format("[{:+.2f}, {:+.2f}]", 100 * slope.at("low").get<double>(), 100 * slope.at("high").get<double>())});
    }
  }
  if (plot.variants.empty()) return section;
  section.plots.push_back(std::move(plot));
  if (!slopes.rows.empty()) section.tables.push_back(std::move(slopes));
  return section;
}

}  // namespace

std::vector<Section> scaling_sections(const Loaded& loaded) {
  std::vector<Section> sections;
  for (std::size_t f = 0; f < loaded.fits.size(); ++f) {
    const auto& fit = loaded.fits[f];
    const auto prefix = fmt::format("fit{}-", f + 1);
    Section section{.id = prefix + "scaling", .title = fit.name + ": scaling laws"};
    section.note = std::string("Huber's loss on log loss; bands and intervals by bootstrap over runs. Open points were left out of a second fit that predicts them.");
    TableView estimates{.title = "Estimates, conventions side by side", .note = "The last column: more runs of the same design that halve the interval.",
                        .head = {"law", "convention", "", "estimate", "interval", "standard error", "runs to halve"}, .rows = {}};
    TableView holdout{.title = "Largest runs predicted from the others", .note = "Mean absolute error in nats and as a share of the drop of the loss from the smallest to the largest runs.",
                      .head = {"law", "N", "runs", "drop", "law's error", "same as next largest", "log-log line", "inside interval"}, .rows = {}};
    std::size_t number = 0;
    for (const auto& law : fit.json.at("laws")) {
      const auto id = fmt::format("{}law{}", prefix, ++number);
      for (std::size_t k = 0; k < law.at("axes").size(); ++k) {
        const auto axis = law.at("axes").at(k).get<std::string>();
        section.plots.push_back(curve_plot(fmt::format("{}-{}", id, k == 0 ? "first" : "second"), law, axis, k));
      }
      for (auto& plot : frontier_plots(id, law)) section.plots.push_back(std::move(plot));
      add_estimates(estimates, law);
      add_holdout(holdout, law);
      for (const auto& warning : law.at("warnings")) section.notes.push_back(title_of(law) + (law.at("n").get<std::string>().empty() ? "" : ", N = " + law.at("n").get<std::string>()) + ": " + warning.get<std::string>());
    }
    section.tables.push_back(std::move(estimates));
    if (!holdout.rows.empty()) section.tables.push_back(std::move(holdout));
    sections.push_back(std::move(section));
    sections.push_back(accuracy_fits(prefix, fit));
  }
  return sections;
}

}  // namespace uqa::report
