"use strict";
// Line charts with bands, stacked bars, their tooltips and their numbers as a table.

const HEIGHT = 230;

function drawSection(host, section) {
  const names = [...new Set(section.charts.flatMap((chart) => Object.keys(chart.variants)))];
  const charts = [];
  const drawn = section.charts.flatMap((chart) => Object.values(chart.variants).flat());
  const banded = new Set(drawn.filter((series) => series.low).map((series) => series.entry));
  host.append(legend(section.legend, section.styles, banded));
  if (names.length > 1) {
    const shown = names[names.length > 2 || names[0].startsWith("pass@") ? 0 : names.length - 1];
    const choice = select("show", names.map((name) => [name, name]), (name) => charts.forEach((one) => one.show(name)));
    choice.box.value = shown;
    choice.label.className = "variant";
    host.append(choice.label);
    names.unshift(...names.splice(names.indexOf(shown), 1));
  }
  const grid = el("div", { class: "grid" });
  host.append(grid);
  for (const chart of section.charts) charts.push(chartFigure(grid, chart, section, names[0]));
}

function chartFigure(grid, chart, section, first) {
  const plot = el("div", { class: "plot" });
  const tip = el("div", { class: "tip", hidden: true });
  const rows = el("div", { class: "wide", tabindex: 0, role: "region", "aria-label": `Numbers of ${chart.title}` });
  const details = el("details", { class: "numbers-of" }, el("summary", {}, "numbers"), rows);
  const figure = el("figure", {}, el("figcaption", {}, chart.title), plot, details);
  grid.append(figure);
  let series = chart.variants[first] || Object.values(chart.variants)[0];
  let width = 0;
  const draw = () => {
    if (!width) return;
    const kind = chart.stacked ? drawStack : drawLines;
    plot.replaceChildren(kind(chart, series, section, width, tip), tip);
    if (details.open) rows.replaceChildren(numbersTable(chart, series, section));
  };
  details.addEventListener("toggle", () => details.open && rows.replaceChildren(numbersTable(chart, series, section)));
  whenSized(plot, (now) => { width = now; draw(); });
  return { show: (name) => { if (chart.variants[name]) { series = chart.variants[name]; draw(); } } };
}

function areaOf(width) { return { left: 52, right: width - 8, top: 8, bottom: HEIGHT - 34 }; }

function verticalScale(chart, values, box) {
  const all = chart.bound ? [...values, chart.bound.value] : values;
  const positive = all.filter((value) => value > 0);
  if (chart.log && positive.length) return logarithmic(positive, box.bottom, box.top);
  let low = chart.share || chart.stacked ? 0 : Math.min(...all);
  let high = chart.share ? 1 : Math.max(...all);
  const pad = chart.share ? 0.03 : (high - low) * 0.05;
  if (!chart.stacked) low -= pad;
  return linear(low, high + pad, box.bottom, box.top, 5);
}

function canvas(chart, section, series, width) {
  const told = series.map((one) => `${section.names[one.entry]}: last ${number(one.mean[one.mean.length - 1])}`);
  const label = `${chart.title}, ${chart.unit} over updates. ${told.join("; ")}`;
  return svg("svg", { width, height: HEIGHT, viewBox: `0 0 ${width} ${HEIGHT}`, role: "img", "aria-label": label });
}

function drawLines(chart, series, section, width, tip) {
  const box = areaOf(width);
  const xs = [...new Set(series.flatMap((one) => one.x))].sort((a, b) => a - b);
  const values = series.flatMap((one) => [...one.mean, ...(one.low || []), ...(one.high || [])]).filter((v) => v !== null);
  const x = linear(xs[0], xs[xs.length - 1], box.left + 4, box.right - 6, width / 80);
  const y = verticalScale(chart, values, box);
  x.ticks = x.ticks.filter((tick) => Number.isInteger(tick));
  const root = canvas(chart, section, series, width);
  root.append(...frame(width, HEIGHT, x, y, { x: "updates done", y: chart.unit + (y.log ? " (log)" : "") }, box));
  for (const one of series) root.append(...seriesParts(one, x, y));
  if (chart.bound) {
    const at = y.at(chart.bound.value);
    root.append(svg("line", { class: "bound", x1: box.left, x2: box.right, y1: at, y2: at }));
    root.append(svg("text", { x: box.right - 2, y: at < box.top + 14 ? at + 12 : at - 4, "text-anchor": "end" }, `${chart.bound.label} ${number(chart.bound.value)}`));
  }
  hover(root, xs, x, box, tip, (at) => lineTip(series, section, at));
  return root;
}

