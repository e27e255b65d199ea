// From axes to runs and their command lines.
#include <algorithm>
#include <optional>

#include "core/text.h"
#include "trainer/study/study_file.h"

namespace uqa::trainer::study {
namespace {

/// Where an axis goes: an option of a stage, and the letters before its value in a run's name.
struct AxisUse {
  const char* axis;
  const char* stage;
  const char* option;
  const char* letters;
};
/// In the order of names. `seed` is an option of both trained stages.
constexpr AxisUse kUses[] = {{"encoder", "pretrain", "encoder", ""},
                             {"width", "pretrain", "model.hidden", "w"},
                             {"depth", "pretrain", "model.num_layers", "d"},
                             {"max_len", "pretrain", "model.max_len", "n"},
                             {"fraction", "pretrain", "data.fraction", "f"},
                             {"llm", "align", "llm", ""},
                             {"adapter", "align", "adapter.kind", ""},
                             {"tokens", "align", "adapter.tokens", "k"},
                             {"seed", "pretrain", "train.seed", "s"},
                             {"seed", "align", "train.seed", "s"}};

using Values = std::map<std::string, std::string>;

/// Names are directory names: what is no plain character becomes '_'.
std::string name_of(const Values& values, bool align) {
  std::string name;
  std::string last;
  for (const auto& use : kUses) {
    const auto at = values.find(use.axis);
    if (at == values.end() || use.axis == last || (!align && std::string_view(use.stage) != "pretrain")) continue;
    last = use.axis;
    const auto value = std::string_view(use.axis) == "llm" ? fs::path(at->second).filename().string() : at->second;
    name += (name.empty() ? "" : "-") + std::string(use.letters) + value;
  }
  for (char& c : name) {
    const bool plain = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '.' || c == '-' || c == '_';
    if (!plain) c = '_';
  }
  return name.empty() || name[0] == '.' ? "run" + name : name;
}

class Expansion {
 public:
  explicit Expansion(const Study& study) : study_(study), align_(study.stages.size() > 1) {}

  std::vector<Run> operator()() {
    for (const auto& grid : study_.grids) {
      check(grid);
      cross(grid, 0, {});
    }
    if (align_) share_encoders();
    return std::move(runs_);
  }

 private:
  [[nodiscard]] fs::path directory(const std::string& run, const char* stage) const { return study_.directory / "runs" / run / stage; }

  /// An axis and a fixed option must not set the same thing.
  void check(const Grid& grid) const {
    for (const auto& axis : grid.axes) {
      bool used = false;
      for (const auto& use : kUses) {
        if (axis.name != use.axis || std::find(study_.stages.begin(), study_.stages.end(), use.stage) == study_.stages.end()) continue;
        used = true;
        UQA_CHECK(!fixed(use.stage, use.option), ErrorCode::kConfig, "{}: [{}] sets {}, which axis '{}' of [{}] sets too; remove one of them",
                  study_.file.string(), use.stage, use.option, axis.name, grid.section);
      }
      UQA_CHECK(used, ErrorCode::kConfig, "{} [{}]: axis '{}' belongs to stage align, which stages does not have; add align or remove the axis", study_.file.string(),
                grid.section, axis.name);
    }
  }

  [[nodiscard]] std::optional<std::string> fixed(const std::string& stage, const std::string& option) const {
    const auto at = study_.fixed.find(stage);
    if (at == study_.fixed.end()) return std::nullopt;
    for (const auto& [name, value] : at->second) {
      if (name == option) return value;
    }
    return std::nullopt;
  }

  void cross(const Grid& grid, std::size_t axis, const Values& values) {
    if (axis < grid.axes.size()) {
      for (const auto& value : grid.axes[axis].values) {
        auto more = values;
        more[grid.axes[axis].name] = value;
        cross(grid, axis + 1, more);
      }
      return;
    }
    add(with_defaults(values));
  }

