// launch/report/page.h - a page of plots and tables: what is shown, and how it becomes one HTML file. Text is escaped here and nowhere else.
//
//   Page page{.title = "Study", .subtitle = "12 runs"};
//   auto& section = page.sections.emplace_back();
//   section.title = "Training"; section.plots.push_back({.id = "loss", .title = "Loss", .series = {...}});
//   write_file_atomic("report.html", render_page(page, read_file(default_plotly_js())));
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "core/file.h"
#include "core/json.h"

namespace uqa::report {

enum class Mark { kLine, kDashes, kPoints, kOpenPoints, kBar };

/// One curve, one set of points or one set of bars. x is numbers or category names; `low`, `high` (if not empty) are a band around a line and error bars elsewhere; an
/// element that is not finite is a gap.
struct Series {
  std::string name;
  Mark mark = Mark::kLine;
  std::int64_t color = 0;          ///< index into the palette; equal colours belong together
  std::vector<double> x;
  std::vector<std::string> categories;  ///< instead of x
  std::vector<double> y, low, high;
  std::vector<std::string> labels;  ///< shown on hover, one a point; may be empty
  bool in_legend = true;
};

/// A choice above a plot, for example one accuracy rule each. A plot has one unnamed variant or several named ones.
struct Variant {
  std::string name;
  std::vector<Series> series;
};

struct Plot {
  std::string id;                  ///< unique, [a-z0-9-]; also the name of its CSV file
  std::string title, note;
  std::string x_title, y_title;
  bool log_x = false, log_y = false;
  bool percent_y = false;          ///< y is a share
  bool line_at = false;            ///< draws a dashed line at y = `line_y`
  double line_y = 0;
  std::vector<Variant> variants;
};

/// Cells are text; a column whose cells are numbers is aligned right.
struct TableView {
  std::string title, note;
  std::vector<std::string> head;
  std::vector<std::vector<std::string>> rows;
};

struct Section {
  std::string id, title, note;
  std::vector<Plot> plots;
  std::vector<TableView> tables;
  std::vector<std::pair<std::string, std::string>> texts;  ///< title, preformatted text; folded
  std::vector<std::string> notes;                          ///< warnings, one line each
};

struct Page {
  std::string title, subtitle;
  std::vector<std::pair<std::string, std::string>> facts;  ///< label, value: the tiles at the top
  std::vector<Section> sections;
};

/// HTML with everything inside. The page counts in attributes of <body>: data-plots-expected, data-plots-drawn, data-errors, data-ready.
[[nodiscard]] std::string render_page(const Page& page, const std::string& plotly_js);
/// One CSV file a plot: variant, series, x, y, low, high, label.
void write_csvs(const Page& page, const fs::path& directory);
/// plotly.min.js in the virtual environment that this program was built with; "" when the wheel is not there.
[[nodiscard]] std::string default_plotly_js();

[[nodiscard]] std::string escape_html(const std::string& text);

}  // namespace uqa::report
