// The switch between projections, the list of colourings, and what the map says of itself.

import { count, element, excerpt } from "./text.js";

const COUNT_WORDS = {
  placed: "rows", not_drawn: "not drawn", no_text: "without text", no_prompt: "without a prompt", no_reply: "without a reply", no_known_word: "without a known word",
};

/** One button for each projection of the map. */
export function fillProjections(fieldset, map, current, onchoice) {
  const choices = map.projections.map((projection, at) => {
    const input = element("input", { type: "radio", name: "projection", value: String(at), onchange: () => onchoice(at) });
    input.checked = projection === current;
    return element("label", {}, input, element("span", { text: projection.title }));
  });
  fieldset.querySelectorAll("label").forEach((label) => label.remove());
  fieldset.append(...choices);
}

export function fillGroupings(select, map) {
  select.replaceChildren(...map.groupings.map((grouping, at) => element("option", { value: String(at), text: grouping.title })));
}

/** How many rows there are and what became of the others, and by what they lie where they lie. */
export function subtitle(map) {
  const counts = Object.entries(map.counts).filter(([, value]) => typeof value === "number");
  const told = counts.map(([name, value]) => `${count(value)} ${COUNT_WORDS[name] ?? excerpt(name, 40)}`);
  return [told.join(", ") || `${count(map.rows.length)} rows`, excerpt(map.embedding, 160)].filter(Boolean).join(" · ");
}

/** The notes of the map; of a map that was written before its last projection was done, how to see that. */
export function fillNotes(place, map, reload) {
  place.replaceChildren(...map.notes.map((note) => element("p", { class: "note", text: note })));
  if (!map.pending) return;
  const words = element("span", { text: `${map.pending.toUpperCase()} was still being computed when this page was written.` });
  place.prepend(element("p", { class: "note pending" }, words, element("button", { class: "quiet", type: "button", text: "Reload", onclick: reload })));
}
