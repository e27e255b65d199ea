// A fit as text and as CSV files.
#include <algorithm>
#include <cmath>

#include "core/csv.h"
#include "core/error.h"
#include "trainer/fit/study_fit.h"

namespace uqa::fit {
namespace {

std::string number(const Json& value, int digits = 5) {
  if (value.is_null()) return "-";
  return fmt::format("{:.{}g}", value.get<double>(), digits);
}

std::string interval(const Json& estimate) {
  if (estimate.at("low").is_null()) return "cannot say";
  return fmt::format("[{:.5g}, {:.5g}]", estimate.at("low").get<double>(), estimate.at("high").get<double>());
}

std::string equation(const Json& law) {
  std::string text = law.at("name").get<std::string>() + " = E";
  for (const auto& axis : law.at("axes")) {
    const auto name = axis.get<std::string>();
    text += name == "D" ? " + B / D^beta" : fmt::format(" + A / {}^alpha", name);
  }
  return text;
}

std::string estimate_row(const Json& estimate) {
  const std::string more = estimate.contains("runs_to_halve") ? fmt::format("{}", estimate.at("runs_to_halve").get<std::int64_t>()) : "";
  std::string row = fmt::format("  {:<8} {:>12} {:>28} {:>12} {:>10}\n", estimate.at("name").get<std::string>(), number(estimate.at("value")), interval(estimate),
                                estimate.at("standard_error").get<double>() > 0 ? number(estimate.at("standard_error"), 3) : "-", more);
  if (estimate.contains("reason")) row += fmt::format("           {}\n", estimate.at("reason").get<std::string>());
  return row;
}

std::string render_holdout(const Json& holdout) {
  if (!holdout.at("done").get<bool>()) return fmt::format("  hold-out: none, {}\n", holdout.at("reason").get<std::string>());
  const auto& errors = holdout.at("mean_absolute_error_nats");
  const double drop = holdout.at("drop_nats").get<double>();
  const auto share = [&](const char* key) {
    const double error = errors.at(key).get<double>();
    return drop > 0 ? fmt::format("{:.4f} nats ({:.1f} % of the drop)", error, 100 * error / drop) : fmt::format("{:.4f} nats", error);
  };
  std::string text = fmt::format("  hold-out: the {} largest, predicted from the others; the loss drops by {:.4f} nats from the smallest to the largest\n", holdout.at("runs").size(), drop);
  text += fmt::format("    mean absolute error   law {}, same as the next largest {}, straight log-log line {}\n", share("law"), share("next_largest"), share("log_line"));
  const auto stated = holdout.at("with_interval").get<std::int64_t>();
  text += stated > 0 ? fmt::format("    inside the interval of one new run: {} of {}\n", holdout.at("covered").get<std::int64_t>(), stated)
                     : fmt::format("    no interval: {}\n", holdout.at("reason").get<std::string>());
  return text;
}

std::string render_law(const Json& law) {
  std::string text = fmt::format("\n{}", equation(law));
  if (const auto group = law.at("group").get<std::string>(); !group.empty()) text += fmt::format("     {}", group);
  for (const auto& convention : law.at("conventions")) text += fmt::format("     {}", convention.get<std::string>());
  if (const auto fixed = law.at("held_fixed").get<std::string>(); !fixed.empty()) text += fmt::format("     at {}", fixed);
  text += fmt::format("\n  {} runs", law.at("runs").get<std::int64_t>());
  if (law.at("unit") == "configuration") text += fmt::format(" of {} configurations", law.at("observations").get<std::int64_t>());
  for (const auto& [axis, size] : law.at("sizes").items()) {
    text += fmt::format(", {} {:.3g} to {:.3g} ({:.1f} decades)", axis, size.at("low").get<double>(), size.at("high").get<double>(), size.at("decades").get<double>());
  }
  text += fmt::format("\n  noise of log loss {:.3g}", law.at("noise_log_loss").get<double>());
  if (const double seeds = law.at("seed_noise_log_loss").get<double>(); seeds > 0) text += fmt::format(" ({:.3g} between seeds)", seeds);
  const auto& bootstrap = law.at("bootstrap");
  text += fmt::format(", Huber delta {:.3g}, best of {} starts, {} refits ({})\n", law.at("huber_delta").get<double>(), law.at("starts").get<std::int64_t>(),
                      bootstrap.at("resamples").get<std::int64_t>(), bootstrap.at("draws").get<std::string>() == "normal" ? "noise drawn from a normal: few runs" : "residuals drawn anew");
  text += fmt::format("  {:<8} {:>12} {:>28} {:>12} {:>10}\n", "", "estimate", fmt::format("{:g} % interval", 100 * bootstrap.at("confidence").get<double>()), "std. error", "to halve");
  for (const auto& estimate : law.at("estimates")) text += estimate_row(estimate);
  for (const auto& frontier : law.at("frontier")) {
    text += fmt::format("  compute-optimal, C = {} = {:.3g} N^{:.3f} D^{:.3f} (R^2 {:.4f}): N ~ C^a, D ~ C^b\n", frontier.at("c").get<std::string>(),
                        std::exp(frontier.at("log_k").get<double>()), frontier.at("p").get<double>(), frontier.at("q").get<double>(), frontier.at("r_squared").get<double>());
    for (const auto& estimate : frontier.at("estimates")) text += estimate_row(estimate);
  }
  text += render_holdout(law.at("holdout"));
  for (const auto& warning : law.at("warnings")) text += fmt::format("  note: {}\n", warning.get<std::string>());
  return text;
}

std::string render_accuracy(const Json& accuracy) {
  std::string text = fmt::format("\nAcc_{}(L){}, {} runs\n", accuracy.at("type").get<std::string>(), accuracy.at("group").get<std::string>().empty() ? "" : ", " + accuracy.at("group").get<std::string>(), accuracy.at("runs").get<std::int64_t>());
  const auto& sigmoid = accuracy.at("sigmoid");
  if (sigmoid.at("fitted").get<bool>()) {
    text += fmt::format("  {:.3g} + (ceiling - {:.3g}) / (1 + exp(k (L - L0))), accuracies vary {:.2f} times as much as independent questions\n", sigmoid.at("chance").get<double>(),
                        sigmoid.at("chance").get<double>(), sigmoid.at("overdispersion").get<double>());
    for (const auto& [name, key] : {std::pair{"ceiling", "ceiling"}, std::pair{"k", "k_per_nat"}, std::pair{"L0", "midpoint_nats"}}) {
      Json estimate = sigmoid.at(key);
      estimate["name"] = name;
      text += estimate_row(estimate);
    }
  } else {
    text += fmt::format("  no sigmoid: {}\n", sigmoid.at("reason").get<std::string>());
  }
  const auto& trend = accuracy.at("trend");
  if (!trend.at("fitted").get<bool>()) return text + fmt::format("  no trend with size: {}\n", trend.at("reason").get<std::string>());
  for (const auto& slope : trend.at("accuracy_per_decade")) {
    text += fmt::format("  points of accuracy for 10 times the {}: {:+.2f} [{:+.2f}, {:+.2f}]\n", slope.at("axis").get<std::string>(), 100 * slope.at("value").get<double>(),
                        100 * slope.at("low").get<double>(), 100 * slope.at("high").get<double>());
  }
  return text;
}

class Csv {
 public:
  explicit Csv(std::string header) : text_(std::move(header) + "\n") {}
  template <typename... Cells>
  void row(const Cells&... cells) {
    const char* separator = "";
    ((text_ += separator + cell(cells), separator = ","), ...);
    text_ += "\n";
    ++rows_;
  }
  void write(const fs::path& path) const {
    if (rows_ > 0) write_file_atomic(path, text_);
  }

