"""A teacher behind any OpenAI-compatible endpoint, or behind several that serve the same model. Owns requests and retries.

Knows nothing of ledgers; what it shares with them goes through `current_call`: it says when a request really leaves,
and sets more money aside before it repeats one that may have been billed. The keys live in headers and are blanked out
of everything that comes back.
"""

from __future__ import annotations

import asyncio
import random
import resource
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import orjson
from yarl import URL

from tunesmith.errors import TeacherError
from tunesmith.protocols import Price
from tunesmith.teachers.call import current_call
from tunesmith.teachers.connections import Broken, Connections, ProxiedConnections, Road, Unreachable
from tunesmith.teachers.endpoint import NO_LOGPROBS, NO_PREFIX, Attempt, explain_refusal, public_url
from tunesmith.teachers.lanes import Lane, Lanes
from tunesmith.teachers.limits import retry_after_seconds
from tunesmith.teachers.reply import Secrets, count_prompt_tokens, error_message, read_reply
from tunesmith.teachers.window import FIRST_SIZE, MOST_IN_FLIGHT, Window
from tunesmith.types import Completion, TeacherRequest

FIRST_DELAY_SECONDS = 0.5
"""Longest wait before the first retry; doubles with each one. The actual wait is drawn from [0, that] ("full jitter",
AWS Architecture Blog, 2015), so that clients which failed together do not come back together."""

LONGEST_DELAY_SECONDS = 30.0
"""Where the doubling ends."""

LONGEST_RETRY_AFTER_SECONDS = 300.0
"""An endpoint that asks for a longer pause has its quota used up: the request fails and says so."""

_BYTES_PER_TOKEN = 3.5  # of prompts, for limits per minute; money is reserved for one token a byte
_RETRY_STATUS = frozenset({408, 409, 425, 429})
_NO_HEADERS: Mapping[str, str] = {}


@dataclass(frozen=True)
class Endpoint:
    """One place that serves the model, with one key."""

    base_url: str
    api_key: str | None
    price: Price

    def __repr__(self) -> str:
        return f"Endpoint({public_url(self.base_url)!r}, key={'hidden' if self.api_key else None})"


