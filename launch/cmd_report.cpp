#include <cstdio>

#include "core/error.h"
#include "core/text.h"
#include "launch/bind.h"
#include "launch/command.h"
#include "launch/report/build.h"

namespace uqa::launch {
namespace {

constexpr std::size_t kMaxPageBytes = 6'000'000;

class ReportCommand final : public Command {
 public:
  ReportCommand() {
    options_.add("sources", &sources_, "run, evaluation and study directories, results of uqa compare or uqa study fit; DIR or NAME=DIR", OptionSet::kRequired);
    options_.set_positional("sources");
    options_.add("output", &output_, "HTML file to write", OptionSet::kRequired);
    options_.add("csv", &csv_, "directory for one CSV file a plot; empty: none");
    options_.add("title", &title_, "of the page");
    options_.add("plotly", &plotly_, "plotly.min.js to embed; empty: that of the wheel this program was built with");
    bind(options_, call_);
  }
  OptionSet& options() override { return options_; }
  [[nodiscard]] Ranks ranks() const override { return Ranks::kSingle; }

  void run(comm::Session*) override {
    apply(call_);
    UQA_CHECK(call_.overwrite || !fs::exists(output_), ErrorCode::kConfig, "--output = {} exists; give another path or --overwrite", output_);
    UQA_CHECK(csv_.empty() || call_.overwrite || !fs::exists(csv_), ErrorCode::kConfig, "--csv = {} exists; give another path or --overwrite", csv_);
    const fs::path plotly = plotly_.empty() ? report::default_plotly_js() : plotly_;
    UQA_CHECK(!plotly.empty(), ErrorCode::kConfig, "plotly.min.js is not in the virtual environment of this build; run scripts/setup.sh or give --plotly FILE");
    UQA_CHECK(fs::is_regular_file(plotly), ErrorCode::kConfig, "plotly = {}, there is no such file; run scripts/setup.sh or give --plotly FILE", plotly.string());
    report::Loaded loaded;
    for (const auto& word : sources_) report::load(report::parse_source(word), loaded);
    const auto page = report::build_page(loaded, {.title = title_});
    const auto html = report::render_page(page, read_file(plotly));
    UQA_CHECK(html.size() < kMaxPageBytes, ErrorCode::kConfig, "the page would have {}, at most {} are written; report on fewer runs at a time",
              bytes_text(static_cast<std::int64_t>(html.size())), bytes_text(static_cast<std::int64_t>(kMaxPageBytes)));
    write_file_atomic(output_, html);
    if (!csv_.empty()) report::write_csvs(page, csv_);
    std::size_t plots = 0;
    for (const auto& section : page.sections) plots += section.plots.size();
    std::printf("%s: %s, %zu plots, %s\n", output_.c_str(), page.subtitle.c_str(), plots, bytes_text(static_cast<std::int64_t>(html.size())).c_str());
  }

 private:
  std::vector<std::string> sources_;
  std::string output_, csv_, title_ = "uqa report", plotly_;
  CallSettings call_;
  OptionSet options_{"report", "writes one self-contained HTML page about runs, evaluations and studies: curves, scaling laws, accuracies, cost",
                     "uqa report runs/trm runs/align result.json --output report.html --csv report-csv"};
};

}  // namespace

std::unique_ptr<Command> make_report_command() { return std::make_unique<ReportCommand>(); }

}  // namespace uqa::launch
