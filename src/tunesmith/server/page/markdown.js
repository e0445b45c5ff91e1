// A small Markdown to DOM nodes. Text of a model goes into text nodes only: no markup string is ever parsed as HTML, no
// image is ever loaded, and a link is made for http and https alone.

/** Nodes for a text: paragraphs, headings, lists, quotes, code blocks. */
export function renderMarkdown(text) {
  const nodes = [];
  const lines = text.split("\n");
  for (let at = 0; at < lines.length; ) {
    const line = lines[at];
    const fence = line.match(/^\s{0,3}(```+|~~~+)/);
    if (fence) {
      const end = lines.findIndex((other, index) => index > at && other.trim().startsWith(fence[1]));
      const last = end < 0 ? lines.length : end;
      nodes.push(codeBlock(lines.slice(at + 1, last).join("\n")));
      at = last + 1;
    } else if (!line.trim()) {
      at += 1;
    } else {
      const kind = kindOf(line);
      let end = at + 1;
      while (end < lines.length && lines[end].trim() && !/^\s{0,3}(```|~~~)/.test(lines[end]) && kindOf(lines[end]) === kind && kind !== "heading") end += 1;
      nodes.push(block(kind, lines.slice(at, end)));
      at = end;
    }
  }
  return nodes;
}

/** A block of code; also used for answers that are JSON. */
export function codeBlock(text) {
  return element("pre", [element("code", [document.createTextNode(text)])]);
}

function kindOf(line) {
  if (/^#{1,6}\s/.test(line)) return "heading";
  if (/^\s{0,3}[-*+]\s/.test(line)) return "bullets";
  if (/^\s{0,3}\d{1,9}[.)]\s/.test(line)) return "numbers";
  if (/^\s{0,3}>/.test(line)) return "quote";
  return "paragraph";
}

function block(kind, lines) {
  if (kind === "heading") return element("h3", inline(lines[0].replace(/^#+\s+/, "")));
  if (kind === "quote") return element("blockquote", inline(lines.map((line) => line.replace(/^\s*>\s?/, "")).join("\n")));
  if (kind === "paragraph") return element("p", inline(lines.join("\n")));
  const items = lines.map((line) => element("li", inline(line.replace(/^\s*(?:[-*+]|\d+[.)])\s+/, ""))));
  const list = element(kind === "bullets" ? "ul" : "ol", items);
  if (kind === "numbers") list.start = Number.parseInt(lines[0], 10) || 1;
  return list;
}

const INLINE = /(`+)([^`]|[^`][\s\S]*?[^`])\1(?!`)|\*\*([^*\n]+)\*\*|\*([^*\s][^*\n]*)\*|\[([^\]\n]+)\]\(([^()\s]+)\)/g;

function inline(text) {
  const nodes = [];
  let from = 0;
  for (const match of text.matchAll(INLINE)) {
    if (match.index > from) nodes.push(document.createTextNode(text.slice(from, match.index)));
    from = match.index + match[0].length;
    if (match[2] !== undefined) nodes.push(element("code", [document.createTextNode(match[2])]));
    else if (match[3] !== undefined) nodes.push(element("strong", [document.createTextNode(match[3])]));
    else if (match[4] !== undefined) nodes.push(element("em", [document.createTextNode(match[4])]));
    else nodes.push(link(match[5], match[6], match[0]));
  }
  if (from < text.length) nodes.push(document.createTextNode(text.slice(from)));
  return nodes;
}

function link(label, target, source) {
  if (!/^https?:\/\/[^\s"'<>\\]+$/i.test(target)) return document.createTextNode(source);
  const anchor = element("a", [document.createTextNode(label)]);
  anchor.href = target;
  anchor.target = "_blank";
  anchor.rel = "noopener noreferrer nofollow";
  anchor.title = target;
  return anchor;
}

function element(name, children) {
  const made = document.createElement(name);
  made.append(...children);
  return made;
}
