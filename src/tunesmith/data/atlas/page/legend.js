// The groups of the chosen colouring: each can be hidden, or shown alone. Owns which groups are hidden.

import { count, element, swatch } from "./text.js";
import { css } from "./colours.js";

export class Legend {
  constructor(list, onchange) {
    this.list = list;
    this.onchange = onchange;
    this.hidden = new Set();
  }

  /** Show a grouping; all its groups are visible. */
  load(grouping, colours) {
    this.hidden = new Set();
    this.total = grouping.labels.length;
    const sizes = new Uint32Array(this.total);
    for (const label of grouping.of) sizes[label] += 1;
    this.entries = grouping.labels.map((label, at) => {
      const number = element("span", { class: "number", text: count(sizes[at]) });
      const toggle = element("button", { type: "button", class: "group", "aria-pressed": "true", title: label, onclick: () => this.toggle(at) });
      toggle.append(swatch(css(colours[at])), element("bdi", { text: label }), number);
      const only = element("button", { type: "button", class: "only quiet", text: "only", onclick: () => this.only(at) });
      only.setAttribute("aria-label", `Show only ${toggle.querySelector("bdi").textContent}`);
      this.list.append(element("li", {}, toggle, only));
      return { toggle, number, size: sizes[at] };
    });
    this.list.replaceChildren(...this.entries.map((entry) => entry.toggle.parentElement));
  }

  recolour(colours) {
    this.entries.forEach((entry, at) => { entry.toggle.querySelector(".swatch").style.background = css(colours[at]); });
  }

  toggle(at) {
    if (!this.hidden.delete(at)) this.hidden.add(at);
    this.update();
  }

  only(at) {
    const alone = this.hidden.size === this.total - 1 && !this.hidden.has(at);
    this.hidden = new Set(alone ? [] : this.entries.map((_, other) => other).filter((other) => other !== at));
    this.update();
  }

  all(shown) {
    this.hidden = new Set(shown ? [] : this.entries.map((_, at) => at));
    this.update();
  }

  update() {
    this.entries.forEach((entry, at) => entry.toggle.setAttribute("aria-pressed", String(!this.hidden.has(at))));
    this.onchange();
  }

  /** Matching rows of each group beside its size; null: no search. */
  showFound(found) {
    this.entries.forEach((entry, at) => {
      entry.number.textContent = found ? `${count(found[at])} / ${count(entry.size)}` : count(entry.size);
    });
  }
}
