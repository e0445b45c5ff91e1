"""OpenAI's /files and /batches on a real socket. A batch ends when `release` is set; counts what would be billed."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from teachers.fake_openai import say


@dataclass
class FakeBatches:
    """answer: body -> (status, body) of one request. ends_as: status of batch n when it ends."""

    answer: Callable[[dict[str, Any]], tuple[int, dict[str, Any]]] = lambda body: (200, say("hello"))
    ends_as: Callable[[int], str] = lambda number: "completed"
    unanswered: Callable[[int, int], bool] = lambda batch, line: False
    release: bool = True
    create_breaks: int = 0  # creations that make the batch and then answer 500
    files: dict[str, bytes] = field(default_factory=dict)
    batches: list[dict[str, Any]] = field(default_factory=list)
    asked: list[dict[str, Any]] = field(default_factory=list)
    num_billed: int = 0
    base_url: str = ""

    async def upload(self, request: web.Request) -> web.Response:
        form = await request.post()
        name = f"file-{len(self.files)}"
        part: Any = form["file"]
        assert form["purpose"] == "batch"
        self.files[name] = part.file.read()
        return web.json_response({"id": name})

    async def create(self, request: web.Request) -> web.Response:
        body = await request.json()
        batch = {"id": f"batch_{len(self.batches)}", "status": "validating", **body}
        self.batches.append(batch)
        if self.create_breaks:
            self.create_breaks -= 1
            return web.json_response({"error": {"message": "lost"}}, status=500)
        return web.json_response(batch)

    async def list(self, request: web.Request) -> web.Response:
        newest = self.batches[::-1]
        after = request.query.get("after")
        start = next((i + 1 for i, batch in enumerate(newest) if batch["id"] == after), 0)
        page = newest[start : start + 2]  # small pages, so that paging is exercised
        return web.json_response({"data": page, "has_more": start + 2 < len(newest)})

    async def look(self, request: web.Request) -> web.Response:
        number = int(request.match_info["id"].removeprefix("batch_"))
        batch = self.batches[number]
        if self.release and batch["status"] == "validating":
            self._end(number, batch)
        return web.json_response(batch)

    async def content(self, request: web.Request) -> web.Response:
        return web.Response(body=self.files[request.match_info["id"]])

    def _end(self, number: int, batch: dict[str, Any]) -> None:
        batch["status"] = self.ends_as(number)
        if batch["status"] == "failed":
            batch["errors"] = {"data": [{"code": "model_not_found", "message": "no such model"}]}
            return
        good: list[str] = []
        bad: list[str] = []
        for index, line in enumerate(self.files[batch["input_file_id"]].splitlines()):
            item = json.loads(line)
            self.asked.append(item["body"])
            if self.unanswered(number, index):
                error = {"code": "batch_expired", "message": "This request could not be executed in time."}
                bad.append(json.dumps({"custom_id": item["custom_id"], "response": None, "error": error}))
                continue
            status, body = self.answer(item["body"])
            self.num_billed += status == 200
            entry = {"custom_id": item["custom_id"], "response": {"status_code": status, "body": body}, "error": None}
            (good if status == 200 else bad).append(json.dumps(entry))
        for kind, lines in (("output_file_id", good), ("error_file_id", bad)):
            if lines:
                batch[kind] = f"file-{len(self.files)}"
                self.files[batch[kind]] = "\n".join(lines[::-1]).encode()  # batches answer in any order


@asynccontextmanager
async def serve_batches(**changes: Any) -> AsyncGenerator[FakeBatches]:
    """The endpoint on a free port of this machine."""
    fake = FakeBatches(**changes)
    app = web.Application()
    app.router.add_post("/v1/files", fake.upload)
    app.router.add_get("/v1/files/{id}/content", fake.content)
    app.router.add_post("/v1/batches", fake.create)
    app.router.add_get("/v1/batches", fake.list)
    app.router.add_get("/v1/batches/{id}", fake.look)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    fake.base_url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    try:
        yield fake
    finally:
        await runner.cleanup()
