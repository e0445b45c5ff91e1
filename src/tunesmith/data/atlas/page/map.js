// The page: puts a map on the screen and answers to pointer, touch and keyboard. One map at a time.

import { fillGroupings, fillNotes, fillProjections, subtitle } from "./choices.js";
import { Camera } from "./camera.js";
import { DIMMED, HIDDEN, RAISED, Scene, SHOWN } from "./scene.js";
import { choosePainter } from "./painter.js";
import { Finder, listFound } from "./find.js";
import { firstWords, showDetail } from "./detail.js";
import { Legend } from "./legend.js";
import { Names } from "./names.js";
import { Tooltip } from "./tooltip.js";
import { watchFiles } from "./files.js";
import { watchGestures } from "./gestures.js";
import { MapError, parseMap, unpack } from "./document.js";
import { count, excerpt } from "./text.js";
import { css, palette } from "./colours.js";

const ui = Object.fromEntries([...document.querySelectorAll("[id]")].map((node) => [node.id, node]));
const dark = matchMedia("(prefers-color-scheme: dark)");
const still = matchMedia("(prefers-reduced-motion: reduce)");
const narrow = matchMedia("(max-width: 46rem)");
const TRANSITION_MS = 1100;
const NEAR_ROWS = 8;

const camera = new Camera();
const scene = new Scene(camera);
const tooltip = new Tooltip(ui.hover);
const names = new Names(ui.labels, camera);
const legend = new Legend(ui.legend, () => { applyStates(); showFound(); });
const state = { map: null, projection: null, grouping: null, colours: [], found: null, opened: -1, spinning: false, names: true };
let finder = null;
let frame = 0;
let last = 0;
let moving = null; // when the change of projection began

// --- drawing

function redraw() {
  frame ||= requestAnimationFrame(draw);
}

function draw(now) {
  frame = 0;
  const step = Math.min(60, now - last);
  last = now;
  if (state.spinning) camera.orbit(-step * 0.00022, 0);
  if (moving !== null) {
    moving ||= now;
    const part = Math.min(1, (now - moving) / TRANSITION_MS);
    scene.mixed = part * part * (3 - 2 * part);
    if (part === 1) {
      moving = null;
      names.hide(false);
    }
  }
  scene.painter.draw();
  placeMarks();
  if (state.spinning || moving !== null) redraw();
}

function placeMarks() {
  const matrix = camera.matrix();
  ui.ring.hidden = state.opened < 0;
  if (state.opened >= 0 && state.map) {
    const [x, y, depth] = camera.project(matrix, ...scene.at(state.opened));
    ui.ring.hidden = depth < 0.02;
    ui.ring.style.transform = `translate(${x}px, ${y}px)`;
    ui.ring.style.setProperty("--size", `${2 * scene.pixels(depth) + 14}px`);
  }
  names.place(matrix, legend.hidden);
}

function fit() {
  const opened = ui.detail.hidden ? { left: innerWidth, top: innerHeight } : ui.detail.getBoundingClientRect();
  const side = ui.side.getBoundingClientRect();
  const top = ui.side.classList.contains("folded") ? side.bottom : 0;
  if (narrow.matches) camera.resize(innerWidth, innerHeight, { top, bottom: innerHeight - opened.top });
  else camera.resize(innerWidth, innerHeight, { left: side.right, right: innerWidth - opened.left });
  redraw();
}

function repaint() {
  const paper = getComputedStyle(document.body).backgroundColor.match(/[\d.]+/g).map(Number);
  scene.paper = paper.slice(0, 3).map((value) => value / 255);
  if (!state.map) return redraw();
  state.colours = palette(state.grouping, dark.matches);
  const { of } = state.grouping;
  for (let at = 0; at < scene.num; at += 1) scene.colour.set(state.colours[of[at]], at * 4);
  scene.painter.upload("colour");
  redraw();
}

/** Which points are hidden, dimmed, shown or raised, from legend, search and what is open. */
function applyStates() {
  const { of } = state.grouping;
  for (let at = 0; at < scene.num; at += 1) {
    if (legend.hidden.has(of[at])) scene.state[at] = HIDDEN;
    else if (state.found) scene.state[at] = state.found[at] ? RAISED : DIMMED;
    else scene.state[at] = SHOWN;
  }
  if (state.opened >= 0) scene.state[state.opened] = RAISED;
  scene.painter.upload("state");
  redraw();
}

// --- what is shown

