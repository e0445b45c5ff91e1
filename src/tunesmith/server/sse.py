"""Server-sent events of both endpoints. The path of one token: one JSON string between two constant pieces of bytes."""

from __future__ import annotations

from typing import Any

import orjson

from tunesmith.server.responses import RequestError

DONE = b"data: [DONE]\n\n"


class EventWriter:
    """Writes the chunks of one stream: same id, time and model in each."""

    def __init__(self, head: dict[str, Any], *, include_usage: bool, content_key: str) -> None:
        """head: the fields every chunk starts with. content_key: what comes before the text of a plain chunk, such as
        `"delta":{"content":`."""
        self._head = b"data: " + orjson.dumps(head)[:-1]
        self._usage = b',"usage":null' if include_usage else b""
        self._content_key = content_key.encode()
        self._close = b"}" * content_key.count("{")
        self._plain: dict[int, tuple[bytes, bytes]] = {}

    def text(self, index: int, text: str) -> bytes:
        """A piece of text of one choice, without log probabilities."""
        if index not in self._plain:
            self._plain[index] = (
                self._head + b',"choices":[{"index":%d,' % index + self._content_key,
                self._close + b',"logprobs":null,"finish_reason":null}]' + self._usage + b"}\n\n",
            )
        before, after = self._plain[index]
        return before + orjson.dumps(text) + after

    def choice(self, choice: dict[str, Any]) -> bytes:
        """Any other chunk of one choice."""
        return self._head + b',"choices":[' + orjson.dumps(choice) + b"]" + self._usage + b"}\n\n"

    def usage(self, usage: dict[str, Any]) -> bytes:
        """The last chunk, with no choices."""
        return self._head + b',"choices":[],"usage":' + orjson.dumps(usage) + b"}\n\n"


def error_event(error: RequestError) -> bytes:
    """A fault after the first chunk; OpenAI's clients raise on it."""
    return b"data: " + orjson.dumps(error.body()) + b"\n\n"
