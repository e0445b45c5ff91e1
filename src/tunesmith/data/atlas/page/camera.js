// A camera that circles a target. Angles in radians, lengths in the unit of the map (its radius is 1).

const FIELD_OF_VIEW = 0.7;
const NEAREST = 0.08;
const FARTHEST = 12;
const HOME = { yaw: 0.6, pitch: 0.35, distance: 2.75 };

export class Camera {
  constructor() {
    this.reset();
    this.resize(1, 1);
  }

  reset() {
    Object.assign(this, HOME);
    this.target = [0, 0, 0];
  }

  /** Size of the picture in CSS pixels; its margins are covered by panels, and the target is shown between them. */
  resize(width, height, { left = 0, right = 0, top = 0, bottom = 0 } = {}) {
    this.width = Math.max(1, width);
    this.height = Math.max(1, height);
    this.left = left;
    this.right = right;
    this.shift = (left - right) / this.width;
    this.lift = (bottom - top) / this.height;
    this.room = Math.max(0.45, Math.min(this.height - top - bottom, this.width - left - right) / this.height);
  }

  orbit(dx, dy) {
    this.yaw -= dx;
    this.pitch = Math.min(1.55, Math.max(-1.55, this.pitch + dy));
  }

  zoom(factor) {
    this.distance = Math.min(FARTHEST, Math.max(NEAREST, this.distance * factor));
  }

  /** Move the target by CSS pixels of the picture. */
  pan(dx, dy) {
    const { right, up } = this.axes();
    const unit = (this.distance * Math.tan(FIELD_OF_VIEW / 2) * 2) / (this.height * this.room);
    for (let axis = 0; axis < 3; axis += 1) this.target[axis] += (-dx * right[axis] + dy * up[axis]) * unit;
    const away = Math.hypot(...this.target);
    if (away > 2) this.target = this.target.map((value) => (value * 2) / away);
  }

  axes() {
    const [sy, cy, sp, cp] = [Math.sin(this.yaw), Math.cos(this.yaw), Math.sin(this.pitch), Math.cos(this.pitch)];
    return { right: [cy, 0, -sy], up: [-sy * sp, cp, -cy * sp], back: [sy * cp, sp, cy * cp] };
  }

  /** Pixels that a length of 1 takes at depth 1. */
  get focal() {
    return (this.height * this.room) / (2 * Math.tan(FIELD_OF_VIEW / 2));
  }

  /** The 4x4 matrix (by columns) from the map to clip space; w is the depth. */
  matrix() {
    const { right, up, back } = this.axes();
    const eye = this.target.map((value, axis) => value + back[axis] * this.distance);
    const dot = (axis) => axis[0] * eye[0] + axis[1] * eye[1] + axis[2] * eye[2];
    const sx = (2 * this.focal) / this.width;
    const sy = (2 * this.focal) / this.height;
    const [near, far] = [0.01, FARTHEST + 4];
    const a = (far + near) / (far - near);
    const b = (-2 * far * near) / (far - near);
    const matrix = new Float32Array(16);
    for (let axis = 0; axis < 4; axis += 1) {
      const entry = (vector) => (axis < 3 ? vector[axis] : -dot(vector));
      const depth = -entry(back);
      matrix[axis * 4] = sx * entry(right) + this.shift * depth;
      matrix[axis * 4 + 1] = sy * entry(up) + this.lift * depth;
      matrix[axis * 4 + 2] = a * depth + (axis === 3 ? b : 0);
      matrix[axis * 4 + 3] = depth;
    }
    return matrix;
  }

  /** [x, y, depth] in CSS pixels of a place on the map; depth <= 0 lies behind the camera. */
  project(matrix, x, y, z) {
    const w = matrix[3] * x + matrix[7] * y + matrix[11] * z + matrix[15];
    const cx = (matrix[0] * x + matrix[4] * y + matrix[8] * z + matrix[12]) / w;
    const cy = (matrix[1] * x + matrix[5] * y + matrix[9] * z + matrix[13]) / w;
    return [(cx + 1) * 0.5 * this.width, (1 - cy) * 0.5 * this.height, w];
  }
}
