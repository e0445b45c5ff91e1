"use strict";
const $ = (id) => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";
const FIRST = ["loss", "grad_norm", "learning_rate", "tokens_per_second"];
const TITLES = { loss: "loss", grad_norm: "gradient norm", learning_rate: "learning rate", tokens_per_second: "tokens per second" };
const SILENT_SECONDS = 120;
const FEW = 20; // points that need no smoothing to be read
const PAD = { left: 56, right: 14, top: 8, bottom: 24 };

let state = JSON.parse($("data").textContent);
const hidden = new Set();
const view = { stage: null, axis: "steps", smoothing: 0.8, log: false, pointer: null };

// --- elements: text is set as text, never as markup ---
function make(tag, classes, text) {
  const element = document.createElement(tag);
  if (classes) element.className = classes;
  if (text !== undefined) element.textContent = visible(String(text));
  return element;
}
function draw(tag, attributes, text) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  if (text !== undefined) element.textContent = text;
  return element;
}
// Characters that turn a line around or hide in it are written out.
function visible(text) {
  return text.replace(/[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u00ad\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff]/g,
    (found) => `‹U+${found.charCodeAt(0).toString(16).toUpperCase().padStart(4, "0")}›`);
}

// --- numbers as people read them ---
function number(value, name) {
  if (value === null || value === undefined) return "–";
  const size = Math.abs(value);
  if (name === "tokens_per_second") return Math.round(value).toLocaleString("en");
  if (size !== 0 && (size < 1e-3 || size >= 1e6)) return value.toExponential(2).replace(/\.?0+e/, "e").replace("e+", "e");
  if (size >= 1000) return Math.round(value).toLocaleString("en");
  return Number(value.toPrecision(4)).toString();
}
function duration(seconds) {
  if (seconds === null || seconds === undefined || !Number.isFinite(seconds)) return "–";
  if (seconds < 59.5) return `${seconds < 9.95 ? seconds.toFixed(1) : Math.round(seconds)} s`;
  const minutes = Math.round(seconds / 60);
  if (minutes < 60) return `${minutes} min`;
  const hours = Math.floor(minutes / 60);
  if (hours < 48) return `${hours} h ${String(minutes % 60).padStart(2, "0")} min`;
  return `${Math.round(hours / 24)} days`;
}
const clock = (time) => new Date(time * 1000).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", second: "2-digit" });
const title = (name) => (Object.hasOwn(TITLES, name) ? TITLES[name] : name.replaceAll("_", " "));

// --- what is shown ---
const measuredStages = () => [...new Set(state.runs.flatMap((run) => run.stages.filter((each) => Object.keys(each.metrics).length).map((each) => each.name)))];
const metricOf = (stage, name) => (stage && Object.hasOwn(stage.metrics, name) ? stage.metrics[name] : undefined);
const stageOf = (run, name) => run.stages.find((each) => each.name === name);
const shade = (at) => `h-c${at % 8}`;
function currentStage() {
  const stages = measuredStages();
  return stages.includes(view.stage) ? view.stage : stages.at(-1) ?? null;
}
function metricsShown(stage) {
  const names = [...new Set(state.runs.flatMap((run) => Object.keys(stageOf(run, stage)?.metrics ?? {})))];
  const rank = (name) => (FIRST.includes(name) ? FIRST.indexOf(name) : FIRST.length);
  return names.sort((a, b) => rank(a) - rank(b) || a.localeCompare(b));
}
const hasTime = (stage) => state.runs.some((run) => Object.values(stageOf(run, stage)?.metrics ?? {}).some((series) => series.seconds.some((value) => value !== null)));

