// Rows that hold every word of a query, and the list of the first of them.

import { element, excerpt, visible } from "./text.js";

const LISTED = 40;

export class Finder {
  constructor(rows) {
    this.rows = rows;
    this.folded = null;
  }

  /** Uint8Array with 1 for each row that holds every word; null for an empty query. */
  find(query) {
    const words = query.toLowerCase().split(/\s+/).filter(Boolean);
    if (!words.length) return null;
    this.folded ??= this.rows.map((row) => `${row.turns.map((turn) => turn.text).join("\n")}\n${row.source}\n${row.id}\n${row.reason}`.toLowerCase());
    const found = new Uint8Array(this.rows.length);
    for (let at = 0; at < found.length; at += 1) {
      const text = this.folded[at];
      found[at] = Number(words.every((word) => text.includes(word)));
    }
    return found;
  }
}

function around(row, word) {
  for (const turn of row.turns) {
    const at = turn.text.toLowerCase().indexOf(word);
    if (at >= 0) {
      const start = Math.max(0, at - 28);
      return [start ? `…${turn.text.slice(start, at)}` : turn.text.slice(0, at), turn.text.slice(at, at + word.length), turn.text.slice(at + word.length, at + 90)];
    }
  }
  return [row.turns[0]?.text.slice(0, 90) ?? "", "", ""];
}

/** Fill the list with the first rows that were found and are shown. */
export function listFound(list, rows, found, isShown, query, open) {
  const word = query.toLowerCase().split(/\s+/).find(Boolean) ?? "";
  const entries = [];
  for (let at = 0; found && at < rows.length && entries.length < LISTED; at += 1) {
    if (!found[at] || !isShown(at)) continue;
    const [before, match, after] = around(rows[at], word).map((part) => visible(part).replace(/\s+/g, " "));
    const words = element("bdi", {}, document.createTextNode(before), element("mark", { text: match }), document.createTextNode(after));
    entries.push(element("li", {}, element("button", { type: "button", title: excerpt(rows[at].source, 120), onclick: () => open(at) }, words)));
  }
  list.replaceChildren(...entries);
  list.hidden = !entries.length;
}
