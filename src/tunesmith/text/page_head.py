"""The head of a page that is whole in itself: one style and one script, allowed by their digests, and nothing from elsewhere.

Refuses to know what is on the page.
"""

from __future__ import annotations

import base64
import hashlib
import html


def page_head(title: str, style: str, *, policy: str, viewport: str = "") -> str:
    """From <meta charset> to </style>. title: plain text; viewport: what is said beside the width."""
    sizes = ", ".join(filter(None, ("width=device-width, initial-scale=1", viewport)))
    lines = (
        '<meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{html.escape(policy, quote=False)}">',
        f'<meta name="viewport" content="{sizes}">',
        '<meta name="referrer" content="no-referrer">',
        '<meta name="color-scheme" content="light dark">',
        f"<title>{html.escape(title).encode('utf-8', 'replace').decode()}</title>",
        f"<style>{style}</style>",
    )
    return "\n".join(lines)


def content_policy(style: str, script: str, *more: str) -> str:
    """The content security policy of a page with this style and this script inline. more: what else is allowed, such as
    "connect-src 'self'"."""
    rules = ("default-src 'none'", f"script-src '{_digest(script)}'", f"style-src '{_digest(style)}'", *more)
    return "; ".join((*rules, "base-uri 'none'", "form-action 'none'"))


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
