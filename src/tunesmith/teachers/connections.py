"""Kept-alive HTTP/1.1 connections to one address, and one thing to do with them: POST a body, get status, headers, body.

Owns sockets and the framing of messages (parsed by llhttp). Follows no redirect, keeps no cookie, asks for no
compression, and knows nothing of what is sent. It exists because a general client spends more time on one request than
everything else here together: 0.14 to 0.18 ms of CPU against 0.03 ms (benchmarks/teacher_client.py). Where the environment names
a proxy, ProxiedConnections does the same with aiohttp.
"""

from __future__ import annotations

import asyncio
import base64
import socket
import ssl
import zlib
from collections.abc import Mapping
from functools import cache
from typing import Any, NamedTuple, Protocol

import aiohappyeyeballs
import aiohttp
import httptools
from yarl import URL

IDLE_SECONDS = 15.0
"""A connection that was not used for so long is not used again: servers close theirs after 20 to 75 s, and a request that
meets the closing may have been billed."""

RESOLVE_SECONDS = 30.0
"""How long the addresses of a host are believed."""

_HAPPY_EYEBALLS_SECONDS = 0.25  # RFC 8305, section 5
_BAD_LETTERS = frozenset("\r\n\0")


class Unreachable(Exception):
    """No connection came about: nothing was sent."""


class Broken(Exception):
    """The connection ended before the answer did: whether the request was worked on is not known."""


