"""One request to an in-process llama.cpp server: its body, its answer piece by piece, its token log probabilities.

Owns everything that llama.cpp answers differently from what callers may rely on: stop strings, stop ids outside its
own end-of-generation set, tokens that are a part of a character, JSON schemas it silently ignores. Runs in whatever
thread calls it and blocks there; knows no event loop.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import orjson

from tunesmith.errors import DataError, EngineError
from tunesmith.inference.gguf_header import GgufHeader
from tunesmith.inference.stopping import StopMatcher
from tunesmith.protocols import Chunk, Prompt, TokenLogprob
from tunesmith.types import SamplingParams

# The order of vLLM and of OpenAI's description: temperature before the cuts (llama.cpp's own order puts it last).
_SAMPLERS = ["penalties", "temperature", "top_k", "top_p", "min_p"]
# llguidance lets a small model write blank space between JSON tokens for ever (measured: 40 line breaks); the fixed
# separators are those of json.dumps.
_JSON_LAYOUT = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
_MAX_SEED = 0xFFFFFFFF  # llama.cpp reads this one as "draw a seed"
_REPAIR_ALTERNATIVES = 64  # where a part of a character is looked for first; then in the whole vocabulary


class NativeServer(Protocol):
    """The part of xllamacpp.Server that is used. The callback gets JSON text and answers True to cancel."""

    def handle_completions(self, prompt: str, callback: Callable[[str], bool]) -> None: ...


def request_body(prompt: Prompt, sampling: SamplingParams, header: GgufHeader, *, exact: bool) -> dict[str, Any]:
    """The fields every request carries. Stop strings are matched here, not in llama.cpp; see stopping.py."""
    body: dict[str, Any] = {
        "prompt": list(prompt.input_ids),
        "stream": True,
        "return_progress": True,  # a callback after each prefill batch, so that a long prompt can be cancelled
        "timings_per_token": True,  # the only exact count of tokens so far
        "n_predict": sampling.max_tokens,
        "samplers": _SAMPLERS,
        "temperature": sampling.temperature,
        "top_k": sampling.top_k,
        "top_p": sampling.top_p,
        "min_p": sampling.min_p,
        "repeat_penalty": 1.0,
        "frequency_penalty": sampling.frequency_penalty,
        "presence_penalty": sampling.presence_penalty,
        "repeat_last_n": len(prompt.input_ids) + sampling.max_tokens,  # the whole text; llama.cpp's default is 64
        "cache_prompt": not exact,
        "preserved_tokens": [
            header.token_bytes(stop_id).decode("utf-8", "replace")
            for stop_id in prompt.stop_ids
            if header.is_control(stop_id)
        ],
    }
    if sampling.rng_seed is not None:
        body["seed"] = sampling.rng_seed % _MAX_SEED
    if sampling.json_schema is not None:
        body["json_schema"] = {**sampling.json_schema, "x-guidance": _JSON_LAYOUT}
    return body


@dataclass
class LlamaCall:
    """One running request. `emit` gets each chunk; `cancelled` is asked at every token and prefill batch."""

    server: NativeServer
    header: GgufHeader
    prompt: Prompt
    sampling: SamplingParams
    emit: Callable[[Chunk], None]
    cancelled: Callable[[], bool]
    top_logprobs: int | None = None
    exact: bool = False
    _matcher: StopMatcher = field(init=False)
    _ids: list[int] = field(init=False, default_factory=list)  # generated so far, known where logprobs are asked for
    _pending: list[tuple[int, TokenLogprob]] = field(init=False, default_factory=list)  # (end in text, entry)
    _length: int = field(init=False, default=0)  # characters received
    _shown: int = field(init=False, default=0)  # characters emitted
    _counts: dict[str, int] = field(init=False, default_factory=dict)
    _ended: bool = field(init=False, default=False)
    _fault: BaseException | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self._matcher = StopMatcher(self.sampling.stop)
        self._stop_texts = {
            self.header.token_bytes(stop_id).decode("utf-8", "replace"): self.header.is_control(stop_id)
            for stop_id in self.prompt.stop_ids
        }

    def run(self) -> None:
        """Blocks until the answer ended or was cancelled. Raises EngineError where llama.cpp refuses or fails."""
        body = request_body(self.prompt, self.sampling, self.header, exact=self.exact)
        if self.top_logprobs is not None:
            body["n_probs"] = max(1, self.top_logprobs)
        self.server.handle_completions(orjson.dumps(body).decode(), self._callback)
        if self._fault is not None:
            raise self._fault
        if not self._ended and not self.cancelled():
            raise EngineError("llama.cpp ended the stream without a last chunk", hint="restart the server")

    def _callback(self, raw: str) -> bool:
        # An exception in a callback is swallowed by the binding, so it is kept and raised by run().
        try:
            return self._receive(orjson.loads(raw))
        except Exception as error:  # noqa: BLE001 - raised again in run()
            self._fault = error
            return True

    def _receive(self, data: dict[str, Any]) -> bool:
        if "error" in data:
            raise EngineError(f"llama.cpp refused the request: {data['error'].get('message', data['error'])}")
        if self.cancelled():
            return True
        if "prompt_progress" in data:
            return False
        choice = data["choices"][0]
        before = self._counts.get("predicted_n", 0)
        self._counts = data.get("timings", self._counts)
        text: str = choice["text"]
        entries = self._entries(choice, self._counts.get("predicted_n", 0) - before)
        if (cut := self._stop_cut(text)) is not None:
            self._push(text[:cut], entries[:-1] if entries else [])
            self._finish("stop")
            return True
        if choice["finish_reason"] is not None:
            if text:
                self._push(text, entries)
            if not self._matcher.matched:
                self._finish(choice["finish_reason"])
            return False
        self._push(text, entries)
        if self._matcher.matched:
            self._finish("stop")
            return True
        return False

    def _stop_cut(self, text: str) -> int | None:
        """Where a stop id begins in this piece. A piece holds one token (more only for parts of a character), so a
        piece that ends in a control token's text can only be that token, and ordinary text that spells it never is."""
        for stop, is_control in self._stop_texts.items():
            if text == stop or (is_control and stop and text.endswith(stop)):
                return len(text) - len(stop)
        return None

    def _push(self, text: str, entries: list[TokenLogprob]) -> None:
        if entries:  # every entry but the last is a part of the character that the last one completes
            self._pending.extend((self._length + len(text), entry) for entry in entries)
        self._length += len(text)
        self._show(self._matcher.feed(text))

    def _show(self, shown: str) -> None:
        self._shown += len(shown)
        logprobs: list[TokenLogprob] = []
        while self._pending and self._pending[0][0] <= self._shown:
            logprobs.append(self._pending.pop(0)[1])
        if shown or logprobs:
            self.emit(Chunk(text=shown, logprobs=tuple(logprobs)))

    def _finish(self, reason: str) -> None:
        if not self._matcher.matched:
            self._show(self._matcher.flush())
        self._ended = True
        cached = self._counts.get("cache_n", 0)
        self.emit(
            Chunk(
                finish_reason="length" if reason == "length" else "stop",
                prompt_tokens=cached + self._counts.get("prompt_n", 0),
                completion_tokens=self._counts.get("predicted_n", 0),
                cached_tokens=cached,
            )
        )

    # Log probabilities

    def _entries(self, choice: dict[str, Any], num_new: int) -> list[TokenLogprob]:
        """The entries of this piece; tokens that are only a part of a character are put back (see _lost_tokens)."""
        if self.top_logprobs is None or not choice["logprobs"]:
            return []
        entries: list[TokenLogprob] = []
        for item in choice["logprobs"]["content"]:
            own = self._entry(item, item["top_logprobs"][: self.top_logprobs])
            if num_new > 1:
                entries.extend(self._lost_tokens(bytes(item["bytes"]).removesuffix(own.data), num_new - 1))
            self._ids.append(own.token_id)
            if item["bytes"] or own.data.decode("utf-8", "replace") in self._stop_texts:
                entries.append(own)
        return entries

    def _entry(self, item: dict[str, Any], top: list[dict[str, Any]]) -> TokenLogprob:
        # llama.cpp gives the whole character as the bytes of its last token; the vocabulary knows the token's own.
        data = self.header.token_bytes(item["id"])
        text = data.decode("utf-8", "replace")
        alternatives = tuple(self._entry(other, []) for other in top)
        return TokenLogprob(item["id"], text, data, item["logprob"], alternatives)

    def _lost_tokens(self, data: bytes, count: int) -> list[TokenLogprob]:
        """llama.cpp reports no token that ends inside a character. Each is found again by asking, at its place, for the
        likeliest tokens: the one that spells the missing bytes. Costs one decode step per lost token."""
        found: list[TokenLogprob] = []
        for remaining in range(count, 0, -1):
            for limit in (_REPAIR_ALTERNATIVES, len(self.header.tokens)):
                entry = self._most_likely_part(data, remaining, limit)
                if entry is not None:
                    break
            else:
                raise EngineError(f"the log probability of {count} tokens inside one character could not be found")
            found.append(entry)
            self._ids.append(entry.token_id)
            data = data[len(entry.data) :]
        return found

    def _most_likely_part(self, data: bytes, remaining: int, limit: int) -> TokenLogprob | None:
        content: list[dict[str, Any]] = []

        def collect(raw: str) -> bool:
            answer = orjson.loads(raw)
            for choice in answer.get("choices", []):
                content.extend((choice["logprobs"] or {}).get("content", []))
            return False

        body = {
            "prompt": [*self.prompt.input_ids, *self._ids],
            "stream": True,
            "n_predict": 1,
            "temperature": 0,
            "n_probs": limit,
            "logit_bias": [[probe_token(self.header), 100.0]],  # a whole token, so that the place is reported
        }
        self.server.handle_completions(orjson.dumps(body).decode(), collect)
        for item in content[0]["top_logprobs"] if content else []:
            own = self.header.token_bytes(item["id"])
            fits = data == own if remaining == 1 else data.startswith(own) and len(data) - len(own) >= remaining - 1
            if own and fits:
                return self._entry(item, content[0]["top_logprobs"][: self.top_logprobs])
        return None


