"""vLLM as a child process: the engine for GPU machines (its CPU wheel serves for tests).

Owns the process (in a Python environment of its own, because vLLM pins what it needs), its life and its death, and the
translation of token ids to its /v1/completions and back. Knows no chat template. The server listens on a socket in a
private folder behind an unguessable key, so that nobody goes around the gateway.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import signal
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson

from tunesmith.errors import DataError, EngineError, MissingExtra, ModelError
from tunesmith.inference.token_bytes import TokenBytes
from tunesmith.protocols import Chunk, Prompt, TokenLogprob
from tunesmith.types import SamplingParams

_START_SECONDS = 900  # a large model is read and compiled before the first answer
_STOP_SECONDS = 10
_POLL_SECONDS = 0.2
_MODEL = "model"  # its name inside; nobody else sees it
_MAX_LOGPROBS = 20
_MAX_SEED = 2**63
# The child ends its whole group when our end of the pipe closes, so that not even kill -9 of this process leaves one.
_LAUNCHER = """
import os, runpy, signal, sys, threading
def watch():
    os.read(0, 1)
    os.killpg(0, signal.SIGKILL)
threading.Thread(target=watch, daemon=True).start()
sys.argv[0] = "vllm"
runpy.run_module("vllm.entrypoints.openai.api_server", run_name="__main__", alter_sys=True)
"""


class VllmEngine:
    """Answers prompts with a transformers folder, many at once.

    python: interpreter of an environment that has vLLM. context_length: None = what the model was trained for. num_slots: requests vLLM may batch. extra_args: more arguments
    of its server, such as ("--enforce-eager",). environment: more variables, such as {"VLLM_CPU_KVCACHE_SPACE": "1"}.
    """

    def __init__(
        self,
        model_dir: Path,
        *,
        python: Path | None,
        context_length: int | None,
        num_slots: int,
        extra_args: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        if python is None or not python.is_file():
            raise EngineError(
                f"there is no Python interpreter at {python}" if python else "it is not said where vLLM is installed",
                where="vllm_python",
                hint="install vLLM in an environment of its own and name its interpreter",
            )
        trained = _trained_context(model_dir)
        if context_length is not None and trained is not None and context_length > trained:
            raise ModelError(
                f"context_length {context_length} is more than the {trained} tokens the model was trained for",
                where=str(model_dir),
                hint=f"use at most {trained}",
            )
        length = context_length or trained
        if length is None:
            raise ModelError("config.json does not say the context length", where=str(model_dir), hint="give one")
        self.context_length = length
        self.num_slots = num_slots
        self._model_dir = model_dir.resolve()
        self._python = python
        self._extra_args = tuple(extra_args)
        self._environment = dict(environment or {})
        self._key = secrets.token_urlsafe(32)
        self._process: asyncio.subprocess.Process | None = None
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._session: Any = None
        self._tokens: TokenBytes | None = None

    # Life

    async def start(self) -> None:
        """Start the child and wait until it answers. Raises EngineError with vLLM's last words where it ends instead."""
        if self._process is not None:
            return
        self._folder = tempfile.TemporaryDirectory(prefix="tunesmith-vllm-", ignore_cleanup_errors=True)
        try:
            with (Path(self._folder.name) / "log").open("wb") as log:
                self._process = await asyncio.create_subprocess_exec(
                    *self.command(),
                    stdin=asyncio.subprocess.PIPE,
                    stdout=log,
                    stderr=log,
                    env=self._child_environment(),
                    start_new_session=True,
                )
            self._session = self._open_session()
            await self._wait_until_healthy(self._process)
        except BaseException:
            await self.stop()
            raise

    def command(self) -> list[str]:
        """The child's command line. Holds no secret: the key goes by environment."""
        return [
            str(self._python), "-c", _LAUNCHER,
            "--model", str(self._model_dir),
            "--served-model-name", _MODEL,
            "--uds", self._socket,
            "--max-model-len", str(self.context_length),
            "--max-num-seqs", str(self.num_slots),
            "--max-logprobs", str(_MAX_LOGPROBS),
            # llguidance refuses what it cannot enforce (xgrammar ignored `not`); blank space without end is not JSON's fault
            "--structured-outputs-config", '{"backend": "guidance", "disable_any_whitespace": true}',
            "--generation-config", "vllm",  # sampling is the request's, never a file's beside the weights
            *self._extra_args,
        ]  # fmt: skip

    async def healthy(self) -> bool:
        """Whether the child runs and says that its engine does."""
        if self._process is None or self._process.returncode is not None:
            return False
        import aiohttp

        try:
            timeout = aiohttp.ClientTimeout(total=2)
            async with self._session.get("http://vllm/health", timeout=timeout) as answer:
                return answer.status == 200
        except (aiohttp.ClientError, TimeoutError, OSError):
            return False

    async def stop(self) -> None:
        """End the child and everything it started: SIGTERM, then SIGKILL."""
        process, self._process = self._process, None
        if self._session is not None:
            await self._session.close()
            self._session = None
        if process is not None:
            _signal_group(process.pid, signal.SIGTERM)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(process.wait(), _STOP_SECONDS)
            _signal_group(process.pid, signal.SIGKILL)  # also what the child left behind
            await process.wait()
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    # Answers

    async def stream(
        self, prompt: Prompt, sampling: SamplingParams, *, top_logprobs: int | None = None
    ) -> AsyncIterator[Chunk]:
        """Chunks of one answer. Closing the iterator closes the connection, at which vLLM aborts the request.

        Raises DataError for a JSON schema vLLM refuses, EngineError where it fails.
        """
        if self._session is None:
            raise EngineError("the engine is not running", hint="call start() first")
        import aiohttp

        body = self._body(prompt, sampling, top_logprobs)
        try:
            async with self._session.post("http://vllm/v1/completions", data=orjson.dumps(body)) as answer:
                if answer.status != 200:
                    raise _refusal(_error(await answer.read()), sampling)
                reason: str | None = None
                async for line in answer.content:
                    if not line.startswith(b"data: ") or line.startswith(b"data: [DONE]"):
                        continue
                    data = orjson.loads(line[6:])
                    if "error" in data:
                        raise _refusal(data["error"], sampling)
                    for choice in data["choices"]:
                        reason = choice["finish_reason"] or reason
                        chunk = self._chunk(choice, top_logprobs)
                        if chunk.text or chunk.logprobs:
                            yield chunk
                    if data.get("usage") and not data["choices"]:
                        yield _last(reason, data["usage"])
                        return
        except (aiohttp.ClientError, OSError) as error:
            raise EngineError(f"the connection to vLLM broke: {error or type(error).__name__}") from error
        raise EngineError("vLLM ended the stream without a last chunk", hint="see its log; restart the server")

    def _body(self, prompt: Prompt, sampling: SamplingParams, top_logprobs: int | None) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": _MODEL,
            "prompt": list(prompt.input_ids),
            "stream": True,
            "stream_options": {"include_usage": True},
            "max_tokens": min(sampling.max_tokens, self.context_length - len(prompt.input_ids)),
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k,
            "min_p": sampling.min_p,
            "frequency_penalty": sampling.frequency_penalty,
            "presence_penalty": sampling.presence_penalty,
            "stop_token_ids": list(prompt.stop_ids),
        }
        if sampling.stop:
            body["stop"] = list(sampling.stop)
        if sampling.rng_seed is not None:
            body["seed"] = sampling.rng_seed % _MAX_SEED
        if top_logprobs is not None:
            body["logprobs"] = top_logprobs
            body["return_tokens_as_token_ids"] = True
        if sampling.json_schema is not None:
            body["response_format"] = {
                "type": "json_schema",
                "json_schema": {"name": "answer", "schema": sampling.json_schema},
            }
        return body

    def _chunk(self, choice: dict[str, Any], top_logprobs: int | None) -> Chunk:
        found = choice.get("logprobs")
        if top_logprobs is None or not found:
            return Chunk(text=choice["text"])
        entries: list[TokenLogprob] = []
        alternatives = found.get("top_logprobs") or [None] * len(found["tokens"])
        for token, logprob, others in zip(found["tokens"], found["token_logprobs"], alternatives, strict=True):
            ranked = sorted((others or {}).items(), key=lambda pair: -pair[1])[:top_logprobs]
            top = tuple(self._entry(other, value) for other, value in ranked)
            entry = self._entry(token, logprob, top)
            if not (choice["finish_reason"] == "stop" and self._ends_a_turn(entry)):
                entries.append(entry)
        return Chunk(text=choice["text"], logprobs=tuple(entries))

    def _entry(self, token: str, logprob: float, top: tuple[TokenLogprob, ...] = ()) -> TokenLogprob:
        if self._tokens is None:
            self._tokens = TokenBytes.from_folder(self._model_dir)
        token_id = int(token.removeprefix("token_id:"))
        data = self._tokens[token_id]
        return TokenLogprob(token_id, data.decode("utf-8", "replace"), data, logprob, top)

    def _ends_a_turn(self, entry: TokenLogprob) -> bool:
        return self._tokens is not None and self._tokens.is_special(entry.token_id)

    # The child

    @property
    def _socket(self) -> str:
        return f"{self._folder.name}/vllm.sock" if self._folder else "vllm.sock"

    def _child_environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
        quiet = {
            "VLLM_NO_USAGE_STATS": "1",
            "DO_NOT_TRACK": "1",
            "HF_HUB_OFFLINE": "1",
            "VLLM_LOGGING_LEVEL": "WARNING",
        }
        # Its own bin folder first: vLLM starts tools of its environment (ninja) by name.
        path = f"{self._python.parent}{os.pathsep}{kept.get('PATH', '')}"
        return {**kept, **quiet, "PATH": path, **self._environment, "VLLM_API_KEY": self._key}

    def _open_session(self) -> Any:
        try:
            import aiohttp
        except ImportError as error:
            raise MissingExtra("aiohttp", "serve", "talking to vLLM") from error
        return aiohttp.ClientSession(
            connector=aiohttp.UnixConnector(self._socket, limit=0),
            headers={"Authorization": f"Bearer {self._key}", "Content-Type": "application/json"},
            timeout=aiohttp.ClientTimeout(total=None),
            read_bufsize=1 << 20,
        )

    async def _wait_until_healthy(self, process: asyncio.subprocess.Process) -> None:
        try:
            async with asyncio.timeout(_START_SECONDS):
                while not await self.healthy():
                    if process.returncode is not None:
                        raise EngineError(
                            f"vLLM ended with status {process.returncode}: {self._last_words()}",
                            hint=f"try it alone: {self._python} -m vllm.entrypoints.openai.api_server --model"
                            f" {self._model_dir}",
                        )
                    await asyncio.sleep(_POLL_SECONDS)
        except TimeoutError:
            raise EngineError(f"vLLM did not answer within {_START_SECONDS} s: {self._last_words()}") from None

    def _last_words(self) -> str:
        log = Path(self._folder.name) / "log" if self._folder else None
        lines = log.read_text("utf-8", "replace").splitlines() if log and log.is_file() else []
        telling = [line.strip() for line in lines if "Error" in line or "error:" in line]
        return "; ".join((telling or [line.strip() for line in lines if line.strip()])[-3:])[-600:]


