"""HTML of a chat answer as the Markdown it was written in: code fences with their language, tables, lists, maths, links.

The marks of the page itself go: copy buttons, code headers, page counters ("2 / 3"), footers that count characters. Text
stands as it is: nothing is escaped, because `snake_case` must stay `snake_case`. Refuses to know whose turn it is.
"""

from __future__ import annotations

import re
from typing import Any

from tunesmith.errors import MissingExtra

_SPACES = re.compile(r"[ \t\n\r\f]+")
_TICKS = re.compile(r"`+")
_LANGUAGE = re.compile(r"\blang(?:uage)?-([\w+#.-]+)")
_COUNTER = re.compile(r"\A\s*\d{1,3} / \d{1,3}(?!\d|(?:st|nd|rd|th)\b)\s*")
_FOOTER = re.compile(r"\s*Copy\d+ chars / \d+ words\s*\Z")
_CODE_HEADER = re.compile(r"\A\s*([\w+#.-]*?)(?:Copy code)+\s?")
_LOOKS_LIKE_HTML = re.compile(r"\A\s*<(div|p|pre|ol|ul|h[1-6]|table|blockquote|span)\b[^>]*>", re.IGNORECASE)

_SKIPPED = frozenset(
    ("button", "script", "style", "svg", "noscript", "head", "template", "-comment", "input", "iframe")
)
_BLOCKS = frozenset(
    (
        "address",
        "article",
        "aside",
        "blockquote",
        "body",
        "center",
        "dd",
        "details",
        "div",
        "dl",
        "dt",
        "fieldset",
        "figcaption",
        "figure",
        "footer",
        "form",
        "h1",
        "h2",
        "h3",
        "h4",
        "h5",
        "h6",
        "header",
        "hr",
        "li",
        "main",
        "nav",
        "ol",
        "p",
        "pre",
        "section",
        "summary",
        "table",
        "tbody",
        "td",
        "tfoot",
        "th",
        "thead",
        "tr",
        "ul",
    )
)
_HEADINGS = {f"h{level}": "#" * level + " " for level in range(1, 7)}
_EMPHASIS = {"strong": "**", "b": "**", "em": "*", "i": "*", "del": "~~", "s": "~~", "strike": "~~"}
_KEPT_TAGS = frozenset(("sub", "sup", "kbd", "u"))  # Markdown has no form of its own for these


def is_html(text: str) -> bool:
    """Whether a text is the HTML of an answer rather than its Markdown: it begins and ends with a block's tag."""
    return _LOOKS_LIKE_HTML.match(text) is not None and text.rstrip().endswith(">")


def strip_page_marks(text: str) -> str:
    """Text without the page's own counters: "2 / 3" at its start, "Copy120 chars / 25 words" at its end."""
    text = _COUNTER.sub("", text).strip()
    # Asked first how it ends: the pattern alone would be tried at every space of a long text.
    return _FOOTER.sub("", text).strip() if text.endswith(" words") else text


def html_to_markdown(html: str) -> str:
    """Markdown of an HTML fragment. MissingExtra without selectolax. Broken HTML is read as a browser reads it."""
    try:
        from selectolax.lexbor import LexborHTMLParser
    except ImportError:
        raise MissingExtra("selectolax", "data", "reading the HTML of a saved page") from None
    body = LexborHTMLParser(html).body
    if body is None:
        return ""
    return strip_page_marks("\n\n".join(_blocks(body)))


def _blocks(parent: Any) -> list[str]:
    """The blocks inside a node, each without an empty line around it; text between blocks is a block of its own."""
    blocks: list[str] = []
    line: list[str] = []
    for node in parent.iter(include_text=True, skip_empty=False):
        tag = node.tag
        if tag == "-text":
            line.append(_one_spaced(node.text_content))
        elif tag in _SKIPPED:
            _script_math(node, tag, line)
        elif tag not in _BLOCKS:
            if not _has_blocks(node):
                _inline_node(node, tag, line)
                continue
            _end_line(line, blocks)
            blocks += _blocks(node)
        else:
            _end_line(line, blocks)
            _block_node(node, tag, blocks)
    _end_line(line, blocks)
    return blocks


def _one_spaced(text: str) -> str:
    return _SPACES.sub(" ", text) if "\n" in text or "  " in text or "\t" in text else text


