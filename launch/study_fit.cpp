// `uqa study fit`: scaling laws of a study's runs, or of any table of runs.
#include <cstdio>

#include "core/error.h"
#include "core/text.h"
#include "launch/bind.h"
#include "launch/study.h"
#include "trainer/fit/study_fit.h"
#include "trainer/study/study_file.h"

namespace uqa::launch {
namespace {

/// A study's directory is given itself, or named by its file.
fs::path study_directory(const fs::path& study) {
  UQA_CHECK(fs::exists(study), ErrorCode::kConfig, "study = {} does not exist; give a study file or its directory", study.string());
  return fs::is_directory(study) ? study : trainer::study::read_study(study).directory;
}

class StudyFitCommand final : public Command {
 public:
  StudyFitCommand() {
    options_.add("study", &study_, "study file or the study's directory: its runs' points.csv is fitted, results go to fit/ in its directory");
    options_.add("points", &points_, "CSV file with one run a line, instead of a study");
    options_.add("columns", &columns_, "with --points: n=COL,d=COL,c=COL,loss=COL; c alone gives D = C / (6 N); n and c may be repeated (conventions side by side)");
    options_.add("output", &output_, "directory for fit.json and the curves as CSV; empty: only with --study");
    options_.add("drop_outliers", &fit_.drop_outliers, "runs to leave out: those that --outlier_rule ranks first");
    options_.add("outlier_rule", &fit_.outlier_rule, "loss (the largest, as the published refit of the Chinchilla runs) or residual (the farthest from a first fit)");
    options_.add("huber_delta", &fit_.law.huber_delta, "of log loss, beyond which residuals count linearly; 0: 1.345 times their spread (published: 0.001)");
    options_.add("holdout", &fit_.holdout, "largest runs to predict from the others; -1: a tenth, 0: none");
    options_.add("group", &group_, "columns, comma-separated: runs that differ in one get laws of their own (a study: encoder,max_len)");
    options_.add("resamples", &fit_.bootstrap.num_resamples, "refits of the bootstrap (>= 200)");
    options_.add("confidence", &fit_.bootstrap.confidence, "of every interval, in (0.5, 1)");
    options_.add("seed", &seed_, "of the bootstrap");
    options_.add("chance", &fit_.chance, "accuracy of guessing, the floor of Acc(L)");
    bind(options_, call_);
  }
  OptionSet& options() override { return options_; }
  [[nodiscard]] Ranks ranks() const override { return Ranks::kSingle; }

  void run(comm::Session*) override {
    apply(call_);
    UQA_CHECK(study_.empty() != points_.empty(), ErrorCode::kConfig, "study fit got {}, needs one of --study FILE and --points FILE.csv",
              study_.empty() ? "neither" : "both");
    UQA_CHECK(!points_.empty() || columns_.empty(), ErrorCode::kConfig, "--columns = {} goes with --points; a study has columns of its own", columns_);
    UQA_CHECK(points_.empty() || !columns_.empty(), ErrorCode::kConfig, "--points = {} needs --columns, for example --columns n=parameters,d=tokens,loss=loss", points_);
    fit_.bootstrap.seed = static_cast<std::uint64_t>(seed_);
    for (const auto& column : split(group_, ',')) fit_.group.push_back(column);
    fit_.validate();
    UQA_CHECK(output_.empty() || call_.overwrite || !fs::exists(output_), ErrorCode::kConfig, "--output = {} exists; give another path or --overwrite", output_);
    const Json fit = points_.empty() ? fit_of_study() : fit_points();
    std::fputs(fit::render_fit(fit).c_str(), stdout);
    if (output_.empty()) return;
    fit::write_fit(fit, output_);
    std::printf("\nwritten to %s\n", output_.c_str());
  }

 private:
  [[nodiscard]] Json fit_points() const {
    const auto columns = fit::parse_columns(columns_);
    return fit::fit_study(fit::read_table(points_), columns, fit_);
  }

  [[nodiscard]] Json fit_of_study() {
    const fs::path directory = study_directory(study_);
    const auto path = directory / "points.csv";
    UQA_CHECK(fs::exists(path), ErrorCode::kConfig, "study {} has no {}; run `uqa study run --study {}` first", study_, path.string(), study_);
    if (output_.empty()) output_ = (directory / "fit").string();
    const auto table = fit::read_table(path);
    return fit::fit_study(table, fit::study_columns(table), fit::for_study(fit_));
  }

  std::string study_, points_, columns_, output_, group_;
  std::int64_t seed_ = 1;
  fit::StudyFitOptions fit_;
  CallSettings call_;
  OptionSet options_{"study fit", "fits scaling laws L(N), L(D), L(N, D) and accuracies to runs, with intervals and a check on the largest runs",
                     "uqa study fit --points runs.csv --columns n=parameters,c=flops,loss=loss --drop_outliers 5"};
};

}  // namespace

std::unique_ptr<Command> make_study_fit() { return std::make_unique<StudyFitCommand>(); }

}  // namespace uqa::launch
