"""create_app: the gateway as an ASGI application. Routes, their description for OpenAPI, and the faults between them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.responses import Response

from tunesmith.protocols import ServingEngine
from tunesmith.server.auth import KeyRing, load_keys
from tunesmith.server.chat import create_chat_completion
from tunesmith.server.completions import create_completion
from tunesmith.server.door import Door
from tunesmith.server.gateway import Gateway
from tunesmith.server.openapi import answers, body_of
from tunesmith.server.protocol import ChatRequest, CompletionRequest
from tunesmith.server.responses import RequestError, json_response
from tunesmith.server.served import ServedModel
from tunesmith.server.settings import ServerSettings

_BOTH = ("application/json", "text/event-stream")
PAGE = Path(__file__).parent / "page"
_PAGE_FILES = {
    "": ("index.html", "text/html"),
    "icon.svg": ("icon.svg", "image/svg+xml"),
    "chat.css": ("chat.css", "text/css"),
    "chat.js": ("chat.js", "text/javascript"),
    "markdown.js": ("markdown.js", "text/javascript"),
}
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
)


def create_app(
    model: ServedModel, engine: ServingEngine, settings: ServerSettings, *, keys: KeyRing | None = None
) -> FastAPI:
    """The gateway. Loading the engine starts with the application's lifespan; until it ends, requests get 503.

    The shared state is `app.state.gateway`. keys: None reads those the settings name (RecipeError where one is missing).
    """
    gateway = Gateway(model, engine, settings, load_keys(settings) if keys is None else keys)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        opening = asyncio.create_task(gateway.open())
        yield
        opening.cancel()
        with suppress(asyncio.CancelledError):
            await opening
        await engine.stop()

    app = FastAPI(title="tunesmith", version=_version(), lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.gateway = gateway
    app.router.redirect_slashes = False
    app.add_middleware(Door, gateway=gateway)
    app.add_exception_handler(RequestError, _on_request_error)
    app.add_exception_handler(HTTPException, _on_http_error)
    _add_api(app, gateway)
    if settings.chat_page:
        _add_page(app)
    return app


def _add_api(app: FastAPI, gateway: Gateway) -> None:
    @app.get("/v1/models", responses=answers("application/json"), response_class=Response, tags=["models"])
    async def list_models() -> Response:
        """The models served here."""
        return json_response({"object": "list", "data": [gateway.describe_model()]})

    @app.get("/v1/models/{model}", responses=answers("application/json"), response_class=Response, tags=["models"])
    async def retrieve_model(model: str) -> Response:
        """One model."""
        gateway.check_model(model)
        return json_response(gateway.describe_model())

    @app.post(
        "/v1/chat/completions",
        responses=answers(*_BOTH),
        response_class=Response,
        tags=["answers"],
        openapi_extra=body_of(ChatRequest),
    )
    async def chat_completions(request: Request) -> Response:
        """Answer a conversation."""
        return await create_chat_completion(request, gateway)

    @app.post(
        "/v1/completions",
        responses=answers(*_BOTH),
        response_class=Response,
        tags=["answers"],
        openapi_extra=body_of(CompletionRequest),
    )
    async def completions(request: Request) -> Response:
        """Continue a text."""
        return await create_completion(request, gateway)

    @app.get("/health", responses=answers("application/json"), response_class=Response, tags=["operation"])
    async def health() -> Response:
        """200 when the engine can answer, 503 with the reason when not."""
        await gateway.check_health()
        return json_response({"status": "ok"})

    @app.get("/metrics", responses=answers("text/plain"), response_class=Response, tags=["operation"])
    async def metrics() -> Response:
        """Counters in Prometheus' text format."""
        return Response(gateway.metrics.text(), media_type=CONTENT_TYPE_LATEST)


def _add_page(app: FastAPI) -> None:
    headers = {"Content-Security-Policy": CONTENT_SECURITY_POLICY, "Cache-Control": "no-cache"}
    for route, (name, kind) in _PAGE_FILES.items():
        response = Response((PAGE / name).read_bytes(), headers=headers, media_type=kind)
        app.router.add_route(f"/{route}", _always(response), methods=["GET"], include_in_schema=False)


def _always(response: Response) -> Callable[[Request], Awaitable[Response]]:
    async def answer(_request: Request) -> Response:
        return response

    return answer


async def _on_request_error(_request: Request, error: Any) -> Response:
    return error.response()


async def _on_http_error(request: Request, error: Any) -> Response:
    status: int = error.status_code
    if status == 404:
        fault = RequestError(404, f"there is no {request.method} {request.url.path[:100]} here", code="unknown_url")
    elif status == 405:
        fault = RequestError(
            405, f"{request.method} is not allowed here", code="method_not_allowed", headers=error.headers
        )
    else:
        fault = RequestError(400, "the request could not be read", code="invalid_request")
    return fault.response()


def _version() -> str:
    try:
        return version("tunesmith")
    except PackageNotFoundError:
        return "0"