class OpenAITeacher:
    """POST {base_url}/chat/completions. Requests go to the endpoint with the lowest load.

    concurrency: requests in flight at each endpoint, None = found out by trying. timeout_seconds: per attempt.
    max_retries: tries after the first. requests_per_minute, tokens_per_minute: per endpoint, None = what it says itself.
    notify: told in a sentence when an endpoint is slowed down, rests, or is given up.
    """

    marks_sending = True

    def __init__(
        self,
        *,
        model: str,
        endpoints: Sequence[Endpoint],
        concurrency: int | None,
        timeout_seconds: float,
        max_retries: int,
        requests_per_minute: int | None,
        tokens_per_minute: int | None,
        notify: Callable[[str], None],
    ) -> None:
        self.identity = f"openai:{model}@{public_url(endpoints[0].base_url)}"
        self.price = dearest([endpoint.price for endpoint in endpoints])
        self.model = model
        self._secrets = Secrets([endpoint.api_key for endpoint in endpoints if endpoint.api_key])
        self._timeout_seconds = timeout_seconds
        self._max_retries = max_retries
        self._notify = notify
        self._told: set[tuple[Lane, str]] = set()
        self._most_in_flight = (concurrency or MOST_IN_FLIGHT) * len(endpoints)
        self._roads: dict[Lane, Road] = {}
        self._endpoints = tuple(endpoints)
        lanes = [
            Lane(
                _name(number, endpoint, len(endpoints)),
                url=endpoint.base_url.rstrip("/") + "/chat/completions",
                headers={"Authorization": f"Bearer {endpoint.api_key}"} if endpoint.api_key else _NO_HEADERS,
                price=endpoint.price,
                window=Window(start=concurrency or FIRST_SIZE, most=concurrency or MOST_IN_FLIGHT),
                requests_per_minute=requests_per_minute,
                tokens_per_minute=tokens_per_minute,
            )
            for number, endpoint in enumerate(endpoints, 1)
        ]
        self.lanes = Lanes(lanes, notify=notify)

    def __repr__(self) -> str:
        return f"OpenAITeacher({self.identity!r}, {list(self._endpoints)!r})"

    async def complete(self, request: TeacherRequest) -> Completion:
        """One answer, after at most max_retries further tries. See protocols.Teacher for what is raised."""
        if request.prefix_only:
            return Completion(text="", finish_reason="error", error=NO_PREFIX)
        prompt_bytes = count_prompt_tokens(request)
        tokens = prompt_bytes / _BYTES_PER_TOKEN + request.sampling.max_tokens
        worst = self.price.cost(prompt_bytes, request.sampling.max_tokens)
        maybe_billed, number = 0.0, 0
        while True:
            try:
                attempt = await self._on_some_lane(request, tokens, again=number > 0)
            except _LaneLost:
                continue
            if attempt.completion is not None:
                if maybe_billed:
                    cost = attempt.completion.cost_usd + maybe_billed
                    return attempt.completion.model_copy(update={"cost_usd": cost})
                return attempt.completion
            maybe_billed += worst if attempt.maybe_billed else 0.0
            if attempt.kind == "failed" or (attempt.retry_after or 0.0) > LONGEST_RETRY_AFTER_SECONDS:
                break
            if number == self._max_retries:
                break
            if attempt.maybe_billed and not _set_aside(worst):
                attempt.message += "; not tried again: the answer may have been billed and the budget ends here"
                break
            number += 1
            await asyncio.sleep(_delay(number, attempt))
        if attempt.unreachable and not any(lane.was_reached for lane in self.lanes.all):
            raise TeacherError(
                f"cannot reach the endpoint after {self._max_retries + 1} tries: {attempt.message}",
                where=public_url(self.lanes.all[0].url),
                hint="is the server running, and is `base_url` right?",
            )
        tries = f" (tried {number + 1} times)" if number else ""
        return Completion(text="", finish_reason="error", error=f"{attempt.message}{tries}", cost_usd=maybe_billed)

    def count_prompt_tokens(self, request: TeacherRequest) -> int:
        """See reply.count_prompt_tokens."""
        return count_prompt_tokens(request)

    async def aclose(self) -> None:
        self.lanes.close()
        roads = list(self._roads.values())
        self._roads.clear()
        for road in roads:
            await road.aclose()

    async def _on_some_lane(self, request: TeacherRequest, tokens: float, *, again: bool) -> Attempt:
        """Wait for a lane and send once. Raises _LaneLost where the lane is of no use and another one is left."""
        lane = await self.lanes.enter(tokens, again=again)
        call = current_call.get()
        attempt: Attempt | None = None
        headers = _NO_HEADERS
        try:
            if call is not None:
                call.sending()
            attempt, headers = await self._attempt(lane, request)
            if call is not None:
                call.raw = attempt.raw
            return attempt
        except TeacherError as error:
            if self.lanes.bury(lane, error):
                raise _LaneLost from error
            raise
        finally:
            self.lanes.leave(lane, tokens, attempt, headers)

    async def _attempt(self, lane: Lane, request: TeacherRequest) -> tuple[Attempt, Mapping[str, str]]:
        """One POST, and again at once where the endpoint refuses a parameter that another form can say."""
        road = self._roads.get(lane) or self._open_road(lane)
        while True:
            body = lane.dialect.body(self.model, request)
            try:
                status, headers, data = await road.post(orjson.dumps(body))
            except TimeoutError:
                message = f"no answer within {self._timeout_seconds:g} s"
                return Attempt("retry", message, maybe_billed=True), _NO_HEADERS
            except Unreachable as error:
                message = f"cannot connect: {self._secrets.blank(str(error))}"
                return Attempt("retry", message, unreachable=True), _NO_HEADERS
            except Broken as error:
                reason = self._secrets.blank(str(error))
                return Attempt("retry", f"the connection broke: {reason}", maybe_billed=True), _NO_HEADERS
            lane.was_reached = True
            if status == 200:
                return self._read(data, request, lane), headers
            message = self._secrets.blank(error_message(data)) or f"HTTP {status}"
            if status in (400, 422) and (learnt := lane.dialect.adapt(body, message)):
                self._tell(lane, learnt)
                continue
            fatal = explain_refusal(status, message, headers.get("location"), self.model, public_url(lane.url))
            if fatal is not None:
                raise fatal
            message = f"HTTP {status}: {message}"
            if status in _RETRY_STATUS or status >= 500:
                pause = retry_after_seconds(headers)
                return Attempt("retry", message, retry_after=pause, refused=status == 429), headers
            return Attempt("failed", message), headers

    def _read(self, data: bytes, request: TeacherRequest, lane: Lane) -> Attempt:
        """A 200. Broken JSON and missing choices are tried again; everything else is an answer, good or not."""
        if data.lstrip()[:1] == b"<":
            raise TeacherError(
                "the endpoint answered with a web page, not JSON",
                where=public_url(lane.url),
                hint="`base_url` should end where /chat/completions can be added, usually in /v1",
            )
        reply = read_reply(data, request, lane.price, self._secrets)
        if reply is not None:
            given = reply.completion.top_logprobs is not None or not reply.completion.text
            if request.sampling.top_logprobs is not None and not given:
                self._tell(lane, NO_LOGPROBS)
            return Attempt("answered", completion=reply.completion, raw=reply.raw)
        words = self._secrets.blank(data.decode("utf-8", "replace"))
        if (call := current_call.get()) is not None:
            call.keep(words.encode())
        message = f"the answer is not a chat completion: {words[:200] or 'nothing'}"
        return Attempt("retry", message, maybe_billed=True)

    def _tell(self, lane: Lane, what: str) -> None:
        """Once: a thousand requests in flight meet the same refusal."""
        if (lane, what) not in self._told:
            self._told.add((lane, what))
            self._notify(f"{lane.name} {what}")

    def _open_road(self, lane: Lane) -> Road:
        _allow_sockets(self._most_in_flight)
        headers = {"Content-Type": "application/json", "User-Agent": "tunesmith", **lane.headers}
        seconds = self._timeout_seconds
        try:
            proxy = proxy_for(lane.url)
            if proxy is None:
                road: Road = Connections(lane.url, headers, timeout_seconds=seconds)
            else:
                road = ProxiedConnections(lane.url, headers, proxy, timeout_seconds=seconds)
        except ValueError:
            raise TeacherError("`base_url` is no URL", where=public_url(lane.url)) from None
        self._roads[lane] = road
        return road