function setMap(map) {
  closeDetail();
  Object.assign(state, { map, found: null, opened: -1 });
  moving = null;
  names.hide(false);
  finder = new Finder(map.rows);
  ui.welcome.hidden = true;
  ui.wrong.hidden = true;
  ui.side.hidden = false;
  ui.tools.hidden = false;
  ui.query.value = "";
  ui.title.textContent = excerpt(map.title, 120);
  document.title = `${excerpt(map.title, 80)} · tunesmith map`;
  ui.subtitle.textContent = subtitle(map);
  fillNotes(ui.notes, map, () => location.reload());
  state.projection = map.projections[map.projections.length - 1];
  scene.load(state.projection.points);
  fillProjections(ui.projections, map, state.projection, setProjection);
  ui["projection-note"].textContent = excerpt(state.projection.note, 200);
  fillGroupings(ui.grouping, map);
  camera.reset();
  setGrouping(0);
  showFound();
  fit();
}

function setProjection(at) {
  const projection = state.map.projections[at];
  if (projection === state.projection) return;
  state.projection = projection;
  ui["projection-note"].textContent = excerpt(projection.note, 200);
  scene.moveTo(projection.points);
  if (still.matches) {
    scene.mixed = 1;
    moving = null;
  } else {
    moving = 0;
    names.hide(true);
  }
  nameGroups();
  say(`${projection.title} is shown`);
  redraw();
}

function setGrouping(at) {
  state.grouping = state.map.groupings[at];
  repaint();
  legend.load(state.grouping, state.colours);
  nameGroups();
  applyStates();
  showFound();
  if (state.opened >= 0) openRow(state.opened, { focus: false });
}

function nameGroups() {
  const wanted = state.names && !state.grouping.ordered && state.grouping.labels.length > 1;
  names.load(wanted ? state.grouping : null, state.projection.points);
}

function openRow(index, { focus = true, follow = false } = {}) {
  state.opened = index;
  tooltip.hide();
  const wasHidden = ui.detail.hidden;
  ui.detail.hidden = false;
  showDetail(ui.detail, state, index, scene.neighbours(index, NEAR_ROWS), (other) => openRow(other, { follow: true }));
  applyStates();
  if (follow) camera.target = scene.at(index);
  if (wasHidden) fit();
  if (focus && follow) ui.detail.focus({ preventScroll: true });
  say(`Row ${count(index + 1)}: ${firstWords(state.map.rows[index], 80)}`);
}

function closeDetail() {
  if (ui.detail.hidden) return;
  const inside = ui.detail.contains(document.activeElement);
  ui.detail.hidden = true;
  state.opened = -1;
  applyStates();
  fit();
  if (inside) ui.space.focus();
}

function showFound() {
  const { found, map, grouping } = state;
  ui.found.hidden = !found;
  const inGroup = found && new Uint32Array(grouping.labels.length);
  let [total, seen] = [0, 0];
  for (let at = 0; found && at < found.length; at += 1) {
    if (!found[at]) continue;
    total += 1;
    inGroup[grouping.of[at]] += 1;
    if (!legend.hidden.has(grouping.of[at])) seen += 1;
  }
  legend.showFound(inGroup);
  if (found) ui.found.textContent = `${count(total)} of ${count(map.rows.length)} rows${seen < total ? `, ${count(total - seen)} in hidden groups` : ""}`;
  listFound(ui.hits, map.rows, found, (at) => !legend.hidden.has(grouping.of[at]), ui.query.value, (at) => openRow(at, { follow: true }));
}

function search() {
  if (!state.map) return;
  state.found = finder.find(ui.query.value);
  applyStates();
  showFound();
}

function say(text) {
  ui.said.textContent = text;
}

// --- pointer and touch

watchGestures(ui.space, {
  turn(dx, dy) {
    camera.orbit(dx * 0.006, dy * 0.006);
    redraw();
  },
  move(dx, dy) {
    camera.pan(dx, dy);
    redraw();
  },
  zoom(factor) {
    camera.zoom(factor);
    redraw();
  },
  click(x, y, coarse) {
    const index = state.map ? scene.pick(x, y, coarse ? 18 : 8) : -1;
    if (index >= 0) openRow(index);
    else closeDetail();
  },
  dive(x, y) {
    const index = state.map ? scene.pick(x, y) : -1;
    if (index < 0) return;
    camera.target = scene.at(index);
    camera.zoom(0.5);
    redraw();
  },
  hover(x, y) {
    const index = state.map ? scene.pick(x, y) : -1;
    ui.space.classList.toggle("over", index >= 0);
    if (index >= 0) tooltip.show(state, index, x, y);
    else tooltip.hide();
  },
  leave() { tooltip.hide(); },
});

// --- keyboard

function step(direction) {
  let at = state.opened;
  for (let tries = 0; tries < scene.num; tries += 1) {
    at = (at + direction + scene.num) % scene.num;
    if (scene.state[at] === SHOWN || scene.state[at] === RAISED) return openRow(at, { focus: false, follow: true });
  }
  return say("No row is shown");
}

function toggleSpin() {
  state.spinning = !state.spinning;
  ui.spin.setAttribute("aria-pressed", String(state.spinning));
  redraw();
}

function toggleNames() {
  state.names = !state.names;
  ui.names.setAttribute("aria-pressed", String(state.names));
  if (state.map) nameGroups();
  redraw();
}

