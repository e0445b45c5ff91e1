"""llama.cpp inside this process (package xllamacpp): the engine for machines without a GPU.

Owns loading, threads, slots, cancellation and shutdown. Refuses to know chat templates (token ids come in) and HTTP:
the port that xllamacpp insists on opening is a socket in a private folder behind an unguessable key, used by nobody.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import importlib
import os
import re
import secrets
import signal
import tempfile
import threading
import time
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from tunesmith.errors import EngineError, MissingExtra, ModelError, TunesmithError
from tunesmith.hashing import digest_json
from tunesmith.inference.gguf_header import GgufHeader, read_header
from tunesmith.inference.llama_call import LlamaCall, check_schema
from tunesmith.protocols import Chunk, Prompt
from tunesmith.types import Completion, SamplingParams, Usage

_CONTEXT_STEP = 256  # llama.cpp rounds a slot's context to this many tokens
_PREFILL_BATCH = 512  # tokens between two chances to cancel a prompt
_PROMPT_CACHE_MIB = 256  # llama.cpp's own default of 8192 would fill a small machine
_KEPT_SCHEMAS = 256
_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100


class LlamaCppEngine:
    """Answers prompts with a GGUF file, several at once.

    context_length: tokens one request may use, prompt and answer together (None = what the model was trained for).
    num_threads: None = the cores this process may use. exact: flash attention off, 32-bit cache, no prompt cache:
    log probabilities then agree with the mathematics to 3e-5 instead of 3e-2; for evaluation and export checks.
    Raises ModelError for a file that is cut, damaged, not GGUF, or trained for a shorter context.
    """

    def __init__(
        self,
        gguf: Path,
        *,
        context_length: int | None,
        num_slots: int,
        num_threads: int | None,
        exact: bool = False,
    ) -> None:
        self.header: GgufHeader = read_header(gguf)
        trained = self.header.context_length
        wanted = context_length or trained
        if wanted is None:
            raise ModelError("the file does not say its context length", where=str(gguf), hint="give context_length")
        if trained is not None and wanted > trained:
            raise ModelError(
                f"context_length {wanted} is more than the {trained} tokens the model was trained for",
                where=str(gguf),
                hint=f"use at most {trained}",
            )
        if num_slots < 1:
            raise EngineError(f"num_slots is {num_slots}, expected at least 1")
        self.gguf = gguf
        self.context_length = wanted
        self.num_slots = num_slots
        self.num_threads = num_threads or _usable_cores()
        self.exact = exact
        self._server: Any = None
        self._pool: ThreadPoolExecutor | None = None
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._closing = threading.Event()
        self._checked: OrderedDict[str, None] = OrderedDict()  # digests of schemas the engine is known to enforce

    # Life: load and close block; start and stop do the same beside a running event loop

    def load(self) -> None:
        """Read the model into memory. Raises ModelError with llama.cpp's own words where it cannot."""
        if self._server is not None:
            return
        self._closing.clear()
        self._folder = tempfile.TemporaryDirectory(prefix="tunesmith-llama-", ignore_cleanup_errors=True)
        try:
            with _signal_handlers_kept():
                self._server = self._open(self._folder.name)
        except TunesmithError:
            self._folder.cleanup()
            raise
        self._pool = ThreadPoolExecutor(self.num_slots, thread_name_prefix="llama")

    def close(self) -> None:
        """Cancel what runs, free the model."""
        self._closing.set()
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
        self._pool = None
        self._server = None  # its destructor ends the threads of llama.cpp
        if self._folder is not None:
            self._folder.cleanup()
        self._folder = None

    async def start(self) -> None:
        await asyncio.to_thread(self.load)

    async def stop(self) -> None:
        await asyncio.to_thread(self.close)

    async def healthy(self) -> bool:
        return self._server is not None and not self._closing.is_set()

    def __enter__(self) -> LlamaCppEngine:
        self.load()
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    # Answers

    async def stream(
        self, prompt: Prompt, sampling: SamplingParams, *, top_logprobs: int | None = None
    ) -> AsyncIterator[Chunk]:
        """Chunks of one answer. Closing the iterator frees the slot at the next token or prefill batch.

        Raises DataError for a JSON schema that llama.cpp cannot enforce, EngineError where it fails.
        """
        pipe = _Pipe(asyncio.get_running_loop())
        future = self._submit(prompt, sampling, pipe.put, lambda: pipe.closed, top_logprobs)
        future.add_done_callback(pipe.end)
        try:
            async for chunk in pipe:
                yield chunk
        finally:
            pipe.closed = True
            future.cancel()

    def generate_batch(
        self,
        prompts: Sequence[Prompt],
        sampling: SamplingParams,
        on_done: Callable[[int, Completion], None] | None = None,
    ) -> list[Completion]:
        """Answers in the order of the prompts; blocks. on_done(index, completion) is called as each one ends."""
        abandoned = threading.Event()

        running: dict[Future[None], tuple[int, list[Chunk]]] = {}
        completions: dict[int, Completion] = {}
        try:
            for index, prompt in enumerate(prompts):
                chunks: list[Chunk] = []
                future = self._submit(prompt, sampling, chunks.append, abandoned.is_set, None)
                running[future] = (index, chunks)
            for future in as_completed(running):
                future.result()
                index, chunks = running[future]
                completions[index] = _completion(chunks)
                if on_done is not None:
                    on_done(index, completions[index])
            return [completions[index] for index in range(len(prompts))]
        finally:
            abandoned.set()
            for future in running:
                future.cancel()

    def _submit(
        self,
        prompt: Prompt,
        sampling: SamplingParams,
        emit: Callable[[Chunk], None],
        cancelled: Callable[[], bool],
        top_logprobs: int | None,
    ) -> Future[None]:
        if self._server is None or self._pool is None:
            raise EngineError("the engine is not loaded", hint="call start() or load() first")
        if len(prompt.input_ids) >= self.context_length:
            raise EngineError(
                f"the prompt has {len(prompt.input_ids)} tokens, which leaves no room in a context of"
                f" {self.context_length}"
            )
        call = LlamaCall(
            self._server,
            self.header,
            prompt,
            self._within_context(prompt, sampling),
            emit,
            lambda: cancelled() or self._closing.is_set(),
            top_logprobs,
            self.exact,
        )
        return self._pool.submit(self._run, call)

    def _within_context(self, prompt: Prompt, sampling: SamplingParams) -> SamplingParams:
        # A slot's context is rounded up to a multiple of 256, so llama.cpp itself would go past the advertised figure.
        room = self.context_length - len(prompt.input_ids)
        return sampling if sampling.max_tokens <= room else sampling.model_copy(update={"max_tokens": room})

    def _run(self, call: LlamaCall) -> None:
        if call.cancelled():
            return
        schema = call.sampling.json_schema
        if schema is not None and (digest := digest_json(schema)) not in self._checked:
            check_schema(self._server, self.header, schema)
            self._checked[digest] = None
            while len(self._checked) > _KEPT_SCHEMAS:
                self._checked.popitem(last=False)
        call.run()

    # Loading

    def _open(self, folder: str) -> Any:
        try:
            xllamacpp: Any = importlib.import_module("xllamacpp")
        except ImportError as error:
            raise MissingExtra("xllamacpp", "serve", "answering with llama.cpp") from error
        params = self._params(xllamacpp, f"{folder}/a.sock", verbosity=0)
        try:
            return xllamacpp.Server(params)
        except RuntimeError as error:
            # The reason goes to standard error only: load once more, with that stream caught.
            params = self._params(xllamacpp, f"{folder}/b.sock", verbosity=1)
            with _standard_error_caught() as caught, contextlib.suppress(RuntimeError):
                return xllamacpp.Server(params)
            raise ModelError(
                f"llama.cpp could not load the file: {_last_lines(caught) or error}",
                where=str(self.gguf),
                hint="check free memory and that this version of llama.cpp knows the architecture"
                f" {self.header.architecture!r}",
            ) from error

    def _params(self, xllamacpp: Any, socket: str, *, verbosity: int) -> Any:
        params = xllamacpp.CommonParams()
        params.model.path = str(self.gguf)
        slot = -(-self.context_length // _CONTEXT_STEP) * _CONTEXT_STEP
        params.n_ctx = slot * self.num_slots
        params.n_parallel = self.num_slots
        params.kv_unified = False  # each slot owns its share: what is advertised is there
        params.fit_params = False  # never shrink the context behind our back
        params.n_batch = _PREFILL_BATCH
        params.cpuparams.n_threads = self.num_threads
        params.cpuparams_batch.n_threads = self.num_threads
        params.cache_ram_mib = 0 if self.exact else _PROMPT_CACHE_MIB
        params.verbosity = verbosity
        params.ui = False
        params.endpoint_slots = False
        params.api_keys = [secrets.token_urlsafe(32)]
        if os.name == "posix" and len(socket) < 100:  # the system's limit is 108 bytes
            params.hostnames = [socket]
        else:
            params.hostnames, params.port = ["127.0.0.1"], 0
        if self.exact:
            params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
            params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        return params


def free_cores(seconds: float = 0.25) -> int:
    """How many of the cores this process may use nobody uses just now, watched for so long; at least 1. Where the
    system does not tell: all.

    The threads of llama.cpp wait for each other by spinning, some hundred times a token: where they get less than a
    core each, they wait for the scheduler every time. Measured with other work on both of 2 cores: one thread wrote 192
    tokens in 9 s, two threads had not written them after 60 s.
    """
    usable = _usable_cores()
    before = _idle_ticks()
    time.sleep(seconds)
    after = _idle_ticks()
    if not before or not after:
        return usable
    idle = sum((after[core] - before[core]) / _TICKS_PER_SECOND / seconds for core in before if core in after)
    return min(usable, max(1, round(idle)))


def _idle_ticks() -> dict[int, int]:
    """Core -> clock ticks it was idle since the start of the machine (proc(5)); empty where that is not told."""
    try:
        lines = Path("/proc/stat").read_text(encoding="ascii").splitlines()
        usable = os.sched_getaffinity(0)
    except (OSError, AttributeError):
        return {}
    cores = [line.split() for line in lines if re.match(r"cpu\d+ ", line)]
    return {int(name[3:]): int(idle) for name, _user, _nice, _system, idle, *_ in cores if int(name[3:]) in usable}


def _usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _Pipe:
    """Carries chunks from a worker thread to the event loop; one wake-up may carry several."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._chunks: deque[Chunk] = deque()
        self._arrived = asyncio.Event()
        self._future: Future[None] | None = None
        self.closed = False

    def put(self, chunk: Chunk) -> None:
        self._chunks.append(chunk)
        self._wake()

    def end(self, future: Future[None]) -> None:
        self._future = future
        self._wake()

    def _wake(self) -> None:
        if self._arrived.is_set():
            return
        try:
            self._loop.call_soon_threadsafe(self._arrived.set)
        except RuntimeError:  # the loop is closed: nobody listens any more
            self.closed = True

    async def __aiter__(self) -> AsyncIterator[Chunk]:
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            ended = self._future  # read before the chunks: whatever came before the end is then in the deque
            while self._chunks:
                yield self._chunks.popleft()
            if ended is not None:
                if not ended.cancelled():
                    ended.result()
                return


def _completion(chunks: Sequence[Chunk]) -> Completion:
    if not chunks or chunks[-1].finish_reason is None:
        raise EngineError("the engine was closed while it answered")
    last = chunks[-1]
    return Completion(
        text="".join(chunk.text for chunk in chunks),
        finish_reason="length" if last.finish_reason == "length" else "stop",
        usage=Usage(prompt_tokens=last.prompt_tokens, completion_tokens=last.completion_tokens),
    )


@contextlib.contextmanager
def _signal_handlers_kept() -> Iterator[None]:
    """Loading installs llama.cpp's own SIGINT and SIGTERM handlers, which would end the process's way of stopping.

    The old ones are put back as opaque bytes by sigaction(2): Python's signal module could do it in the main thread only.
    """
    if os.name != "posix":
        yield
        return
    libc = ctypes.CDLL(None, use_errno=True)
    saved = {number: ctypes.create_string_buffer(512) for number in (signal.SIGINT, signal.SIGTERM)}
    for number, action in saved.items():
        libc.sigaction(int(number), None, action)
    try:
        yield
    finally:
        for number, action in saved.items():
            libc.sigaction(int(number), action, None)


@contextlib.contextmanager
def _standard_error_caught() -> Iterator[list[str]]:
    """Collects what native code writes to file descriptor 2."""
    lines: list[str] = []
    kept = os.dup(2)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        try:
            yield lines
        finally:
            _wait_until_written(file.fileno())
            os.dup2(kept, 2)
            os.close(kept)
            file.seek(0)
            lines.extend(file.read().decode("utf-8", "replace").splitlines())


def _wait_until_written(descriptor: int) -> None:
    """llama.cpp logs from a thread of its own: give it a moment, and until the file stops growing."""
    size = -1
    for _ in range(25):
        if 0 < size == os.fstat(descriptor).st_size:
            return
        size = os.fstat(descriptor).st_size
        time.sleep(0.02)


def _last_lines(lines: Sequence[str]) -> str:
    """The words of the last two lines, without the time stamps llama.cpp puts before them."""
    return "; ".join(line.split(": ", 1)[-1].strip() for line in lines if line.strip())[-400:]
