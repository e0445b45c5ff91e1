"""Between the socket and the application: Host, Origin, CORS, header size, keys, rate, and safe headers on every answer.

Plain ASGI, so that nothing buffers a stream; it looks at headers only.
"""

from __future__ import annotations

from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tunesmith.server.gateway import Gateway
from tunesmith.server.responses import RequestError, explain

_SAFE_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}
_READING = frozenset({"GET", "HEAD"})
_PRIVATE = ("/v1/", "/metrics")  # what needs a key, where there are keys


class Door:
    """ASGI middleware; every refusal is an OpenAI error."""

    def __init__(self, app: ASGIApp, gateway: Gateway) -> None:
        self._app = app
        self._gateway = gateway

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        status = 0

        async def send_safely(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                self._add_headers(MutableHeaders(scope=message), headers)
            await send(message)

        try:
            response = self._check(scope, headers)
        except RequestError as error:
            response = error.response()
        try:
            await (response or self._app)(scope, receive, send_safely)
        except Exception as error:
            if status:
                raise  # too late for an answer: the server closes the connection
            await explain(error).response()(scope, receive, send_safely)
        finally:
            route: Any = scope.get("route")
            self._gateway.metrics.count_response(getattr(route, "path", "other"), status)

    def _check(self, scope: Scope, headers: Headers) -> Response | None:
        gateway = self._gateway
        if sum(len(name) + len(value) + 4 for name, value in scope["headers"]) > gateway.settings.max_header_bytes:
            raise RequestError(431, "the request header is too large", code="header_too_large")
        host, origin = headers.get("host"), headers.get("origin")
        gateway.doorman.check_host(host)
        method = scope["method"]
        if method == "OPTIONS" and origin is not None and "access-control-request-method" in headers:
            gateway.doorman.check_origin(origin, host, None)
            return Response(status_code=204)
        if method not in _READING:
            gateway.doorman.check_origin(origin, host, headers.get("sec-fetch-site"))
        path: str = scope["path"]
        if path.startswith(_PRIVATE):
            client = scope["client"][0] if scope.get("client") else ""
            caller = gateway.keys.identify(headers.get("authorization")) if gateway.keys else client
            if method == "POST":
                gateway.check_ready()
                gateway.rate_limiter.take(caller)
        return None

    def _add_headers(self, answer: MutableHeaders, asked: Headers) -> None:
        for name, value in _SAFE_HEADERS.items():
            answer.setdefault(name, value)
        origin = asked.get("origin")
        if origin is None or not self._gateway.doorman.is_allowed_origin(origin):
            return
        answer["Access-Control-Allow-Origin"] = origin
        answer["Cross-Origin-Resource-Policy"] = "cross-origin"
        answer.add_vary_header("Origin")
        if "access-control-request-method" in asked:
            answer["Access-Control-Allow-Methods"] = "GET, POST"
            answer["Access-Control-Allow-Headers"] = asked.get("access-control-request-headers", "")
            answer["Access-Control-Max-Age"] = "600"