class _LaneLost(Exception):
    """The lane was given up and another one can take the request."""


def dearest(prices: Sequence[Price]) -> Price:
    """The highest of several prices, side by side: what a worst case is made of."""
    first = prices[0]
    if len(prices) == 1:
        return first
    return Price(
        max(price.input_usd_per_mtok for price in prices),
        max(price.output_usd_per_mtok for price in prices),
        source=first.source,
    )


def proxy_for(url: str) -> URL | None:
    """The proxy that the environment (http_proxy, https_proxy, no_proxy) names for an address."""
    parts = urlsplit(url)
    proxy = getproxies().get(parts.scheme)
    return URL(proxy) if proxy and not proxy_bypass(parts.hostname or "") else None


def _set_aside(usd: float) -> bool:
    """Reserve the worst case again for one more try; False where the budget does not allow it."""
    call = current_call.get()
    return call is None or call.reservation.extend(usd)


def backoff_seconds(number: int) -> float:
    """Wait before retry `number` (from 1)."""
    return random.uniform(0, min(LONGEST_DELAY_SECONDS, FIRST_DELAY_SECONDS * 2 ** (number - 1)))


def _delay(number: int, last: Attempt) -> float:
    # Retry-After is a lower bound; a little jitter on top keeps a crowd from returning at the same moment
    return backoff_seconds(number) if last.retry_after is None else last.retry_after + random.uniform(0, 0.1)


def _name(number: int, endpoint: Endpoint, num_endpoints: int) -> str:
    place = public_url(endpoint.base_url)
    return f"endpoint {number} ({place})" if num_endpoints > 1 else f"the endpoint {place}"


def _allow_sockets(wanted: int) -> None:
    """Each request in flight holds a socket; many systems allow 1,024 open files unless a program asks for more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = wanted + 256
    if soft != resource.RLIM_INFINITY and soft < most:
        allowed = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, allowed), hard))
