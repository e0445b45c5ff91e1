// The points in one draw call of WebGL 2. Owns the buffers on the graphics card.

const VERTEX = `#version 300 es
in vec3 before; in vec3 after; in vec3 colour; in float state;
uniform mat4 matrix; uniform float mixed, size, reach, ratio; uniform vec3 paper;
out vec4 tint; out float edge;
void main() {
  gl_Position = matrix * vec4(mix(before, after, mixed), 1.0);
  float depth = gl_Position.w;
  float raised = step(2.5, state), dimmed = 1.0 - step(1.5, state);
  gl_PointSize = clamp(size / depth * (1.0 + 0.7 * raised - 0.3 * dimmed), 2.0 * ratio, 48.0 * ratio);
  edge = 1.5 / gl_PointSize;
  float fog = clamp((depth - reach + 0.75) / 2.4, 0.0, 0.62) * (1.0 - raised);
  tint = vec4(mix(mix(colour, paper, fog), paper, 0.84 * dimmed), 1.0);
  if (dimmed > 0.5) gl_Position.z = mix(gl_Position.z, gl_Position.w, 0.5); // behind what was found
  if (state < 0.5 || depth < 0.02) gl_Position = vec4(2.0, 2.0, 2.0, 1.0);
}`;

const FRAGMENT = `#version 300 es
precision mediump float;
in vec4 tint; in float edge; out vec4 pixel;
void main() {
  vec2 at = gl_PointCoord * 2.0 - 1.0;
  float away = length(at);
  if (away > 1.0) discard;
  float light = 1.06 - 0.26 * dot(at + vec2(0.35, 0.35), at + vec2(0.35, 0.35)) * 0.6;
  pixel = vec4(tint.rgb * light, 1.0 - smoothstep(1.0 - edge, 1.0, away));
}`;

function build(gl) {
  const program = gl.createProgram();
  for (const [type, source] of [[gl.VERTEX_SHADER, VERTEX], [gl.FRAGMENT_SHADER, FRAGMENT]]) {
    const shader = gl.createShader(type);
    gl.shaderSource(shader, source);
    gl.compileShader(shader);
    gl.attachShader(program, shader);
  }
  gl.linkProgram(program);
  if (!gl.getProgramParameter(program, gl.LINK_STATUS) && !gl.isContextLost()) throw new Error(gl.getProgramInfoLog(program));
  return program;
}

const IN_SOFTWARE = /swiftshader|llvmpipe|softpipe|software|basic render/i;

/** A context, or null where there is none. One that draws in software counts as none unless `anyhow`: the raster is faster. */
export function webglContext(canvas, anyhow) {
  const probe = anyhow ? null : document.createElement("canvas").getContext("webgl2", { failIfMajorPerformanceCaveat: true });
  if (!anyhow && !probe) return null;
  const named = probe?.getExtension("WEBGL_debug_renderer_info");
  const renderer = named ? String(probe.getParameter(named.UNMASKED_RENDERER_WEBGL)) : "";
  probe?.getExtension("WEBGL_lose_context")?.loseContext();
  return IN_SOFTWARE.test(renderer) ? null : canvas.getContext("webgl2", { antialias: false, alpha: false, powerPreference: "high-performance" });
}

export class WebglPainter {
  name = "webgl";

  constructor(gl, scene) {
    this.gl = gl;
    this.scene = scene;
    this.prepare();
    gl.canvas.addEventListener("webglcontextlost", (event) => event.preventDefault());
    gl.canvas.addEventListener("webglcontextrestored", () => {
      this.prepare();
      if (scene.num) for (const name of ["before", "after", "colour", "state"]) this.upload(name);
      scene.onrestored?.();
    });
  }

  prepare() {
    const { gl } = this;
    this.program = build(gl);
    gl.useProgram(this.program);
    this.buffers = {};
    for (const [name, width] of [["before", 3], ["after", 3], ["colour", 4], ["state", 1]]) {
      const place = gl.getAttribLocation(this.program, name);
      this.buffers[name] = gl.createBuffer();
      gl.bindBuffer(gl.ARRAY_BUFFER, this.buffers[name]);
      gl.enableVertexAttribArray(place);
      if (width === 3) gl.vertexAttribPointer(place, 3, gl.FLOAT, false, 0, 0);
      else gl.vertexAttribPointer(place, width === 4 ? 3 : 1, gl.UNSIGNED_BYTE, width === 4, width, 0);
    }
    const uniforms = ["matrix", "mixed", "size", "reach", "ratio", "paper"];
    this.place = Object.fromEntries(uniforms.map((name) => [name, gl.getUniformLocation(this.program, name)]));
    gl.enable(gl.DEPTH_TEST);
    gl.enable(gl.BLEND);
    gl.blendFunc(gl.SRC_ALPHA, gl.ONE_MINUS_SRC_ALPHA);
  }

  /** Bring a changed array of the scene to the card. */
  upload(name) {
    this.gl.bindBuffer(this.gl.ARRAY_BUFFER, this.buffers[name]);
    this.gl.bufferData(this.gl.ARRAY_BUFFER, this.scene[name], this.gl.STATIC_DRAW);
  }

  draw() {
    const { gl, scene } = this;
    const { canvas } = gl;
    const { camera } = scene;
    if (gl.isContextLost()) return;
    const ratio = Math.min(2, window.devicePixelRatio || 1);
    const [width, height] = [Math.round(camera.width * ratio), Math.round(camera.height * ratio)];
    if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
    gl.viewport(0, 0, width, height);
    gl.clearColor(...scene.paper, 1);
    gl.clear(gl.COLOR_BUFFER_BIT | gl.DEPTH_BUFFER_BIT);
    if (!scene.num) return;
    gl.uniformMatrix4fv(this.place.matrix, false, camera.matrix());
    gl.uniform1f(this.place.mixed, scene.mixed);
    gl.uniform1f(this.place.size, 2 * scene.radius * camera.focal * ratio);
    gl.uniform1f(this.place.reach, camera.distance);
    gl.uniform1f(this.place.ratio, ratio);
    gl.uniform3f(this.place.paper, ...scene.paper);
    gl.drawArrays(gl.POINTS, 0, scene.num);
  }
}