function seriesParts(one, x, y) {
  const points = one.x.map((at, i) => [x.at(at), y.at(one.mean[i])]);
  const parts = [];
  if (one.low) {
    const up = one.x.map((at, i) => `${x.at(at)},${y.at(one.high[i])}`);
    const down = one.x.map((at, i) => `${x.at(at)},${y.at(one.low[i])}`).reverse();
    parts.push(svg("path", { class: colour(one.entry), d: `M${[...up, ...down].join("L")}Z`, fill: "currentColor", opacity: 0.18 }));
  }
  const dash = DASHES[one.entry % DASHES.length];
  const line = { fill: "none", stroke: "currentColor", "stroke-width": 2, "stroke-dasharray": dash, "stroke-linejoin": "round" };
  parts.push(svg("path", { class: colour(one.entry), d: `M${points.map((p) => p.join(",")).join("L")}`, ...line }));
  const every = Math.max(1, Math.ceil(points.length / 12));
  points.forEach(([px, py], i) => {
    if (i % every === 0 || i === points.length - 1) parts.push(markShape(one.entry, px, py, 3, { class: colour(one.entry), fill: "currentColor" }));
  });
  return parts;
}

function drawStack(chart, series, section, width, tip) {
  const box = areaOf(width);
  const xs = series[0].x;
  const totals = xs.map((_, i) => series.reduce((sum, one) => sum + one.mean[i], 0));
  const x = linear(xs[0] - 0.5, xs[xs.length - 1] + 0.5, box.left, box.right, width / 80);
  const y = verticalScale(chart, totals, box);
  x.ticks = x.ticks.filter((tick) => Number.isInteger(tick));
  const root = canvas(chart, section, series, width);
  root.append(...frame(width, HEIGHT, x, y, { x: "updates done", y: chart.unit }, box));
  const slot = (box.right - box.left) / xs.length;
  const bar = Math.min(slot, 40) * (slot > 4 ? 0.86 : 1);
  const base = xs.map(() => 0);
  for (const one of series) {
    const group = svg("g", { class: colour(one.entry), fill: "currentColor" });
    one.mean.forEach((value, i) => {
      const top = y.at(base[i] + value);
      const height = Math.max(0, y.at(base[i]) - top - (bar > 6 ? 0.6 : 0));
      group.append(svg("rect", { x: x.at(xs[i]) - bar / 2, y: top, width: bar, height }));
      base[i] += value;
    });
    root.append(group);
  }
  hover(root, xs, x, box, tip, (at) => `${lineTip(series, section, at)}\nwhole step: ${number(totals[xs.indexOf(at)])}`);
  return root;
}

function lineTip(series, section, at) {
  const lines = [`updates: ${at}`];
  for (const one of series) {
    const i = one.x.indexOf(at);
    if (i < 0) continue;
    const band = one.low ? ` [${number(one.low[i])}, ${number(one.high[i])}]` : "";
    const runs = one.n ? ` (${one.n[i]} runs)` : "";
    lines.push(`${section.names[one.entry]}: ${number(one.mean[i])}${band}${runs}`);
  }
  return lines.join("\n");
}

function hover(root, xs, x, box, tip, say) {
  const cursor = svg("line", { class: "cursor", y1: box.top, y2: box.bottom, visibility: "hidden" });
  root.append(cursor);
  const move = (event) => {
    const where = event.clientX - root.getBoundingClientRect().left;
    const at = xs.reduce((best, one) => (Math.abs(x.at(one) - where) < Math.abs(x.at(best) - where) ? one : best), xs[0]);
    cursor.setAttribute("x1", x.at(at));
    cursor.setAttribute("x2", x.at(at));
    cursor.setAttribute("visibility", "visible");
    tip.textContent = say(at);
    tip.hidden = false;
    const left = x.at(at) + 10;
    tip.style.top = "0.5rem";
    tip.style.left = `${left + tip.offsetWidth > root.clientWidth ? Math.max(0, left - tip.offsetWidth - 20) : left}px`;
  };
  root.addEventListener("pointermove", move);
  root.addEventListener("pointerdown", move);
  root.addEventListener("pointerleave", () => { tip.hidden = true; cursor.setAttribute("visibility", "hidden"); });
}

function numbersTable(chart, series, section) {
  const xs = [...new Set(series.flatMap((one) => one.x))].sort((a, b) => a - b);
  const head = el("tr", {}, el("th", { scope: "col" }, "updates"));
  for (const one of series) head.append(el("th", { scope: "col" }, section.names[one.entry]));
  const body = el("tbody", {});
  for (const at of xs) {
    const row = el("tr", {}, el("th", { scope: "row" }, String(at)));
    for (const one of series) {
      const i = one.x.indexOf(at);
      row.append(el("td", {}, i < 0 ? "" : number(one.mean[i]) + (one.low ? ` [${number(one.low[i])}, ${number(one.high[i])}]` : "")));
    }
    body.append(row);
  }
  return el("table", { class: "numbers" }, el("caption", {}, `${chart.title}, ${chart.unit}`), el("thead", {}, head), body);
}
