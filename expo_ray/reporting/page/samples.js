"use strict";
// The browser for samples: filters, pages, and one card per prompt.

const PAGE = 10;
const VERDICTS = {
  correct: "\u2713 correct", wrong: "\u2717 wrong", no_answer: "\u2205 no answer", timeout: "\u29d6 timeout", error: "! error",
};
const USES = {
  policy: "policy term", sft: "SFT target", chosen: "DPO: chosen", rejected: "DPO: rejected",
  conditioned: "KL on the prompt with the answer",
};

function sampleBrowser(host, data) {
  if (!data.prompts.length) {
    host.append(el("p", { class: "empty" }, "No samples are recorded in these runs (logging.samples_per_step)."));
    return { open: () => {} };
  }
  const state = { run: "", level: "", from: "", to: "", kind: "", verdict: "", leak: "", use: "", text: "", order: "first" };
  let found = [];
  let page = 0;
  const count = el("p", { class: "count", role: "status", "aria-live": "polite" });
  const list = el("div", {});
  const pagers = [el("div", { class: "pager" }), el("div", { class: "pager" })];
  const show = () => {
    const pages = Math.max(1, Math.ceil(found.length / PAGE));
    page = Math.min(Math.max(page, 0), pages - 1);
    const samples = found.reduce((sum, one) => sum + one.hits.length, 0);
    count.textContent = `${samples} samples of ${found.length} prompts match, of ${data.prompts.length} prompts.`;
    list.replaceChildren(...found.slice(page * PAGE, (page + 1) * PAGE).map((one) => promptCard(one, data, state.text)));
    for (const pager of pagers) drawPager(pager, page, pages, (next) => { page = next; show(); host.scrollIntoView(); });
  };
  const search = () => {
    found = matching(data.prompts, state);
    if (state.order === "last") found.sort((a, b) => (b.prompt.step ?? -1) - (a.prompt.step ?? -1));
    page = 0;
    show();
  };
  const form = filterForm(data, state, search);
  host.append(form.node, count, pagers[0], list, pagers[1]);
  search();
  return { open: (prompt) => { form.reset(); found = found.filter((one) => one.prompt === prompt); page = 0; show(); host.scrollIntoView(); } };
}

function filterForm(data, state, search) {
  const node = el("div", { class: "controls", role: "search", "aria-label": "Filter the samples" });
  const boxes = {};
  const values = (of) => [...new Set(data.prompts.flatMap(of))];
  const add = (name, label, options) => {
    const choice = select(label, options, (value) => { state[name] = value; search(); });
    boxes[name] = choice.box;
    node.append(choice.label);
  };
  const samples = (of) => values((prompt) => prompt.samples.map(of)).filter((value) => value);
  const any = [["", "any"]];
  add("run", "run", [...any, ...data.runs.map((name, i) => [String(i), name])]);
  const levels = values((prompt) => [prompt.level]).sort((a, b) => a - b);
  add("level", "level", [...any, ...levels.map((level) => [String(level), level === null ? "none" : String(level)])]);
  add("kind", "kind of sample", [...any, ...samples((s) => s.kind).map((kind) => [kind, KIND_NAMES[kind]])]);
  add("verdict", "verdict", [...any, ...samples((s) => s.outcome).map((outcome) => [outcome, VERDICTS[outcome] || outcome])]);
  add("leak", "mentions the given answer", [...any, ["yes", "yes (leak)"], ["no", "no"]]);
  const terms = values((prompt) => prompt.samples.flatMap((s) => (s.uses || []).map((use) => use[0])));
  add("use", "trained on as", [...any, ...terms.map((term) => [term, USES[term] || term]), ["signal", "policy term, advantage not 0"], ["none", "not trained on"]]);
  const type = (name, label, attributes, wide) => {
    const box = el("input", attributes);
    let timer = 0;
    box.addEventListener("input", () => { clearTimeout(timer); timer = setTimeout(() => { state[name] = box.value; search(); }, 150); });
    boxes[name] = box;
    node.append(el("label", { class: wide ? "long" : null }, label, box));
  };
  const steps = values((prompt) => [prompt.step]).filter((step) => step !== null);
  const range = steps.length ? { min: Math.min(...steps), max: Math.max(...steps) } : {};
  type("from", "from step", { type: "number", placeholder: range.min, ...range });
  type("to", "to step", { type: "number", placeholder: range.max, ...range });
  add("order", "order", [["first", "first steps first"], ["last", "last steps first"]]);
  type("text", "search in question, answer and texts", { type: "search" }, true);
  const reset = () => {
    for (const [name, box] of Object.entries(boxes)) { box.value = name === "order" ? "first" : ""; state[name] = box.value; }
    search();
  };
  const button = el("button", { type: "button" }, "clear filters");
  button.addEventListener("click", reset);
  node.append(button);
  return { node, reset };
}

function matching(prompts, state) {
  const text = state.text.trim().toLowerCase();
  const found = [];
  for (const prompt of prompts) {
    if (state.run !== "" && String(prompt.run) !== state.run) continue;
    if (state.level !== "" && String(prompt.level) !== state.level) continue;
    if (state.from !== "" && !(prompt.step >= Number(state.from))) continue;
    if (state.to !== "" && !(prompt.step <= Number(state.to))) continue;
    const whole = text && [prompt.uid, prompt.question, ...prompt.answers].some((part) => part.toLowerCase().includes(text));
    const hits = prompt.samples.filter((sample) => sampleMatches(sample, state) && (!text || whole || sample.text.toLowerCase().includes(text)));
    if (hits.length) found.push({ prompt, hits });
  }
  return found;
}

