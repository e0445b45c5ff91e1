// The panel of one row: its conversation, where it comes from, its groups, and the rows that lie near it.

import { count, element, excerpt, swatch } from "./text.js";
import { css } from "./colours.js";

const SHOWN_AT_ONCE = 20000; // characters of a turn before "show all"

function turnBlock(turn) {
  const body = element("div", { class: "said", dir: "auto", text: turn.text.slice(0, SHOWN_AT_ONCE) });
  const block = element("section", { class: "turn" }, element("h3", { text: turn.role }), body);
  block.dataset.role = ["user", "assistant", "system"].includes(turn.role) ? turn.role : "other";
  if (turn.text.length > SHOWN_AT_ONCE) {
    const more = element("button", { class: "quiet", type: "button", text: `Show all ${count(turn.text.length)} characters` });
    more.addEventListener("click", () => {
      body.replaceWith(element("div", { class: "said", dir: "auto", text: turn.text }));
      more.remove();
    });
    block.append(more);
  }
  if (turn.omitted > 0) {
    block.append(element("p", { class: "note", text: `${count(turn.omitted)} more characters are not in this map; the source has them.` }));
  }
  return block;
}

function fact(list, name, value) {
  if (value) list.append(element("dt", { text: name }), element("dd", { dir: "auto", text: value }));
}

export function firstWords(row, limit) {
  const turn = row.turns.find((each) => each.role !== "system" && each.text.trim()) ?? row.turns[0];
  return turn ? excerpt(turn.text, limit) : "(no text)";
}

/** Fill the panel. `state` has map and colours; `open(index)` shows another row. */
export function showDetail(panel, state, index, near, open) {
  const row = state.map.rows[index];
  const heading = panel.querySelector("h2");
  heading.textContent = `Row ${count(index + 1)} of ${count(state.map.rows.length)}`;
  const groups = element("ul", { class: "chips", "aria-label": "Groups" });
  for (const grouping of state.map.groupings) {
    const label = grouping.labels[grouping.of[index]];
    const chip = element("li", { title: grouping.title }, element("span", { class: "what", text: grouping.title }), document.createTextNode(" "));
    if (grouping === state.grouping) chip.prepend(swatch(css(state.colours[grouping.of[index]])));
    chip.append(element("bdi", { text: label }));
    groups.append(chip);
  }
  const facts = element("dl");
  fact(facts, "id", row.id);
  fact(facts, "source", row.source);
  fact(facts, "licence", row.licence);
  fact(facts, "split", row.split);
  for (const [name, value] of Object.entries(row.metadata)) fact(facts, name, typeof value === "string" ? value : JSON.stringify(value));
  const nearby = element("ol", { class: "rows" });
  for (const other of near) {
    const entry = element("button", { type: "button", onclick: () => open(other) });
    entry.append(swatch(css(state.colours[state.grouping.of[other]])), element("bdi", { text: firstWords(state.map.rows[other], 90) }));
    nearby.append(element("li", {}, entry));
  }
  const parts = [groups];
  if (row.reason) {
    parts.unshift(element("p", { class: "reason" }, element("strong", { text: `Excluded: ${row.reason}` }), element("span", { dir: "auto", text: row.detail ? ` ${row.detail}` : "" })));
  }
  parts.push(element("div", { class: "turns" }, ...row.turns.map(turnBlock)));
  if (!row.turns.length) parts.push(element("p", { class: "note", text: "This row has no text." }));
  if (facts.childElementCount) parts.push(element("h3", { class: "part", text: "About this row" }), facts);
  if (near.length) parts.push(element("h3", { class: "part", text: "Near it on this map" }), nearby);
  const body = panel.querySelector(".body");
  body.replaceChildren(...parts);
  body.scrollTop = 0;
}
