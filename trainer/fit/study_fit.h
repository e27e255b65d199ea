// trainer/fit/study_fit.h - everything that `uqa study fit` says about a table of runs, as one JSON document, as text, and as CSV files.
//
//   const Json fit = fit_study(read_table("points.csv"), columns, {});
//   std::fputs(render_fit(fit).c_str(), stdout);
//   write_fit(fit, "fit");                       // fit/fit.json, fit/*.csv
#pragma once

#include <string>
#include <vector>

#include "core/json.h"
#include "trainer/fit/bootstrap.h"
#include "trainer/fit/law.h"
#include "trainer/fit/points.h"

namespace uqa::fit {

inline constexpr int kFitVersion = 1;

struct StudyFitOptions {
  LawOptions law;
  BootstrapOptions bootstrap;
  std::int64_t drop_outliers = 0;      ///< runs to leave out; >= 0
  std::string outlier_rule = "loss";   ///< which ones: the largest "loss" (as in the published refit of the Chinchilla runs) or the largest "residual"
  std::int64_t holdout = -1;           ///< runs to predict from the others, the largest first; -1: a tenth; 0: none
  double chance = 0.25;                ///< accuracy of guessing
  std::vector<std::string> group;      ///< columns: runs that differ in one of them get laws of their own
  /// Columns that tell runs apart; runs equal in all of them and in loss are one (several alignments of one pre-training). Empty: every row is a run.
  std::vector<std::string> identity;
  void validate() const;               ///< Error(kConfig) naming the option
};

/// For points.csv of a study: laws by encoder and history length, one observation a pre-training.
[[nodiscard]] StudyFitOptions for_study(StudyFitOptions options);

/// Fits L(N, D), L(N) at the largest D, L(D) at the largest N (or L(C)), whichever the runs allow, under every convention for N and C; accuracies
/// where the table has acc_<type> and acc_<type>_n. Error(kConfig) when no law can be fitted, saying why.
/// Layout: docs/design/0013-fit-and-report.md.
[[nodiscard]] Json fit_study(const Table& table, const Columns& columns, const StudyFitOptions& options);

/// Tables for a terminal.
[[nodiscard]] std::string render_fit(const Json& fit);
/// fit.json, points.csv (fitted values), curves.csv, frontier.csv, holdout.csv, accuracy.csv: those that have rows. One rank. Error(kData).
void write_fit(const Json& fit, const fs::path& directory);

}  // namespace uqa::fit
