// launch/report/build.h - turns what was loaded into sections of a page.
//
//   const Page page = build_page(loaded, {.title = "Widths of SASRec"});
#pragma once

#include "launch/report/load.h"
#include "launch/report/page.h"

namespace uqa::report {

struct BuildOptions {
  std::string title = "uqa report";
};
/// Sections: scaling, training, accuracy, tokens, comparisons, cost, configuration, deviations, machine; those that have something to show.
/// No question text and no user history is shown.
[[nodiscard]] Page build_page(const Loaded& loaded, const BuildOptions& options);

// One section each, in build_*.cpp; nothing to show: an empty section.
[[nodiscard]] std::vector<Section> scaling_sections(const Loaded& loaded);
[[nodiscard]] Section training_section(const Loaded& loaded);
[[nodiscard]] Section accuracy_section(const Loaded& loaded);
[[nodiscard]] Section comparison_section(const Loaded& loaded);
[[nodiscard]] Section cost_section(const Loaded& loaded);
[[nodiscard]] Section configuration_section(const Loaded& loaded);
[[nodiscard]] Section deviations_section(const Loaded& loaded);
[[nodiscard]] Section machine_section(const Loaded& loaded);

/// Short number for people: "1.2e+09" where the digits would not fit, "-" for what is not there.
[[nodiscard]] std::string show(const Json& value, int digits = 4);
[[nodiscard]] double number_or_nan(const Json& object, const std::string& key);

}  // namespace uqa::report