  /// An axis that only another grid names has its fixed or built-in value there: fraction 1, else it stays unnamed.
  [[nodiscard]] Values with_defaults(Values values) const {
    for (const auto& grid : study_.grids) {
      for (const auto& axis : grid.axes) {
        if (axis.name == "fraction") values.emplace("fraction", "1");
        if (axis.name == "seed") values.emplace("seed", "1");
      }
    }
    return values;
  }

  void add(const Values& values) {
    const auto name = name_of(values, align_);
    for (const auto& run : runs_) {
      if (run.name != name) continue;
      UQA_CHECK(run.values == values, ErrorCode::kConfig, "{}: two runs would have one name, {}; rename one of the LLM directories, or name the axis in both grids",
                study_.file.string(), name);
      return;  // the same run, asked for by two grids
    }
    Run run{.name = name, .values = values, .stages = {}, .phase = 0, .needs = {}};
    run.stages.push_back(pretrain(values, directory(name, "pretrain")));
    if (align_) run.stages.push_back(align(values, name, directory(name, "pretrain")));
    if (study_.stages.size() > 2) run.stages.push_back(evaluate(name));
    runs_.push_back(std::move(run));
  }

  void append(StageCommand& command, const Values& values) const {
    for (const auto& use : kUses) {
      if (command.stage != use.stage) continue;
      if (const auto at = values.find(use.axis); at != values.end()) command.argv.push_back(fmt::format("--{}={}", use.option, at->second));
    }
    if (const auto at = study_.fixed.find(command.stage); at != study_.fixed.end()) {
      for (const auto& [option, value] : at->second) command.argv.push_back(fmt::format("--{}={}", option, value));
    }
  }

  [[nodiscard]] StageCommand pretrain(const Values& values, const fs::path& run) const {
    StageCommand command{.stage = "pretrain", .argv = {"pretrain", "--data=" + study_.data, "--run=" + run.string()}, .directory = run};
    append(command, values);
    const auto& lr = study_.lr;
    UQA_CHECK((lr.kind == "constant" && lr.peak_lr == 0) || !fixed("pretrain", "optim.peak_lr"), ErrorCode::kConfig,
              "{}: [pretrain] sets optim.peak_lr, which the learning-rate rule sets too ({}); remove one of them", study_.file.string(), lr.describe());
    if (lr.kind == "constant") {
      if (lr.peak_lr > 0) command.argv.push_back(fmt::format("--optim.peak_lr={}", lr.peak_lr));
      return command;
    }
    const auto axis = values.find("width");
    const auto text = axis != values.end() ? std::optional(axis->second) : fixed("pretrain", "model.hidden");
    const auto width = text ? parse_int(*text) : std::nullopt;
    UQA_CHECK(width.has_value() && *width > 0, ErrorCode::kConfig, "{}: lr_rule = {} needs every run's width; add axis width or [pretrain] model.hidden",
              study_.file.string(), lr.kind);
    double rate = 0;
    if (lr.kind == "mup") {
      rate = lr.peak_lr * static_cast<double>(lr.base_width) / static_cast<double>(*width);
    } else {
      const auto at = lr.table.find(*width);
      UQA_CHECK(at != lr.table.end(), ErrorCode::kConfig, "{} [study]: lr_table has no rate for width {}; add {}:RATE", study_.file.string(), *width, *width);
      rate = at->second;
    }
    command.argv.push_back(fmt::format("--optim.peak_lr={}", rate));
    return command;
  }

  [[nodiscard]] StageCommand align(const Values& values, const std::string& name, const fs::path& encoder_run) const {
    const auto run = directory(name, "align");
    StageCommand command{.stage = "align",
                         .argv = {"align", "--data=" + study_.data, "--questions=" + study_.questions, "--encoder-run=" + encoder_run.string(), "--run=" + run.string()},
                         .directory = run};
    append(command, values);
    return command;
  }

  [[nodiscard]] StageCommand evaluate(const std::string& name) const {
    const auto output = directory(name, "evaluate");
    StageCommand command{.stage = "evaluate",
                         .argv = {"evaluate", "--run=" + directory(name, "align").string(), "--data=" + study_.data, "--output=" + output.string()},
                         .directory = output};
    append(command, {});
    return command;
  }

