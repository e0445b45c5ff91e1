"""The llama.cpp engine: how answers become chunks (a recorded server), and the real one on the embedded model."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from gguf_files import HEADER, gguf

from tunesmith.errors import DataError, EngineError, ModelError
from tunesmith.inference import llama_cpp
from tunesmith.inference.gguf_header import GgufHeader, read_header
from tunesmith.inference.llama_call import LlamaCall, check_schema
from tunesmith.inference.llama_cpp import LlamaCppEngine
from tunesmith.protocols import Chunk, Prompt
from tunesmith.types import SamplingParams


class RecordedServer:
    """Plays back pieces as xllamacpp delivers them: (text, tokens so far, logprob entries or None)."""

    def __init__(self, pieces: list[tuple[str, int, list[dict[str, Any]] | None]], finish: str = "stop") -> None:
        self.pieces = pieces
        self.finish = finish
        self.bodies: list[dict[str, Any]] = []
        self.delivered = 0

    def handle_completions(self, prompt: str, callback: Callable[[str], bool]) -> None:
        self.bodies.append(json.loads(prompt))
        if callback(json.dumps({"choices": [{"text": "", "finish_reason": None}], "prompt_progress": {}})):
            return
        for text, so_far, entries in self.pieces:
            self.delivered += 1
            if callback(_piece(text, so_far, entries, None)):
                return
        callback(_piece("", self.pieces[-1][1], None, self.finish))


def _piece(text: str, so_far: int, entries: list[dict[str, Any]] | None, finish: str | None) -> str:
    logprobs = {"content": entries} if entries else None
    choice = {"text": text, "index": 0, "logprobs": logprobs, "finish_reason": finish}
    return json.dumps({"choices": [choice], "timings": {"prompt_n": 3, "cache_n": 2, "predicted_n": so_far}})


@pytest.fixture
def header(tmp_path: Path) -> GgufHeader:
    path = tmp_path / "m.gguf"
    path.write_bytes(gguf(HEADER))
    return read_header(path)


def _answer(server: Any, header: GgufHeader, sampling: SamplingParams, **options: Any) -> list[Chunk]:
    chunks: list[Chunk] = []
    prompt = Prompt((1, 2), options.pop("stop_ids", (0,)))
    LlamaCall(server, header, prompt, sampling, chunks.append, lambda: False, **options).run()
    return chunks


def test_pieces_become_chunks_and_the_last_one_counts_tokens(header: GgufHeader) -> None:
    chunks = _answer(RecordedServer([("Hi", 1, None), (" there", 2, None)], "length"), header, SamplingParams())
    assert [chunk.text for chunk in chunks] == ["Hi", " there", ""]
    last = chunks[-1]
    assert (last.finish_reason, last.prompt_tokens, last.cached_tokens, last.completion_tokens) == ("length", 5, 2, 2)


def test_a_stop_id_outside_the_engines_own_set_ends_the_answer(header: GgufHeader) -> None:
    server = RecordedServer([("Hi", 1, None), ("<|end|>", 2, None), ("more", 3, None)])
    chunks = _answer(server, header, SamplingParams())
    assert "".join(chunk.text for chunk in chunks) == "Hi" and chunks[-1].finish_reason == "stop"
    assert server.delivered == 2 and server.bodies[0]["preserved_tokens"] == ["<|end|>"]


def test_a_stop_id_of_an_ordinary_token_ends_the_answer(header: GgufHeader) -> None:
    chunks = _answer(RecordedServer([("Hi", 1, None), ("\n", 2, None)]), header, SamplingParams(), stop_ids=(7,))
    assert "".join(chunk.text for chunk in chunks) == "Hi"


def test_text_that_spells_a_stop_token_over_several_tokens_is_text(header: GgufHeader) -> None:
    pieces = [("<", 1, None), ("|end", 2, None), ("|>", 3, None), ("!", 4, None)]
    assert "".join(chunk.text for chunk in _answer(RecordedServer(pieces), header, SamplingParams())) == "<|end|>!"


def test_half_matched_stop_text_is_shown_when_the_answer_ends(header: GgufHeader) -> None:
    server = RecordedServer([("hello", 1, None), (" world", 2, None)], "length")
    chunks = _answer(server, header, SamplingParams(stop=("world and more",)))
    assert "".join(chunk.text for chunk in chunks) == "hello world" and "stop" not in server.bodies[0]


def test_a_stop_string_cancels_and_counts_the_tokens_so_far(header: GgufHeader) -> None:
    server = RecordedServer([("one two", 2, None), (" three", 3, None), (" four", 4, None)])
    chunks = _answer(server, header, SamplingParams(stop=("thr",)))
    assert ("".join(c.text for c in chunks), chunks[-1].completion_tokens, server.delivered) == ("one two ", 3, 2)


def test_greedy_and_sampled_requests_name_every_sampler(header: GgufHeader) -> None:
    server = RecordedServer([("x", 1, None)])
    _answer(server, header, SamplingParams(temperature=0.7, top_p=0.9, min_p=0.1, top_k=5, rng_seed=2**40 + 3))
    body = server.bodies[0]
    assert [body[k] for k in ("temperature", "top_p", "min_p", "top_k", "repeat_penalty")] == [0.7, 0.9, 0.1, 5, 1.0]
    assert body["samplers"] == ["penalties", "temperature", "top_k", "top_p", "min_p"]
    assert 0 <= body["seed"] < 0xFFFFFFFF


def test_an_error_of_the_engine_is_raised_with_its_words(header: GgufHeader) -> None:
    class Refusing:
        def handle_completions(self, prompt: str, callback: Callable[[str], bool]) -> None:
            callback(json.dumps({"error": {"code": 400, "message": "Prompt contains invalid tokens"}}))

    with pytest.raises(EngineError, match="Prompt contains invalid tokens"):
        _answer(Refusing(), header, SamplingParams())


def test_a_stream_without_a_last_chunk_is_an_error(header: GgufHeader) -> None:
    class Dying:
        def handle_completions(self, prompt: str, callback: Callable[[str], bool]) -> None:
            callback(_piece("Hi", 1, None, None))

    with pytest.raises(EngineError, match="without a last chunk"):
        _answer(Dying(), header, SamplingParams())


def test_a_schema_the_engine_would_ignore_is_refused(header: GgufHeader) -> None:
    with pytest.raises(DataError, match="cannot enforce"):
        check_schema(RecordedServer([("X", 1, None)]), header, {"not": {}})
    check_schema(RecordedServer([("{", 1, None)]), header, {"type": "object"})


def test_a_context_longer_than_trained_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(gguf(HEADER))
    with pytest.raises(ModelError, match="513 is more than the 512 tokens"):
        LlamaCppEngine(path, context_length=513, num_slots=1, num_threads=1)
    assert LlamaCppEngine(path, context_length=None, num_slots=1, num_threads=1).context_length == 512


def test_a_whole_header_without_a_model_says_what_llama_cpp_said(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(gguf({**HEADER, "general.architecture": "blama", "blama.context_length": 512}))
    with pytest.raises(ModelError, match=r"could not load the file: .*blama"):
        LlamaCppEngine(path, context_length=256, num_slots=1, num_threads=1).load()


# The real engine


@pytest.fixture(scope="module")
def listening_before() -> set[str]:
    """Other tests of the process may have sockets that listen."""
    return _listening_sockets()


@pytest.fixture(scope="module")
def engine(smollm2: Any, listening_before: set[str]) -> Iterator[LlamaCppEngine]:
    with LlamaCppEngine(smollm2.gguf, context_length=1000, num_slots=2, num_threads=1) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def prompt_of(smollm2_dir: Path) -> Callable[[str], Prompt]:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(smollm2_dir / "tokenizer.json"))

    def build(text: str) -> Prompt:
        ids = tokenizer.encode(f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n").ids
        return Prompt(tuple(ids), (2,))

    return build


async def _collect(engine: LlamaCppEngine, prompt: Prompt, sampling: SamplingParams, **options: Any) -> list[Chunk]:
    return [chunk async for chunk in engine.stream(prompt, sampling, **options)]


def _text(chunks: list[Chunk]) -> str:
    return "".join(chunk.text for chunk in chunks)


@pytest.mark.parametrize(
    ("gained", "free"),
    [([0, 0], 1), ([2, 1], 1), ([5, 5], 2), ([5, 0], 1), ([3, 1], 1), ([4, 4], 2)],  # of 5 ticks each, on two cores
)
def test_a_local_model_gets_as_many_threads_as_cores_are_free(
    monkeypatch: pytest.MonkeyPatch, gained: list[int], free: int
) -> None:
    seen = iter([{0: 100, 1: 200}, {0: 100 + gained[0], 1: 200 + gained[1]}])
    monkeypatch.setattr(llama_cpp, "_idle_ticks", lambda: next(seen))
    monkeypatch.setattr(llama_cpp, "_usable_cores", lambda: 2)
    assert llama_cpp.free_cores(5 / llama_cpp._TICKS_PER_SECOND) == free


def test_where_the_system_does_not_tell_all_cores_count_as_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llama_cpp, "_idle_ticks", dict)
    monkeypatch.setattr(llama_cpp, "_usable_cores", lambda: 7)
    assert llama_cpp.free_cores(0.0) == 7


@pytest.mark.real
async def test_streamed_and_batch_answers_are_the_same_text(engine: LlamaCppEngine, prompt_of: Any) -> None:
    prompt = prompt_of("What is the capital of France?")
    streamed = await _collect(engine, prompt, SamplingParams(max_tokens=12))
    batch = engine.generate_batch([prompt, prompt], SamplingParams(max_tokens=12))
    assert _text(streamed) == batch[0].text == batch[1].text and "Paris" in batch[0].text
    assert batch[0].finish_reason == "stop" and streamed[-1].completion_tokens == batch[0].usage.completion_tokens == 8


@pytest.mark.real
async def test_logprobs_cover_every_byte_of_text_also_inside_characters(engine: LlamaCppEngine, prompt_of: Any) -> None:
    sampling = SamplingParams(max_tokens=30, json_schema={"const": "🎉漢字ok"})
    chunks = await _collect(engine, prompt_of("Say it"), sampling, top_logprobs=3)
    entries = [entry for chunk in chunks for entry in chunk.logprobs]
    assert _text(chunks) == '"🎉漢字ok"'
    assert b"".join(entry.data for entry in entries).decode() == _text(chunks)
    assert len(entries) == chunks[-1].completion_tokens - 1  # the end token is counted, not shown
    assert all(entry.logprob <= 0 and len(entry.top) == 3 for entry in entries)


@pytest.mark.real
async def test_an_answer_cut_inside_a_character_shows_no_broken_text(engine: LlamaCppEngine, prompt_of: Any) -> None:
    sampling = SamplingParams(max_tokens=3, json_schema={"const": "🎉"})
    chunks = await _collect(engine, prompt_of("Say it"), sampling)
    assert (_text(chunks), chunks[-1].finish_reason, chunks[-1].completion_tokens) == ('"', "length", 3)


@pytest.mark.real
async def test_a_schema_shapes_the_answer_and_a_bad_one_is_refused(engine: LlamaCppEngine, prompt_of: Any) -> None:
    schema = {"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"], "additionalProperties": False}
    chunks = await _collect(engine, prompt_of("Hi"), SamplingParams(max_tokens=40, json_schema=schema))
    assert json.loads(_text(chunks))["n"] in (1, 2)
    with pytest.raises(DataError, match="cannot enforce"):
        await _collect(engine, prompt_of("Hi"), SamplingParams(max_tokens=4, json_schema={"not": {}}))


@pytest.mark.real
async def test_the_same_seed_gives_one_text_alone_and_side_by_side(engine: LlamaCppEngine, prompt_of: Any) -> None:
    sampling = SamplingParams(max_tokens=12, temperature=1.0, rng_seed=5)
    alone = _text(await _collect(engine, prompt_of("Tell me a story"), sampling))
    many = await asyncio.gather(*(_collect(engine, prompt_of("Tell me a story"), sampling) for _ in range(4)))
    assert {_text(chunks) for chunks in many} == {alone}
    other = await _collect(engine, prompt_of("Tell me a story"), sampling.model_copy(update={"rng_seed": 6}))
    assert _text(other) != alone


@pytest.mark.real
async def test_closing_the_iterator_frees_the_slot(engine: LlamaCppEngine, prompt_of: Any) -> None:
    sampling = SamplingParams(
        max_tokens=900, json_schema={"type": "array", "items": {"type": "string"}, "minItems": 99}
    )
    streams = [engine.stream(prompt_of(f"Write {n}"), sampling) for n in range(2)]
    for stream in streams:
        await anext(stream)
    start = time.monotonic()
    for stream in streams:
        await stream.aclose()
    await _collect(engine, prompt_of("Hi"), SamplingParams(max_tokens=1))
    freed = time.monotonic() - start
    full = await _timed(engine, prompt_of("Write"), sampling.model_copy(update={"max_tokens": 100}))
    assert freed < full  # two answers of 900 tokens would take many times as long as one of 100


async def _timed(engine: LlamaCppEngine, prompt: Prompt, sampling: SamplingParams) -> float:
    start = time.monotonic()
    await _collect(engine, prompt, sampling)
    return time.monotonic() - start


@pytest.mark.real
async def test_the_advertised_context_is_the_one_a_request_gets(engine: LlamaCppEngine, prompt_of: Any) -> None:
    long = Prompt((5,) * 995, (2,))
    schema = {"type": "array", "items": {"type": "string"}, "minItems": 99}
    chunks = await _collect(engine, long, SamplingParams(max_tokens=100, json_schema=schema))
    assert chunks[-1].finish_reason == "length"
    assert chunks[-1].prompt_tokens + chunks[-1].completion_tokens == engine.context_length == 1000
    with pytest.raises(EngineError, match="1000 tokens"):
        await _collect(engine, Prompt((5,) * 1000, (2,)), SamplingParams(max_tokens=1))


def _listening_sockets() -> set[str]:
    """The sockets of this process that listen on TCP."""
    found: set[str] = set()
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # the descriptor of this very listing
            found.add(str(link.readlink()))
    listening = {line.split()[9] for line in Path("/proc/net/tcp").read_text().splitlines()[1:] if " 0A " in line}
    return found & {f"socket:[{inode}]" for inode in listening}


@pytest.mark.real
@pytest.mark.usefixtures("engine")
def test_loading_leaves_signals_alone_and_opens_no_port(listening_before: set[str]) -> None:
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1)
    assert _listening_sockets() <= listening_before


def test_a_listening_socket_of_this_process_is_seen() -> None:
    before = _listening_sockets()
    with socket.create_server(("127.0.0.1", 0)):
        assert len(_listening_sockets() - before) == 1


@pytest.mark.real
def test_a_cut_copy_of_the_real_model_is_refused_before_llama_cpp_sees_it(smollm2: Any, tmp_path: Path) -> None:
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(smollm2.gguf.read_bytes()[:-1000])
    with pytest.raises(ModelError, match="needs bytes up to"):
        LlamaCppEngine(cut, context_length=256, num_slots=1, num_threads=1)
