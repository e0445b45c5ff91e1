// Which painter puts the points on the canvas.

import { RasterPainter } from "./raster.js";
import { WebglPainter, webglContext } from "./webgl.js";

/** WebGL where a graphics card is behind it. `#webgl` and `#raster` at the end of the address decide otherwise. */
export function choosePainter(canvas, scene) {
  const gl = location.hash === "#raster" ? null : webglContext(canvas, location.hash === "#webgl");
  scene.painter = gl ? new WebglPainter(gl, scene) : new RasterPainter(canvas, scene);
  document.documentElement.dataset.painter = scene.painter.name;
}
