#include "launch/report/page.h"

#include <limits>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/support/temp_dir.h"

namespace uqa::report {
namespace {

using testing::HasSubstr;
using testing::Not;

constexpr const char* kHostile = "</script><img src=x onerror=alert(1)>\"'&";

Page hostile_page() {
  Page page{.title = kHostile, .subtitle = kHostile, .facts = {{kHostile, kHostile}}, .sections = {}};
  Section section{.id = "s", .title = kHostile, .note = kHostile};
  section.notes.push_back(kHostile);
  section.texts.emplace_back(kHostile, kHostile);
  section.tables.push_back({.title = kHostile, .note = kHostile, .head = {kHostile}, .rows = {{kHostile}}});
  section.plots.push_back({.id = "p", .title = kHostile, .note = kHostile, .x_title = kHostile, .y_title = kHostile,
                           .variants = {{.name = kHostile, .series = {{.name = kHostile, .x = {1, 2}, .y = {1, std::numeric_limits<double>::quiet_NaN()}, .labels = {kHostile, kHostile}}}}, {.name = "b", .series = {}}}});
  page.sections.push_back(section);
  return page;
}

TEST(Page, TextFromDataIsNeverMarkup) {
  const auto html = render_page(hostile_page(), "/* plotly */");
  EXPECT_THAT(html, Not(HasSubstr("<img src=x")));
  EXPECT_THAT(html, Not(HasSubstr("</script><img")));
  EXPECT_THAT(html, HasSubstr("&lt;/script&gt;&lt;img src=x onerror=alert(1)&gt;&quot;&#39;&amp;"));
  EXPECT_THAT(html, HasSubstr("\\u003c/script>\\u003cimg"));
  // The page's own scripts alone: data, before plotly, plotly, after it.
  std::size_t scripts = 0;
  for (auto at = html.find("<script"); at != std::string::npos; at = html.find("<script", at + 1)) ++scripts;
  EXPECT_EQ(scripts, 4u);
}

TEST(Page, BytesThatAreNotUtf8DoNotBreakIt) {
  EXPECT_EQ(escape_html("a\xff" "b<"), "a\xEF\xBF\xBD" "b&lt;");
  Page page{.title = "\xff", .subtitle = "", .facts = {}, .sections = {}};
  EXPECT_THAT(render_page(page, ""), HasSubstr("<title>\xEF\xBF\xBD</title>"));
}

TEST(Page, SaysHowManyPlotsThereAreToDraw) {
  EXPECT_THAT(render_page(hostile_page(), ""), HasSubstr("data-plots-expected=\"1\" data-plots-drawn=\"0\""));
  EXPECT_THAT(render_page(hostile_page(), ""), HasSubstr("\"y\":[1.0,null]"));
}

TEST(Page, EveryPlotIsACsvFile) {
  const tests::TempDir dir;
  write_csvs(hostile_page(), dir.path() / "csv");
  const auto csv = read_file(dir.path() / "csv" / "p.csv");
  EXPECT_THAT(csv, HasSubstr("variant,series,x,y,low,high,label\n"));
  EXPECT_THAT(csv, HasSubstr(",1,1,,,\"</script><img src=x onerror=alert(1)>\"\"'&\"\n"));
}

}  // namespace
}  // namespace uqa::report
