"""A scripted engine and a byte renderer for tests of the gateway, and a real server around them on a free port."""

from __future__ import annotations

import asyncio
import random
import socket
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from tunesmith.errors import DataError, EngineError
from tunesmith.inference.stopping import StopMatcher
from tunesmith.protocols import Chunk, Prompt, ServingEngine, TokenLogprob
from tunesmith.server.run import build_server
from tunesmith.server.served import ServedModel
from tunesmith.server.settings import ServerSettings
from tunesmith.types import Message, SamplingParams

STOP_ID = 256


class ByteTokenizer:
    """One token per byte, and one that ends a turn."""

    def __call__(self, text: str, add_special_tokens: bool = False) -> dict[str, list[int]]:
        return {"input_ids": list(text.encode())}

    def __len__(self) -> int:
        return 257

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(token for token in ids if token < 256).decode("utf-8", "replace")


class ByteRenderer:
    """Writes `role: content` lines."""

    template = "the role, a colon, the content"
    template_digest = "d" * 64
    stop_ids = (STOP_ID,)

    def __init__(self) -> None:
        self.tokenizer = ByteTokenizer()

    def prompt(self, messages: Sequence[Message]) -> Prompt:
        if messages[-1].content == "refuse me":
            raise DataError("the template refuses this conversation")
        text = "".join(f"{message.role}: {message.content}\n" for message in messages) + "assistant: "
        return Prompt(tuple(text.encode()), self.stop_ids)

    def decode(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(ids)


def parrot(prompt: str, sampling: SamplingParams) -> list[str | bytes]:
    """Answers with the words after the last `say `; `draw` answers with random words of the seed."""
    last = prompt.rstrip("\n").removesuffix("assistant: ").rstrip("\n")
    if "say " in last:
        return list(last.rpartition("say ")[2])
    generator = random.Random(sampling.rng_seed)
    return [f"{generator.choice(['red', 'green', 'blue', 'grey'])} " for _ in range(8)]


class ScriptedEngine:
    """A ServingEngine that plays pieces. A bytes piece is a token inside a character: its text comes with the last."""

    def __init__(
        self,
        script: Callable[[str, SamplingParams], Sequence[str | bytes]] = parrot,
        *,
        context_length: int = 4096,
        num_slots: int = 4,
        delay: float = 0.0,
    ) -> None:
        self.script = script
        self.context_length = context_length
        self.num_slots = num_slots
        self.delay = delay
        self.alive = True
        self.fail_after: int | None = None
        self.start_gate: asyncio.Event | None = None
        self.seen: list[tuple[str, SamplingParams]] = []
        self.produced = 0
        self.cancelled = 0
        self.running = 0
        self.most_running = 0
        self._stopped = False

    async def start(self) -> None:
        if self.start_gate is not None:
            await self.start_gate.wait()

    async def stop(self) -> None:
        self._stopped = True

    async def healthy(self) -> bool:
        return self.alive

    async def stream(
        self, prompt: Prompt, sampling: SamplingParams, *, top_logprobs: int | None = None
    ) -> AsyncIterator[Chunk]:
        text = bytes(token for token in prompt.input_ids if token < 256).decode("utf-8", "replace")
        self.seen.append((text, sampling))
        if sampling.json_schema is not None and "not" in sampling.json_schema:
            raise DataError("the engine cannot enforce this JSON schema", where="json_schema")
        pieces = list(self.script(text, sampling))
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        finished = False
        try:
            async for chunk in self._play(pieces, prompt, sampling, top_logprobs):
                finished = chunk.finish_reason is not None
                yield chunk
        finally:
            self.running -= 1
            self.cancelled += not finished

    async def _play(
        self, pieces: list[str | bytes], prompt: Prompt, sampling: SamplingParams, top: int | None
    ) -> AsyncIterator[Chunk]:
        matcher = StopMatcher(sampling.stop)
        held, entries, count = b"", [], 0
        for piece in pieces[: sampling.max_tokens]:
            await asyncio.sleep(self.delay)
            if self._stopped:
                return
            if self.fail_after is not None and count >= self.fail_after:
                raise EngineError("a fault at /secret/path/model.gguf with details")
            count += 1
            self.produced += 1
            data = piece.encode() if isinstance(piece, str) else piece
            held += data
            if top is not None:
                alternatives = tuple(TokenLogprob(9, "x", b"x", -2.0 - place) for place in range(top))
                entries.append(TokenLogprob(7, data.decode("utf-8", "replace"), data, -0.5, alternatives))
            if isinstance(piece, str) or _is_whole(held):
                yield Chunk(text=matcher.feed(held.decode()), logprobs=tuple(entries))
                held, entries = b"", []
            if matcher.matched:
                break
        if not matcher.matched and (rest := matcher.flush()):
            yield Chunk(text=rest)
        cut = count < len(pieces) and not matcher.matched
        yield Chunk(
            finish_reason="length" if cut else "stop",
            prompt_tokens=len(prompt.input_ids),
            completion_tokens=count,
            cached_tokens=min(3, len(prompt.input_ids)),
        )


def _is_whole(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


class RunningServer:
    """A gateway on a free port of this machine, in a thread of its own."""

    def __init__(
        self,
        engine: ServingEngine,
        settings: ServerSettings | None = None,
        model: ServedModel | None = None,
        *,
        wait_ready: bool = True,
    ) -> None:
        self.engine: Any = engine
        self.settings = (settings or ServerSettings()).model_copy(update={"port": 0})
        self.model = model or ServedModel(id="desk", renderer=ByteRenderer(), aliases=("latest",), created=1)
        self._ready = threading.Event()
        self._listening = threading.Event()
        self._wait_ready = wait_ready
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.error: BaseException | None = None

    def __enter__(self) -> RunningServer:
        self._thread.start()
        assert (self._ready if self._wait_ready else self._listening).wait(30), self.error
        return self

    def __exit__(self, *_exception: object) -> None:
        self.stop()

    def stop(self) -> None:
        if self._thread.is_alive():
            self.loop.call_soon_threadsafe(self.server._drain)
            self._thread.join(30)
            assert not self._thread.is_alive()

    @property
    def url(self) -> str:
        return self.server.url

    @property
    def gateway(self) -> Any:
        return self.server.config.app.state.gateway

    def _run(self) -> None:
        self.loop = asyncio.new_event_loop()
        listener = socket.create_server(("127.0.0.1", 0))
        try:
            self.loop.run_until_complete(self._serve(listener))
        except BaseException as error:  # noqa: BLE001 - shown by the test
            self.error = error
        finally:
            listener.close()
            self.loop.close()

    async def _serve(self, listener: socket.socket) -> None:
        self.server = build_server(self.model, self.engine, self.settings, on_ready=lambda _url: self._ready.set())
        serving = asyncio.ensure_future(self.server.serve([listener]))
        while not self.server.started and not serving.done():
            await asyncio.sleep(0.01)
        self._listening.set()
        await serving
