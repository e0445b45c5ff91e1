// Mouse, pen and fingers on the canvas, told as what they mean: turn, move, zoom, click, hover. Knows nothing of the map.

const CLICK_PIXELS = 5; // a pointer that travels less was a click

function shape(fingers) {
  const points = [...fingers.values()];
  const middle = [0, 1].map((axis) => points.reduce((sum, point) => sum + point[axis], 0) / points.length);
  const spread = points.length > 1 ? Math.hypot(points[0][0] - points[1][0], points[0][1] - points[1][1]) : 0;
  return { middle, spread };
}

/** tell: { turn(dx, dy), move(dx, dy), zoom(factor), click(x, y, coarse), dive(x, y), hover(x, y), leave() }, all in CSS pixels. */
export function watchGestures(canvas, tell) {
  const fingers = new Map();
  let travelled = 0;
  let waiting = 0;

  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    fingers.set(event.pointerId, [event.clientX, event.clientY]);
    if (fingers.size === 1) travelled = 0;
    tell.leave();
  });

  canvas.addEventListener("pointermove", (event) => {
    if (!fingers.has(event.pointerId)) {
      cancelAnimationFrame(waiting);
      if (event.pointerType === "mouse") waiting = requestAnimationFrame(() => tell.hover(event.clientX, event.clientY));
      return;
    }
    const before = shape(fingers);
    fingers.set(event.pointerId, [event.clientX, event.clientY]);
    const after = shape(fingers);
    const [dx, dy] = [after.middle[0] - before.middle[0], after.middle[1] - before.middle[1]];
    travelled += Math.hypot(dx, dy) + Math.abs(after.spread - before.spread);
    if (travelled < CLICK_PIXELS) return;
    if (fingers.size > 1) {
      tell.move(dx, dy);
      if (after.spread && before.spread) tell.zoom(before.spread / after.spread);
    } else if (event.shiftKey || event.buttons & 6) tell.move(dx, dy);
    else tell.turn(dx, dy);
  });

  const release = (event) => {
    const last = fingers.delete(event.pointerId) && fingers.size === 0;
    if (event.type !== "pointerup" || !last || travelled >= CLICK_PIXELS || event.button !== 0) return;
    tell.click(event.clientX, event.clientY, event.pointerType !== "mouse");
  };
  canvas.addEventListener("pointerup", release);
  canvas.addEventListener("pointercancel", release);
  canvas.addEventListener("pointerleave", () => {
    cancelAnimationFrame(waiting);
    tell.leave();
  });
  canvas.addEventListener("contextmenu", (event) => event.preventDefault());
  canvas.addEventListener("dblclick", (event) => tell.dive(event.clientX, event.clientY));
  canvas.addEventListener("wheel", (event) => {
    event.preventDefault();
    const lines = event.deltaMode === WheelEvent.DOM_DELTA_LINE ? 20 : 1;
    tell.zoom(Math.exp(Math.max(-80, Math.min(80, event.deltaY * lines)) * 0.0022));
    tell.leave();
  }, { passive: false });
}
