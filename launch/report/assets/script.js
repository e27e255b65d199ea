"use strict";
// Before plotly is loaded: every error is counted where a headless browser's --dump-dom shows it.
var uqaErrors = 0;
function uqaError(text) {
  uqaErrors += 1;
  document.body.dataset.errors = String(uqaErrors);
  if (!document.body.dataset.firstError) document.body.dataset.firstError = String(text);
}
window.addEventListener("error", function (event) { uqaError(event.message || event.type); });
window.addEventListener("unhandledrejection", function (event) { uqaError(event.reason); });
document.addEventListener("securitypolicyviolation", function (event) { uqaError("blocked: " + event.violatedDirective + " " + event.blockedURI); });
(function () {
  var original = console.error;
  console.error = function () { uqaError(Array.prototype.join.call(arguments, " ")); original.apply(console, arguments); };
})();
//--main--
"use strict";
(function () {
  var plots = JSON.parse(document.getElementById("plots").textContent);
  var chosen = {};
  // Plotly reads some markup in names and labels; text from data is text.
  function text(value) { return String(value).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;"); }
  function css(name) { return getComputedStyle(document.documentElement).getPropertyValue(name).trim(); }
  function shade(hex, alpha) {
    var n = parseInt(hex.slice(1), 16);
    return "rgba(" + (n >> 16) + "," + ((n >> 8) & 255) + "," + (n & 255) + "," + alpha + ")";
  }
  function palette(index) { return css("--c" + (index % 8)); }
  function hasBand(series) { return series.low && (series.mark === "line" || series.mark === "dashes"); }

  function traces(plot) {
    var out = [];
    var all = plot.variants[chosen[plot.id] || 0].series;
    all.forEach(function (series) {
      if (!hasBand(series)) return;
      var x = [], y = [];
      for (var i = 0; i < series.x.length; ++i) if (series.low[i] !== null) { x.push(series.x[i]); y.push(series.high[i]); }
      for (var j = series.x.length - 1; j >= 0; --j) if (series.low[j] !== null) { x.push(series.x[j]); y.push(series.low[j]); }
      if (!x.length) return;
      out.push({ type: "scatter", mode: "lines", x: x, y: y, fill: "toself", fillcolor: shade(palette(series.color), 0.16), line: { width: 0 }, hoverinfo: "skip", showlegend: false });
    });
    all.forEach(function (series) {
      var color = palette(series.color), bar = series.mark === "bar";
      var trace = { name: text(series.name), x: series.x, y: series.y, showlegend: series.legend && all.length > 1 };
      if (series.x.length && typeof series.x[0] === "string") trace.x = series.x.map(text);
      var y = plot.percent_y ? "%{y:.1%}" : "%{y:.5~g}";
      trace.hovertemplate = (series.labels ? "%{text}<br>" : "") + text(plot.x_title) + " %{x}<br>" + text(plot.y_title) + " " + y + "<extra>" + text(series.name) + "</extra>";
      if (series.labels) { trace.text = series.labels.map(text); trace.textposition = "none"; }
      if (bar) {
        trace.type = "bar";
        trace.marker = { color: shade(color, 0.85) };
      } else {
        trace.type = "scatter";
        trace.mode = series.mark === "line" || series.mark === "dashes" ? "lines" : "markers";
        trace.line = { color: color, width: 2, dash: series.mark === "dashes" ? "dash" : "solid" };
        trace.marker = { color: series.mark === "open" ? css("--panel") : color, size: series.mark === "open" ? 9 : 7, line: { color: color, width: series.mark === "open" ? 2 : 0 } };
        if (trace.mode === "markers") delete trace.line; else delete trace.marker;
        delete trace.textposition;
      }
      if (series.low && !hasBand(series)) {
        trace.error_y = {
          type: "data", symmetric: false, color: bar ? css("--ink") : color, thickness: 1.3, width: bar ? 3 : 2,
          array: series.y.map(function (v, i) { return v === null || series.high[i] === null ? 0 : series.high[i] - v; }),
          arrayminus: series.y.map(function (v, i) { return v === null || series.low[i] === null ? 0 : v - series.low[i]; })
        };
      }
      out.push(trace);
    });
    return out;
  }

  // 1, 2, 5 a decade, or whole decades where there are many; plotly's own labels overlap in between.
  function logTicks(axis, plot, key, narrow) {
    var low = Infinity, high = 0;
    plot.variants[chosen[plot.id] || 0].series.forEach(function (series) {
      series[key].forEach(function (v) { if (v > 0) { low = Math.min(low, v); high = Math.max(high, v); } });
    });
    axis.tickformat = "~s";
    var decades = Math.log10(high / low);
    if (!(decades > 0.7)) { axis.nticks = 6; return; }
    var digits = decades > (narrow ? 2 : 3.5) ? [1] : [1, 2, 5], every = Math.max(1, Math.ceil(decades / (narrow ? 5 : 9)));
    axis.tickmode = "array";
    axis.tickvals = [];
    for (var e = Math.floor(Math.log10(low)); e <= Math.ceil(Math.log10(high)); ++e) {
      if (e % every === 0) digits.forEach(function (d) { axis.tickvals.push(d * Math.pow(10, e)); });
    }
  }

  function layout(plot, width) {
    var narrow = width < 520, ink = css("--soft"), grid = css("--line");
    function axis(title, log) {
      var a = { title: { text: text(title), font: { size: 13 }, standoff: 8 }, gridcolor: grid, linecolor: grid, zeroline: false, tickfont: { size: 12 }, automargin: true };
      if (log) a.type = "log";
      return a;
    }
    var x = axis(plot.x_title, plot.log_x), y = axis(plot.y_title, plot.log_y);
    if (plot.log_x) logTicks(x, plot, "x", narrow);
    if (plot.log_y) logTicks(y, plot, "y", narrow);
    if (plot.percent_y) { y.tickformat = ".0%"; y.rangemode = "tozero"; }
    var out = {
      margin: { l: 54, r: 12, t: 8, b: 46 }, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { family: getComputedStyle(document.body).fontFamily, color: ink, size: 12 },
      xaxis: x, yaxis: y, barmode: "group", bargap: 0.25, hovermode: "closest", modebar: { bgcolor: "rgba(0,0,0,0)", color: grid, activecolor: ink }, hoverlabel: { align: "left", namelength: -1 },
      legend: { orientation: "h", x: 0, xanchor: "left", y: -0.2, yanchor: "top", font: { size: narrow ? 11 : 12 } }
    };
    if (plot.line_y !== undefined) {
      out.shapes = [{ type: "line", xref: "paper", x0: 0, x1: 1, y0: plot.line_y, y1: plot.line_y, line: { color: ink, width: 1.2, dash: "dot" } }];
    }
    return out;
  }

  // A plot counts once plotly says that it is drawn and each of its traces is in the picture.
  function isDrawn(element, wanted) {
    return element.querySelectorAll(".scatterlayer .trace, .barlayer .trace").length >= wanted && element.querySelectorAll(".scatterlayer path, .barlayer path").length > 0;
  }
  function draw(plot) {
    var element = document.getElementById("plot-" + plot.id);
    var data = traces(plot);
    return Plotly.react(element, data, layout(plot, element.clientWidth), { responsive: true, displaylogo: false, displayModeBar: element.clientWidth < 520 ? false : "hover", modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"] }).then(function () {
      element.dataset.drawn = String(isDrawn(element, data.length));
      if (element.dataset.drawn !== "true") uqaError("plot " + plot.id + " is not drawn");
    });
  }
  function count() { document.body.dataset.plotsDrawn = String(document.querySelectorAll('.plot[data-drawn="true"]').length); }
  function drawAll() {
    return plots.reduce(function (before, plot) { return before.then(function () { return draw(plot); }).catch(function (error) { uqaError(plot.id + ": " + error); }); }, Promise.resolve()).then(function () {
      count();
      document.body.dataset.ready = "true";
    });
  }
  plots.forEach(function (plot) {
    var select = document.querySelector('select[data-for="' + plot.id + '"]');
    if (!select) return;
    plot.variants.forEach(function (variant, index) { select.add(new Option(variant.name, String(index))); });
    select.addEventListener("change", function () { chosen[plot.id] = Number(select.value); draw(plot); });
  });
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
  drawAll();
})();
