"""Connections against a server that says exactly which bytes come back, and when the line is cut."""

from __future__ import annotations

import asyncio
import gzip
import shutil
import ssl
import subprocess
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from yarl import URL

import tunesmith.teachers.connections as connections_module
from tunesmith.teachers.connections import Answer, Broken, Connections, ProxiedConnections, Unreachable

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
CUT = b""
"""Stands for closing the connection."""


@dataclass
class Server:
    """Request number n of all gets the pieces replies[n]; further ones get OK."""

    replies: list[Sequence[bytes]]
    port: int = 0
    asked: list[bytes] = field(default_factory=list)
    num_connections: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1/chat"

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.num_connections += 1
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                size = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
                self.asked.append(head + await reader.readexactly(size))
                for piece in self.replies.pop(0) if self.replies else (OK,):
                    if piece == CUT:
                        return
                    writer.write(piece)
                    await writer.drain()
                    await asyncio.sleep(0.002)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


@asynccontextmanager
async def server_of(*replies: Sequence[bytes], tls: ssl.SSLContext | None = None) -> AsyncGenerator[Server]:
    server = Server(list(replies))
    listening = await asyncio.start_server(server.handle, "127.0.0.1", 0, ssl=tls)
    server.port = listening.sockets[0].getsockname()[1]
    try:
        yield server
    finally:
        listening.close()


async def post(server: Server, *bodies: bytes, url: str | None = None, timeout_seconds: float = 2.0) -> list[Answer]:
    road = Connections(url or server.url, {"Authorization": "Bearer k"}, timeout_seconds=timeout_seconds)
    try:
        return [await road.post(body) for body in bodies]
    finally:
        await road.aclose()


async def test_one_connection_serves_request_after_request() -> None:
    async with server_of() as server:
        answers = await post(server, b"one", b"two", b"three")
    assert [answer.body for answer in answers] == [b"ok"] * 3
    assert server.num_connections == 1
    assert server.asked[1] == (
        b"POST /v1/chat HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nAccept-Encoding: identity\r\nAuthorization: Bearer k\r\n"
        b"Content-Length: 3\r\n\r\ntwo" % server.port
    )


