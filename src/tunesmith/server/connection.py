"""The client's end of a request: noticing that it left, and sending a stream to it.

An answer is worth computing only while somebody waits for it, in both modes. The body was read before, so the next
message from the server is the client's leaving: awaiting it costs nothing, where asking again and again would.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Coroutine
from contextlib import aclosing, suppress
from typing import Any, Protocol, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from tunesmith.server.responses import explain

_STREAM_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


Result = TypeVar("Result")


class ClientGone(Exception):
    """The client closed the connection; there is nobody to answer."""


class Closeable(Protocol):
    """What is closed when the client leaves; closing twice does nothing more."""

    async def aclose(self) -> None: ...


class Connection:
    """Watches one client. Use as an asynchronous context manager."""

    def __init__(self, request: Request) -> None:
        self._receive = request.receive
        self._gone: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Connection:
        self._gone = asyncio.create_task(self._wait())
        return self

    async def __aexit__(self, *_exception: object) -> None:
        if self._gone is not None:
            self._gone.cancel()
            with suppress(asyncio.CancelledError):
                await self._gone

    async def run(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Do the work while the client waits. Raises ClientGone, the work cancelled, when it leaves."""
        assert self._gone is not None
        task = asyncio.create_task(work)
        try:
            await asyncio.wait((task, self._gone), return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                raise ClientGone
            return task.result()
        finally:
            if not task.done():
                task.cancel()
                with suppress(asyncio.CancelledError, Exception):
                    await task

    async def _wait(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass


class StreamResponse(Response):
    """Server-sent events. A fault before the first event becomes a plain error response. The events are closed (and with
    them the engine's stream) when the client leaves, or takes nothing for `write_timeout` seconds."""

    def __init__(
        self, request: Request, events: AsyncGenerator[bytes], running: Closeable, write_timeout: float
    ) -> None:
        super().__init__(status_code=200, headers=_STREAM_HEADERS, media_type="text/event-stream")
        del self.headers["content-length"]
        self._request = request
        self._events = events
        self._running = running
        self._write_timeout = write_timeout

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            with suppress(ClientGone):
                async with Connection(self._request) as connection:
                    await connection.run(self._send_all(scope, receive, send))
        finally:
            await self._running.aclose()  # not left to the generator: closing one that never started runs nothing

    async def _send_all(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with aclosing(self._events):
            try:
                event = await anext(self._events)
            except Exception as error:  # noqa: BLE001 - told to the client
                await explain(error).response()(scope, receive, send)
                return
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            await self._within(send({"type": "http.response.body", "body": event, "more_body": True}))
            async for event in self._events:
                await self._within(send({"type": "http.response.body", "body": event, "more_body": True}))
        await self._within(send({"type": "http.response.body", "body": b"", "more_body": False}))

    async def _within(self, sending: Awaitable[None]) -> None:
        try:
            async with asyncio.timeout(self._write_timeout):
                await sending
        except TimeoutError:
            raise ClientGone from None