def _end_line(line: list[str], blocks: list[str]) -> None:
    if line:
        text = _tidy("".join(line))
        if text:
            blocks.append(text)
        line.clear()


def _tidy(text: str) -> str:
    """One paragraph: no space around its ends or its line breaks, single spaces where two inline nodes met."""
    if "  " in text and "`" not in text:
        text = re.sub(r" {2,}", " ", text)
    if "\n" in text:
        text = "\n".join(part.strip(" ") for part in text.split("\n"))
    return text.strip()


def _has_blocks(node: Any) -> bool:
    """Whether an inline tag (a span, a link) wraps blocks, which browsers allow and pages do."""
    child = node.first_child
    while child is not None:
        tag = child.tag
        if tag != "-text" and (tag in _BLOCKS or _has_blocks(child)):
            return True
        child = child.next
    return False


def _block_node(node: Any, tag: str, blocks: list[str]) -> None:
    if tag == "p" or tag in _HEADINGS:
        text = "\n\n".join(_blocks(node)) if _has_blocks(node) else _tidy(_inline(node))
        if text:
            blocks.append(_HEADINGS.get(tag, "") + (" ".join(text.split("\n")) if tag in _HEADINGS else text))
    elif tag == "pre":
        fence = _fence(node)
        if fence:
            blocks.append(fence)
    elif tag in ("ol", "ul"):
        items = _list(node, ordered=tag == "ol")
        if items:
            blocks.append(items)
    elif tag == "table":
        table = _table(node)
        if table:
            blocks.append(table)
    elif tag == "blockquote":
        inner = "\n\n".join(_blocks(node))
        if inner:
            blocks.append("\n".join(f"> {line}" if line else ">" for line in inner.split("\n")))
    elif tag == "hr":
        blocks.append("---")
    else:
        blocks += _blocks(node)


def _inline(parent: Any) -> str:
    """The text of a node without blocks in it."""
    only = parent.first_child
    if only is None:
        return ""
    if only.tag == "-text" and only.next is None:
        return _one_spaced(only.text_content)
    parts: list[str] = []
    for node in parent.iter(include_text=True, skip_empty=False):
        tag = node.tag
        if tag == "-text":
            parts.append(_one_spaced(node.text_content))
        elif tag in _SKIPPED:
            _script_math(node, tag, parts)
        else:
            _inline_node(node, tag, parts)
    return "".join(parts)


def _inline_node(node: Any, tag: str, parts: list[str]) -> None:
    if tag == "br":
        parts.append("\n")
    elif tag in ("code", "tt"):
        parts.append(_code_span(node.text(deep=True)))
    elif tag in _EMPHASIS:
        parts.append(_wrapped(_inline(node), _EMPHASIS[tag]))
    elif tag == "a":
        parts.append(_link(node))
    elif tag == "img":
        attributes = node.attributes
        if attributes.get("src"):
            parts.append(f"![{attributes.get('alt') or ''}]({attributes['src']})")
    elif tag == "math":
        parts.append(_math(node, display=node.attributes.get("display") == "block"))
    elif tag == "span" and "katex" in (kind := node.attributes.get("class") or ""):
        parts.append(_math(node, display="katex-display" in kind))
    elif tag == "span" and "math-display" in (node.attributes.get("class") or ""):
        parts.append(_math(node, display=True))
    elif tag in _KEPT_TAGS:
        parts.append(f"<{tag}>{_inline(node)}</{tag}>")
    else:
        parts.append(_inline(node))


def _wrapped(text: str, mark: str) -> str:
    """Emphasis hugs its text: the spaces at its ends go outside the marks."""
    core = text.strip()
    if not core:
        return text
    start = text.index(core)
    return f"{text[:start]}{mark}{core}{mark}{text[start + len(core) :]}"


def _link(node: Any) -> str:
    text, address = _inline(node), node.attributes.get("href")
    core = text.strip()
    if not address or not core:
        return text
    return f"<{address}>" if core == address else f"[{core}]({address})"


def _code_span(text: str) -> str:
    if "`" not in text:
        return f"`{text}`" if text else ""
    marks = "`" * (max(map(len, _TICKS.findall(text))) + 1)
    pad = " " if text[0] == "`" or text[-1] == "`" else ""
    return f"{marks}{pad}{text}{pad}{marks}"