@pytest.mark.parametrize(
    ("pieces", "status", "body"),
    [
        ((OK[:9], OK[9:30], OK[30:]), 200, b"ok"),
        (
            (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n", b"2\r\nde\r\n0\r\n\r\n"),
            200,
            b"abcde",
        ),
        ((b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + OK), 200, b"ok"),
        ((b"HTTP/1.0 200 OK\r\n\r\nall of", b" it", CUT), 200, b"all of it"),
        ((b"HTTP/1.1 429 Slow\r\nConnection: close\r\nContent-Length: 4\r\n\r\nwait", CUT), 429, b"wait"),
        ((b"HTTP/1.1 204 No Content\r\n\r\n",), 204, b""),
        (
            (
                b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 23\r\n\r\n"
                + gzip.compress(b"abc", mtime=0),
            ),
            200,
            b"abc",
        ),
    ],
    ids=["in pieces", "chunked", "informational first", "ended by closing", "closing", "empty", "compressed"],
)
async def test_every_framing_is_read_and_the_next_request_works(
    pieces: tuple[bytes, ...], status: int, body: bytes
) -> None:
    async with server_of(pieces) as server:
        first, second = await post(server, b"1", b"2")
    assert (first.status, first.body) == (status, body)
    assert second.body == b"ok"


async def test_names_of_headers_are_in_lower_case_and_repeated_ones_are_joined() -> None:
    reply = b"HTTP/1.1 200 OK\r\nX-RateLimit-Limit-Requests: 9\r\nVia: a\r\nVia: b\r\nContent-Length: 0\r\n\r\n"
    async with server_of((reply,)) as server:
        answer = (await post(server, b"1"))[0]
    assert answer.headers == {"x-ratelimit-limit-requests": "9", "via": "a, b", "content-length": "0"}


@pytest.mark.parametrize(
    "pieces",
    [
        (CUT,),
        (OK[:-1], CUT),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nab", CUT),
        (b"hello, this is no HTTP\r\n\r\n",),
        (b"HTTP/1.1 200 OK\r\nContent-Encoding: br\r\nContent-Length: 2\r\n\r\nok",),
        (b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 2\r\n\r\nok",),
    ],
    ids=["nothing", "cut", "cut in a chunk", "not HTTP", "unknown compression", "bad compression"],
)
async def test_half_an_answer_is_broken_and_the_next_request_gets_its_own(pieces: tuple[bytes, ...]) -> None:
    async with server_of(pieces) as server:
        road = Connections(server.url, {}, timeout_seconds=2.0)
        with pytest.raises(Broken):
            await road.post(b"1")
        assert (await road.post(b"2")).body == b"ok"
        await road.aclose()


async def test_bytes_that_nobody_asked_for_are_no_answer_to_the_next_request() -> None:
    stray = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nwrong"
    async with server_of((OK + stray,), (OK, stray)) as server:
        road = Connections(server.url, {}, timeout_seconds=2.0)
        for body in (b"1", b"2", b"3"):
            assert (await road.post(body)).body == b"ok"
            await asyncio.sleep(0.02)
        await road.aclose()
    assert server.num_connections == 3


async def test_a_connection_that_the_server_closed_meanwhile_is_not_used_again() -> None:
    async with server_of((OK, CUT)) as server:
        road = Connections(server.url, {}, timeout_seconds=2.0)
        await road.post(b"1")
        await asyncio.sleep(0.02)
        assert (await road.post(b"2")).body == b"ok"
        await road.aclose()
    assert (server.num_connections, len(server.asked)) == (2, 2)


async def test_a_connection_that_rested_too_long_is_not_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections_module, "IDLE_SECONDS", 0.0)
    async with server_of() as server:
        await post(server, b"1", b"2")
    assert server.num_connections == 2


async def test_each_request_has_its_own_time_and_a_late_answer_reaches_nobody() -> None:
    slow = (b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n",)  # the body never comes
    async with server_of(slow, (OK,), slow) as server:
        road = Connections(server.url, {}, timeout_seconds=0.15)
        late = asyncio.create_task(road.post(b"1"))
        await asyncio.sleep(0.08)
        assert (await road.post(b"2")).body == b"ok"
        with pytest.raises(TimeoutError):
            await late
        with pytest.raises(TimeoutError):
            await road.post(b"3")
        assert (await road.post(b"4")).body == b"ok"
        await road.aclose()


async def test_a_request_that_is_cancelled_leaves_no_answer_behind_for_another() -> None:
    async with server_of((b"HTTP/1.1 200 OK\r\n", b"Content-Length: 5\r\n\r\nfirst")) as server:
        road = Connections(server.url, {}, timeout_seconds=2.0)
        leaving = asyncio.create_task(road.post(b"1"))
        while not server.asked:
            await asyncio.sleep(0.001)
        leaving.cancel()
        await asyncio.gather(leaving, return_exceptions=True)
        assert (await road.post(b"2")).body == b"ok"
        await road.aclose()
    assert server.num_connections == 2


async def test_closing_ends_what_is_on_its_way() -> None:
    async with server_of((b"HTTP/1.1 200 OK\r\n",)) as server:
        road = Connections(server.url, {}, timeout_seconds=2.0)
        waiting = asyncio.create_task(road.post(b"1"))
        while not server.asked:
            await asyncio.sleep(0.001)
        await road.aclose()
        with pytest.raises(Broken):
            await waiting


async def test_nobody_listening_and_an_unknown_host_are_unreachable() -> None:
    for url in ("http://127.0.0.1:9/v1", "http://no-such-host.invalid/v1", f"http://{'a' * 70}.invalid/v1"):
        with pytest.raises(Unreachable):
            await Connections(url, {}, timeout_seconds=5.0).post(b"1")


async def test_user_and_password_of_the_address_become_a_header_unless_there_is_a_key() -> None:
    async with server_of() as server:
        url = f"http://me:p%40ss@127.0.0.1:{server.port}/v1/ä?x=1"
        await Connections(url, {}, timeout_seconds=2.0).post(b"1")
        await post(server, b"2", url=url)
    assert server.asked[0].startswith(b"POST /v1/%C3%A4?x=1 HTTP/1.1\r\n")
    assert b"Authorization: Basic bWU6cEBzcw==\r\n" in server.asked[0]
    assert b"Authorization: Bearer k\r\n" in server.asked[1]


@pytest.mark.parametrize("url", ["ftp://host/v1", "not a url", "http://"])
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="address"):
        Connections(url, {}, timeout_seconds=1.0)


def test_a_key_with_a_line_break_cannot_add_a_header() -> None:
    with pytest.raises(ValueError, match="line break"):
        Connections("http://host/v1", {"Authorization": "Bearer a\r\nX-Evil: 1"}, timeout_seconds=1.0)


async def test_through_a_proxy_the_same_request_arrives() -> None:
    async with server_of((b"HTTP/1.1 429 Slow\r\nRetry-After: 3\r\nContent-Length: 4\r\n\r\nwait",)) as proxy:
        road = ProxiedConnections(
            "http://elsewhere.example/v1/chat",
            {"Authorization": "Bearer k"},
            URL(f"http://127.0.0.1:{proxy.port}"),
            timeout_seconds=2.0,
        )
        answer = await road.post(b"one")
        await road.aclose()
    assert (answer.status, answer.body, answer.headers["retry-after"]) == (429, b"wait", "3")
    assert proxy.asked[0].startswith(b"POST http://elsewhere.example/v1/chat HTTP/1.1\r\n")
    assert b"Authorization: Bearer k\r\n" in proxy.asked[0]


async def test_tls_checks_who_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("the program openssl, which makes the certificate of this test, is not installed")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    command = f"openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=x -addext subjectAltName=DNS:localhost -keyout {key} -out {certificate}"
    subprocess.run(command.split(), check=True, capture_output=True)
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving.load_cert_chain(certificate, key)
    trusting = ssl.create_default_context(cafile=str(certificate))
    async with server_of(tls=serving) as server:
        named, numbered = f"https://localhost:{server.port}/v1", f"https://127.0.0.1:{server.port}/v1"
        with pytest.raises(Unreachable, match=r"certificate verify failed|CERTIFICATE_VERIFY_FAILED"):
            await Connections(named, {}, timeout_seconds=5.0).post(b"1")
        monkeypatch.setattr(connections_module, "_tls", lambda: trusting)
        assert [answer.body for answer in await post(server, b"1", b"2", url=named)] == [b"ok", b"ok"]
        with pytest.raises(Unreachable):
            await Connections(numbered, {}, timeout_seconds=5.0).post(b"1")
    assert len(server.asked) == 2