function sampleMatches(sample, state) {
  if (state.kind && sample.kind !== state.kind) return false;
  if (state.verdict && sample.outcome !== state.verdict) return false;
  if (state.leak && (sample.kind !== "explanation" || (sample.leak !== null) !== (state.leak === "yes"))) return false;
  if (!state.use) return true;
  if (sample.uses === null) return false;
  if (state.use === "none") return sample.uses.length === 0;
  if (state.use === "signal") return sample.uses.some(([term, advantage]) => term === "policy" && advantage !== 0);
  return sample.uses.some(([term]) => term === state.use);
}

function drawPager(pager, page, pages, go) {
  const button = (label, to) => {
    const one = el("button", { type: "button", disabled: to < 0 || to >= pages }, label);
    one.addEventListener("click", () => go(to));
    return one;
  };
  pager.replaceChildren(button("previous", page - 1), el("span", {}, `page ${page + 1} of ${pages}`), button("next", page + 1));
}

function promptCard({ prompt, hits }, data, text) {
  const step = prompt.step === null ? "evaluation" : `step ${prompt.step}`;
  const about = [data.runs[prompt.run], step, prompt.level === null ? "no level" : `level ${prompt.level}`];
  const others = prompt.samples.filter((sample) => !hits.includes(sample));
  const card = el("article", { class: "prompt" },
    el("div", { class: "about" }, about.join(" \u00b7 "), " \u00b7 ", el("bdi", {}, prompt.uid)),
    textBlock(prompt.question, "question", text),
    el("div", { class: "about" }, "gold answer: ", el("bdi", {}, highlighted(prompt.answers.join("  or  "), text))));
  if (prompt.remark) card.append(el("div", { class: "about" }, `trained on: ${prompt.remark}`));
  card.append(...hits.map((sample) => sampleBlock(sample, text)));
  if (others.length) {
    const rest = el("details", {}, el("summary", {}, `${others.length} other samples of this prompt`));
    rest.addEventListener("toggle", () => rest.children.length === 1 && rest.append(...others.map((sample) => sampleBlock(sample, text))), { once: true });
    card.append(rest);
  }
  return card;
}

function sampleBlock(sample, text) {
  const head = el("div", { class: "head" }, el("b", {}, KIND_NAMES[sample.kind]));
  if (sample.outcome) head.append(el("span", {}, VERDICTS[sample.outcome] || sample.outcome));
  if (sample.kind !== "gold") head.append(el("span", {}, ...(sample.extracted === null ? ["no answer found"] : ["answer: ", el("bdi", {}, sample.extracted)])));
  if (sample.uses !== null) head.append(el("span", {}, useText(sample.uses)));
  if (sample.leak) head.append(el("span", { class: "leak" }, "leak: ", el("bdi", {}, sample.leak)));
  return el("div", { class: `sample ${colour(Object.keys(KIND_NAMES).indexOf(sample.kind))}` }, head, textBlock(sample.text, "", text), el("div", { class: "facts" }, facts(sample)));
}

function useText(uses) {
  if (!uses.length) return "not trained on";
  return uses.map(([term, advantage]) => {
    if (term !== "policy") return USES[term] || term;
    return advantage === 0 ? "policy term, advantage 0" : `policy term, advantage ${advantage > 0 ? "+" : ""}${number(advantage)}`;
  }).join(" + ");
}

function facts(sample) {
  const said = [];
  if (sample.tokens !== null) said.push(`${sample.tokens} tokens${sample.finish === "length" ? ", cut at the limit" : ""}`);
  if (sample.reward !== null) said.push(`reward ${number(sample.reward)}`);
  if (sample.logprob !== null) said.push(`as sampled ${number(sample.logprob)} nats a token`);
  if (sample.properties) {
    const [first, rise, over] = sample.properties;
    said.push(`property 1: ${number(first)} nats a token`, `property 2: ${number(rise)} nats`, `over free chains: ${number(over)} nats`);
  }
  if (sample.version !== null && sample.version !== undefined) said.push(`weights of update ${sample.version}`);
  return said.join(" \u00b7 ");
}

function textBlock(content, kind, text) {
  const scrolls = content.length > 1200 ? { tabindex: 0, role: "region", "aria-label": "text" } : {};
  return el("div", { class: `text ${kind}`, dir: "auto", ...scrolls }, highlighted(content || "(empty)", text));
}

// The content with the searched text marked, as text nodes.
function highlighted(content, text) {
  const wanted = text.trim().toLowerCase();
  const parts = document.createDocumentFragment();
  const lower = content.toLowerCase();
  let from = 0;
  // Lower case can change a text's length; then the places would not fit, and nothing is marked.
  for (let at = wanted && lower.length === content.length ? lower.indexOf(wanted) : -1; at >= 0; at = lower.indexOf(wanted, from)) {
    parts.append(content.slice(from, at), el("mark", {}, content.slice(at, at + wanted.length)));
    from = at + wanted.length;
  }
  parts.append(content.slice(from));
  return parts;
}

function start() {
  for (const host of document.querySelectorAll("[data-section]")) drawSection(host, DATA.sections[host.dataset.section]);
  const browser = sampleBrowser(document.getElementById("samples-body"), DATA);
  scatterPlot(document.getElementById("scatter-body"), DATA, browser.open);
  document.documentElement.dataset.ready = "yes";
}

start();
