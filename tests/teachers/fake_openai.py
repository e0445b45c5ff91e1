"""An OpenAI-compatible endpoint on a real socket, with scripted faults. Each fault serves one request; when they are
used up, every request is answered. Counts what a provider would bill: every answer it sends with a 200."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncGenerator, Callable, Generator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web


def say(text: str | None, **changes: Any) -> dict[str, Any]:
    """A chat completion with this text."""
    answer: dict[str, Any] = {
        "id": "x",
        "object": "chat.completion",
        "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}],
        "usage": {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120},
    }
    answer.update(changes)
    return answer


@dataclass
class Fault:
    """How one request goes wrong. kind: status, timeout, reset, truncated, body."""

    kind: str
    status: int = 500
    body: str = ""
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class FakeOpenAI:
    """What it was asked (bodies, headers), and how it answers."""

    faults: list[Fault | None] = field(default_factory=list)
    answer: Callable[[dict[str, Any]], dict[str, Any]] = lambda body: say("hello")
    delay: Callable[[dict[str, Any]], float] = lambda body: 0.0
    asked: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    billed_tokens: list[tuple[int, int]] = field(default_factory=list)
    num_in_flight: int = 0
    most_in_flight: int = 0
    base_url: str = ""

    @property
    def num_asked(self) -> int:
        return len(self.asked)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.asked.append(body)
        self.headers.append(dict(request.headers))
        self.times.append(asyncio.get_running_loop().time())
        self.num_in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.num_in_flight)
        try:
            return await self._respond(request, body)
        finally:
            self.num_in_flight -= 1

    async def _respond(self, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        fault = self.faults.pop(0) if self.faults else None
        if seconds := self.delay(body):
            await asyncio.sleep(seconds)
        if fault is None:
            return web.json_response(self._bill(self.answer(body)))
        if fault.kind == "timeout":
            self._bill(self.answer(body))
            await asyncio.sleep(30)
        if fault.kind == "reset":
            assert request.transport is not None
            request.transport.abort()
        if fault.kind == "truncated":
            text = json.dumps(self._bill(self.answer(body)))
            return web.Response(text=text[: len(text) // 2], content_type="application/json")
        if fault.kind == "body":
            self._bill(self.answer(body))
            return web.Response(text=fault.body, content_type="application/json")
        body_text = fault.body or json.dumps({"error": {"message": f"scripted {fault.status}", "code": None}})
        return web.Response(status=fault.status, text=body_text, headers=fault.headers)

    def _bill(self, answer: dict[str, Any]) -> dict[str, Any]:
        usage = answer.get("usage") or {"prompt_tokens": 100, "completion_tokens": 20}
        self.billed_tokens.append((usage["prompt_tokens"], usage["completion_tokens"]))
        return answer


@asynccontextmanager
async def serve(faults: Sequence[Fault | None] = (), **changes: Any) -> AsyncGenerator[FakeOpenAI]:
    """The endpoint on a free port of this machine."""
    fake = FakeOpenAI(faults=list(faults), **changes)
    app = web.Application()
    app.router.add_post("/v1/chat/completions", fake.handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    fake.base_url = f"http://127.0.0.1:{port}/v1"
    try:
        yield fake
    finally:
        await runner.cleanup()


@contextmanager
def serving(faults: Sequence[Fault | None] = (), **changes: Any) -> Generator[FakeOpenAI]:
    """The endpoint in a thread of its own, for code that runs its own event loop."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    context = serve(faults, **changes)
    try:
        yield asyncio.run_coroutine_threadsafe(context.__aenter__(), loop).result(10)
    finally:
        asyncio.run_coroutine_threadsafe(context.__aexit__(None, None, None), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()
