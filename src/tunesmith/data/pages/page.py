"""The conversation inside a saved ShareGPT page: the JSON its script tag `__NEXT_DATA__` holds.

Refuses to know HTML beyond that tag, and what makes a good conversation.
"""

from __future__ import annotations

import re
from typing import Any

import orjson

_SCRIPT = re.compile(
    r"<script\b[^>]*\bid\s*=\s*[\"']?__NEXT_DATA__[\"']?[^>]*>(.*?)</script>", re.DOTALL | re.IGNORECASE
)


class PageError(Exception):
    """A page without a conversation: what was found and expected, and the field it was looked for in."""

    def __init__(self, message: str, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


def find_page_data(html: str) -> dict[str, Any]:
    """The fields of the page's conversation (items, model, title ...) with the page's id and views. PageError without."""
    script = _SCRIPT.search(html)
    if script is None:
        raise PageError("the page has no script tag with the id __NEXT_DATA__, where a ShareGPT page keeps its data")
    try:
        value = orjson.loads(script[1])
    except orjson.JSONDecodeError as error:
        raise PageError(f"the page's __NEXT_DATA__ is not valid JSON: {error}", "__NEXT_DATA__") from None
    for path in ("props", "pageProps"):
        value = value.get(path) if isinstance(value, dict) else None
    content = value.get("content") if isinstance(value, dict) else None
    if not isinstance(value, dict) or not isinstance(content, dict):
        raise PageError("the page holds no conversation (a page that was not found?)", "props.pageProps.content")
    page = {name: value[name] for name in ("id", "views") if value.get(name) not in (None, "")}
    return {**content, **page}
