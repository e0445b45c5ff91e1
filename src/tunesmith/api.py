"""The few lines of Python: make an engine, give it examples, train it, call it. The same run folders as the command line.

    engine = tunesmith.Engine("smollm2-135m")
    engine.add_data([{"question": "...", "response": "..."}, ...])
    engine.train()
    engine("...")

Owns no training, no inference and no default of its own: it writes a recipe and hands it to the pipeline.
"""

from __future__ import annotations

import asyncio
import json
import threading
import warnings
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, overload

from pydantic import BaseModel, ValidationError

from tunesmith.errors import DataError, EngineError, RecipeError, nearest
from tunesmith.events import CallbackSink, Note
from tunesmith.hashing import digest_json
from tunesmith.pipeline import execute
from tunesmith.protocols import EventSink
from tunesmith.resolve import resolve_mapping
from tunesmith.store import Run, Store, default_root, write_atomic
from tunesmith.types import Message, SamplingParams

if TYPE_CHECKING:
    from tunesmith.server.answering import Answerer

Typed = TypeVar("Typed", bound=BaseModel)
Result = TypeVar("Result")
MIN_ROWS = 10


class Engine:
    """A model that can be called, and tuned on your examples.

    `model` is anything a recipe takes (built-in name, hub id, folder, .gguf file), a run (`desk-001`), or, with
    `base_url`, a model name at an OpenAI-compatible endpoint. Assigning `engine.model` switches to another one.
    `condition` is the source class that answers are asked for under (C-RLFT), where the chat template writes one; training
    then evaluates under it, too.
    """

    def __init__(
        self,
        model: str = "smollm2-135m",
        *,
        name: str = "engine",
        task: str | None = None,
        system_prompt: str | None = None,
        condition: str | None = None,
        base_url: str | None = None,
        api_key_env: str | None = None,
        root: Path | str | None = None,
        events: EventSink | None = None,
    ) -> None:
        self._model = model
        self.name = name
        self.task = task
        self.system_prompt = system_prompt
        self.condition = condition
        self._endpoint = (base_url, api_key_env)
        self.root = Path(root) if root is not None else default_root()
        self.events = events or CallbackSink(_warn)
        self.run: Run | None = None
        self._rows: list[dict[str, Any]] = []
        self._files: list[Path] = []
        self._answerer: Answerer | None = None
        self._loop = _BackgroundLoop()

    def __repr__(self) -> str:
        rows = len(self._rows) + len(self._files)
        return f"Engine({self._model!r}, data={rows}, run={self.run.name if self.run else None!r})"

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def model(self) -> str:
        """What answers calls; the base model of the next training."""
        return self._model

    @model.setter
    def model(self, model: str) -> None:
        self._release()
        self._model = model
        self._endpoint = (None, None)
        self.run = None

    def use_endpoint(self, model: str, base_url: str, api_key_env: str | None = None) -> None:
        """Answer calls from an OpenAI-compatible endpoint from now on. The key is read from the variable named."""
        self.model = model
        self._endpoint = (base_url, api_key_env)

    def add_data(self, data: Any) -> str:
        """Add examples: one or many of {question, response}, {instruction, input, output}, {messages}, [prompt, reply]
        (a reply may be a pydantic object: it becomes JSON), or the path of a file of any known format.

        Returns the content digest of what was added. Raises DataError for something else.
        """
        if isinstance(data, str | Path):
            path = Path(data)
            if not path.is_file():
                raise DataError("there is no such file of examples", where=str(path))
            self._files.append(path.resolve())
            return digest_json(str(path.resolve()))[:16]
        rows = [_as_row(item, index) for index, item in enumerate(_as_items(data))]
        self._rows.extend(rows)
        return digest_json(rows)[:16]

    def clear_data(self) -> int:
        """Forget every example that was added; returns how many rows and files there were."""
        count = len(self._rows) + len(self._files)
        self._rows.clear()
        self._files.clear()
        return count

    def train(self, *, test_data: Any = None, recipe: Mapping[str, Any] | None = None, **train: Any) -> dict[str, Any]:
        """Tune the model on the examples; afterwards calls are answered by the tuned model.

        Keyword arguments are keys of the recipe's `train` section (`num_epochs=6`); `recipe` adds other sections. A fifth
        of the rows is held out for measuring unless `test_data` is given. Returns the scores, base beside tuned.
        """
        if not self._files and len(self._rows) < MIN_ROWS:
            raise DataError(
                f"{len(self._rows)} examples are too few to learn from",
                where="Engine.train",
                hint=f"add at least {MIN_ROWS} with engine.add_data(...)",
            )
        if self._endpoint[0]:
            raise RecipeError(
                "an endpoint's model cannot be tuned here", where="Engine.train", hint="set engine.model first"
            )
        self._release()
        mapping = self._recipe(test_data, recipe or {}, train)
        self.run = execute(resolve_mapping(mapping, folder=Path.cwd()), Store(self.root), self.events)
        return self.scores()

    def scores(self) -> dict[str, Any]:
        """scores.json of the last training: {contestant: {metric: {mean, stderr, n, ...}}}; empty where none was made."""
        evaluation = self.run.artifact("evaluate") if self.run else None
        return json.loads(evaluation.file("scores.json").read_text(encoding="utf-8")) if evaluation else {}

    @overload
    def __call__(self, request: str | Mapping[str, Any], output_type: type[Typed], **sampling: Any) -> Typed: ...
    @overload
    def __call__(self, request: Sequence[str], output_type: type[Typed], **sampling: Any) -> list[Typed]: ...
    @overload
    def __call__(self, request: str | Mapping[str, Any], output_type: None = None, **sampling: Any) -> str: ...
    @overload
    def __call__(self, request: Sequence[str], output_type: None = None, **sampling: Any) -> list[str]: ...
    def __call__(self, request: Any, output_type: type[BaseModel] | None = None, **sampling: Any) -> Any:
        """Answer one request, or a list of them side by side (same shape out).

        With a pydantic `output_type` the answer is held to its JSON schema and comes back as an object. Keywords are those
        of SamplingParams (`max_tokens`, `temperature`, `rng_seed`, ...); greedy unless a temperature is given.
        """
        if output_type is not None:
            sampling["json_schema"] = _closed(output_type.model_json_schema())
        params = _sampling(sampling)
        requests = request if isinstance(request, list | tuple) else [request]
        texts = self._loop.run(self._answer_all([_as_messages(item) for item in requests], params))
        answers = [_typed(text, output_type) for text in texts]
        return answers if isinstance(request, list | tuple) else answers[0]

    def close(self) -> None:
        """Free the model."""
        self._release()
        self._loop.close()

    async def _answer_all(self, conversations: list[list[Message]], params: SamplingParams) -> list[str]:
        answerer = await self._open()
        completions = await asyncio.gather(*(answerer.answer(messages, params) for messages in conversations))
        for completion in completions:
            if completion.finish_reason == "error":
                raise EngineError(completion.error or "the model gave no answer", where=self._model)
        return [completion.text for completion in completions]

    async def _open(self) -> Answerer:
        if self._answerer is None:
            from tunesmith.server.answering import open_answerer, open_endpoint

            base_url, api_key_env = self._endpoint
            if base_url:
                if self.condition is not None:
                    raise RecipeError(
                        "an endpoint's model is asked without a condition", where="condition", hint="leave it out"
                    )
                self._answerer = await open_endpoint(self._model, base_url, api_key_env, self.system_prompt)
            else:
                reference = str(self.run.path) if self.run else self._model
                self._answerer = await open_answerer(
                    reference, self.root, self.events, self.system_prompt, self.condition
                )
        return self._answerer

    def _release(self) -> None:
        if self._answerer is not None:
            self._loop.run(self._answerer.close())
            self._answerer = None

    def _recipe(self, test_data: Any, recipe: Mapping[str, Any], train: Mapping[str, Any]) -> dict[str, Any]:
        folder = self.root / "data"
        ingest: dict[str, Any] = {
            "task": self.task,
            "system_prompt": self.system_prompt,
            "files": [*([_write_rows(folder, self._rows)] if self._rows else []), *map(str, self._files)],
        }
        if test_data is None:
            ingest["test_fraction"] = 0.2
        elif isinstance(test_data, str | Path):
            ingest["test_files"] = [str(Path(test_data).resolve())]
        else:
            ingest["test_files"] = [_write_rows(folder, [_as_row(r, i) for i, r in enumerate(_as_items(test_data))])]
        mapping: dict[str, Any] = {"name": self.name, "base_model": self._model, "ingest": ingest, "train": dict(train)}
        if self.condition is not None:
            mapping["evaluate"] = {"condition": self.condition}
        for key, value in recipe.items():
            both = isinstance(value, Mapping) and isinstance(mapping.get(key), dict)
            mapping[key] = {**mapping[key], **value} if both else value
        return mapping