def probe_token(header: GgufHeader) -> int:
    """A token that no JSON text can begin with and that is whole: a capital letter."""
    for letter in b"XZQWKJ":
        if bytes([letter]) in header.tokens:
            return header.tokens.index(bytes([letter]))
    raise EngineError("the vocabulary has no token for a single capital letter, which the schema check needs")


def check_schema(server: NativeServer, header: GgufHeader, schema: dict[str, Any]) -> None:
    """Raise DataError where the engine would ignore the schema.

    llama.cpp only logs that a schema cannot be compiled and then answers in free text. So one token is drawn with
    every chance on a letter that no JSON text starts with: it comes out exactly where no grammar was in force.
    """
    texts: list[str] = []
    faults: list[str] = []

    def collect(raw: str) -> bool:
        data = orjson.loads(raw)
        if "error" in data:
            faults.append(str(data["error"].get("message", "")))
        texts.extend(choice["text"] for choice in data.get("choices", []))
        return False

    probe = probe_token(header)
    body = {
        "prompt": [probe],
        "stream": True,
        "n_predict": 1,
        "temperature": 0,
        "logit_bias": [[probe, 100.0]],
        "json_schema": {**schema, "x-guidance": _JSON_LAYOUT},
    }
    server.handle_completions(orjson.dumps(body).decode(), collect)
    letter = header.token_bytes(probe).decode()
    if faults or "".join(texts).startswith(letter):
        raise DataError(
            "the engine cannot enforce this JSON schema" + (f": {faults[0]}" if faults else ""),
            where="json_schema",
            hint="use type, properties, required, items, enum, const, anyOf, pattern, numeric and length bounds, and $ref"
            " inside the schema",
        )
