#include "launch/report/page.h"

#include <cmath>

#include "core/csv.h"
#include "core/text.h"
#include "launch/report/assets.h"

namespace uqa::report {
namespace {

/// Bytes that are not UTF-8 become U+FFFD, so that any name gives a valid page.
std::string valid_utf8(const std::string& text) {
  return Json::parse(Json(text).dump(-1, ' ', false, Json::error_handler_t::replace)).get<std::string>();
}

/// JSON inside <script>: no "<", so that no text can end the element or open a comment.
std::string script_json(const Json& value) {
  std::string out;
  for (const char c : value.dump(-1, ' ', /*ensure_ascii=*/true, Json::error_handler_t::replace)) {
    if (c == '<') {
      out += "\\u003c";
    } else {
      out += c;
    }
  }
  return out;
}

/// Six digits are more than a screen shows.
Json rounded(const std::vector<double>& values) {
  Json out = Json::array();
  for (const double v : values) out.push_back(std::isfinite(v) ? Json(parse_double(fmt::format("{:.6g}", v)).value_or(0)) : Json(nullptr));
  return out;
}

const char* name_of(Mark mark) {
  switch (mark) {
    case Mark::kLine: return "line";
    case Mark::kDashes: return "dashes";
    case Mark::kPoints: return "points";
    case Mark::kOpenPoints: return "open";
    case Mark::kBar: return "bar";
  }
  return "line";
}

Json to_json(const Series& series) {
  Json json{{"name", series.name}, {"mark", name_of(series.mark)}, {"color", series.color}, {"y", rounded(series.y)}, {"legend", series.in_legend}};
  json["x"] = series.categories.empty() ? rounded(series.x) : Json(series.categories);
  if (!series.low.empty()) {
    json["low"] = rounded(series.low);
    json["high"] = rounded(series.high);
  }
  if (!series.labels.empty()) json["labels"] = series.labels;
  return json;
}

Json to_json(const Plot& plot) {
  Json variants = Json::array();
  for (const auto& variant : plot.variants) {
    Json series = Json::array();
    for (const auto& one : variant.series) series.push_back(to_json(one));
    variants.push_back({{"name", variant.name}, {"series", series}});
  }
  Json json{{"id", plot.id}, {"title", plot.title}, {"x_title", plot.x_title}, {"y_title", plot.y_title}, {"log_x", plot.log_x}, {"log_y", plot.log_y}, {"percent_y", plot.percent_y},
            {"variants", variants}};
  if (plot.line_at) json["line_y"] = plot.line_y;
  return json;
}

bool is_number(const std::string& text) {
  const auto first = text.find_first_of("0123456789");
  return first != std::string::npos && first <= 2 && text.find_first_of("abcdfghijklmnopqrstuvwxyz/_") == std::string::npos;
}

std::string render(const TableView& table) {
  std::string html = "<div class=\"table\">";
  if (!table.title.empty()) html += fmt::format("<h3>{}</h3>", escape_html(table.title));
  if (!table.note.empty()) html += fmt::format("<p class=\"note\">{}</p>", escape_html(table.note));
  html += "<div class=\"scroll\"><table><thead><tr>";
  for (const auto& cell : table.head) html += fmt::format("<th>{}</th>", escape_html(cell));
  html += "</tr></thead><tbody>";
  for (const auto& row : table.rows) {
    html += "<tr>";
    for (const auto& cell : row) html += fmt::format("<td{}>{}</td>", is_number(cell) ? " class=\"number\"" : "", escape_html(cell));
    html += "</tr>";
  }
  return html + "</tbody></table></div></div>\n";
}

std::string render(const Section& section) {
  std::string html = fmt::format("<section id=\"{}\"><h2>{}</h2>", escape_html(section.id), escape_html(section.title));
  if (!section.note.empty()) html += fmt::format("<p class=\"note\">{}</p>", escape_html(section.note));
  if (!section.notes.empty()) {
    html += fmt::format("<details class=\"warning\"{}><summary>What these runs cannot say, or only with care ({})</summary><ul>", section.notes.size() <= 3 ? " open" : "", section.notes.size());
    for (const auto& note : section.notes) html += fmt::format("<li>{}</li>", escape_html(note));
    html += "</ul></details>";
  }
  if (!section.plots.empty()) html += "<div class=\"plots\">";
  for (const auto& plot : section.plots) {
    html += fmt::format("<figure><figcaption><h3>{}</h3>", escape_html(plot.title));
    if (plot.variants.size() > 1) html += fmt::format("<select data-for=\"{}\" aria-label=\"variant\"></select>", plot.id);
    if (!plot.note.empty()) html += fmt::format("<p class=\"note\">{}</p>", escape_html(plot.note));
    html += fmt::format("</figcaption><div class=\"plot\" id=\"plot-{}\" role=\"img\" aria-label=\"{}\"></div></figure>", plot.id, escape_html(plot.title));
  }
  if (!section.plots.empty()) html += "</div>";
  for (const auto& table : section.tables) html += render(table);
  for (const auto& [title, text] : section.texts) {
    html += fmt::format("<details><summary>{}</summary><pre>{}</pre></details>", escape_html(title), escape_html(text));
  }
  return html + "</section>\n";
}

std::string csv_number(const std::vector<double>& values, std::size_t i) {
  return i < values.size() && std::isfinite(values[i]) ? fmt::format("{:.10g}", values[i]) : "";
}

}  // namespace

std::string escape_html(const std::string& text) {
  std::string out;
  for (const char c : valid_utf8(text)) {
    switch (c) {
      case '&': out += "&amp;"; break;
      case '<': out += "&lt;"; break;
      case '>': out += "&gt;"; break;
      case '"': out += "&quot;"; break;
      case '\'': out += "&#39;"; break;
      default: out += c;
    }
  }
  return out;
}

std::string default_plotly_js() {
  const fs::path lib = fs::path(UQA_VENV) / "lib";
  if (!fs::is_directory(lib)) return {};
  for (const auto& python : fs::directory_iterator(lib)) {
    const auto path = python.path() / "site-packages" / "plotly" / "package_data" / "plotly.min.js";
    if (fs::is_regular_file(path)) return path.string();
  }
  return {};
}

std::string render_page(const Page& page, const std::string& plotly_js) {
  Json plots = Json::array();
  for (const auto& section : page.sections) {
    for (const auto& plot : section.plots) plots.push_back(to_json(plot));
  }
  std::string html = "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\n";
  html += "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<meta name=\"color-scheme\" content=\"light dark\">\n";
  // Nothing is fetched, even if some text slipped through as markup.
  html += "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:\">\n";
  html += fmt::format("<title>{}</title>\n<style>\n{}</style></head>\n", escape_html(page.title), k_style);
  html += fmt::format("<body data-plots-expected=\"{}\" data-plots-drawn=\"0\" data-errors=\"0\" data-ready=\"false\">\n", plots.size());
  html += fmt::format("<header><h1>{}</h1><p>{}</p></header>\n<nav>", escape_html(page.title), escape_html(page.subtitle));
  for (const auto& section : page.sections) html += fmt::format("<a href=\"#{}\">{}</a>", escape_html(section.id), escape_html(section.title));
  html += "</nav>\n<main>\n";
  if (!page.facts.empty()) {
    html += "<div class=\"facts\">";
    for (const auto& [label, value] : page.facts) html += fmt::format("<div><b>{}</b><span>{}</span></div>", escape_html(value), escape_html(label));
    html += "</div>\n";
  }
  for (const auto& section : page.sections) html += render(section);
  html += "</main>\n<script type=\"application/json\" id=\"plots\">" + script_json(plots) + "</script>\n";
  html += "<script>" + std::string(k_script).substr(0, std::string(k_script).find("//--main--")) + "</script>\n";
  html += "<script>" + plotly_js + "</script>\n<script>" + std::string(k_script).substr(std::string(k_script).find("//--main--")) + "</script>\n</body></html>\n";
  return html;
}

void write_csvs(const Page& page, const fs::path& directory) {
  fs::create_directories(directory);
  for (const auto& section : page.sections) {
    for (const auto& plot : section.plots) {
      std::string text = "variant,series,x,y,low,high,label\n";
      for (const auto& variant : plot.variants) {
        for (const auto& series : variant.series) {
          for (std::size_t i = 0; i < series.y.size(); ++i) {
            const auto x = series.categories.empty() ? csv_number(series.x, i) : csv_field(series.categories[i]);
            text += fmt::format("{},{},{},{},{},{},{}\n", csv_field(variant.name), csv_field(series.name), x, csv_number(series.y, i), csv_number(series.low, i),
                                csv_number(series.high, i), i < series.labels.size() ? csv_field(series.labels[i]) : "");
          }
        }
      }
      write_file_atomic(directory / (plot.id + ".csv"), text);
    }
  }
}

}  // namespace uqa::report
