// Colours of groups, made in OKLCH so that all are about equally loud on either background.

const STRIDE = 5; // neighbours in the list lie far apart on the wheel of twelve hues
const QUIET = /^(other \([\d,]+\)|unknown|undecided|kept|all)$/;

/** sRGB bytes of an OKLCH colour (Ottosson 2020); chroma is lowered until it can be shown. */
function fromOklch(lightness, chroma, hue) {
  for (let c = chroma; ; c -= 0.01) {
    const a = Math.max(c, 0) * Math.cos((hue * Math.PI) / 180);
    const b = Math.max(c, 0) * Math.sin((hue * Math.PI) / 180);
    const l = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3;
    const m = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3;
    const s = (lightness - 0.0894841775 * a - 1.291485548 * b) ** 3;
    const linear = [
      4.0767416621 * l - 3.3077115913 * m + 0.2309699292 * s,
      -1.2684380046 * l + 2.6097574011 * m - 0.3413193965 * s,
      -0.0041960863 * l - 0.7034186147 * m + 1.707614701 * s,
    ];
    if (c <= 0 || linear.every((value) => value >= -0.001 && value <= 1.001)) {
      return linear.map((value) => {
        const v = Math.min(1, Math.max(0, value));
        return Math.round(255 * (v <= 0.0031308 ? 12.92 * v : 1.055 * v ** (1 / 2.4) - 0.055));
      });
    }
  }
}

/** [red, green, blue] for each label. */
export function palette(grouping, dark) {
  const total = grouping.labels.length;
  if (grouping.ordered) {
    return grouping.labels.map((_, at) => {
      const part = total > 1 ? at / (total - 1) : 0.5;
      return fromOklch((dark ? 0.5 : 0.4) + (dark ? 0.38 : 0.36) * part, 0.15, 285 - 195 * part);
    });
  }
  let taken = 0;
  return grouping.labels.map((label) => {
    if (QUIET.test(label)) return fromOklch(dark ? 0.5 : 0.72, 0.012, 80);
    const at = taken;
    taken += 1;
    const ring = Math.floor(at / 12);
    const hue = 40 + 30 * ((at * STRIDE) % 12) + 15 * (ring % 2);
    const step = at % 2 ? -0.05 : 0.03;
    const base = dark ? [0.74, 0.62][ring % 2] : [0.62, 0.47][ring % 2];
    return fromOklch(base + step, ring % 2 ? 0.13 : 0.16, hue);
  });
}

export function css([red, green, blue]) {
  return `rgb(${red} ${green} ${blue})`;
}
