// Text of rows as elements. Rows are written by anyone: their text only ever becomes text nodes, and characters that are
// not seen, or that turn the order of what follows, are named instead of obeyed.

const UNSEEN = /[\u0000-\u0008\u000b\u000c\u000e-\u001f\u007f-\u009f\u00ad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff\ufff9-\ufffb\u{e0000}-\u{e007f}]/gu;

export function visible(text) {
  return text.replace(UNSEEN, (character) => `‹U+${character.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}›`);
}

/** The first `limit` characters on one line. */
export function excerpt(text, limit) {
  const line = visible(text.slice(0, limit * 2)).replace(/\s+/g, " ").trim();
  return line.length > limit ? `${line.slice(0, limit).trimEnd()}…` : line;
}

export function count(number) {
  return number.toLocaleString("en");
}

/** element("button", { class: "quiet", type: "button", text: "Close", onclick }, child, ...) */
export function element(tag, options = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(options)) {
    if (name === "text") made.textContent = visible(value);
    else if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined) made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

export function swatch(colour) {
  const made = element("span", { class: "swatch", "aria-hidden": "true" });
  made.style.background = colour;
  return made;
}
