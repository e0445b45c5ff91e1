"""The page of curves on a local port, fed by what the runs write. Reads only, answers this machine only."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import orjson
import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response, StreamingResponse
from starlette.routing import Route

from tunesmith.errors import StoreError
from tunesmith.studio.curves import RunFollower
from tunesmith.studio.watch_page import POINTS, page_policy, watch_page

_LOOK_SECONDS = 0.5
_QUIET_SECONDS = 15.0  # a comment then keeps proxies from closing the stream
_HOST = "127.0.0.1"
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class Feed:
    """The runs as one document that changes; several pages may follow it."""

    def __init__(self, followers: Sequence[RunFollower]) -> None:
        self._followers = list(followers)
        self._looked = 0.0
        self.version = 0
        self.look()

    def look(self) -> None:
        """Take in what was written, at most every half second."""
        if self._looked and time.monotonic() - self._looked < _LOOK_SECONDS:
            return
        self._looked = time.monotonic()
        changed = [follower.update() for follower in self._followers]
        self.version += any(changed)

    def runs(self) -> list[dict[str, Any]]:
        """As the page wants them."""
        return [follower.as_json(POINTS) for follower in self._followers]


def create_app(followers: Sequence[RunFollower]) -> Starlette:
    """/ is the page, /events the stream that feeds it."""
    feed = Feed(followers)  # read by one thread alone: both answers are made in the server's loop

    async def page(_request: Request) -> Response:
        feed.look()
        policy = f"{page_policy(live=True)}; frame-ancestors 'none'"
        html = watch_page(feed.runs(), now=time.time(), live=True)
        return HTMLResponse(html, headers={**_HEADERS, "Content-Security-Policy": policy})

    async def stream() -> AsyncIterator[bytes]:
        sent, spoke = -1, time.monotonic()
        while True:
            feed.look()
            if feed.version != sent:
                sent, spoke = feed.version, time.monotonic()
                yield b"data: " + orjson.dumps({"now": time.time(), "runs": feed.runs()}) + b"\n\n"
            elif time.monotonic() - spoke > _QUIET_SECONDS:
                spoke = time.monotonic()
                yield b": nothing new\n\n"
            await asyncio.sleep(_LOOK_SECONDS)

    async def events(_request: Request) -> Response:
        return StreamingResponse(stream(), media_type="text/event-stream", headers=_HEADERS)

    return Starlette(
        routes=[Route("/", page), Route("/events", events)],
        # A page elsewhere that gave its own name this machine's address must not read runs.
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=[_HOST, "localhost"])],
    )


def serve_page(followers: Sequence[RunFollower], port: int, on_ready: Callable[[str], None]) -> None:
    """Serve until interrupted. port 0: any free one. on_ready gets the address. StoreError where the port is taken."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((_HOST, port))
    except OSError as error:
        listener.close()
        raise StoreError(
            f"cannot listen on {_HOST}:{port}: {error.strerror or error}",
            where="--port",
            hint="another program has the port; leave --port out to take a free one",
        ) from error
    config = uvicorn.Config(
        create_app(followers),
        log_config=None,
        access_log=False,
        server_header=False,
        ws="none",
        lifespan="off",
        timeout_graceful_shutdown=1,  # a stream has no end of its own
    )
    try:
        on_ready(f"http://{_HOST}:{listener.getsockname()[1]}")
        uvicorn.Server(config).run(sockets=[listener])
    except KeyboardInterrupt:
        return  # the way this ends
    finally:
        listener.close()