// --- runs ---
function showRuns() {
  $("runs").replaceChildren(...state.runs.map((run, at) => {
    const box = make("article", `run ${shade(at)}`);
    const top = box.appendChild(make("div", "top"));
    const name = top.appendChild(make("button"));
    name.type = "button";
    name.title = "show or hide its curves";
    name.setAttribute("aria-pressed", String(!hidden.has(run.name)));
    name.append(make("span", "swatch"), make("bdi", "", run.name));
    name.addEventListener("click", () => { hidden.has(run.name) ? hidden.delete(run.name) : hidden.add(run.name); show(); });
    top.append(make("span", `state ${run.status}`, run.status));
    const age = top.appendChild(make("span", "age"));
    age.dataset.updated = run.updated;
    age.dataset.status = run.status;
    const stages = box.appendChild(make("ol", "stages"));
    for (const stage of run.stages) stages.append(stageItem(stage));
    box.append(figures(run));
    return box;
  }));
  showAges();
}
function stageItem(stage) {
  const item = make("li", stage.status, stage.name);
  const bar = document.createElement("progress");
  const done = stage.status === "finished" || stage.status === "cached";
  bar.max = 1;
  bar.value = done ? 1 : stage.total ? Math.min(1, stage.done / stage.total) : 0;
  if (stage.status === "running" && !stage.total) bar.removeAttribute("value");
  bar.setAttribute("aria-label", `${stage.name}: ${stage.status}`);
  let said = { waiting: "", cached: "cached", failed: "failed", finished: duration(stage.seconds) }[stage.status] ?? "";
  if (stage.status === "running" && stage.total) said = `${Math.floor((100 * stage.done) / stage.total)} %`;
  item.append(make("small", "", said || "\u00a0"), bar);
  return item;
}
function figures(run) {
  const list = make("dl", "now");
  const running = run.stages.find((each) => each.status === "running");
  const stage = stageOf(run, currentStage());
  const rows = [];
  if (running?.total) {
    rows.push([running.task === running.name ? running.unit || "done" : `${running.task}`, `${running.done.toLocaleString("en")} of ${running.total.toLocaleString("en")}`]);
    rows.push(["ETA", duration(running.eta_seconds)]);
  }
  for (const name of FIRST) {
    const values = metricOf(stage, name)?.values ?? [];
    if (values.length) rows.push([title(name), number(values.at(-1), name)]);
  }
  for (const [what, value] of rows) {
    const pair = list.appendChild(make("div"));
    pair.append(make("dt", "", what), make("dd", "", value));
  }
  return list;
}
function showAges() {
  const now = state.live ? Date.now() / 1000 : state.now;
  for (const age of document.querySelectorAll(".age")) {
    const updated = Number(age.dataset.updated);
    const passed = Math.max(0, now - updated);
    const silent = state.live && age.dataset.status === "running" && passed > SILENT_SECONDS;
    age.classList.toggle("silent", silent); // a killed process cannot say that it is gone
    if (updated) age.textContent = `${silent ? "no event for" : "last event"} ${duration(passed)}${silent ? "" : state.live ? " ago" : " before this copy was made"}`;
  }
}

// --- controls ---
function choices(box, options, chosen, choose) {
  const legend = box.querySelector("legend");
  box.replaceChildren(legend, ...options.map(([value, text, disabled]) => {
    const button = make("button", "", text);
    button.type = "button";
    button.disabled = Boolean(disabled);
    button.setAttribute("aria-pressed", String(value === chosen));
    button.addEventListener("click", () => { choose(value); show(); });
    return button;
  }));
}
function showControls(stage) {
  const stages = measuredStages();
  $("stage").hidden = stages.length < 2;
  choices($("stage"), stages.map((name) => [name, name]), stage, (value) => { view.stage = value; });
  const timed = stage !== null && hasTime(stage);
  choices($("axis"), [["steps", "step"], ["seconds", "time", !timed]], view.axis, (value) => { view.axis = value; });
}
$("smoothing").addEventListener("input", (event) => { view.smoothing = Number(event.target.value); showCharts(); });
$("log").addEventListener("change", (event) => { view.log = event.target.checked; showCharts(); });