class Answer(NamedTuple):
    """What came back. Names of headers are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Road(Protocol):
    """A way to one address."""

    async def post(self, body: bytes) -> Answer:
        """Raises Unreachable, Broken, or TimeoutError after `timeout_seconds`."""
        ...

    async def aclose(self) -> None: ...


class Connections:
    """As many connections as there are requests at once; the one that was used last is used next.

    timeout_seconds: for the connection, and again for the answer. ValueError where the address is no http(s) URL.
    """

    def __init__(self, address: str, headers: Mapping[str, str], *, timeout_seconds: float) -> None:
        url = _url(address)
        self._host, self._port = url.raw_host or "", url.port or 0
        self._tls = _tls() if url.scheme == "https" else None
        self._timeout_seconds = timeout_seconds
        self._head = _head(url, headers)
        self._open: set[_Connection] = set()
        self._idle: dict[_Connection, float] = {}  # connection -> since when
        self._due: dict[_Connection, float] = {}  # connection whose answer is due -> until when, in the order of asking
        self._timer: asyncio.TimerHandle | None = None
        self._found: tuple[float, Any] | None = None  # (until when it is believed, addresses of the host)
        self._finding = asyncio.Lock()

    async def post(self, body: bytes) -> Answer:
        """See Road."""
        loop = asyncio.get_running_loop()
        connection = self._take_idle(loop.time()) or await self._connect(loop)
        connection.due = answer = loop.create_future()
        self._due[connection] = loop.time() + self._timeout_seconds
        if self._timer is None:
            self._timer = loop.call_later(self._timeout_seconds, self._end_overdue)
        connection.transport.write(b"%s%d\r\n\r\n%s" % (self._head, len(body), body))
        try:
            return await answer
        except asyncio.CancelledError:
            if connection.due is answer:  # else it has its answer, and may be at work for somebody else
                connection.end(Broken("cancelled"))
            raise

    async def aclose(self) -> None:
        """Close everything; a request that is on its way is Broken."""
        if self._timer is not None:
            self._timer.cancel()
        open_ones = list(self._open)
        for connection in open_ones:
            connection.end(Broken("closed here"))
        await asyncio.gather(*(connection.closed for connection in open_ones))

    def opened(self, connection: _Connection) -> None:
        """It is there."""
        self._open.add(connection)

    def answered(self, connection: _Connection, *, may_stay: bool) -> None:
        """It has brought its answer; may_stay: and can bring another one."""
        self._due.pop(connection, None)
        if may_stay:
            self._idle[connection] = asyncio.get_running_loop().time()

    def lost(self, connection: _Connection) -> None:
        """It is of no more use."""
        self._open.discard(connection)
        self._idle.pop(connection, None)
        self._due.pop(connection, None)

    def _take_idle(self, now: float) -> _Connection | None:
        while self._idle:
            connection, since = self._idle.popitem()
            if now - since < IDLE_SECONDS and not connection.transport.is_closing():
                return connection
            connection.transport.abort()
        return None

    async def _connect(self, loop: asyncio.AbstractEventLoop) -> _Connection:
        try:
            async with asyncio.timeout(self._timeout_seconds):
                found = await self._resolve(loop)
                sock = await aiohappyeyeballs.start_connection(found, happy_eyeballs_delay=_HAPPY_EYEBALLS_SECONDS)
                name = self._host if self._tls is not None else None
                _, connection = await loop.create_connection(
                    lambda: _Connection(self), sock=sock, ssl=self._tls, server_hostname=name
                )
        except TimeoutError:
            raise Unreachable(f"no connection within {self._timeout_seconds:g} s") from None
        except OSError as error:
            raise Unreachable(f"{self._host}:{self._port}: {error.strerror or error}") from error
        except UnicodeError as error:  # a name that no look-up takes
            raise Unreachable(f"{self._host}: {error}") from error
        return connection

    async def _resolve(self, loop: asyncio.AbstractEventLoop) -> Any:
        """One look-up for all who connect at once: each one takes a thread."""
        async with self._finding:
            if self._found is None or self._found[0] < loop.time():
                found = await loop.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM)
                self._found = (loop.time() + RESOLVE_SECONDS, found)
            return self._found[1]

    def _end_overdue(self) -> None:
        """One timer for all: requests that were asked earlier are due earlier."""
        loop = asyncio.get_running_loop()
        self._timer = None
        for connection, until in list(self._due.items()):
            if until > loop.time():
                self._timer = loop.call_at(until, self._end_overdue)
                return
            connection.end(TimeoutError())


class _Connection(asyncio.Protocol):
    """One socket. `due` is where the answer to the request that is out goes, None = none is out."""

    transport: asyncio.Transport

    def __init__(self, owner: Connections) -> None:
        self.due: asyncio.Future[Answer] | None = None
        self.closed = asyncio.get_running_loop().create_future()
        self._owner = owner
        self._parser = httptools.HttpResponseParser(self)
        self._headers: dict[str, str] = {}
        self._body: list[bytes] = []
        self._has_head = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self._owner.opened(self)

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self.end(Broken(f"what came is no HTTP: {error}"))

    def connection_lost(self, exc: Exception | None) -> None:
        ends_with_connection = self._has_head and not {"content-length", "transfer-encoding"} & self._headers.keys()
        if exc is None and ends_with_connection:
            self._give()
        self.end(Broken(str(exc) if exc else "the server closed it"))
        self.closed.set_result(None)

    def end(self, error: Exception) -> None:
        """Of no more use; whoever waits is told why."""
        self._owner.lost(self)
        answer, self.due = self.due, None
        if answer is not None and not answer.done():
            answer.set_exception(error)
        self.transport.abort()

    def on_message_begin(self) -> None:
        self._headers, self._body, self._has_head = {}, [], False
        if self.due is None:
            self.end(Broken("an answer that nobody asked for"))

    def on_header(self, name: bytes, value: bytes) -> None:
        key, text = name.decode("latin-1").lower(), value.decode("latin-1")
        self._headers[key] = f"{self._headers[key]}, {text}" if key in self._headers else text

    def on_headers_complete(self) -> None:
        self._has_head = True

    def on_body(self, data: bytes) -> None:
        self._body.append(data)

    def on_message_complete(self) -> None:
        if self._parser.get_status_code() < 200:  # "go on", "early hints": the answer is still to come
            return
        if self._parser.should_keep_alive() and not self.transport.is_closing():
            self._owner.answered(self, may_stay=True)
        else:
            self._owner.answered(self, may_stay=False)
            self.transport.close()
        self._give()

    def _give(self) -> None:
        answer, self.due = self.due, None
        if answer is None or answer.done():
            return
        try:
            body = _plain(b"".join(self._body), self._headers.get("content-encoding", "identity"))
        except (zlib.error, ValueError) as error:
            answer.set_exception(Broken(f"the body cannot be read: {error}"))
            return
        answer.set_result(Answer(self._parser.get_status_code(), self._headers, body))


class ProxiedConnections:
    """The same through a proxy. Parameters as of Connections."""

    def __init__(self, address: str, headers: Mapping[str, str], proxy: URL, *, timeout_seconds: float) -> None:
        self._url = _url(address)
        self._headers = headers
        self._proxy = proxy
        self._timeout_seconds = timeout_seconds
        self._session: aiohttp.ClientSession | None = None

    async def post(self, body: bytes) -> Answer:
        """See Road."""
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0),  # the caller bounds what is in flight
                timeout=aiohttp.ClientTimeout(total=self._timeout_seconds),
                cookie_jar=aiohttp.DummyCookieJar(),
            )
        try:
            async with self._session.post(
                self._url, data=body, headers=self._headers, proxy=self._proxy, allow_redirects=False
            ) as answer:
                headers = {name.lower(): value for name, value in answer.headers.items()}
                return Answer(answer.status, headers, await answer.read())
        except aiohttp.ClientConnectorError as error:
            raise Unreachable(str(error)) from error
        except (aiohttp.ClientError, OSError) as error:
            if isinstance(error, TimeoutError):
                raise
            raise Broken(str(error) or type(error).__name__) from error

    async def aclose(self) -> None:
        """Close everything."""
        if self._session is not None:
            await self._session.close()
            self._session = None


def _url(address: str) -> URL:
    url = URL(address)
    if url.scheme not in ("http", "https") or not url.raw_host or not url.port:
        raise ValueError("not an http or https address")
    return url


def _head(url: URL, headers: Mapping[str, str]) -> bytes:
    """Everything before the length of the body, which is the last header."""
    default = {"http": 80, "https": 443}[url.scheme]
    host = f"[{url.raw_host}]" if ":" in (url.raw_host or "") else url.raw_host
    shown = {"Host": f"{host}" if url.port == default else f"{host}:{url.port}", "Accept-Encoding": "identity"}
    if url.raw_user is not None and "Authorization" not in headers:
        named = f"{url.user}:{url.password or ''}".encode()
        shown["Authorization"] = f"Basic {base64.b64encode(named).decode()}"
    lines = [f"POST {url.raw_path_qs} HTTP/1.1", *(f"{name}: {value}" for name, value in {**shown, **headers}.items())]
    if any(_BAD_LETTERS & set(line) for line in lines):
        raise ValueError("a header with a line break")
    return "\r\n".join([*lines, "Content-Length: "]).encode("latin-1")


def _plain(body: bytes, encoding: str) -> bytes:
    """Without the compression that a server applies unasked."""
    if encoding in ("identity", ""):
        return body
    if encoding in ("gzip", "x-gzip", "deflate"):
        return zlib.decompress(body, wbits=47)
    raise ValueError(f"content-encoding {encoding}")


@cache
def _tls() -> ssl.SSLContext:
    return ssl.create_default_context()
