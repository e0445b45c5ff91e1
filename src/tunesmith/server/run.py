"""serve: the gateway on a port until a signal, with a shutdown that lets answers end."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from types import FrameType
from typing import Any

import uvicorn

from tunesmith.errors import EngineError, StoreError
from tunesmith.protocols import ServingEngine
from tunesmith.server.app import create_app
from tunesmith.server.auth import KeyRing
from tunesmith.server.gateway import Gateway
from tunesmith.server.served import ServedModel
from tunesmith.server.settings import ServerSettings

_CLOSE_SECONDS = 5  # for open connections, once every answer has ended


class GatewayServer(uvicorn.Server):
    """uvicorn, with draining on the first signal; a second one cuts the answers, a third one ends at once."""

    def __init__(self, config: uvicorn.Config, gateway: Gateway, on_ready: Callable[[str], None] | None) -> None:
        super().__init__(config)
        self._gateway = gateway
        self._on_ready = on_ready
        self._draining: asyncio.Task[None] | None = None
        self._watching: asyncio.Task[None] | None = None
        self._num_signals = 0

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._loop = asyncio.get_running_loop()
        self._watching = asyncio.create_task(self._watch())

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._num_signals += 1
        if self._num_signals == 1:
            self._loop.call_soon_threadsafe(self._drain)
        elif self._num_signals == 2:
            self._loop.call_soon_threadsafe(self._gateway.hurry)
        else:
            super().handle_exit(sig, frame)
            self.force_exit = True

    def _drain(self) -> None:
        if self._draining is None:
            self._draining = asyncio.create_task(self._gateway.drain())

    async def _watch(self) -> None:
        """Tell when the model is ready; end the server when it has drained or its engine died."""
        while self._gateway.phase == "loading":
            await asyncio.sleep(0.02)
        if self._gateway.phase == "ready" and self._on_ready is not None:
            self._on_ready(self.url)
        await self._gateway.ended.wait()
        self.should_exit = True

    @property
    def url(self) -> str:
        """Where the server listens, with the port it really has."""
        address: tuple[Any, ...] = self.servers[0].sockets[0].getsockname()
        host = f"[{address[0]}]" if ":" in address[0] else address[0]
        return f"http://{host}:{address[1]}"


def serve(
    model: ServedModel,
    engine: ServingEngine,
    settings: ServerSettings,
    *,
    keys: KeyRing | None = None,
    on_ready: Callable[[str], None] | None = None,
) -> None:
    """Serve until SIGINT or SIGTERM; returns after the last answer ended (at most drain_timeout_seconds later).

    keys: None reads those the settings name. on_ready gets the server's URL once the model is loaded. Raises RecipeError for settings that must not be served
    (a public address without a key), StoreError where the port cannot be had, and what loading the engine raised.
    """
    server = build_server(model, engine, settings, keys=keys, on_ready=on_ready)
    listener = _listen(settings)
    try:
        server.run(sockets=[listener])
    finally:
        listener.close()
    gateway = server.config.app.state.gateway  # type: ignore[union-attr]  # the application create_app made
    if gateway.phase == "dead":
        raise gateway.fault or EngineError(
            "the engine died while it served", hint="see the lines above; start it again"
        )


def build_server(
    model: ServedModel,
    engine: ServingEngine,
    settings: ServerSettings,
    *,
    keys: KeyRing | None = None,
    on_ready: Callable[[str], None] | None = None,
) -> GatewayServer:
    """The server that serve() runs, for callers with an event loop of their own."""
    app = create_app(model, engine, settings, keys=keys)
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,
        server_header=False,
        ws="none",
        h11_max_incomplete_event_size=2 * settings.max_header_bytes,  # so that the refusal is ours
        timeout_graceful_shutdown=_CLOSE_SECONDS,
    )
    return GatewayServer(config, app.state.gateway, on_ready)


def _listen(settings: ServerSettings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((settings.host.strip("[]"), settings.port))
    except socket.gaierror as error:
        listener.close()
        raise StoreError(
            f"there is no address {settings.host!r}: {error.strerror}",
            where="host",
            hint="give an address of this machine, such as 127.0.0.1",
        ) from error
    except OSError as error:
        listener.close()
        raise StoreError(
            f"cannot listen on {settings.host}:{settings.port}: {error.strerror or error}",
            where="port",
            hint="another program has the port; give another one, or 0 for any free one",
        ) from error
    return listener
