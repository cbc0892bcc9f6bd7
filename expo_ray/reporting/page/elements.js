"use strict";
// Elements of the page. Texts only ever become text nodes; nothing here parses HTML.

const DATA = JSON.parse(document.getElementById("data").textContent);
const KIND_NAMES = DATA.kinds;  // kind of sample -> name
const MARKS = ["\u25cf", "\u25a0", "\u25b2", "\u25c6"];
const COLOURS = 7;

function el(tag, attributes, ...children) {
  const node = document.createElement(tag);
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

function colour(entry) { return `c${entry % COLOURS}`; }

function legend(labels, styles) {
  const items = labels.map((label, entry) => {
    const mark = styles === "phases" ? MARKS[1] : MARKS[entry % MARKS.length];
    return el("li", {}, el("span", { class: colour(entry), "aria-hidden": "true" }, mark), label);
  });
  return el("ul", { class: "legend" }, ...items);
}

function select(label, options, change) {
  const box = el("select", {});
  for (const [value, text] of options) box.append(el("option", { value }, text));
  box.addEventListener("change", () => change(box.value));
  return { box, label: el("label", {}, label, box) };
}
