"""The state one server shares between requests: model, engine, limits, counters, and whether it is ready."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Coroutine
from typing import Any, Literal

from starlette.requests import Request
from starlette.responses import Response

from tunesmith.protocols import ServingEngine
from tunesmith.server.auth import Doorman, KeyRing
from tunesmith.server.connection import ClientGone, Connection
from tunesmith.server.generation import Generator, Running
from tunesmith.server.limits import Admission, RateLimiter, unavailable
from tunesmith.server.metrics import Metrics
from tunesmith.server.responses import RequestError, shorten
from tunesmith.server.served import ServedModel
from tunesmith.server.settings import ServerSettings

logger = logging.getLogger("tunesmith.server")

Phase = Literal["loading", "ready", "draining", "dead"]
_CHECK_SECONDS = 1.0
CLIENT_GONE = 499  # nobody reads it; it is for the counters


class Gateway:
    """Everything the endpoints need."""

    def __init__(self, model: ServedModel, engine: ServingEngine, settings: ServerSettings, keys: KeyRing) -> None:
        self.model = model
        self.engine = engine
        self.settings = settings
        self.keys = keys
        self.doorman = Doorman(settings)
        self.metrics = Metrics()
        self.admission = Admission(engine.num_slots, settings.max_queue)
        self.generator = Generator(engine, self.admission, self.metrics)
        self.rate_limiter = RateLimiter(settings.requests_per_minute)
        self.phase: Phase = "loading"
        self.fault: BaseException | None = None
        self.ended = asyncio.Event()  # set when the server has nothing left to live for
        self._is_patient = True
        self.metrics.attach(model.id, lambda: self.admission.running, lambda: self.admission.waiting)

    async def open(self) -> None:
        """Load the engine and then watch it until it dies or the server drains."""
        try:
            await self.engine.start()
        except Exception as error:  # noqa: BLE001 - kept, and raised by serve()
            self._die(error)
            return
        if self.phase == "loading":
            self.phase = "ready"
        while self.phase == "ready":
            await asyncio.sleep(_CHECK_SECONDS)
            if self.phase == "ready" and not await self.engine.healthy():
                self._die(None)

    async def drain(self) -> None:
        """Refuse new requests, let running ones end within the timeout, then stop the engine (which ends the rest)."""
        if self.phase != "dead":
            self.phase = "draining"
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.settings.drain_timeout_seconds):
                while self._is_patient and (self.admission.running or self.admission.waiting):
                    await asyncio.sleep(0.02)
        if self.admission.running:
            logger.warning("%d answers did not end in time and are cut", self.admission.running)
        await self.engine.stop()
        self.ended.set()

    def hurry(self) -> None:
        """Let drain wait no longer."""
        self._is_patient = False

    async def check_health(self) -> None:
        """Raises RequestError 503 unless the engine can answer."""
        if self.phase == "ready" and not await self.engine.healthy():
            self._die(None)
        self.check_ready()

    def check_ready(self) -> None:
        """Raises RequestError 503 while loading or draining, and after the engine died."""
        if self.phase == "loading":
            raise unavailable("the model is being loaded", seconds=2, code="loading")
        if self.phase == "draining":
            raise unavailable("the server is shutting down", seconds=5, code="shutting_down")
        if self.phase == "dead":
            raise unavailable("the engine is not running", seconds=30, code="engine_dead")

    def check_model(self, name: str) -> None:
        """Raises RequestError 404 for a model that is not served here."""
        if name not in self.model.names:
            raise RequestError(
                404, f"the model {shorten(name, 100)!r} does not exist here", param="model", code="model_not_found"
            )

    def describe_model(self) -> dict[str, Any]:
        """The model as /v1/models lists it. max_model_len (vLLM's name) is what one request may use."""
        return {
            "id": self.model.id,
            "object": "model",
            "created": self.model.created,
            "owned_by": "tunesmith",
            "max_model_len": self.engine.context_length,
        }

    async def whole(self, request: Request, running: Running, answer: Coroutine[Any, Any, Response]) -> Response:
        """Run a non-streaming answer while the client waits for it."""
        try:
            async with Connection(request) as connection:
                return await connection.run(answer)
        except ClientGone:
            return Response(status_code=CLIENT_GONE)
        finally:
            await running.aclose()

    def _die(self, fault: BaseException | None) -> None:
        logger.error("the engine is not running: %s", fault or "it ended")
        self.phase, self.fault = "dead", fault
        self.ended.set()
