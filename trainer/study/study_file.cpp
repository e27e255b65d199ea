#include "trainer/study/study_file.h"

#include <algorithm>

#include <fmt/ranges.h>

#include "core/text.h"
#include "trainer/study/ini.h"

namespace uqa::trainer::study {
namespace {

const std::vector<std::string> kStages{"pretrain", "align", "evaluate"};
const std::vector<std::string> kAxes{"encoder", "width", "depth", "max_len", "fraction", "llm", "adapter", "tokens", "seed"};

Grid read_grid(const IniSection& section, const std::string& what) {
  Grid grid{.section = section.name, .axes = {}};
  for (const auto& [name, text] : section.options) {
    UQA_CHECK(std::find(kAxes.begin(), kAxes.end(), name) != kAxes.end(), ErrorCode::kConfig, "{} [{}]: unknown axis '{}'{}; axes are {}", what,
              section.name, name, suggestion(name, kAxes), fmt::join(kAxes, ", "));
    Axis axis{.name = name, .values = ini_values(text)};
    UQA_CHECK(!axis.values.empty() && std::none_of(axis.values.begin(), axis.values.end(), [](const auto& v) { return v.empty(); }), ErrorCode::kConfig,
              "{} [{}]: axis '{}' is empty or has an empty value; give values with commas between them, or remove the line", what, section.name, name);
    for (std::size_t i = 0; i < axis.values.size(); ++i) {
      const auto& value = axis.values[i];
      const std::string where = fmt::format("{} [{}]: {}", what, section.name, name);
      if (name == "width" || name == "depth" || name == "max_len" || name == "tokens") ini_positive_int(value, where);
      if (name == "seed") UQA_CHECK(parse_int(value).has_value(), ErrorCode::kConfig, "{} = {}, must be a whole number", where, value);
      if (name == "fraction") UQA_CHECK(ini_positive(value, where) <= 1, ErrorCode::kConfig, "{} = {}, must be in (0, 1]", where, value);
      UQA_CHECK(std::find(axis.values.begin(), axis.values.begin() + static_cast<std::ptrdiff_t>(i), value) == axis.values.begin() + static_cast<std::ptrdiff_t>(i),
                ErrorCode::kConfig, "{}: the value {} occurs twice: two runs would have one name; remove one", where, value);
    }
    grid.axes.push_back(std::move(axis));
  }
  UQA_CHECK(!grid.axes.empty(), ErrorCode::kConfig, "{} [{}]: the grid is empty; name at least one axis, for example width = 16, 32", what, section.name);
  return grid;
}

void read_head(const IniSection& section, const std::string& what, Study& study) {
  const std::vector<std::string> known{"name",    "directory", "stages",        "data",         "questions",    "ranks",            "lr_rule",
                                       "peak_lr", "lr_table",  "lr_base_width", "budget_flops", "budget_hours", "rows_per_question"};
  for (const auto& [key, value] : section.options) {
    const std::string where = fmt::format("{} [study]: {}", what, key);
    UQA_CHECK(!value.empty(), ErrorCode::kConfig, "{} has no value; give one or remove the line", where);
    if (key == "name") study.name = value;
    else if (key == "directory") study.directory = value;
    else if (key == "stages") study.stages = ini_values(value);
    else if (key == "data") study.data = value;
    else if (key == "questions") study.questions = value;
    else if (key == "ranks") study.ranks = ini_positive_int(value, where);
    else if (key == "lr_rule") study.lr.kind = value;
    else if (key == "peak_lr") study.lr.peak_lr = ini_positive(value, where);
    else if (key == "lr_base_width") study.lr.base_width = ini_positive_int(value, where);
    else if (key == "budget_flops") study.budget_flops = ini_positive(value, where);
    else if (key == "budget_hours") study.budget_hours = ini_positive(value, where);
    else if (key == "rows_per_question") study.rows_per_question = ini_positive(value, where);
    else if (key == "lr_table") {
      for (const auto& entry : ini_values(value)) {
        const auto colon = entry.find(':');
        UQA_CHECK(colon != std::string::npos, ErrorCode::kConfig, "{}: '{}', each entry must be WIDTH:RATE", where, entry);
        study.lr.table[ini_positive_int(ini_trim(entry.substr(0, colon)), where)] = ini_positive(ini_trim(entry.substr(colon + 1)), where);
      }
    } else {
      UQA_FAIL(ErrorCode::kConfig, "{}: unknown key{}; [study] has {}", where, suggestion(key, known), fmt::join(known, ", "));
    }
  }
}

void check(const Study& study, const std::string& what) {
  UQA_CHECK(!study.stages.empty() && study.stages.size() <= kStages.size() && std::equal(study.stages.begin(), study.stages.end(), kStages.begin()),
            ErrorCode::kConfig, "{} [study]: stages = {}, must be pretrain; pretrain, align; or pretrain, align, evaluate", what, fmt::join(study.stages, ", "));
  const auto& lr = study.lr;
  UQA_CHECK(lr.kind == "constant" || lr.kind == "mup" || lr.kind == "table", ErrorCode::kConfig, "{} [study]: lr_rule = {}, must be constant, mup or table{}", what,
            lr.kind, suggestion(lr.kind, {"constant", "mup", "table"}));
  UQA_CHECK(lr.kind != "mup" || (lr.peak_lr > 0 && lr.base_width > 0), ErrorCode::kConfig,
            "{} [study]: lr_rule = mup needs peak_lr and lr_base_width, the width at which that rate was tuned; give both", what);
  UQA_CHECK((lr.kind == "mup") == (lr.base_width > 0), ErrorCode::kConfig, "{} [study]: lr_base_width goes with lr_rule = mup; remove it", what);
  UQA_CHECK((lr.kind == "table") == !lr.table.empty(), ErrorCode::kConfig, "{} [study]: lr_rule = table and lr_table go together; give both or neither", what);
  UQA_CHECK(lr.kind != "table" || lr.peak_lr == 0, ErrorCode::kConfig, "{} [study]: peak_lr has no effect with lr_rule = table; remove it", what);
  UQA_CHECK(!study.grids.empty(), ErrorCode::kConfig, "{}: there is no grid; add a section [axes] with at least one axis, for example width = 16, 32", what);
  UQA_CHECK(!study.data.empty(), ErrorCode::kConfig, "{} [study]: data is not set; give the directory of uqa import or uqa synth", what);
  UQA_CHECK(study.stages.size() == 1 || !study.questions.empty(), ErrorCode::kConfig, "{} [study]: stage align needs questions = DIRECTORY; add it", what);
}

}  // namespace

std::string LrRule::describe() const {
  if (kind == "mup") return fmt::format("mup: learning rate = {} * {} / width", peak_lr, base_width);
  if (kind == "table") {
    std::string text = "table:";
    for (const auto& [width, rate] : table) text += fmt::format(" width {} -> {}", width, rate);
    return text;
  }
  return peak_lr > 0 ? fmt::format("constant: learning rate = {} at every width", peak_lr) : "constant: the stage's own optim.peak_lr at every width";
}

Study parse_study(const std::string& text, const fs::path& file) {
  const std::string what = file.string();
  Study study;
  study.file = file;
  study.name = file.stem().string();
  for (const auto& section : parse_ini(text, what)) {
    const bool is_stage = std::find(kStages.begin(), kStages.end(), section.name) != kStages.end();
    if (section.name == "study") read_head(section, what, study);
    else if (section.name == "axes" || section.name.starts_with("axes.")) study.grids.push_back(read_grid(section, what));
    else if (section.name == "data") study.data_shape = section.options;
    else if (is_stage) study.fixed[section.name] = section.options;
    else {
      UQA_FAIL(ErrorCode::kConfig, "{} line {}: unknown section [{}]{}; sections are study, axes, axes.NAME, pretrain, align, evaluate and data", what, section.line,
               section.name, suggestion(section.name, {"study", "axes", "pretrain", "align", "evaluate", "data"}));
    }
  }
  check(study, what);
  for (const auto& [stage, options] : study.fixed) {
    UQA_CHECK(std::find(study.stages.begin(), study.stages.end(), stage) != study.stages.end(), ErrorCode::kConfig,
              "{}: section [{}], but stages = {} does not run it; add the stage or remove the section", what, stage, fmt::join(study.stages, ", "));
  }
  if (study.directory.empty()) study.directory = fs::path("studies") / study.name;
  return study;
}

Study read_study(const fs::path& file) {
  std::error_code ec;
  UQA_CHECK(fs::is_regular_file(file, ec), ErrorCode::kConfig, "--study {}: there is no such file; give a study file, for example recipes/studies/widths.ini", file.string());
  return parse_study(read_file(file), file);
}

}  // namespace uqa::trainer::study
