"""The map's page: one HTML file with its styles, its program and its data, that opens from a disk and calls nobody.

The parts lie in page/ as modules. Here they are put into one script, and the content security policy is made: the digests
of that script and the styles alone may run, and no connection of any kind is allowed. The data are packed (gzip, base64),
so no text of a row can end the element that holds them.
"""

from __future__ import annotations

import base64
import gzip
import re
from importlib.resources import files
from typing import Any

from tunesmith.data.atlas.document import encoded
from tunesmith.text.page_head import content_policy, page_head

_PARTS = (
    "text.js",
    "document.js",
    "colours.js",
    "camera.js",
    "scene.js",
    "webgl.js",
    "raster.js",
    "painter.js",
    "detail.js",
    "legend.js",
    "find.js",
    "choices.js",
    "names.js",
    "tooltip.js",
    "gestures.js",
    "files.js",
    "map.js",
)
_IMPORT = re.compile(r"^import [^;]*;\n", re.MULTILINE)
_EXPORT = re.compile(r"^export (?=(?:async )?(?:function|const|class) )", re.MULTILINE)


def map_page(data: dict[str, Any] | None) -> bytes:
    """The page with a map in it (see document.as_json), or without: then it asks for a file."""
    script, style = _script(), _part("map.css")
    policy = content_policy(style, script, "img-src data:")
    packed = b"" if data is None else base64.b64encode(gzip.compress(encoded(data), 6, mtime=0))
    title = "Map" if data is None else str(data["title"])
    page = _part("map.html")
    for mark, text in (
        ("{{head}}", page_head(f"{title} · tunesmith map", style, policy=policy, viewport="viewport-fit=cover")),
        ("{{script}}", script),
        ("{{data}}", packed.decode()),
    ):
        before, found, after = page.partition(mark)
        assert found, mark
        page = before + text + after
    return page.encode("utf-8", "replace")


def _script() -> str:
    parts = [_EXPORT.sub("", _IMPORT.sub("", _part(name))) for name in _PARTS]
    return '"use strict";\n(() => {\n' + "\n".join(parts) + "})();\n"


def _part(name: str) -> str:
    return (files("tunesmith.data.atlas") / "page" / name).read_text(encoding="utf-8")