  /// Runs that differ in their alignment only pre-train once: a run of its own in phase 0.
  void share_encoders() {
    std::map<std::string, std::int64_t> uses;
    for (const auto& run : runs_) ++uses[name_of(run.values, false)];
    std::vector<Run> encoders, others;
    std::map<std::string, std::int64_t> number;
    for (auto& run : runs_) {
      const auto encoder = name_of(run.values, false);
      if (uses.at(encoder) == 1) {
        others.push_back(std::move(run));
        continue;
      }
      const auto where = directory(encoder, "pretrain");
      if (number.emplace(encoder, static_cast<std::int64_t>(encoders.size())).second) {
        Values values;
        for (const auto& use : kUses) {
          const auto at = run.values.find(use.axis);
          if (at != run.values.end() && std::string_view(use.stage) == "pretrain") values.insert(*at);
        }
        encoders.push_back({.name = encoder, .values = values, .stages = {pretrain(values, where)}, .phase = 0, .needs = {}});
      }
      run.phase = 1;
      run.needs = {number.at(encoder)};
      run.stages.erase(run.stages.begin());
      run.stages.front() = align(run.values, run.name, where);
      others.push_back(std::move(run));
    }
    for (const auto& encoder : encoders) {
      for (const auto& run : others) {
        UQA_CHECK(run.name != encoder.name, ErrorCode::kConfig, "{}: two runs would have one name, {}; name the adapter or LLM axis in every grid", study_.file.string(),
                  run.name);
      }
    }
    runs_ = std::move(encoders);
    std::move(others.begin(), others.end(), std::back_inserter(runs_));
  }

  const Study& study_;
  bool align_;
  std::vector<Run> runs_;
};

}  // namespace

std::vector<Run> expand(const Study& study) { return Expansion(study)(); }

Json to_json(const std::vector<Run>& runs) {
  Json list = Json::array();
  for (const auto& run : runs) {
    Json entry{{"name", run.name}, {"phase", run.phase}, {"needs", run.needs}, {"values", run.values}, {"stages", Json::array()}, {"directories", Json::array()}, {"argv", Json::array()}};
    for (const auto& stage : run.stages) {
      entry["stages"].push_back(stage.stage);
      entry["directories"].push_back(stage.directory.string());
      entry["argv"].push_back(stage.argv);
    }
    list.push_back(std::move(entry));
  }
  return {{"format", "uqa.study_runs"}, {"version", 1}, {"runs", list}};
}

std::vector<Run> runs_from_json(const Json& json, const std::string& what) {
  const auto version = get<std::int64_t>(json, "version", what);
  UQA_CHECK(get<std::string>(json, "format", what) == "uqa.study_runs" && version == 1, ErrorCode::kConfig,
            "{}: version {} of the study's runs, this program reads 1; use another directory in the study file", what, version);
  std::vector<Run> runs;
  for (const auto& entry : get<Json>(json, "runs", what)) {
    Run run{.name = get<std::string>(entry, "name", what),
            .values = get<std::map<std::string, std::string>>(entry, "values", what),
            .stages = {},
            .phase = get<std::int64_t>(entry, "phase", what),
            .needs = get<std::vector<std::int64_t>>(entry, "needs", what)};
    const auto stages = get<std::vector<std::string>>(entry, "stages", what), directories = get<std::vector<std::string>>(entry, "directories", what);
    const auto argv = get<std::vector<std::vector<std::string>>>(entry, "argv", what);
    UQA_CHECK(stages.size() == argv.size() && stages.size() == directories.size(), ErrorCode::kData, "{}: run {} has {} stages and {} command lines", what, run.name,
              stages.size(), argv.size());
    for (std::size_t i = 0; i < stages.size(); ++i) run.stages.push_back({.stage = stages[i], .argv = argv[i], .directory = directories[i]});
    runs.push_back(std::move(run));
  }
  return runs;
}

}  // namespace uqa::trainer::study
