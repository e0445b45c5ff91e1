"""HTML of chat answers to Markdown: documents per second, code fences and tables found, against the peers that are installed.

    python benchmarks/page_markdown.py [--documents 400]

Peers (markdownify, html2text, html-to-markdown, trafilatura) are optional; a missing one is named. The documents are made
here, with known numbers of fences and tables, so that what a converter loses can be counted. One thread each.
"""

from __future__ import annotations

import argparse
import importlib
import random
import re
import time
from collections.abc import Callable

from tunesmith.data.pages.markdown import html_to_markdown

WORDS = [
    "the",
    "a",
    "small",
    "river",
    "stone",
    "light",
    "of",
    "water",
    "over",
    "slow",
    "green",
    "field",
    "and",
    "when",
    "it",
    "turns",
    "under",
    "old",
    "trees",
]
CODE = (
    '<pre><div class="bg-black rounded-md"><div class="flex items-center"><span>python</span><button class="flex">Copy code'
    '</button></div><div class="p-4"><code class="!whitespace-pre hljs language-python">{code}</code></div></div></pre>'
)
SPAN = '<span class="hljs-keyword">def</span> <span class="hljs-title">f{n}</span>(x):\n    <span class="hljs-keyword">return</span> x &lt; {n}\n'


def document(draw: random.Random) -> tuple[str, int, int]:
    """(HTML of about 6 KB, number of code blocks, number of tables)."""
    parts: list[str] = []
    fences = tables = 0
    for _ in range(draw.randint(10, 17)):
        kind = draw.random()
        if kind < 0.5:
            words = [draw.choice(WORDS) for _ in range(draw.randint(40, 100))]
            words[5], words[20] = f"<strong>{words[5]}</strong>", f"<code>{words[20]}_x</code>"
            parts.append(f"<p>{' '.join(words)}.</p>")
        elif kind < 0.7:
            items = "".join(f"<li><p>{' '.join(draw.choices(WORDS, k=9))}</p></li>" for _ in range(5))
            parts.append(f"<ol>{items}</ol>")
        elif kind < 0.92:
            parts.append(CODE.format(code="".join(SPAN.format(n=n) for n in range(draw.randint(2, 8)))))
            fences += 1
        else:
            row = "<tr><td>a</td><td>b</td><td>c</td></tr>"
            parts.append(
                f"<table><thead><tr><th>x</th><th>y</th><th>z</th></tr></thead><tbody>{row * 4}</tbody></table>"
            )
            tables += 1
    html = f'<div class="markdown prose w-full break-words">{"".join(parts)}</div>'
    return html, fences, tables


def peers() -> dict[str, Callable[[str], str]]:
    found: dict[str, Callable[[str], str]] = {"tunesmith": html_to_markdown}
    for name, module, attribute in [
        ("markdownify", "markdownify", "markdownify"),
        ("html2text", "html2text", "html2text"),
        ("html-to-markdown", "html_to_markdown", "convert"),
    ]:
        try:
            found[name] = getattr(importlib.import_module(module), attribute)
        except ImportError:
            print(f"{name:<18} not installed")
    return found


def _text(result: object) -> str:
    """The Markdown itself where a converter returns more than that."""
    return str(getattr(result, "content", result))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--documents", type=int, default=400)
    draw = random.Random(17)
    documents = [document(draw) for _ in range(parser.parse_args().documents)]
    size = sum(len(html) for html, _, _ in documents)
    fences, tables = sum(d[1] for d in documents), sum(d[2] for d in documents)
    print(f"{len(documents)} documents, mean {size / len(documents):,.0f} characters, {fences} fences, {tables} tables")
    ours = 0.0
    for name, convert in peers().items():
        best = float("inf")
        texts: list[str] = []
        for _ in range(3):
            started = time.perf_counter()
            texts = [_text(convert(html)) for html, _, _ in documents]
            best = min(best, time.perf_counter() - started)
        rate = len(documents) / best
        ours = ours or rate
        found = sum(len(re.findall(r"^ *(?:```|~~~)", text, re.MULTILINE)) // 2 for text in texts)
        named = sum(len(re.findall(r"^ *```python$", text, re.MULTILINE)) for text in texts)
        rows = sum(len(re.findall(r"^\|?(?: ?:?-{3,}:? ?\|?){3}$", text, re.MULTILINE)) for text in texts)
        ratio = f"{ours / rate:5.1f}x slower" if name != "tunesmith" else ""
        print(f"{name:<18} {rate:8,.0f} documents/s  fences {found} (language kept {named})  tables {rows}  {ratio}")


if __name__ == "__main__":
    main()
