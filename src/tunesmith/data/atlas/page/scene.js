// The points: where each is at this moment, its colour and state, and which one is under a place on the screen. A painter
// (webgl.js, raster.js) puts them on the canvas. Knows nothing of rows.

export const HIDDEN = 0;
export const DIMMED = 1;
export const SHOWN = 2;
export const RAISED = 3;

export class Scene {
  constructor(camera) {
    this.camera = camera;
    this.paper = [0, 0, 0];
    this.mixed = 1;
    this.num = 0;
    this.painter = null;
  }

  /** points: Float32Array of 3 N coordinates. */
  load(points) {
    this.num = points.length / 3;
    this.before = points;
    this.after = points;
    this.mixed = 1;
    this.colour = new Uint8Array(this.num * 4);
    this.state = new Uint8Array(this.num).fill(SHOWN);
    this.radius = Math.min(0.03, Math.max(0.0045, 0.0075 * (50000 / this.num) ** 0.33));
    for (const name of ["before", "after", "colour", "state"]) this.painter.upload(name);
  }

  /** Start on the way to another layout; `mixed` then goes from 0 to 1. */
  moveTo(points) {
    if (this.mixed > 0 && this.mixed < 1) {
      const between = new Float32Array(this.before.length);
      for (let at = 0; at < between.length; at += 1) between[at] = this.before[at] + (this.after[at] - this.before[at]) * this.mixed;
      this.before = between;
    } else this.before = this.mixed ? this.after : this.before;
    this.after = points;
    this.mixed = 0;
    this.painter.upload("before");
    this.painter.upload("after");
  }

  at(index) {
    return [0, 1, 2].map((axis) => {
      const start = this.before[index * 3 + axis];
      return start + (this.after[index * 3 + axis] - start) * this.mixed;
    });
  }

  /** Radius of a point in CSS pixels at a depth. */
  pixels(depth) {
    return Math.min(24, Math.max(1, (this.radius * this.camera.focal) / depth));
  }

  /** The point under a place in CSS pixels: the nearest to the eye whose disc holds it, else the nearest within `reach`. -1: none. */
  pick(x, y, reach = 8) {
    const { camera, before, after, mixed, state } = this;
    const m = camera.matrix();
    let [inside, depthInside, near, awayNear] = [-1, Infinity, -1, reach * reach];
    for (let index = 0, p = 0; index < this.num; index += 1, p += 3) {
      if (state[index] < SHOWN) continue;
      const a = before[p] + (after[p] - before[p]) * mixed;
      const b = before[p + 1] + (after[p + 1] - before[p + 1]) * mixed;
      const c = before[p + 2] + (after[p + 2] - before[p + 2]) * mixed;
      const w = m[3] * a + m[7] * b + m[11] * c + m[15];
      if (w < 0.02) continue;
      const dx = ((m[0] * a + m[4] * b + m[8] * c + m[12]) / w + 1) * 0.5 * camera.width - x;
      if (dx > 24 || dx < -24) continue;
      const dy = (1 - (m[1] * a + m[5] * b + m[9] * c + m[13]) / w) * 0.5 * camera.height - y;
      const away = dx * dx + dy * dy;
      const radius = this.pixels(w);
      if (away <= radius * radius && w < depthInside) [inside, depthInside] = [index, w];
      if (away < awayNear) [near, awayNear] = [index, away];
    }
    return inside >= 0 ? inside : near;
  }

  /** The shown points nearest to one, in the layout that is shown. */
  neighbours(index, wanted) {
    const from = this.at(index);
    const best = [];
    for (let other = 0, p = 0; other < this.num; other += 1, p += 3) {
      if (other === index || this.state[other] === HIDDEN) continue;
      const away = (this.after[p] - from[0]) ** 2 + (this.after[p + 1] - from[1]) ** 2 + (this.after[p + 2] - from[2]) ** 2;
      if (best.length < wanted || away < best[best.length - 1][0]) {
        best.push([away, other]);
        best.sort((left, right) => left[0] - right[0]);
        best.length = Math.min(best.length, wanted);
      }
    }
    return best.map(([, other]) => other);
  }
}
