// The names of groups, floating over the map: each at the median of its group, and only where it covers no nearer one.

import { element, excerpt } from "./text.js";

const LONGEST = 34;
const SAMPLED = 400; // rows that a median is taken of
const HALF_HEIGHT = 11;

export class Names {
  constructor(layer, camera) {
    this.layer = layer;
    this.camera = camera;
    this.anchors = [];
  }

  /** A name for each group of a grouping, where `points` has its rows. null: no names. */
  load(grouping, points) {
    const members = grouping ? grouping.labels.map(() => []) : [];
    grouping?.of.forEach((label, row) => members[label].push(row));
    this.anchors = members.flatMap((rows, label) => {
      if (!rows.length) return [];
      const sample = rows.filter((_, at) => at % Math.ceil(rows.length / SAMPLED) === 0);
      const place = [0, 1, 2].map((axis) => sample.map((row) => points[row * 3 + axis]).sort((left, right) => left - right)[sample.length >> 1]);
      return [{ label, place, node: element("span", {}, element("bdi", { text: excerpt(grouping.labels[label], LONGEST) })), width: 0 }];
    });
    this.layer.replaceChildren(...this.anchors.map((anchor) => anchor.node));
    for (const anchor of this.anchors) anchor.width = anchor.node.offsetWidth;
  }

  /** While the points move to another layout the names are away. */
  hide(hidden) {
    this.layer.classList.toggle("moving", hidden);
  }

  /** Put the names where the camera sees their groups, the nearest first. */
  place(matrix, hidden) {
    const { camera } = this;
    const [low, high] = [camera.left + 4, camera.width - camera.right - 4];
    const taken = [];
    const seen = this.anchors.map((anchor) => ({ anchor, at: camera.project(matrix, ...anchor.place) })).sort((left, right) => left.at[2] - right.at[2]);
    for (const { anchor, at: [x, y, depth] } of seen) {
      const box = [x - anchor.width / 2 - 4, y - HALF_HEIGHT, x + anchor.width / 2 + 4, y + HALF_HEIGHT];
      const free = !hidden.has(anchor.label) && depth > 0.1 && box[0] > low && box[2] < high
        && !taken.some((other) => box[0] < other[2] && box[2] > other[0] && box[1] < other[3] && box[3] > other[1]);
      anchor.node.classList.toggle("shown", free);
      if (!free) continue;
      taken.push(box);
      anchor.node.style.transform = `translate(${x}px, ${y}px) translate(-50%, -50%)`;
    }
  }
}