// --- curves ---
function smoothed(values) {
  // Exponential mean with the start corrected, as Adam corrects its moments.
  let mean = 0, weight = 0;
  return values.map((value) => {
    if (value === null) return null;
    mean = view.smoothing * mean + (1 - view.smoothing) * value;
    weight = view.smoothing * weight + (1 - view.smoothing);
    return mean / weight;
  });
}
function curvesOf(stage, name, axis) {
  return state.runs.flatMap((run, at) => {
    const series = metricOf(stageOf(run, stage), name);
    if (!series || hidden.has(run.name) || (axis === "seconds" && !series.seconds.some((value) => value !== null))) return [];
    return [{ run: run.name, at, x: series[axis], y: series.values, smooth: view.smoothing > 0 && name !== "learning_rate" && series.values.length >= FEW ? smoothed(series.values) : null, low: series.low, high: series.high }];
  });
}
function ticks(low, high, count) {
  const raw = (high - low) / count || 1;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].map((each) => each * power).find((each) => each >= raw);
  const found = [];
  for (let at = Math.ceil(low / step - 1e-9); at * step <= high + step * 1e-9; at++) found.push(at * step);
  return found;
}
function logTicks(low, high) {
  const found = [];
  for (let power = Math.floor(low); power <= Math.ceil(high); power++) for (const each of [1, 2, 5]) {
    const at = Math.log10(each) + power;
    if (at >= low && at <= high) found.push(at);
  }
  return found;
}
function extent(lists) {
  let low = Infinity, high = -Infinity;
  for (const list of lists) for (const value of list) if (value !== null && Number.isFinite(value)) { low = Math.min(low, value); high = Math.max(high, value); }
  return low <= high ? [low, high] : null;
}
function showCharts() {
  const stage = currentStage();
  const axis = view.axis === "seconds" && (stage === null || !hasTime(stage)) ? "steps" : view.axis;
  const names = stage === null ? [] : metricsShown(stage);
  $("empty").hidden = names.length > 0;
  $("charts").hidden = names.length === 0;
  const have = new Map([...$("charts").children].map((figure) => [figure.dataset.metric, figure]));
  $("charts").replaceChildren(...names.map((name, at) => {
    const figure = have.get(name) ?? newChart(name);
    figure.classList.toggle("first", at === 0);
    return figure;
  }));
  for (const figure of $("charts").children) drawChart(figure, stage, axis);
}
function newChart(name) {
  const figure = make("figure", "chart");
  figure.dataset.metric = name;
  figure.append(make("figcaption", "", title(name)), draw("svg", { role: "img" }));
  const tip = figure.appendChild(make("div", "tip"));
  tip.hidden = true;
  const svg = figure.querySelector("svg");
  svg.addEventListener("pointermove", (event) => { view.pointer = (event.clientX - svg.getBoundingClientRect().left); view.over = name; point(); });
  svg.addEventListener("pointerleave", () => { view.over = null; point(); });
  return figure;
}
function drawChart(figure, stage, axis) {
  const name = figure.dataset.metric;
  const svg = figure.querySelector("svg");
  const curves = curvesOf(stage, name, axis);
  const width = Math.max(svg.getBoundingClientRect().width || figure.clientWidth - 32, 240);
  const height = figure.classList.contains("first") ? 300 : 190;
  const log = view.log && name === "loss";
  const scale = (value) => (value === null || (log && value <= 0) ? null : log ? Math.log10(value) : value);
  const shown = curves.map((curve) => curve.smooth ?? curve.y);
  const xs = extent(curves.map((curve) => curve.x));
  const ys = extent([...shown, ...curves.flatMap((curve) => [curve.low ?? curve.y, curve.high ?? curve.y])].map((list) => list.map(scale)));
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  svg.style.height = `${height}px`;
  figure.chart = null;
  if (!xs || !ys) { svg.replaceChildren(draw("text", { x: PAD.left, y: 40 }, "nothing to show")); return; }
  let [low, high] = ys;
  const size = Math.max(Math.abs(low), Math.abs(high));
  const flat = high - low <= 1e-9 * size; // a constant, but for roundings
  const margin = (flat ? size || 1 : high - low) * 0.05;
  [low, high] = [ys[0] >= 0 && !log ? Math.max(0, low - margin) : low - margin, high + margin];
  const [first, last] = [xs[0], xs[1] > xs[0] ? xs[1] : xs[0] + 1];
  const X = (value) => PAD.left + ((value - first) / (last - first)) * (width - PAD.left - PAD.right);
  const Y = (value) => height - PAD.bottom - ((value - low) / (high - low)) * (height - PAD.top - PAD.bottom);
  const parts = [];
  for (const tick of log ? logTicks(low, high) : ticks(low, high, height > 250 ? 6 : 4)) {
    parts.push(draw("line", { class: "grid-line", x1: PAD.left, x2: width - PAD.right, y1: Y(tick), y2: Y(tick) }));
    parts.push(draw("text", { x: PAD.left - 8, y: Y(tick) + 4, "text-anchor": "end" }, number(log ? 10 ** tick : tick, name)));
  }
  const unit = axis === "steps" ? [1, ""] : last - first > 7200 ? [3600, " h"] : last - first > 120 ? [60, " min"] : [1, " s"];
  for (const tick of ticks(first / unit[0], last / unit[0], Math.max(2, Math.floor(width / 110)))) {
    if (axis === "steps" && !Number.isInteger(tick)) continue;
    const at = X(tick * unit[0]);
    parts.push(draw("text", { x: at, y: height - 6, "text-anchor": at > width - 30 ? "end" : "middle" }, `${Number(tick.toPrecision(6)).toLocaleString("en")}${unit[1]}`));
  }
  for (const [at, curve] of curves.entries()) {
    const group = draw("g", { class: shade(curve.at) });
    const raw = path(curve.x, curve.y.map(scale), X, Y);
    if (curve.low) group.append(draw("path", { class: "band", d: band(curve.x, curve.low.map(scale), curve.high.map(scale), X, Y) }));
    if (curve.smooth) group.append(draw("path", { class: "raw", d: raw }));
    group.append(draw("path", { class: "line", d: curve.smooth ? path(curve.x, shown[at].map(scale), X, Y) : raw }));
    if (curve.x.length === 1) group.append(draw("circle", { cx: X(curve.x[0]), cy: Y(scale(curve.y[0]) ?? low), r: 4 }));
    parts.push(group);
  }
  parts.push(draw("g", { class: "pointer" }));
  svg.replaceChildren(...parts);
  const said = curves.map((curve) => `${curve.run}: ${number(curve.y.at(-1), name)} at ${axis === "steps" ? "step " : ""}${curve.x.at(-1)}`).join("; ");
  svg.setAttribute("aria-label", visible(`${title(name)}. ${said}`));
  figure.chart = { curves, shown, X, Y, scale, width, height, axis, first, last };
  point(figure);
}
function path(x, y, X, Y) {
  let out = "", pen = false;
  for (let at = 0; at < x.length; at++) {
    if (y[at] === null || x[at] === null) { pen = false; continue; }
    out += `${pen ? "L" : "M"}${X(x[at]).toFixed(1)} ${Y(y[at]).toFixed(1)}`;
    pen = true;
  }
  return out;
}
function band(x, low, high, X, Y) {
  const there = x.map((_, at) => at).filter((at) => low[at] !== null && high[at] !== null);
  if (!there.length) return "";
  const above = there.map((at) => `${X(x[at]).toFixed(1)} ${Y(high[at]).toFixed(1)}`);
  const below = there.toReversed().map((at) => `${X(x[at]).toFixed(1)} ${Y(low[at]).toFixed(1)}`);
  return `M${[...above, ...below].join("L")}Z`;
}

