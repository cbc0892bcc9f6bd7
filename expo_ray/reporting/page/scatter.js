"use strict";
// Property 1 against property 2 of the recorded samples.

const MOST_MARKS = 3000;
const KIND_LABELS = ["gold solution", "self-explanation", "free completion"];

function scatterPlot(host, data, open) {
  const points = [];
  for (const prompt of data.prompts) {
    for (const sample of prompt.samples) {
      if (sample.properties && sample.properties[0] !== null) points.push({ prompt, sample, group: data.groupOfRun[prompt.run] });
    }
  }
  if (!points.length) {
    host.append(el("p", { class: "empty" }, "No recorded sample has measured properties (algo.properties_every, logging.samples_per_step)."));
    return;
  }
  const explained = points.find((point) => point.sample.kind === "explanation") || points[0];
  const state = { group: String(explained.group), step: "", rise: "1" };
  const plot = el("div", { class: "scatter" });
  const steps = el("select", {});
  const setSteps = () => {
    const known = [...new Set(points.filter((p) => String(p.group) === state.group).map((p) => p.prompt.step))].sort((a, b) => a - b);
    steps.replaceChildren(el("option", { value: "" }, "all measured steps"), ...known.map((step) => el("option", { value: step }, `step ${step}`)));
    state.step = "";
  };
  let width = 0;
  const draw = () => width && plot.replaceChildren(scatterFigure(points, state, Math.min(width, 760), open));
  const groups = [...new Set(points.map((p) => p.group))];
  const choice = select("runs", groups.map((i) => [String(i), data.groups[i]]), (value) => { state.group = value; setSteps(); draw(); });
  const rise = select("property 2 as", [["1", "rise over the answer alone"], ["2", "rise over the policy's own chains"]], (value) => { state.rise = value; draw(); });
  steps.addEventListener("change", () => { state.step = steps.value; draw(); });
  setSteps();
  choice.box.value = state.group;
  host.append(el("div", { class: "controls few" }, choice.label, el("label", {}, "step", steps), rise.label), legend(KIND_LABELS, "marks", new Set()), plot);
  whenSized(plot, (now) => { width = now; draw(); });
}

function scatterFigure(points, state, width, open) {
  const wanted = points.filter((p) => String(p.group) === state.group && (state.step === "" || String(p.prompt.step) === state.step) && p.sample.properties[state.rise] !== null);
  const stride = Math.ceil(wanted.length / MOST_MARKS) || 1;
  const shown = wanted.filter((_, i) => i % stride === 0);
  const height = Math.round(Math.min(420, Math.max(300, width * 0.6)));
  const box = { left: 52, right: width - 8, top: 8, bottom: height - 34 };
  const note = el("p", { class: "count" }, `${shown.length} of ${wanted.length} measured samples are drawn; large marks: medians.`);
  if (!shown.length) return el("div", {}, note);
  const spread = (index) => { const v = shown.map((p) => p.sample.properties[index]); const pad = (Math.max(...v) - Math.min(...v)) * 0.04; return [Math.min(...v) - pad, Math.max(...v) + pad]; };
  const x = linear(...spread(0), box.left, box.right, width / 90);
  const y = linear(...spread(state.rise), box.bottom, box.top, 6);
  const names = { x: "property 1: log pi(sample | question), nats a token", y: "property 2, nats" };
  const label = `Scatter of ${shown.length} samples, ${names.x} against ${names.y}`;
  const root = svg("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label });
  root.append(...frame(width, height, x, y, names, box));
  const tip = el("div", { class: "tip", hidden: true });
  for (const point of shown) root.append(scatterMark(point, state, x, y, tip, open));
  const told = [];
  for (const [kind, entry] of Object.entries(KIND_ENTRY)) {
    const own = shown.filter((p) => p.sample.kind === kind);
    if (!own.length) continue;
    const middle = [0, state.rise].map((index) => median(own.map((p) => p.sample.properties[index])));
    told.push(`${KIND_NAMES[kind]}: ${own.length} samples, median property 1 ${number(middle[0])}, property 2 ${number(middle[1])}`);
    root.append(markShape(entry, x.at(middle[0]), y.at(middle[1]), 8, { class: colour(entry), fill: "currentColor", stroke: "var(--ink)", "stroke-width": 2 }));
  }
  return el("figure", {}, el("div", { class: "plot" }, root, tip), note, el("ul", { class: "notes" }, ...told.map((line) => el("li", {}, line))));
}

function scatterMark(point, state, x, y, tip, open) {
  const { sample, prompt } = point;
  const px = x.at(sample.properties[0]);
  const py = y.at(sample.properties[state.rise]);
  const mark = markShape(KIND_ENTRY[sample.kind], px, py, 3.2, { class: `scatter-mark ${colour(KIND_ENTRY[sample.kind])}`, fill: "currentColor", "fill-opacity": 0.45, stroke: "currentColor" });
  mark.addEventListener("pointerenter", () => {
    const verdict = sample.outcome ? `, ${sample.outcome}` : "";
    tip.textContent = `${KIND_NAMES[sample.kind]}${verdict}, step ${prompt.step}\n${prompt.question.slice(0, 120)}\n${number(sample.properties[0])}, ${number(sample.properties[state.rise])}`;
    tip.hidden = false;
    tip.style.left = `${Math.max(0, Math.min(px + 10, mark.ownerSVGElement.clientWidth - tip.offsetWidth))}px`;
    tip.style.top = `${py + 12}px`;
  });
  mark.addEventListener("pointerleave", () => { tip.hidden = true; });
  mark.addEventListener("click", () => open(prompt));
  return mark;
}

function median(values) {
  const sorted = [...values].sort((a, b) => a - b);
  const half = Math.floor(sorted.length / 2);
  return sorted.length % 2 ? sorted[half] : (sorted[half - 1] + sorted[half]) / 2;
}
