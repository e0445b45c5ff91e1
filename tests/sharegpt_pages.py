"""Writes pages of the kind ShareGPT served, for tests."""

from __future__ import annotations

import json
from typing import Any


def answer(html: str) -> str:
    """An answer as the page holds it."""
    return f'<div class="markdown prose w-full break-words dark:prose-invert light">{html}</div>'


def page(*turns: tuple[str, str], model: str | None = "Model: GPT-4", **content: Any) -> str:
    """A whole page with these turns (from, value)."""
    items = [{"from": who, "value": value} for who, value in turns]
    fields = {"title": "A talk", "avatarUrl": "https://e.org/me.png", "items": items, **content}
    if model is not None:
        fields["model"] = model
    data = {
        "props": {"pageProps": {"content": fields, "id": "VyaZlh4", "views": 12}, "__N_SSP": True},
        "page": "/c/[id]",
    }
    script = json.dumps(data, ensure_ascii=False).replace("</", "<\\/")
    return (
        '<!DOCTYPE html><html><head><meta charSet="utf-8"/><title>A talk</title></head><body><div id="__next">…</div>'
        f'<script id="__NEXT_DATA__" type="application/json">{script}</script></body></html>'
    )
