"use strict";
// Charts drawn by plotly: lines with bands, stacked bars, and the scatter of the two properties.

const DASHES = ["solid", "dash", "dot", "dashdot", "longdash"];
const SYMBOLS = ["circle", "square", "triangle-up", "diamond"];  // as MARKS in elements.js
const MOST_MARKS = 3000;
const TOUCH = matchMedia("(pointer: coarse)").matches;
const CONFIG = { displayModeBar: false, doubleClick: "reset" };

// Plotly renders <b>, <a href> and the like in its texts, so names and texts from runs must not contain tags.
function plain(text) { return String(text).replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;"); }

function style(name) { return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim(); }

function shade(entry) { return style(colour(entry)); }

// Draws now and whenever the colour scheme changes, but not before the chart comes near the visible part of the page:
// plotly takes some 20 ms for each.
function drawWhenNear(host, draw) {
  let near = false;
  const first = () => { if (!near) { near = true; draw(); } };
  const redraw = () => near && draw();
  new IntersectionObserver((entries, observer) => {
    if (!entries.some((entry) => entry.isIntersecting)) return;
    observer.disconnect();
    first();
  }, { rootMargin: "800px" }).observe(host);
  new ResizeObserver(() => near && Plotly.Plots.resize(host)).observe(host);  // plotly itself only follows the window
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  addEventListener("beforeprint", first);
  return redraw;
}

function drawSection(host, section) {
  const names = [...new Set(section.charts.flatMap((chart) => Object.keys(chart.variants)))];
  const shown = names[names.length > 2 || names[0].startsWith("pass@") ? 0 : names.length - 1];
  const charts = section.charts.map((chart) => chartFigure(chart, section, shown));
  host.append(legend(section.legend, section.styles));
  if (names.length > 1) {
    const choice = select("show", names.map((name) => [name, name]), (name) => charts.forEach((one) => one.show(name)));
    choice.box.value = shown;
    choice.label.className = "variant";
    host.append(choice.label);
  }
  host.append(el("div", { class: "grid" }, ...charts.map((chart) => chart.figure)));
}

function chartFigure(chart, section, first) {
  let series = chart.variants[first] || Object.values(chart.variants)[0];
  const last = series.map((one) => `${section.names[one.entry]}: last ${number(one.mean[one.mean.length - 1])}`);
  const label = `${chart.title}, ${chart.unit} over ${chart.over || "updates"}. ${last.join("; ")}`;
  const plot = el("div", { class: "plot", role: "img", "aria-label": label });
  const rows = el("div", { class: "wide", tabindex: 0, role: "region", "aria-label": `Numbers of ${chart.title}` });
  const details = el("details", { class: "numbers-of" }, el("summary", {}, "numbers"), rows);
  const fillTable = () => details.open && rows.replaceChildren(numbersTable(chart, series, section));
  details.addEventListener("toggle", fillTable);
  const redraw = drawWhenNear(plot, () => {
    const floor = floorOf(chart, series);
    const traces = chart.stacked ? bars(series, section) : series.flatMap((one) => lineTraces(one, section, floor));
    Plotly.react(plot, traces, layout(chart, series), CONFIG);
  });
  const show = (name) => { if (chart.variants[name]) { series = chart.variants[name]; redraw(); fillTable(); } };
  return { figure: el("figure", {}, el("figcaption", {}, chart.title), plot, details), show };
}

function valuesOf(chart, series) {
  const drawn = series.flatMap((one) => [...one.mean, ...(one.low || []), ...(one.high || [])]);
  return [...drawn, ...(chart.bound ? [chart.bound.value] : [])];
}

// The value at the bottom of a logarithmic axis, where zeros are drawn; 0 for a linear axis.
function floorOf(chart, series) {
  const positive = chart.log ? valuesOf(chart, series).filter((value) => value > 0) : [];
  return positive.length ? 10 ** Math.floor(Math.log10(Math.min(...positive))) : 0;
}

function valueText(one, i) {
  return number(one.mean[i]) + (one.low ? ` [${number(one.low[i])}, ${number(one.high[i])}]` : "");
}

function lineTraces(one, section, floor) {
  const raised = (values) => values.map((value) => (floor ? Math.max(value, floor) : value));
  const texts = one.mean.map((_, i) => valueText(one, i) + (one.n ? ` (${one.n[i]} runs)` : ""));
  const line = {
    x: one.x, y: raised(one.mean), text: texts, name: plain(section.names[one.entry]), mode: "lines+markers",
    line: { color: shade(one.entry), width: 2, dash: DASHES[one.entry % DASHES.length] },
    marker: { color: shade(one.entry), size: 6, symbol: SYMBOLS[one.entry % SYMBOLS.length], maxdisplayed: 12 },
    hovertemplate: "%{fullData.name}: %{text}<extra></extra>",
  };
  if (!one.low) return [line];
  const band = {
    x: [...one.x, ...[...one.x].reverse()], y: raised([...one.high, ...[...one.low].reverse()]), mode: "lines",
    fill: "toself", fillcolor: shade(one.entry), opacity: 0.18, line: { width: 0 }, hoverinfo: "skip",
  };
  return [band, line];
}

function bars(series, section) {
  const total = series[0].x.map((_, i) => series.reduce((sum, one) => sum + one.mean[i], 0));
  const parts = series.map((one) => ({
    type: "bar", x: one.x, y: one.mean, text: one.mean.map(number), textposition: "none",
    name: plain(section.names[one.entry]), marker: { color: shade(one.entry) }, hovertemplate: "%{fullData.name}: %{text}<extra></extra>",
  }));
  const whole = {
    x: series[0].x, y: total, text: total.map(number), mode: "lines", line: { width: 0 },
    hovertemplate: "whole step: %{text}<extra></extra>",
  };
  return [...parts, whole];
}

function layout(chart, series) {
  const made = frame(chart.over || "updates done", chart.unit);
  const xs = series.flatMap((one) => one.x);
  if (Math.max(...xs) - Math.min(...xs) < 6) made.xaxis.dtick = 1;
  const floor = floorOf(chart, series);
  const values = valuesOf(chart, series);
  if (floor) {
    const range = [Math.log10(floor), Math.ceil(Math.log10(Math.max(...values) * 1.001))];
    Object.assign(made.yaxis, { type: "log", range, dtick: 1 });
    made.yaxis.title.text += " (log)";
  } else if (chart.share) made.yaxis.range = [-0.03, 1.03];
  else if (!chart.stacked) made.yaxis.range = paddedRange(values);
  if (chart.bound) {
    const { label, value } = chart.bound;
    const line = { color: style("ink"), width: 1.6, dash: "dot" };
    made.shapes = [{ type: "line", xref: "paper", x0: 0, x1: 1, y0: value, y1: value, line }];
    const y = floor ? Math.log10(value) : value;  // annotations, unlike shapes, are in powers on a log axis
    const text = plain(`${label} ${number(value)}`);
    made.annotations = [{ xref: "paper", x: 1, y, yanchor: "bottom", showarrow: false, text }];
  }
  return made;
}

// A little more than the values span; differences in the last digits must not fill the whole axis.
function paddedRange(values) {
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const least = Math.max(Math.abs(low), Math.abs(high)) * 1e-3 || 1;
  const pad = high - low < least ? (least - (high - low)) / 2 : (high - low) * 0.05;
  return [low - pad, high + pad];
}

function frame(across, up) {
  const axis = (name) => ({
    title: { text: plain(name), standoff: 6 }, gridcolor: style("line"), linecolor: style("line"), zeroline: false,
    automargin: true, fixedrange: TOUCH, exponentformat: "e",
  });
  return {
    height: 250, margin: { l: 48, r: 8, t: 8, b: 36 }, showlegend: false, barmode: "stack", bargap: 0.12,
    hovermode: "x unified", dragmode: TOUCH ? false : "zoom", paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    font: { size: 11, color: style("soft"), family: "system-ui, sans-serif" },
    hoverlabel: { bgcolor: style("paper"), bordercolor: style("soft"), font: { color: style("ink"), size: 11 } },
    xaxis: { ...axis(across), showgrid: false, tickformat: "~d", unifiedhovertitle: { text: plain(`${across}: %{x}`) } },
    yaxis: { ...axis(up), nticks: 6 },
  };
}

function numbersTable(chart, series, section) {
  const xs = [...new Set(series.flatMap((one) => one.x))].sort((a, b) => a - b);
  const head = el("tr", {}, el("th", { scope: "col" }, chart.over || "updates"));
  for (const one of series) head.append(el("th", { scope: "col" }, section.names[one.entry]));
  const body = el("tbody", {});
  for (const at of xs) {
    const row = el("tr", {}, el("th", { scope: "row" }, String(at)));
    for (const one of series) {
      const i = one.x.indexOf(at);
      row.append(el("td", {}, i < 0 ? "" : valueText(one, i)));
    }
    body.append(row);
  }
  const caption = el("caption", {}, `${chart.title}, ${chart.unit}`);
  return el("table", { class: "numbers" }, caption, el("thead", {}, head), body);
}

function scatterPlot(host, data, open) {
  const points = data.prompts.flatMap((prompt) => prompt.samples
    .filter((sample) => sample.properties && sample.properties[0] !== null)
    .map((sample) => ({ prompt, sample, group: String(data.groupOfRun[prompt.run]) })));
  if (!points.length) {
    const why = "algo.properties_every, logging.samples_per_step";
    host.append(el("p", { class: "empty" }, `No recorded sample has measured properties (${why}).`));
    return;
  }
  const first = points.find((point) => point.sample.kind === "explanation") || points[0];
  const state = { group: first.group, step: "", rise: 1 };
  const plot = el("div", { class: "plot", role: "img", "aria-label": "Scatter of property 1 against property 2" });
  const note = el("div", {});
  const draw = () => note.replaceChildren(...drawScatter(plot, points, state));
  const steps = el("select", {});
  const setSteps = () => {
    const own = points.filter((p) => p.group === state.group).map((p) => p.prompt.step);
    const known = [...new Set(own)].sort((a, b) => a - b).map((step) => el("option", { value: step }, `step ${step}`));
    steps.replaceChildren(el("option", { value: "" }, "all measured steps"), ...known);
    state.step = "";
  };
  setSteps();
  const redraw = drawWhenNear(plot, () => {
    draw();
    if (!plot.dataset.open) plot.on("plotly_click", ({ points: [at] }) => at.customdata && open(at.customdata));
    plot.dataset.open = "yes";
  });
  const groups = [...new Set(points.map((p) => p.group))];
  const choose = (change) => (value) => { change(value); redraw(); };
  const names = groups.map((i) => [i, data.groups[i]]);
  const runs = select("runs", names, choose((value) => { state.group = value; setSteps(); }));
  runs.box.value = state.group;
  const rises = [["1", "rise over the answer alone"], ["2", "rise over the policy's own chains"]];
  const rise = select("property 2 as", rises, choose((value) => { state.rise = Number(value); }));
  steps.addEventListener("change", () => { state.step = steps.value; redraw(); });
  host.append(el("div", { class: "controls few" }, runs.label, el("label", {}, "step", steps), rise.label),
    legend(Object.values(KIND_NAMES), "kinds"), el("figure", { class: "scatter" }, plot, note));
}

// Draws the chosen points and returns what is said below them.
function drawScatter(plot, points, state) {
  const atStep = (prompt) => state.step === "" || String(prompt.step) === state.step;
  const wanted = points.filter((p) => p.group === state.group && atStep(p.prompt) && p.sample.properties[state.rise] !== null);
  const stride = Math.ceil(wanted.length / MOST_MARKS) || 1;
  const shown = wanted.filter((_, i) => i % stride === 0);
  const [traces, medians, said] = [[], [], []];
  Object.keys(KIND_NAMES).forEach((kind, entry) => {
    const own = shown.filter((p) => p.sample.kind === kind);
    if (!own.length) return;
    const marks = { mode: "markers", name: plain(KIND_NAMES[kind]), hovertemplate: "%{text}<extra></extra>" };
    const look = { color: shade(entry), symbol: SYMBOLS[entry] };
    const [xs, ys] = [0, state.rise].map((index) => own.map((p) => p.sample.properties[index]));
    traces.push({
      ...marks, x: xs, y: ys, text: own.map((p) => markText(p, state)), customdata: own.map((p) => p.prompt),
      marker: { ...look, size: 7, opacity: 0.5 },
    });
    const [x, y] = [median(xs), median(ys)];
    const text = `${KIND_NAMES[kind]}: ${own.length} samples, median property 1 ${number(x)}, property 2 ${number(y)}`;
    const marker = { ...look, size: 16, line: { color: style("ink"), width: 2 } };
    medians.push({ ...marks, x: [x], y: [y], text: [plain(text)], marker });
    said.push(el("li", {}, text));
  });
  const made = frame("property 1: log pi(sample | question), nats a token", "property 2, nats");
  delete made.xaxis.tickformat;
  Plotly.react(plot, [...traces, ...medians], { ...made, height: 420, hovermode: "closest" }, CONFIG);
  const count = `${shown.length} of ${wanted.length} measured samples are drawn; large marks are medians.`;
  return [el("p", { class: "count" }, count), el("ul", { class: "notes" }, ...said)];
}

function markText({ sample, prompt }, state) {
  const verdict = sample.outcome ? `, ${sample.outcome}` : "";
  const place = [0, state.rise].map((index) => number(sample.properties[index])).join(", ");
  const lines = [`${KIND_NAMES[sample.kind]}${verdict}, step ${prompt.step}`, prompt.question.slice(0, 120), place];
  return lines.map(plain).join("<br>");
}

function median(values) {
  const sorted = [...values].sort((a, b) => a - b);
  const half = Math.floor(sorted.length / 2);
  return sorted.length % 2 ? sorted[half] : (sorted[half - 1] + sorted[half]) / 2;
}
