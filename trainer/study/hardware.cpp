#include "trainer/study/hardware.h"

#include <algorithm>
#include <cmath>

#include "core/text.h"
#include "trainer/study/ini.h"

namespace uqa::trainer::study {
namespace {

struct Field {
  const char* key;
  double Hardware::* field;
};
constexpr Field kFields[] = {{"memory_bytes", &Hardware::memory_bytes},
                             {"flops_per_s", &Hardware::flops_per_s},
                             {"efficiency", &Hardware::efficiency},
                             {"softmax_efficiency", &Hardware::softmax_efficiency},
                             {"memory_bytes_per_s", &Hardware::memory_bytes_per_s},
                             {"node_bytes_per_s", &Hardware::node_bytes_per_s},
                             {"network_bytes_per_s", &Hardware::network_bytes_per_s},
                             {"latency_s", &Hardware::latency_s},
                             {"step_s", &Hardware::step_s},
                             {"process_bytes", &Hardware::process_bytes},
                             {"start_s", &Hardware::start_s}};

}  // namespace

double Hardware::measured_rate(const std::string& encoder, double flops) const {
  const auto at = measured.find(encoder);
  if (at == measured.end() || at->second.empty()) return 0;
  const auto& points = at->second;
  if (flops <= points.front().first) return points.front().second;
  for (std::size_t i = 1; i < points.size(); ++i) {
    if (flops > points[i].first) continue;
    const double share = std::log(flops / points[i - 1].first) / std::log(points[i].first / points[i - 1].first);
    return points[i - 1].second * std::pow(points[i].second / points[i - 1].second, share);
  }
  return points.back().second;
}

void Hardware::validate(const std::string& what) const {
  UQA_CHECK(ranks_per_node > 0, ErrorCode::kConfig, "{}: ranks_per_node = {}, must be above 0", what, ranks_per_node);
  for (const auto& [key, field] : kFields) {
    const double value = this->*field;
    const std::string_view text = key;
    const bool may_be_zero = text == "latency_s" || text == "step_s" || text == "process_bytes" || text == "start_s";
    const bool share = text.ends_with("efficiency");
    UQA_CHECK((value > 0 || (may_be_zero && value == 0)) && (!share || value <= 1), ErrorCode::kConfig, "{}: {} = {}, must be {}", what, key, value,
              share ? "in (0, 1]" : may_be_zero ? "0 or more" : "given and above 0");
  }
}

std::string Hardware::to_ini() const {
  std::string text = fmt::format("[hardware]\nname = {}\nranks_per_node = {}\n", name, ranks_per_node);
  for (const auto& [key, field] : kFields) text += fmt::format("{} = {}\n", key, this->*field);
  if (!measured.empty()) text += "[measured]\n# encoder = training FLOPs of an interaction : FLOP/s of one rank's training step\n";
  for (const auto& [encoder, points] : measured) {
    text += encoder + " =";
    for (std::size_t i = 0; i < points.size(); ++i) text += fmt::format("{} {}:{}", i > 0 ? "," : "", points[i].first, points[i].second);
    text += "\n";
  }
  return text;
}

Hardware read_hardware(const fs::path& file) {
  const std::string what = file.string();
  std::error_code ec;
  UQA_CHECK(fs::is_regular_file(file, ec), ErrorCode::kConfig, "hardware file {}: there is no such file; give one like recipes/hardware/h100x8.ini, or --calibrate", what);
  Hardware hardware;
  std::vector<std::string> known{"name", "ranks_per_node"};
  for (const auto& field : kFields) known.emplace_back(field.key);
  for (const auto& section : parse_ini(read_file(file), what)) {
    UQA_CHECK(section.name == "hardware" || section.name == "measured", ErrorCode::kConfig, "{} line {}: unknown section [{}]{}; sections are hardware and measured",
              what, section.line, section.name, suggestion(section.name, {"hardware", "measured"}));
    for (const auto& [key, value] : section.options) {
      const std::string where = fmt::format("{} [{}]: {}", what, section.name, key);
      if (section.name == "measured") {
        auto& points = hardware.measured[key];
        for (const auto& entry : ini_values(value)) {
          const auto colon = entry.find(':');
          UQA_CHECK(colon != std::string::npos, ErrorCode::kConfig, "{}: '{}', each entry must be FLOPS:FLOPS_PER_S", where, entry);
          points.emplace_back(ini_positive(entry.substr(0, colon), where), ini_positive(entry.substr(colon + 1), where));
        }
        std::sort(points.begin(), points.end());
        continue;
      }
      if (key == "name") {
        hardware.name = value;
        continue;
      }
      if (key == "ranks_per_node") {
        hardware.ranks_per_node = ini_positive_int(value, where);
        continue;
      }
      const auto* field = std::find_if(std::begin(kFields), std::end(kFields), [&](const Field& f) { return f.key == key; });
      UQA_CHECK(field != std::end(kFields), ErrorCode::kConfig, "{}: unknown key{}", where, suggestion(key, known));
      const auto number = parse_double(value);
      UQA_CHECK(number.has_value(), ErrorCode::kConfig, "{} = {}, must be a number", where, value);
      hardware.*(field->field) = *number;
    }
  }
  hardware.validate(what);
  return hardware;
}

}  // namespace uqa::trainer::study
