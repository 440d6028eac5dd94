"use strict";
// Draws the charts of a report: every chart over time has the same axis, cursor and zoom.
const data = JSON.parse(document.getElementById("data").textContent);
const charts = new Map();
const narrow = () => window.innerWidth < 700;
const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const color = (place) => css("--c" + (place % 8));

function number(value) {
  if (value === null || value === undefined || Number.isNaN(value)) return "-";
  const size = Math.abs(value);
  return value.toLocaleString("en", { maximumFractionDigits: size >= 100 ? 0 : size >= 1 ? 1 : 3 });
}

function frame(chart, phone) {
  return {
    animation: false,
    textStyle: { color: css("--ink"), fontFamily: "system-ui, 'Open Sans', sans-serif" },
    legend: { top: 0, left: 0, type: "scroll", icon: "roundRect", itemWidth: 12, itemHeight: 10, textStyle: { color: css("--ink") },
      pageTextStyle: { color: css("--soft") }, pageIconColor: css("--accent"), inactiveColor: css("--line") },
    grid: { left: 6, right: 14, top: 34, bottom: 4, containLabel: true },
    tooltip: { trigger: "axis", confine: true, backgroundColor: css("--card"), borderColor: css("--line"),
      textStyle: { color: css("--ink"), fontSize: phone ? 11 : 12 }, valueFormatter: (value) => number(value) + " " + chart.unit },
  };
}

function axis(more) {
  return { axisLabel: { color: css("--soft"), hideOverlap: true }, axisLine: { lineStyle: { color: css("--line") } },
    splitLine: { lineStyle: { color: css("--line") } }, ...more };
}

// A chart over time: `lines` are [name, place of its color, values].
function overTime(chart, run) {
  const option = frame(chart, narrow());
  option.xAxis = axis({ type: "value", min: 0, max: data.end_s, splitLine: { show: false },
    axisLabel: { color: css("--soft"), hideOverlap: true, formatter: (s) => number(s) + " s" } });
  option.yAxis = axis({ type: "value", min: 0, max: chart.top || undefined,
    axisLabel: { color: css("--soft"), formatter: number, showMaxLabel: !chart.top } });
  option.tooltip.axisPointer = { type: "line", snap: false, lineStyle: { color: css("--soft") },
    label: { formatter: (at) => number(at.value) + " s" } };
  option.dataZoom = [{ type: "inside", filterMode: "none", zoomOnMouseWheel: "ctrl", moveOnMouseMove: false,
    moveOnMouseWheel: false, preventDefaultMouseMove: false }];
  option.toolbox = { show: true, top: -100, feature: { dataZoom: { yAxisIndex: false, filterMode: "none" } } };
  option.series = chart.lines.map(([name, place, values]) => ({
    name, type: "line", showSymbol: values.length < 2, symbolSize: 6, color: color(place), step: false,
    lineStyle: { width: 1.6 }, stack: chart.stacked ? "all" : undefined,
    areaStyle: chart.stacked ? { opacity: 0.75 } : undefined,
    data: values.map((value, at) => [run.t_s[at], value]),
  }));
  return option;
}

// Bars by class: request times, or sizes of files.
function bars(chart) {
  const option = frame(chart, narrow());
  option.xAxis = axis({ type: "category", data: chart.classes });
  option.yAxis = chart.lines.map(([name], place) => axis({ type: "value", name, nameGap: 8,
    nameTextStyle: { color: css("--soft"), align: place ? "right" : "left" }, splitLine: { show: place === 0 },
    axisLabel: { color: css("--soft"), formatter: number } }));
  option.grid.top = 52;
  option.tooltip.valueFormatter = number;
  option.series = chart.lines.map(([name, place, values], at) => ({
    name, type: "bar", yAxisIndex: at, color: color(place), data: values }));
  return option;
}

const optionOf = (chart, run) => (chart.classes ? bars(chart) : overTime(chart, run));

function draw() {
  for (const element of document.querySelectorAll(".chart")) {
    const run = data.runs[element.dataset.run];
    const chart = run.charts[element.dataset.chart];
    charts.get(element)?.dispose();
    const drawn = echarts.init(element, null, { renderer: "canvas" });
    drawn.setOption(optionOf(chart, run));
    if (!chart.classes) {
      drawn.group = "time";
      // Dragging selects what to zoom to; on a phone two fingers do.
      if (matchMedia("(pointer: fine)").matches)
        drawn.dispatchAction({ type: "takeGlobalCursor", key: "dataZoomSelect", dataZoomSelectActive: true });
      drawn.getZr().on("dblclick", whole);
    }
    charts.set(element, drawn);
  }
  echarts.connect("time");
}

function zoom(start, end) {
  for (const drawn of charts.values())
    if (drawn.group === "time") { drawn.dispatchAction({ type: "dataZoom", dataZoomIndex: 0, start, end }); return; }
}
const whole = () => zoom(0, 100);

function save(element, kind) {
  const run = data.runs[element.dataset.run];
  const chart = run.charts[element.dataset.chart];
  const hidden = document.createElement("div");
  const [width, height] = [900, 360];
  const drawn = echarts.init(hidden, null, { renderer: kind === "svg" ? "svg" : "canvas", width, height });
  const option = optionOf(chart, run);
  option.backgroundColor = css("--paper");
  option.title = { text: `${chart.title}${chart.unit ? " (" + chart.unit + ")" : ""} - ${run.label}`, left: 8, top: 6,
    textStyle: { color: css("--ink"), fontSize: 14 } };
  option.legend = { ...option.legend, top: 32, left: 8, type: "plain" };
  option.grid = { ...option.grid, top: chart.classes ? 88 : 66, left: 12, bottom: 10 };
  delete option.toolbox;
  const [shown] = charts.get(element).getOption().dataZoom || [];
  if (shown) option.dataZoom = [{ ...option.dataZoom[0], start: shown.start, end: shown.end }];
  drawn.setOption(option);
  const link = document.createElement("a");
  link.download = `${chart.title.toLowerCase().replace(/[^a-z0-9]+/g, "-")}.${kind}`;
  link.href = kind === "svg"
    ? "data:image/svg+xml;charset=utf-8," + encodeURIComponent(drawn.renderToSVGString())
    : drawn.getDataURL({ type: "png", pixelRatio: 2, backgroundColor: css("--paper") });
  link.click();
  drawn.dispose();
}

document.addEventListener("click", (event) => {
  const button = event.target.closest("button[data-save]");
  if (button) save(button.closest(".card").querySelector(".chart"), button.dataset.save);
  if (event.target.closest("#whole")) whole();
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
let waiting = 0;
window.addEventListener("resize", () => {
  clearTimeout(waiting);
  waiting = setTimeout(() => { for (const drawn of charts.values()) drawn.resize(); }, 100);
});
draw();