def _trained_context(model_dir: Path) -> int | None:
    """Tokens the model was trained to see at once, from its config.json."""
    try:
        config = orjson.loads((model_dir / "config.json").read_bytes())
    except (OSError, orjson.JSONDecodeError) as error:
        raise ModelError(
            f"vLLM needs a transformers folder with a readable config.json: {error}", where=str(model_dir)
        ) from error
    text_config = config.get("text_config", config)
    value = text_config.get("max_position_embeddings")
    return int(value) if value is not None else None


def _last(reason: str | None, usage: dict[str, Any]) -> Chunk:
    details = usage.get("prompt_tokens_details") or {}
    return Chunk(
        finish_reason="length" if reason == "length" else "stop",
        prompt_tokens=usage["prompt_tokens"],
        completion_tokens=usage["completion_tokens"],
        cached_tokens=details.get("cached_tokens") or 0,
    )


def _error(raw: bytes) -> dict[str, Any]:
    try:
        return orjson.loads(raw)["error"]
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return {"message": raw[:200].decode("utf-8", "replace")}


def _refusal(error: dict[str, Any], sampling: SamplingParams) -> Exception:
    """A grammar that cannot be compiled comes as a plain refusal or, from the engine's process, inside the stream."""
    message = str(error.get("message", error))[:500]
    if sampling.json_schema is not None and ("rammar" in message or "chema" in message):
        return DataError(f"the engine cannot enforce this JSON schema: {message}", where="json_schema")
    return EngineError(f"vLLM refused the request: {message}")


def _signal_group(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)
