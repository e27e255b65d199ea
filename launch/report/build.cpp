#include "launch/report/build.h"

#include <cmath>
#include <limits>
#include <map>
#include <set>

#include "core/text.h"

namespace uqa::report {
namespace {

Json at_path(const Json& json, const std::string& path) {
  const Json* at = &json;
  for (const auto& key : split(path, '.')) {
    if (!at->is_object() || !at->contains(key)) return nullptr;
    at = &at->at(key);
  }
  return *at;
}

double sum_of(const std::vector<Json>& records, const std::string& key) {
  double sum = 0;
  for (const auto& record : records) {
    if (const double value = number_or_nan(record, key); std::isfinite(value)) sum += value;
  }
  return sum;
}

std::string duration(double seconds) {
  if (seconds < 120) return fmt::format("{:.1f} s", seconds);
  if (seconds < 7200) return fmt::format("{:.1f} min", seconds / 60);
  return fmt::format("{:.1f} h", seconds / 3600);
}

std::map<std::string, std::string> settings_of(const std::string& ini) {
  std::map<std::string, std::string> settings;
  std::string section;
  for (auto line : split(ini, '\n')) {
    if (!line.empty() && line.back() == '\r') line.pop_back();
    if (line.empty() || line[0] == '#' || line[0] == ';') continue;
    if (line.front() == '[' && line.back() == ']') {
      section = line.substr(1, line.size() - 2) + ".";
      continue;
    }
    const auto equals = line.find('=');
    if (equals == std::string::npos) continue;
    auto key = line.substr(0, equals), value = line.substr(equals + 1);
    while (!key.empty() && key.back() == ' ') key.pop_back();
    while (!value.empty() && value.front() == ' ') value.erase(0, 1);
    settings[section + key] = value;
  }
  return settings;
}

bool has_content(const Section& section) { return !section.plots.empty() || !section.tables.empty() || !section.texts.empty(); }

}  // namespace

double number_or_nan(const Json& object, const std::string& key) {
  if (!object.is_object() || !object.contains(key) || !object.at(key).is_number()) return std::numeric_limits<double>::quiet_NaN();
  return object.at(key).get<double>();
}

std::string show(const Json& value, int digits) {
  if (value.is_null()) return "-";
  if (value.is_string()) return value.get<std::string>();
  if (value.is_number_integer() && std::abs(value.get<double>()) < 1e7) return value.dump();
  if (value.is_number()) return fmt::format("{:.{}g}", value.get<double>(), digits);
  return value.dump(-1, ' ', false, Json::error_handler_t::replace);
}

Section cost_section(const Loaded& loaded) {
  Section section{.id = "cost", .title = "Cost", .note = "Sums over the records of metrics.jsonl; FLOPs by the convention stored with each run (see Machine)."};
  TableView table{.title = "", .note = "", .head = {"run", "stage", "parameters", "backbone", "steps", "loss, nats", "time", "interactions/s", "GFLOP/s", "FLOPs", "peak memory", "sent", "waits for data", "waits for ranks"}, .rows = {}};
  double total_s = 0, total_flops = 0;
  for (const auto& run : loaded.runs) {
    const double seconds = sum_of(run.train, "seconds");
    double flops = 0, interactions = 0, rss = 0, data_wait = 0, exposed = 0;
    for (const auto& record : run.train) {
      const double s = number_or_nan(record, "seconds");
      const auto add = [&](double& sum, const char* key) {
        const double value = number_or_nan(record, key);
        if (std::isfinite(value) && std::isfinite(s)) sum += value * s;
      };
      add(flops, "flops_per_s");
      add(interactions, "interactions_per_s");
      add(data_wait, "data_wait_fraction");
      add(exposed, "comm_exposed_fraction");
      if (const double peak = number_or_nan(record, "peak_rss_bytes"); std::isfinite(peak)) rss = std::max(rss, peak);
    }
    total_s += seconds;
    total_flops += flops;
    const bool timed = seconds > 0;
    const auto rate = [&](double sum, int digits) { return timed ? fmt::format("{:.{}g}", sum / seconds, digits) : std::string("-"); };
    const auto share = [&](double sum) { return timed ? fmt::format("{:.1f} %", 100 * sum / seconds) : std::string("-"); };
    const double bytes = sum_of(run.train, "comm_bytes");
    auto total_parameters = at_path(run.info, "parameters.total");
    if (total_parameters.is_null()) total_parameters = at_path(run.info, "trained_parameters.total");
    table.rows.push_back({run.name, run.info.at("stage").get<std::string>(), show(total_parameters), show(at_path(run.info, "parameters.backbone")),
                          run.train.empty() ? "-" : show(run.train.back().value("step", Json(nullptr))), run.train.empty() ? "-" : show(run.train.back().value("loss_nats", Json(nullptr)), 5),
                          timed ? duration(seconds) : "-", rate(interactions, 4), timed ? fmt::format("{:.4g}", flops / seconds / 1e9) : "-", timed ? fmt::format("{:.3g}", flops) : "-",
                          rss > 0 ? bytes_text(static_cast<std::int64_t>(rss)) : "-", bytes > 0 ? bytes_text(static_cast<std::int64_t>(bytes)) : "0 B", share(data_wait), share(exposed)});
  }
  if (table.rows.size() > 1) table.rows.push_back({"all", "", "", "", "", "", duration(total_s), "", "", fmt::format("{:.3g}", total_flops), "", "", "", ""});
  if (!loaded.runs.empty()) section.tables.push_back(std::move(table));
  return section;
}

Section configuration_section(const Loaded& loaded) {
  Section section{.id = "configuration", .title = "Configuration"};
  std::vector<std::map<std::string, std::string>> all;
  std::map<std::string, std::set<std::string>> values;
  std::map<std::string, std::size_t> counts;
  for (const auto& run : loaded.runs) {
    all.push_back(settings_of(run.config_ini));
    for (const auto& [key, value] : all.back()) {
      values[key].insert(value);
      ++counts[key];
    }
  }
  TableView table{.title = "Settings that differ", .note = "", .head = {"run"}, .rows = {}};
  std::vector<std::string> keys;
  for (const auto& [key, found] : values) {
    if (key != "run" && (found.size() > 1 || counts[key] < all.size())) keys.push_back(key);
  }
  for (const auto& key : keys) table.head.push_back(key);
  for (std::size_t i = 0; i < all.size(); ++i) {
    std::vector<std::string> row{loaded.runs[i].name};
    for (const auto& key : keys) row.push_back(all[i].contains(key) ? all[i].at(key) : "-");
    table.rows.push_back(std::move(row));
  }
  if (all.size() > 1 && !keys.empty()) section.tables.push_back(std::move(table));
  // A study has hundreds of runs that differ as the table says: one whole configuration a stage is enough.
  std::set<std::string> stages;
  for (const auto& run : loaded.runs) {
    const auto stage = run.info.at("stage").get<std::string>();
    if (run.config_ini.empty() || (loaded.runs.size() > 12 && !stages.insert(stage).second)) continue;
    section.texts.emplace_back("config.ini of " + run.name, run.config_ini);
  }
  return section;
}

Section deviations_section(const Loaded& loaded) {
  Section section{.id = "deviations", .title = "Deviations from the reference", .note = "What each run does otherwise than the reference implementation of the benchmark; none with the preset `faithful`."};
  std::map<std::string, std::vector<std::string>> runs_by_deviation;
  std::vector<std::string> without;
  for (const auto& run : loaded.runs) {
    const Json deviations = run.info.value("deviations", Json(nullptr));
    if (!deviations.is_array()) continue;
    if (deviations.empty()) without.push_back(run.name);
    for (const auto& deviation : deviations) runs_by_deviation[show(deviation)].push_back(run.name);
  }
  TableView table{.title = "", .note = "", .head = {"deviation", "runs"}, .rows = {}};
  for (const auto& [text, names] : runs_by_deviation) {
    std::string list;
    for (std::size_t i = 0; i < names.size() && i < 4; ++i) list += (i == 0 ? "" : ", ") + names[i];
    if (names.size() > 4) list += fmt::format(" and {} more", names.size() - 4);
    table.rows.push_back({text, names.size() == loaded.runs.size() ? "all" : list});
  }
  for (const auto& name : without) table.rows.push_back({"none", name});
  if (!table.rows.empty()) section.tables.push_back(std::move(table));
  return section;
}

Section machine_section(const Loaded& loaded) {
  Section section{.id = "machine", .title = "Machine"};
  std::map<std::vector<std::string>, std::int64_t> machines;
  for (const auto& run : loaded.runs) {
    const auto& info = run.info;
    std::string versions;
    const Json stored = info.value("versions", Json::object());
    for (const auto& [name, version] : stored.items()) versions += fmt::format("{}{} {}", versions.empty() ? "" : ", ", name, show(version));
    ++machines[{show(at_path(info, "host")), show(at_path(info, "num_hosts")), show(at_path(info, "device")), show(at_path(info, "host_cores")), show(at_path(info, "threads_per_rank")),
                show(at_path(info, "mesh.world")), show(at_path(info, "mesh.dp")), show(at_path(info, "mesh.tp")), versions, show(at_path(info, "flops.convention"))}];
  }
  TableView table{.title = "", .note = "", .head = {"runs", "host", "hosts", "device", "cores", "threads a rank", "ranks", "dp", "tp", "versions", "FLOPs convention"}, .rows = {}};
  for (const auto& [cells, count] : machines) {
    std::vector<std::string> row{std::to_string(count)};
    row.insert(row.end(), cells.begin(), cells.end());
    table.rows.push_back(std::move(row));
  }
  if (!table.rows.empty()) section.tables.push_back(std::move(table));
  return section;
}

Page build_page(const Loaded& loaded, const BuildOptions& options) {
  Page page{.title = options.title, .subtitle = "", .facts = {}, .sections = {}};
  const auto count = [](std::size_t n, const char* what) { return fmt::format("{} {}{}", n, what, n == 1 ? "" : "s"); };
  page.subtitle = count(loaded.runs.size(), "run") + ", " + count(loaded.evaluations.size(), "evaluation") + ", " + count(loaded.fits.size(), "fit") + ", " +
                  count(loaded.comparisons.size(), "comparison");
  double seconds = 0, flops = 0, best = std::numeric_limits<double>::infinity();
  for (const auto& run : loaded.runs) {
    for (const auto& record : run.train) {
      const double s = number_or_nan(record, "seconds"), f = number_or_nan(record, "flops_per_s");
      if (std::isfinite(s)) seconds += s;
      if (std::isfinite(s) && std::isfinite(f)) flops += s * f;
    }
    if (const double test = number_or_nan(at_path(run.info, "result.test"), "loss_nats"); std::isfinite(test)) best = std::min(best, test);
  }
  if (seconds > 0) page.facts.emplace_back("training time, all runs", duration(seconds));
  if (flops > 0) page.facts.emplace_back("training FLOPs", fmt::format("{:.3g}", flops));
  if (std::isfinite(best)) page.facts.emplace_back("lowest test loss, nats", fmt::format("{:.4f}", best));
  for (const auto& fit : loaded.fits) {
    for (const auto& law : fit.json.at("laws")) {
      for (const auto& estimate : law.at("estimates")) {
        const auto name = estimate.at("name").get<std::string>();
        if (name != "alpha" && name != "beta") continue;
        const std::string interval = estimate.at("low").is_null() ? "no interval" : fmt::format("[{}, {}]", show(estimate.at("low"), 3), show(estimate.at("high"), 3));
        page.facts.emplace_back(fmt::format("{} of {}, {}", name, law.at("name").get<std::string>(), interval), show(estimate.at("value"), 3));
      }
      break;  // the first law is the main one
    }
  }
  const auto add = [&](Section section) {
    if (has_content(section)) page.sections.push_back(std::move(section));
  };
  for (auto& section : scaling_sections(loaded)) add(std::move(section));
  add(training_section(loaded));
  add(accuracy_section(loaded));
  add(comparison_section(loaded));
  add(cost_section(loaded));
  add(configuration_section(loaded));
  add(deviations_section(loaded));
  add(machine_section(loaded));
  return page;
}

}  // namespace uqa::report
