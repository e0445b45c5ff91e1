"""A teacher behind an endpoint's batch API (OpenAI's /files and /batches): requests are gathered, sent as one file, and
answered within a day, often at half the price.

A batch has a name of its own choosing, which the ledger holds before the batch exists and the provider keeps with it:
so a process that was killed at any moment finds its batch again, and pays for nothing twice. Knows nothing of ledgers
beyond `current_call`.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import aiohttp
import orjson

from tunesmith.errors import TeacherError
from tunesmith.teachers.call import Call, current_call
from tunesmith.teachers.endpoint import NO_PREFIX, Dialect, explain_refusal, public_url
from tunesmith.teachers.limits import retry_after_seconds
from tunesmith.teachers.openai import Endpoint, backoff_seconds, proxy_for
from tunesmith.teachers.reply import Secrets, count_prompt_tokens, error_message, load_json, read_reply
from tunesmith.teachers.window import MOST_IN_ONE_BATCH
from tunesmith.types import Completion, TeacherRequest

GATHER_SECONDS = 1.0
"""A batch goes out once no further request has come for this long."""

FIRST_POLL_SECONDS = 5.0
"""Wait before a batch is first looked at; grows by half each time."""

LONGEST_POLL_SECONDS = 60.0

MOST_BYTES_IN_ONE_BATCH = 190_000_000
"""OpenAI takes files of 200 MB."""

_TAG = "tunesmith_batch"
_ENDED = frozenset({"completed", "failed", "expired", "cancelled"})
_TRY_AGAIN = frozenset({408, 409, 425, 429})


@dataclass
class _Item:
    """One request that goes out with a batch."""

    key: str
    request: TeacherRequest
    call: Call | None
    line: dict[str, Any] | None  # set when its batch has ended; None = the batch holds no answer for it
    ended: asyncio.Future[None]


class BatchTeacher:
    """The Teacher protocol over batches. The requests that are asked side by side travel together."""

    marks_sending = True

    def __init__(
        self,
        *,
        model: str,
        endpoint: Endpoint,
        timeout_seconds: float,
        max_retries: int,
        notify: Callable[[str], None],
    ) -> None:
        # the same identity as without batches: an answer is an answer, and changing over pays for none again
        self.identity = f"openai:{model}@{public_url(endpoint.base_url)}"
        self.price = endpoint.price
        self.model = model
        self._endpoint = endpoint
        self._base = endpoint.base_url.rstrip("/")
        self._secrets = Secrets([endpoint.api_key] if endpoint.api_key else [])
        self._timeout_seconds = timeout_seconds
        self._max_retries = max_retries
        self._notify = notify
        self._dialect = Dialect()
        self._gathering: list[_Item] = []
        self._gathering_bytes = 0
        self._timer: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._found: dict[str, asyncio.Task[dict[str, dict[str, Any]] | None]] = {}  # earlier batch -> its lines
        self._session: aiohttp.ClientSession | None = None

    def __repr__(self) -> str:
        return f"BatchTeacher({self.identity!r}, {self._endpoint!r})"

    async def complete(self, request: TeacherRequest) -> Completion:
        """One answer, when its batch has ended. See protocols.Teacher for what is raised."""
        if request.prefix_only:
            return Completion(text="", finish_reason="error", error=NO_PREFIX)
        call = current_call.get()
        key = request.key(self.identity) if call is None else call.key
        line = await self._from_earlier(call, key)
        number = 0
        while True:
            if line is not None:
                completion, message = self._read(line, request, call)
                if completion is not None:
                    return completion
                if number >= self._max_retries:
                    tries = f" (tried {number + 1} times)" if number else ""
                    return Completion(text="", finish_reason="error", error=f"{message}{tries}")
                number += 1
            item = _Item(key, request, call, None, asyncio.get_running_loop().create_future())
            self._gather(item)
            await item.ended
            line = item.line or {"error": {"message": "the batch ended without an answer to this request"}}

    def count_prompt_tokens(self, request: TeacherRequest) -> int:
        """See reply.count_prompt_tokens."""
        return count_prompt_tokens(request)

    async def aclose(self) -> None:
        """Stop waiting. Batches that are out go on at the provider, and the next process finds them."""
        if self._timer is not None:
            self._timer.cancel()
        tasks = [*self._tasks, *self._found.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def _from_earlier(self, call: Call | None, key: str) -> dict[str, Any] | None:
        """The line of a batch that went out in an earlier process, once it has ended; None where it never came to be."""
        if call is None or call.batch is None:
            return None
        name = call.batch
        if name not in self._found:
            self._found[name] = asyncio.create_task(self._take_up(name))
        lines = await asyncio.shield(self._found[name])
        return None if lines is None else lines.get(key)

    async def _take_up(self, name: str) -> dict[str, dict[str, Any]] | None:
        batch = await self._find(name)
        if batch is None:
            return None
        self._notify(f"batch {batch['id']} of an earlier run is taken up again ({batch.get('status')})")
        return await self._wait(batch)

    def _gather(self, item: _Item) -> None:
        size = count_prompt_tokens(item.request) + 1024
        if len(self._gathering) >= MOST_IN_ONE_BATCH or self._gathering_bytes + size > MOST_BYTES_IN_ONE_BATCH:
            self._send_gathered()
        self._gathering.append(item)
        self._gathering_bytes += size
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(GATHER_SECONDS, self._send_gathered)

    def _send_gathered(self) -> None:
        items, self._gathering, self._gathering_bytes = self._gathering, [], 0
        items = [item for item in items if not item.ended.done()]
        if items:
            task = asyncio.create_task(self._carry(items))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _carry(self, items: list[_Item]) -> None:
        """Send one batch and hand every item its line."""
        try:
            lines = await self._send(items)
        except Exception as error:  # noqa: BLE001  it belongs to those who wait, whatever it is
            for item in items:
                if not item.ended.done():
                    item.ended.set_exception(error)
            return
        for item in items:
            item.line = lines.get(item.key)
            if not item.ended.done():
                item.ended.set_result(None)

    async def _send(self, items: list[_Item]) -> dict[str, dict[str, Any]]:
        name = secrets.token_hex(12)
        for item in items:
            if item.call is not None:
                item.call.sending(name)
        lines = (
            {
                "custom_id": item.key,
                "method": "POST",
                "url": "/v1/chat/completions",
                "body": self._dialect.body(self.model, item.request),
            }
            for item in items
        )
        data = b"".join(orjson.dumps(line) + b"\n" for line in lines)
        form = {"purpose": "batch"}
        uploaded = await self._json("POST", "/files", form=form, file=data)
        batch = await self._create(name, uploaded["id"])
        self._notify(f"batch {batch['id']} with {len(items)} requests is on its way")
        return await self._wait(batch)

    async def _create(self, name: str, file_id: str) -> dict[str, Any]:
        body = {
            "input_file_id": file_id,
            "endpoint": "/v1/chat/completions",
            "completion_window": "24h",
            "metadata": {_TAG: name},
        }
        for number in range(self._max_retries + 1):
            try:
                return await self._json("POST", "/batches", body=body, tries=1)
            except TeacherError:
                # the batch may have been made although its answer was lost: look before making another
                if (found := await self._find(name)) is not None:
                    return found
                if number == self._max_retries:
                    raise
                await asyncio.sleep(backoff_seconds(number + 1))
        raise AssertionError("the loop returns or raises")

    async def _find(self, name: str) -> dict[str, Any] | None:
        """The batch of this name, newest first through all of the account's batches."""
        after = ""
        while True:
            page = await self._json("GET", f"/batches?limit=100{after}")
            for batch in page["data"]:
                if (batch.get("metadata") or {}).get(_TAG) == name:
                    return batch
            if not page.get("has_more") or not page["data"]:
                return None
            after = f"&after={page['data'][-1]['id']}"

    async def _wait(self, batch: dict[str, Any]) -> dict[str, dict[str, Any]]:
        """The lines of a batch by key, once it has ended. TeacherError where it was refused as a whole."""
        pause = FIRST_POLL_SECONDS
        while batch["status"] not in _ENDED:
            await asyncio.sleep(pause)
            pause = min(LONGEST_POLL_SECONDS, pause * 1.5)
            batch = await self._json("GET", f"/batches/{batch['id']}")
        if batch["status"] == "failed":
            faults = (batch.get("errors") or {}).get("data") or [{}]
            message = self._secrets.blank(str(faults[0].get("message") or faults[0].get("code") or "no reason given"))
            raise TeacherError(
                f"the endpoint refused batch {batch['id']}: {message}",
                where=public_url(self._base),
                hint="mend what it says, or set `runtime.teacher_batch: false`",
            )
        lines: dict[str, dict[str, Any]] = {}
        for name in ("error_file_id", "output_file_id"):  # answers win over errors
            if batch.get(name):
                data = await self._bytes("GET", f"/files/{batch[name]}/content")
                lines.update(_by_key(data.splitlines()))
        return lines

    def _read(self, line: dict[str, Any], request: TeacherRequest, call: Call | None) -> tuple[Completion | None, str]:
        """(completion, "") for an answer or a failure that stays one; (None, why) for what another batch may mend."""
        response = line.get("response") or {}
        body, status = response.get("body"), response.get("status_code")
        if status == 200 and isinstance(body, dict):
            reply = read_reply(body, request, self.price, self._secrets)
            if reply is None:
                return None, "the answer is not a chat completion"
            if call is not None:
                call.raw = reply.raw
            return reply.completion, ""
        words = body if isinstance(body, dict) else {"error": line.get("error") or {}}
        message = self._secrets.blank(error_message(orjson.dumps(words)))
        if status is None or status in _TRY_AGAIN or status >= 500:
            return None, message
        if status in (400, 422):
            body = self._dialect.body(self.model, request)
            if self._dialect.has_learnt(message):
                return None, message
            if learnt := self._dialect.adapt(body, message):
                self._notify(f"{public_url(self._base)} {learnt}")
                return None, message
        return Completion(text="", finish_reason="error", error=f"HTTP {status}: {message}"), ""

    async def _json(
        self,
        method: str,
        path: str,
        *,
        body: Any = None,
        form: dict[str, str] | None = None,
        file: bytes | None = None,
        tries: int | None = None,
    ) -> dict[str, Any]:
        data = await self._bytes(method, path, body=body, form=form, file=file, tries=tries)
        try:
            answer = load_json(data)
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            raise TeacherError(
                "the endpoint answered with something that is no JSON object",
                where=public_url(self._base + path.partition("?")[0]),
                hint="does it offer OpenAI's batch API? If not, set `runtime.teacher_batch: false`",
            )
        return answer

    async def _bytes(
        self,
        method: str,
        path: str,
        *,
        body: Any = None,
        form: dict[str, str] | None = None,
        file: bytes | None = None,
        tries: int | None = None,
    ) -> bytes:
        """One exchange, tried again where that may help. TeacherError where it does not."""
        tries = self._max_retries + 1 if tries is None else tries
        place = public_url(self._base + path.partition("?")[0])
        message = ""
        for number in range(1, tries + 1):
            pause = None
            payload: Any = None if body is None else orjson.dumps(body)
            if file is not None:
                payload = aiohttp.FormData(form or {})
                payload.add_field("file", file, filename="requests.jsonl", content_type="application/jsonl")
            kind = {"Content-Type": "application/json"} if body is not None else {}
            try:
                async with self._open_session().request(
                    method,
                    self._base + path,
                    data=payload,
                    headers=kind,
                    proxy=proxy_for(self._base),
                    allow_redirects=False,
                ) as answer:
                    status, headers, data = answer.status, answer.headers, await answer.read()
            except (TimeoutError, aiohttp.ClientError, OSError) as error:
                message = self._secrets.blank(str(error)) or type(error).__name__
            else:
                if status == 200:
                    return data
                message = f"HTTP {status}: {self._secrets.blank(error_message(data))}"
                fatal = explain_refusal(status, message, headers.get("Location"), self.model, place)
                if fatal is not None or (status < 500 and status not in _TRY_AGAIN):
                    raise fatal or TeacherError(f"the endpoint refused with {message}", where=place)
                pause = retry_after_seconds(headers)
            if number < tries:
                await asyncio.sleep(backoff_seconds(number) if pause is None else pause)
        raise TeacherError(
            f"the batch API cannot be used after {tries} tries: {message}",
            where=place,
            hint="run the same command again later: batches that are out are found again",
        )

    def _open_session(self) -> aiohttp.ClientSession:
        if self._session is None:
            key = self._endpoint.api_key
            self._session = aiohttp.ClientSession(
                timeout=aiohttp.ClientTimeout(
                    total=None, sock_connect=self._timeout_seconds, sock_read=self._timeout_seconds
                ),
                headers={"Authorization": f"Bearer {key}"} if key else {},
                cookie_jar=aiohttp.DummyCookieJar(),
            )
        return self._session


def _by_key(lines: Iterable[bytes]) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for data in lines:
        line = load_json(data) if data.strip() else None
        if isinstance(line, dict) and isinstance(line.get("custom_id"), str):
            found[line["custom_id"]] = line
    return found
