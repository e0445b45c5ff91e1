// The points drawn by the processor, with a depth for every pixel. Where WebGL would itself run on the processor (virtual
// machines, remote desktops), this takes about a fifth of its time.

const LARGEST = 28; // pixels across

/** Pixels of a disc: offsets from its middle, and which of three shades each has (0 lit, 1 plain, 2 rim). */
function makeStamp(across) {
  const pixels = [];
  const middle = (across - 1) / 2;
  const shift = Math.floor(across / 2);
  for (let y = 0; y < across; y += 1) {
    for (let x = 0; x < across; x += 1) {
      const away = Math.hypot(x - middle, y - middle);
      const covered = across / 2 - away + 0.5;
      if (covered < 0.4) continue;
      const lit = Math.hypot(x - middle + across * 0.16, y - middle + across * 0.16) < across * 0.3;
      pixels.push([x - shift, y - shift, covered < 0.95 && across > 2 ? 2 : lit ? 0 : 1]);
    }
  }
  return { x: Int8Array.from(pixels, (each) => each[0]), y: Int8Array.from(pixels, (each) => each[1]), shade: Uint8Array.from(pixels, (each) => each[2]) };
}

export class RasterPainter {
  name = "raster";

  constructor(canvas, scene) {
    this.canvas = canvas;
    this.scene = scene;
    this.context = canvas.getContext("2d", { alpha: false, willReadFrequently: true });
    this.stamps = Array.from({ length: LARGEST + 1 }, (_, across) => makeStamp(across));
  }

  upload() {} // it reads the arrays of the scene

  resize(width, height) {
    Object.assign(this.canvas, { width, height });
    this.image = this.context.createImageData(width, height);
    this.pixels = new Uint32Array(this.image.data.buffer);
    this.depths = new Float32Array(width * height);
    for (const stamp of this.stamps) stamp.offset = Int32Array.from(stamp.x, (x, at) => stamp.y[at] * width + x);
  }

  draw() {
    const { scene, canvas } = this;
    const { camera } = scene;
    const [width, height] = [Math.round(camera.width), Math.round(camera.height)];
    if (canvas.width !== width || canvas.height !== height || !this.image) this.resize(width, height);
    const [red, green, blue] = scene.paper.map((value) => Math.round(value * 255));
    this.pixels.fill(0xff000000 | (blue << 16) | (green << 8) | red);
    this.depths.fill(Infinity);
    if (scene.num) this.drawPoints(camera.matrix(), width, height, [red, green, blue]);
    this.context.putImageData(this.image, 0, 0);
  }

  drawPoints(m, width, height, [paperRed, paperGreen, paperBlue]) {
    const { pixels, depths, stamps, scene } = this;
    const { before, after, mixed, state, colour, radius, num, camera } = scene;
    const size = 2 * radius * camera.focal;
    const [halfWidth, halfHeight, reach] = [width / 2, height / 2, camera.distance - 0.75];
    const shades = new Int32Array(3);
    for (let index = 0, p = 0; index < num; index += 1, p += 3) {
      const kind = state[index];
      if (kind === 0) continue;
      const x = before[p] + (after[p] - before[p]) * mixed;
      const y = before[p + 1] + (after[p + 1] - before[p + 1]) * mixed;
      const z = before[p + 2] + (after[p + 2] - before[p + 2]) * mixed;
      const w = m[3] * x + m[7] * y + m[11] * z + m[15];
      if (w < 0.02) continue;
      const left = Math.floor(((m[0] * x + m[4] * y + m[8] * z + m[12]) / w + 1) * halfWidth);
      const top = Math.floor((1 - (m[1] * x + m[5] * y + m[9] * z + m[13]) / w) * halfHeight);
      const across = Math.min(LARGEST, Math.max(2, Math.round((size / w) * (kind === 3 ? 1.7 : kind === 1 ? 0.7 : 1))));
      const half = (across >> 1) + 1;
      if (left < -half || top < -half || left >= width + half || top >= height + half) continue;
      const fog = kind === 3 ? 0 : Math.min(0.62, Math.max(0, (w - reach) / 2.4));
      const paper = kind === 1 ? 1 - (1 - fog) * 0.16 : fog;
      const c = index * 4;
      const red = colour[c] + (paperRed - colour[c]) * paper;
      const green = colour[c + 1] + (paperGreen - colour[c + 1]) * paper;
      const blue = colour[c + 2] + (paperBlue - colour[c + 2]) * paper;
      shades[1] = 0xff000000 | (blue << 16) | (green << 8) | red;
      shades[0] = 0xff000000 | (Math.min(255, blue * 1.1) << 16) | (Math.min(255, green * 1.1) << 8) | Math.min(255, red * 1.1);
      shades[2] = 0xff000000 | ((blue * 0.7 + paperBlue * 0.3) << 16) | ((green * 0.7 + paperGreen * 0.3) << 8) | (red * 0.7 + paperRed * 0.3);
      const depth = kind === 1 ? w + 100 : w; // what was not found lies behind what was
      const { offset, shade, x: dx, y: dy } = stamps[across];
      const base = top * width + left;
      const within = left >= half && top >= half && left < width - half && top < height - half;
      for (let k = 0; k < offset.length; k += 1) {
        if (!within && (left + dx[k] < 0 || left + dx[k] >= width || top + dy[k] < 0 || top + dy[k] >= height)) continue;
        const at = base + offset[k];
        if (depth < depths[at]) {
          depths[at] = depth;
          pixels[at] = shades[shade[k]];
        }
      }
    }
  }
}
