"use strict";
// Elements, scales and axes. Texts only ever become text nodes; nothing here parses HTML.

const SVG = "http://www.w3.org/2000/svg";
const DASHES = ["", "7 4", "2 3", "10 3 2 3", "14 5"];
const COLOURS = 7;

function el(tag, attributes, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

function svg(tag, attributes, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value !== null && value !== undefined && value !== false) node.setAttribute(name, value === true ? "" : value);
  }
  for (const child of children) if (child !== null && child !== undefined) node.append(child);
  return node;
}

function number(value) {
  if (value === null || value === undefined) return "-";
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 1e6 || size < 1e-3) return value.toExponential(2).replace(/\.?0*e/, "e").replace("e+", "e");
  return String(Number(value.toPrecision(4)));
}

function tickText(tick) {
  const size = Math.abs(tick);
  return size === 0 || (size >= 1e-3 && size < 1e6) ? String(Number(tick.toPrecision(6))) : number(tick);
}

function linearTicks(low, high, wanted) {
  const rough = (high - low) / Math.max(1, wanted);
  const unit = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((f) => f * unit).find((s) => s >= rough * 0.999);
  const ticks = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) ticks.push(Number((i * step).toPrecision(12)));
  return ticks;
}

// A scale: at(value) in pixels, its ticks, and whether it is logarithmic.
function linear(low, high, from, to, wanted) {
  // Differences in the last digits would fill the whole axis.
  const least = Math.max(Math.abs(low), Math.abs(high)) * 1e-3 || 1;
  if (high - low < least) { const middle = (low + high) / 2; low = middle - least / 2; high = middle + least / 2; }
  const at = (value) => from + ((value - low) / (high - low)) * (to - from);
  return { at, ticks: linearTicks(low, high, wanted), log: false };
}

function logarithmic(positive, from, to) {
  const low = Math.floor(Math.log10(Math.min(...positive)));
  const high = Math.max(low + 1, Math.ceil(Math.log10(Math.max(...positive))));
  const at = (value) => (value > 0 ? from + ((Math.log10(value) - low) / (high - low)) * (to - from) : from);
  const ticks = [];
  const every = Math.ceil((high - low) / 6);
  for (let power = low; power <= high; power += every) ticks.push(Number(`1e${power}`));
  return { at, ticks, log: true };
}

// The frame of a chart: axes with ticks and names around a plot area.
function frame(width, height, x, y, names, box) {
  const parts = [];
  for (const tick of y.ticks) {
    parts.push(svg("line", { class: "grid-line", x1: box.left, x2: box.right, y1: y.at(tick), y2: y.at(tick) }));
    parts.push(svg("text", { x: box.left - 5, y: y.at(tick) + 4, "text-anchor": "end" }, tickText(tick)));
  }
  for (const tick of x.ticks) parts.push(svg("text", { x: x.at(tick), y: box.bottom + 14, "text-anchor": "middle" }, tickText(tick)));
  parts.push(svg("path", { class: "axis", fill: "none", d: `M${box.left},${box.top}V${box.bottom}H${box.right}` }));
  parts.push(svg("text", { x: (box.left + box.right) / 2, y: height - 3, "text-anchor": "middle" }, names.x));
  const middle = (box.top + box.bottom) / 2;
  parts.push(svg("text", { x: 11, y: middle, "text-anchor": "middle", transform: `rotate(-90 11 ${middle})` }, names.y));
  return parts;
}

function markShape(entry, x, y, r, attributes) {
  const shape = entry % 4;
  if (shape === 0) return svg("circle", { cx: x, cy: y, r, ...attributes });
  if (shape === 1) return svg("rect", { x: x - r, y: y - r, width: 2 * r, height: 2 * r, ...attributes });
  const s = r * 1.35;
  const d = shape === 2 ? `M${x},${y - s}L${x + s},${y + s}L${x - s},${y + s}Z` : `M${x},${y - s}L${x + s},${y}L${x},${y + s}L${x - s},${y}Z`;
  return svg("path", { d, ...attributes });
}

function colour(entry) { return `c${entry % COLOURS}`; }

function legend(labels, styles, banded) {
  const list = el("ul", { class: "legend" });
  labels.forEach((label, entry) => {
    const swatch = svg("svg", { width: 34, height: 14, class: colour(entry), "aria-hidden": "true" });
    if (styles === "phases") swatch.append(svg("rect", { x: 4, y: 1, width: 26, height: 12, fill: "currentColor" }));
    if (styles === "groups" || styles === "kinds") {
      if (banded.has(entry)) swatch.append(svg("rect", { x: 0, y: 1, width: 34, height: 12, fill: "currentColor", opacity: 0.2 }));
      swatch.append(svg("line", { x1: 0, x2: 34, y1: 7, y2: 7, stroke: "currentColor", "stroke-width": 2, "stroke-dasharray": DASHES[entry % DASHES.length] }));
    }
    if (styles !== "phases") swatch.append(markShape(entry, 17, 7, 3.5, { fill: "currentColor" }));
    list.append(el("li", {}, swatch, label));
  });
  return list;
}

function select(label, options, change) {
  const box = el("select", {});
  for (const [value, text] of options) box.append(el("option", { value }, text));
  box.addEventListener("change", () => change(box.value));
  return { box, label: el("label", {}, label, box) };
}

// Calls draw(width) now and whenever the host's width changes.
function whenSized(host, draw) {
  let last = 0;
  new ResizeObserver(() => {
    const width = Math.floor(host.clientWidth);
    if (width && width !== last) { last = width; requestAnimationFrame(() => draw(width)); }
  }).observe(host);
}