// --- what lies under the pointer, in every chart at once ---
function point(only) {
  for (const figure of only ? [only] : $("charts").children) {
    const chart = figure.chart;
    const tip = figure.querySelector(".tip");
    const group = figure.querySelector(".pointer");
    if (!chart || !group) continue;
    const source = [...$("charts").children].find((each) => each.dataset.metric === view.over)?.chart;
    if (!source || view.pointer === null) { group.replaceChildren(); tip.hidden = true; continue; }
    const share = (view.pointer - PAD.left) / (source.width - PAD.left - PAD.right);
    const wanted = source.first + Math.min(1, Math.max(0, share)) * (source.last - source.first);
    const parts = [], lines = [];
    for (const [at, curve] of chart.curves.entries()) {
      const place = nearest(curve.x, wanted);
      const value = chart.scale(chart.shown[at][place] ?? null);
      if (place < 0 || value === null) continue;
      const group = draw("g", { class: shade(curve.at) });
      group.append(draw("circle", { cx: chart.X(curve.x[place]), cy: chart.Y(value), r: 4.5 }));
      parts.push(group);
      const line = make("p", shade(curve.at));
      const where = chart.axis === "steps" ? `step ${curve.x[place].toLocaleString("en")}` : duration(curve.x[place]);
      line.append(make("b", "", number(curve.y[place], figure.dataset.metric)), make("span", "", `${where} · ${curve.run}`));
      lines.push(line);
    }
    const at = chart.X(Math.min(chart.last, Math.max(chart.first, wanted)));
    group.replaceChildren(draw("line", { class: "cursor", x1: at, x2: at, y1: PAD.top, y2: chart.height - PAD.bottom }), ...parts);
    tip.hidden = figure.dataset.metric !== view.over || !lines.length;
    tip.replaceChildren(...lines);
    tip.style.left = at < chart.width / 2 ? `${at + 30}px` : "auto";
    tip.style.right = at < chart.width / 2 ? "auto" : `${chart.width - at + 30}px`;
  }
}
function nearest(xs, wanted) {
  let low = 0, high = xs.length - 1;
  if (high < 0) return -1;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (xs[middle] < wanted) low = middle + 1; else high = middle;
  }
  return low > 0 && Math.abs(xs[low - 1] - wanted) < Math.abs(xs[low] - wanted) ? low - 1 : low;
}

