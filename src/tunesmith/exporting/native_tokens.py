"""llama.cpp's own tokenisation of texts with a GGUF file, to compare ours with.

The binding has no call for it, so its HTTP endpoint is asked, on a socket in a private folder. Loads the file for the
duration of one call.
"""

from __future__ import annotations

import http.client
import importlib
import json
import secrets
import socket
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tunesmith.errors import ExportError, MissingExtra

_TIMEOUT_SECONDS = 60


def tokenize_natively(gguf: Path, texts: Sequence[str], *, parse_special: bool) -> list[list[int]]:
    """Token ids of each text, without bos. parse_special: whether `<|im_end|>` in a text is the control token.

    ExportError where llama.cpp cannot load the file, MissingExtra where it is not installed.
    """
    try:
        xllamacpp: Any = importlib.import_module("xllamacpp")
    except ImportError as error:
        raise MissingExtra("xllamacpp", "serve", "checking a GGUF file") from error
    with tempfile.TemporaryDirectory(prefix="tunesmith-tokens-") as folder:
        address, key = str(Path(folder) / "s.sock"), secrets.token_urlsafe(32)
        params = xllamacpp.CommonParams()
        params.model.path = str(gguf)
        params.n_ctx, params.n_parallel, params.verbosity = 256, 1, 0
        params.fit_params = params.ui = params.warmup = False
        params.hostnames, params.api_keys = [address], [key]
        try:
            server = xllamacpp.Server(params)
        except RuntimeError as error:
            raise ExportError(f"llama.cpp cannot load the file that was written: {error}", where=str(gguf)) from error
        connection = _SocketConnection(address)
        try:
            return [_ask(connection, key, text, parse_special) for text in texts]
        except (OSError, http.client.HTTPException, ValueError, KeyError) as error:
            raise ExportError(
                f"llama.cpp did not tokenise: {type(error).__name__}: {error}", where=str(gguf)
            ) from error
        finally:
            connection.close()
            del server  # its destructor ends the threads of llama.cpp


def _ask(connection: http.client.HTTPConnection, key: str, text: str, parse_special: bool) -> list[int]:
    body = json.dumps({"content": text, "add_special": False, "parse_special": parse_special})
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
    connection.request("POST", "/tokenize", body.encode(), headers)
    answer = json.loads(connection.getresponse().read())
    return answer["tokens"]


class _SocketConnection(http.client.HTTPConnection):
    """HTTP over a socket of the file system."""

    def __init__(self, address: str) -> None:
        super().__init__("localhost", timeout=_TIMEOUT_SECONDS)
        self._address = address

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._address)