class _BackgroundLoop:
    """An event loop in a thread, so that plain calls can use asynchronous engines, also from inside a notebook's loop."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None

    def run(self, coroutine: Coroutine[Any, Any, Result]) -> Result:
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            threading.Thread(target=self._loop.run_forever, name="tunesmith-engine", daemon=True).start()
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    def close(self) -> None:
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._loop = None


def _write_rows(folder: Path, rows: list[dict[str, Any]]) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path = folder / f"{digest_json(rows)[:16]}.jsonl"
    write_atomic(path, text.encode("utf-8"))
    return str(path.resolve())


def _as_items(data: Any) -> Iterable[Any]:
    if isinstance(data, Mapping):
        return [data]
    if isinstance(data, list | tuple):
        pair = len(data) == 2 and isinstance(data[0], str) and isinstance(data[1], str | BaseModel)
        return [data] if pair else data
    if hasattr(data, "to_dict"):  # a pandas DataFrame
        return data.to_dict(orient="records")
    raise DataError(
        f"cannot read examples from {type(data).__name__}", where="Engine.add_data", hint="give rows or a path"
    )


def _as_row(item: Any, index: int) -> dict[str, Any]:
    if isinstance(item, Mapping):
        return {str(key): _as_text(value) if isinstance(value, BaseModel) else value for key, value in item.items()}
    if isinstance(item, list | tuple) and len(item) == 2:
        return {"question": _as_text(item[0]), "response": _as_text(item[1])}
    raise DataError(
        f"an example is a mapping or a pair [prompt, reply], found {type(item).__name__}",
        where=f"Engine.add_data row {index}",
    )


def _as_text(value: Any) -> str:
    if isinstance(value, BaseModel):
        return json.dumps(value.model_dump(mode="json"), ensure_ascii=False)
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _as_messages(request: Any) -> list[Message]:
    if isinstance(request, str):
        return [Message(role="user", content=request)]
    if isinstance(request, BaseModel):
        return [Message(role="user", content=_as_text(request))]
    if isinstance(request, Mapping) and "messages" in request:
        return [Message.model_validate(message) for message in request["messages"]]
    raise DataError(
        f"cannot answer a {type(request).__name__}", where="Engine(...)", hint="give a string or {'messages': [...]}"
    )


def _warn(event: Any) -> None:
    """What a run warns of becomes a Python warning, so that nobody who gives no sink loses it."""
    if isinstance(event, Note) and event.level == "warning":
        warnings.warn(event.message, stacklevel=2)


def _sampling(given: dict[str, Any]) -> SamplingParams:
    try:
        return SamplingParams(**given)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"]))
        close = nearest(name, SamplingParams.model_fields) if first["type"] == "extra_forbidden" else None
        known = ", ".join(SamplingParams.model_fields)
        raise RecipeError(
            f"there is no parameter `{name}`" if first["type"] == "extra_forbidden" else first["msg"],
            where=name,
            hint=f"did you mean `{close}`?" if close else f"parameters: {known}",
        ) from None


def _closed(schema: Any) -> Any:
    """The schema with no room for keys it does not name, which a small model would otherwise invent without end."""
    if isinstance(schema, list):
        return [_closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    inner = {key: _closed(value) for key, value in schema.items()}
    if inner.get("type") == "object" and "properties" in inner:
        inner.setdefault("additionalProperties", False)
    return inner


def _typed(text: str, output_type: type[BaseModel] | None) -> Any:
    if output_type is None:
        return text
    try:
        return output_type.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "answer"
        raise EngineError(
            f"the answer is no {output_type.__name__}: {place}: {first['msg']}; it was {text[:200]!r}",
            hint="raise max_tokens if it was cut",
        ) from None