def _math(node: Any, *, display: bool) -> str:
    """The TeX source that KaTeX and MathML carry along; the text where there is none."""
    source = node.css_first('annotation[encoding="application/x-tex"]')
    if source is None:
        return _inline(node) if node.tag != "math" else _SPACES.sub(" ", node.text(deep=True))
    tex = source.text(deep=True).strip()
    return f"\n$$\n{tex}\n$$\n" if display else f"${tex}$"


def _script_math(node: Any, tag: str, parts: list[str]) -> None:
    """MathJax keeps its TeX in a script tag; every other skipped tag gives nothing."""
    if tag != "script":
        return
    kind = node.attributes.get("type") or ""
    if kind.startswith("math/tex"):
        tex = node.text(deep=True).strip()
        parts.append(f"\n$$\n{tex}\n$$\n" if "mode=display" in kind else f"${tex}$")


def _fence(pre: Any) -> str:
    """A code block with the language its class names, else the one its header shows. "" for a block without code."""
    code = pre.css_first("code")
    if code is None:
        text = pre.text(deep=True)
        header = _CODE_HEADER.match(text)
        language, text = (header[1], text[header.end() :]) if header else ("", text)
    else:
        text = code.text(deep=True)
        named = _LANGUAGE.search(code.attributes.get("class") or "") or _LANGUAGE.search(
            pre.attributes.get("class") or ""
        )
        language = named[1] if named else _header_language(pre)
        inside = _CODE_HEADER.match(text) if "Copy code" in text[:60] else None
        if inside:  # pages saved with the button inside the code
            language, text = language or inside[1], text[inside.end() :]
    text = text.strip("\n").rstrip()
    if not text.strip():
        return ""
    longest = max(map(len, _TICKS.findall(text))) if "```" in text else 0
    marks = "`" * max(3, longest + 1)
    return f"{marks}{language}\n{text}\n{marks}"


def _header_language(pre: Any) -> str:
    """The word in the bar above the code, where the page shows one."""
    for node in pre.css("span"):
        word = node.text(deep=True).strip()
        parent = node.parent
        while parent is not None and parent.tag not in ("code", "pre", "button"):
            parent = parent.parent
        if word and parent is not None and parent.tag == "pre" and re.fullmatch(r"[\w+#.-]{1,20}", word):
            return word
    return ""


def _list(node: Any, *, ordered: bool) -> str:
    """Items with their numbers; an empty line between them where the items hold paragraphs, as Markdown writes those."""
    start = node.attributes.get("start") or "1"
    number = int(start) if ordered and start.lstrip("-").isdigit() else 1
    items: list[str] = []
    loose = False
    for item in node.iter(include_text=False):
        if item.tag in ("ol", "ul") and items:  # a nested list that stands beside its item instead of in it
            items[-1] += "\n" + _indented(_list(item, ordered=item.tag == "ol"), "   " if ordered else "  ")
            continue
        blocks = _blocks(item)
        if not blocks:
            number += ordered
            continue
        marker = f"{number}. " if ordered else "- "
        number += ordered
        paragraphs = any(child.tag == "p" for child in item.iter(include_text=False))
        loose = loose or paragraphs
        text = blocks[0]
        for block in blocks[1:]:
            text += ("\n\n" if paragraphs else "\n") + block
        items.append(marker + _indented(text, " " * len(marker)).lstrip())
    return ("\n\n" if loose else "\n").join(items)


def _indented(text: str, indent: str) -> str:
    return "\n".join(indent + line if line else line for line in text.split("\n"))


def _table(node: Any) -> str:
    """A pipe table; the first row is the header, as Markdown must have one."""
    rows = [[_cell(cell) for cell in row.iter() if cell.tag in ("td", "th")] for row in node.css("tr")]
    rows = [row for row in rows if row]
    if not rows:
        return ""
    width = max(map(len, rows))
    head, *body = [row + [""] * (width - len(row)) for row in rows]
    lines = [head, ["---"] * width, *body]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(node: Any) -> str:
    text = " ".join(_blocks(node)) if _has_blocks(node) else _tidy(_inline(node))
    return text.replace("|", "\\|").replace("\n", "<br>")