 private:
  static std::string cell(const std::string& value) { return csv_field(value); }
  static std::string cell(const char* value) { return csv_field(value); }
  static std::string cell(const Json& value) {
    if (value.is_null()) return "";
    return value.is_string() ? csv_field(value.get<std::string>()) : fmt::format("{:.10g}", value.get<double>());
  }
  std::string text_;
  std::size_t rows_ = 0;
};

}  // namespace

std::string render_fit(const Json& fit) {
  std::string text = fmt::format("{}: {} rows, {} runs fitted", fit.at("source").get<std::string>(), fit.at("rows").get<std::int64_t>(), fit.at("runs").get<std::int64_t>());
  if (const auto unfinished = fit.at("rows_without_loss").get<std::int64_t>(); unfinished > 0) text += fmt::format(", {} without a loss", unfinished);
  if (const auto& outliers = fit.at("outliers"); !outliers.at("runs").empty()) {
    text += fmt::format(", {} left out for the largest {} (rows", outliers.at("runs").size(), outliers.at("rule").get<std::string>());
    for (const auto& run : outliers.at("runs")) text += fmt::format(" {}", run.at("row").get<std::int64_t>() + 1);
    text += ")";
  }
  text += "\n";
  for (const auto& law : fit.at("laws")) text += render_law(law);
  for (const auto& law : fit.at("not_fitted")) {
    const auto fixed = law.at("held_fixed").get<std::string>(), n = law.at("n").get<std::string>();
    const auto group = law.at("group").get<std::string>();
    text += fmt::format("\nnot fitted: {}{}{}{}: {}\n", law.at("name").get<std::string>(), group.empty() ? "" : ", " + group, n.empty() ? "" : ", N = " + n, fixed.empty() ? "" : ", at " + fixed,
                        law.at("reason").get<std::string>());
  }
  for (const auto& accuracy : fit.at("accuracy")) text += render_accuracy(accuracy);
  return text;
}

void write_fit(const Json& fit, const fs::path& directory) {
  fs::create_directories(directory);
  Csv points("law,group,n_convention,row,x1,x2,loss_nats,fitted_nats"), curves("law,group,n_convention,axis,at,x,loss_nats,low_nats,high_nats");
  Csv frontier("law,group,n_convention,c_convention,c,n,n_low,n_high,d,loss_nats,low_nats,high_nats");
  Csv holdout("law,group,n_convention,row,loss_nats,law_nats,low_nats,high_nats,next_largest_nats,log_line_nats"), accuracy("type,group,row,loss_nats,accuracy,low,high,questions");
  for (const auto& law : fit.at("laws")) {
    const auto name = law.at("name").get<std::string>(), n = law.at("n").get<std::string>(), group = law.at("group").get<std::string>();
    for (const auto& point : law.at("points")) {
      const auto& x = point.at("x");
      points.row(name, group, n, point.at("row"), x.at(0), x.size() > 1 ? x.at(1) : Json(nullptr), point.at("loss"), point.at("fitted"));
    }
    for (const auto& curve : law.at("curves")) {
      for (std::size_t i = 0; i < curve.at("x").size(); ++i) {
        curves.row(name, group, n, curve.at("axis"), curve.at("label"), curve.at("x").at(i), curve.at("loss").at(i), curve.at("low").at(i), curve.at("high").at(i));
      }
    }
    for (const auto& one : law.at("frontier")) {
      const auto& c = one.at("curve");
      for (std::size_t i = 0; i < c.at("c").size(); ++i) {
        frontier.row(name, group, n, one.at("c"), c.at("c").at(i), c.at("n").at(i), c.at("n_low").at(i), c.at("n_high").at(i), c.at("d").at(i), c.at("loss").at(i), c.at("low").at(i),
                     c.at("high").at(i));
      }
    }
    if (!law.at("holdout").at("done").get<bool>()) continue;
    for (const auto& run : law.at("holdout").at("runs")) {
      holdout.row(name, group, n, run.at("row"), run.at("loss"), run.at("law"), run.at("low"), run.at("high"), run.at("next_largest"), run.at("log_line"));
    }
  }
  for (const auto& one : fit.at("accuracy")) {
    for (const auto& p : one.at("points")) accuracy.row(one.at("type"), one.at("group"), p.at("row"), p.at("loss"), p.at("accuracy"), p.at("low"), p.at("high"), p.at("n"));
  }
  points.write(directory / "points.csv");
  curves.write(directory / "curves.csv");
  frontier.write(directory / "frontier.csv");
  holdout.write(directory / "holdout.csv");
  accuracy.write(directory / "accuracy.csv");
  write_file_atomic(directory / "fit.json", fit.dump(1, ' ', false, Json::error_handler_t::replace) + "\n");
}

}  // namespace uqa::fit