function toggleKeys() {
  ui.keys.hidden = !ui.keys.hidden;
  ui.help.setAttribute("aria-expanded", String(!ui.keys.hidden));
}

const ON_MAP = {
  ArrowLeft: (event) => (event.shiftKey ? camera.pan(40, 0) : camera.orbit(-0.09, 0)),
  ArrowRight: (event) => (event.shiftKey ? camera.pan(-40, 0) : camera.orbit(0.09, 0)),
  ArrowUp: (event) => (event.shiftKey ? camera.pan(0, 40) : camera.orbit(0, -0.09)),
  ArrowDown: (event) => (event.shiftKey ? camera.pan(0, -40) : camera.orbit(0, 0.09)),
  "+": () => camera.zoom(0.88),
  "=": () => camera.zoom(0.88),
  "-": () => camera.zoom(1.14),
  "0": () => camera.reset(),
  Home: () => camera.reset(),
  n: () => step(1),
  p: () => step(-1),
  r: toggleSpin,
  l: toggleNames,
  Enter: () => {
    const index = scene.pick((camera.shift + 1) * 0.5 * camera.width, (1 - camera.lift) * 0.5 * camera.height, Infinity);
    if (index >= 0) openRow(index, { follow: true });
  },
};

ui.space.addEventListener("keydown", (event) => {
  const act = event.ctrlKey || event.metaKey || event.altKey ? null : (ON_MAP[event.key] ?? ON_MAP[event.key.toLowerCase()]);
  if (!act || !state.map) return;
  event.preventDefault();
  act(event);
  redraw();
});

document.addEventListener("keydown", (event) => {
  const typing = event.target.matches?.("input, select, textarea");
  if (event.key === "Escape") {
    if (!ui.keys.hidden) toggleKeys();
    else if (event.target === ui.query && ui.query.value) { ui.query.value = ""; search(); }
    else if (!ui.wrong.hidden) ui.wrong.hidden = true;
    else closeDetail();
  } else if (event.key === "/" && !typing && state.map) {
    event.preventDefault();
    ui.query.focus();
  } else if (event.key === "?" && !typing) toggleKeys();
});

// --- files

function complain(text) {
  ui.wrong.querySelector("p").textContent = excerpt(text, 600);
  ui.wrong.hidden = false;
}

async function openFile(file) {
  let map;
  try {
    map = parseMap(await file.text());
  } catch (error) {
    if (!(error instanceof MapError || error instanceof DOMException || error instanceof RangeError)) throw error;
    complain(`${file.name}: ${error.message}`);
    return;
  }
  setMap(map);
  say(`${count(map.rows.length)} rows are shown`);
}

watchFiles(ui.file, ui.drop, { file: openFile, nothing: () => complain("What was dropped is no file.") });

// --- buttons

for (const button of [ui.open, ui.choose]) button.addEventListener("click", () => ui.file.click());
ui.wrong.querySelector("button").addEventListener("click", () => { ui.wrong.hidden = true; });
ui.close.addEventListener("click", closeDetail);
ui.nearer.addEventListener("click", () => { camera.zoom(0.75); redraw(); });
ui.farther.addEventListener("click", () => { camera.zoom(1.33); redraw(); });
ui.home.addEventListener("click", () => { camera.reset(); redraw(); });
ui.spin.addEventListener("click", toggleSpin);
ui.names.addEventListener("click", toggleNames);
ui.help.addEventListener("click", toggleKeys);
ui.all.addEventListener("click", () => legend.all(true));
ui.none.addEventListener("click", () => legend.all(false));
ui.grouping.addEventListener("change", () => setGrouping(Number(ui.grouping.value)));
function fold(folded) {
  ui.side.classList.toggle("folded", folded);
  ui.fold.setAttribute("aria-expanded", String(!folded));
}
ui.fold.addEventListener("click", () => { fold(!ui.side.classList.contains("folded")); fit(); });
let typing = 0;
ui.query.addEventListener("input", () => { clearTimeout(typing); typing = setTimeout(search, 140); });
addEventListener("resize", fit);
narrow.addEventListener("change", () => fold(narrow.matches));
dark.addEventListener("change", () => { repaint(); if (state.map) legend.recolour(state.colours); });
scene.onrestored = redraw;

// --- start

function showWelcome() {
  ui.side.hidden = true;
  ui.tools.hidden = true;
  ui.welcome.hidden = false;
}

async function start() {
  choosePainter(ui.space, scene);
  repaint();
  fold(narrow.matches);
  const packed = ui.data.textContent.trim();
  if (!packed) {
    showWelcome();
    return;
  }
  let map;
  try {
    map = parseMap(await unpack(packed));
  } catch (error) {
    showWelcome();
    complain(`The data in this page are damaged: ${error.message}`);
    return;
  }
  setMap(map);
}

start();