// --- notes ---
function showNotes() {
  const notes = state.runs.flatMap((run, at) => run.notes.map((note) => ({ ...note, run: run.name, at })));
  notes.sort((a, b) => b.time - a.time);
  $("notes").hidden = !notes.length;
  $("notes").querySelector("ol").replaceChildren(...notes.slice(0, 60).map((note) => {
    const item = make("li", `${note.level} ${shade(note.at)}`);
    const by = [clock(note.time), note.stage, state.runs.length > 1 ? note.run : ""].filter(Boolean).join(" · ");
    item.append(make("span", "by", by), make("bdi", "message", note.message));
    return item;
  }));
}

function show() {
  const stage = currentStage();
  showRuns();
  showControls(stage);
  showCharts();
  showNotes();
}
show();
new ResizeObserver(() => showCharts()).observe($("charts"));
if (state.live) {
  const source = new EventSource("events");
  const link = $("link");
  source.addEventListener("open", () => { link.textContent = "· live"; link.className = ""; });
  source.addEventListener("error", () => { link.textContent = "· the connection is lost: is `tunesmith watch` still running?"; link.className = "lost"; });
  source.addEventListener("message", (event) => {
    state = { ...state, ...JSON.parse(event.data) };
    const buttons = () => [...document.querySelectorAll("main button")];
    const focused = buttons().indexOf(document.activeElement);
    show();
    if (focused >= 0) buttons()[focused]?.focus();
  });
  setInterval(showAges, 1000);
}
