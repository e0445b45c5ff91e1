// The first words of the row under the pointer.

import { element, excerpt } from "./text.js";
import { css } from "./colours.js";
import { firstWords } from "./detail.js";

const GAP = 16; // pixels between pointer and words
const MARGIN = 8;

export class Tooltip {
  constructor(box) {
    this.box = box;
    this.shown = -1;
  }

  hide() {
    this.box.hidden = true;
    this.shown = -1;
  }

  show(state, index, x, y) {
    if (index !== this.shown) {
      this.shown = index;
      const at = state.grouping.of[index];
      const label = element("span", { class: "what" }, element("bdi", { text: excerpt(state.grouping.labels[at], 60) }));
      label.style.setProperty("--tint", css(state.colours[at]));
      this.box.replaceChildren(label, element("bdi", { text: firstWords(state.map.rows[index], 150) }));
    }
    this.box.hidden = false;
    const { width, height } = this.box.getBoundingClientRect();
    const left = x + GAP + width > innerWidth - MARGIN ? x - GAP - width : x + GAP;
    const top = Math.min(y + GAP, innerHeight - height - MARGIN);
    this.box.style.transform = `translate(${Math.max(MARGIN, left)}px, ${Math.max(MARGIN, top)}px)`;
  }
}
