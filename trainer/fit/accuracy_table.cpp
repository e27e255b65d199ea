#include "trainer/fit/accuracy_table.h"

#include <algorithm>
#include <cmath>

#include "core/error.h"
#include "trainer/fit/accuracy.h"

namespace uqa::fit {
namespace {

Json to_json(const SigmoidFit& fit) {
  if (!fit.fitted) return {{"fitted", false}, {"reason", fit.reason}};
  Json curve = Json::array();
  for (const auto& [loss, value, low, high] : fit.curve) curve.push_back({{"loss", loss}, {"accuracy", value}, {"low", low}, {"high", high}});
  return {{"fitted", true},
          {"chance", fit.chance},
          {"free_ceiling", fit.free_ceiling},
          {"ceiling", to_json(fit.ceiling)},
          {"k_per_nat", to_json(fit.k)},
          {"midpoint_nats", to_json(fit.midpoint)},
          {"overdispersion", fit.overdispersion},
          {"curve", curve}};
}

Json to_json(const AccuracyTrend& trend) {
  if (!trend.reason.empty()) return {{"fitted", false}, {"reason", trend.reason}};
  Json slopes = Json::array();
  for (std::size_t a = 0; a < trend.axes.size(); ++a) {
    Json json = to_json(trend.per_decade[a]);
    json["axis"] = trend.axes[a];
    slopes.push_back(std::move(json));
  }
  return {{"fitted", true}, {"accuracy_per_decade", slopes}};
}

}  // namespace

Json fit_accuracies(const Table& table, const Runs& runs, const Columns& columns, double chance, const BootstrapOptions& options) {
  Json all = Json::array();
  std::vector<std::string> group_columns;
  for (const char* name : {"llm", "adapter", "tokens"}) {
    if (table.has(name)) group_columns.emplace_back(name);
  }
  for (std::size_t column = 0; column < table.columns.size(); ++column) {
    const auto& name = table.columns[column];
    if (!name.starts_with("acc_") || !table.has(name + "_n")) continue;
    const auto type = name.substr(4);
    const std::size_t counts = table.find(name + "_n", "questions");
    const std::string effect_name = name + "_users_effect";
    struct Axis {
      std::string name;
      std::size_t column;
    };
    std::vector<Axis> axes;
    for (const auto& [axis, source] : {std::pair<std::string, std::string>{"N", columns.n.empty() ? "" : columns.n.front()}, {"history length", "max_len"}, {"LLM parameters", "n_llm"}}) {
      if (source.empty() || !table.has(source)) continue;
      const std::size_t at = table.find(source, axis);
      const bool known = std::all_of(runs.row.begin(), runs.row.end(), [&](std::size_t row) { return number_at(table, row, at).has_value(); });
      if (known) axes.push_back({axis, at});
    }
    std::vector<AccuracyRun> found;
    Runs with_accuracy;
    Json points = Json::array();
    for (std::size_t i = 0; i < runs.size(); ++i) {
      const auto row = runs.row[i];
      const auto accuracy = number_at(table, row, column), count = number_at(table, row, counts);
      if (!accuracy || !count) continue;
      UQA_CHECK(*accuracy >= 0 && *accuracy <= 1 && *count >= 1, ErrorCode::kData, "{}, run {}: {} = {} of {} questions, must be a share in [0, 1] of at least 1", table.source, row + 1,
                name, *accuracy, *count);
      AccuracyRun run{.loss = runs.loss[i], .accuracy = *accuracy, .num_questions = *count, .log10_sizes = {}};
      if (table.has(effect_name)) run.users_effect = std::max(1.0, number_at(table, row, table.find(effect_name, "users' effect")).value_or(1));
      Json sizes = Json::object();
      for (const auto& axis : axes) {
        const double value = number_at(table, row, axis.column).value();
        UQA_CHECK(value > 0, ErrorCode::kData, "{}, run {}: {} = {}, must be above 0", table.source, row + 1, table.columns[axis.column], value);
        run.log10_sizes.push_back(std::log10(value));
        sizes[axis.name] = value;
      }
      const double effective = *count / run.users_effect;
      const auto interval = wilson_interval(std::llround(*accuracy * effective), std::llround(effective));
      points.push_back({{"row", row}, {"loss", run.loss}, {"accuracy", *accuracy}, {"n", *count}, {"low", interval.low}, {"high", interval.high}, {"sizes", sizes}});
      found.push_back(std::move(run));
      with_accuracy.row.push_back(row);
      with_accuracy.loss.push_back(runs.loss[i]);
    }
    std::vector<std::string> names;
    for (const auto& axis : axes) names.push_back(axis.name);
    // One LLM with one adapter has one curve over loss; the trend is over all of them.
    for (const auto& [group, members] : group_runs(table, with_accuracy, group_columns)) {
      std::vector<AccuracyRun> of_group;
      Json points_of_group = Json::array();
      for (const auto i : members) {
        of_group.push_back(found[i]);
        points_of_group.push_back(points[i]);
      }
      all.push_back({{"type", type}, {"group", group}, {"runs", of_group.size()}, {"points", points_of_group}, {"sigmoid", to_json(fit_sigmoid(of_group, chance, options))},
                     {"trend", to_json(fit_accuracy_trend(found, names, options.confidence))}});
    }
  }
  return all;
}

}  // namespace uqa::fit
