"""The extension points: what a member must look like, and the registries that find it. Nothing to inherit.

Kinds: readers, generators, teachers, filters, templates, losses, metrics, rewards, exporters, engines, stages.
Stages (floor 4) introduce members of different kinds to each other; the members meet only through this file.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

from tunesmith.types import (
    Completion,
    Conversation,
    Example,
    Excluded,
    Inputs,
    Message,
    Outcome,
    SamplingParams,
    Score,
    Task,
    TeacherRequest,
)

T = TypeVar("T")
R = TypeVar("R")


class EventSink(Protocol):
    """Receives typed events (see events.py)."""

    def emit(self, event: Any) -> None: ...


@dataclass(frozen=True)
class Context:
    """What a stage gets besides its section and inputs: where events go, and the `runtime` section."""

    events: EventSink
    runtime: Any  # recipe.Runtime; typed Any so that this floor does not import the one above
    ledgers: Path | None = None  # folder of answers that outlive a stage's key; None: they stay with the stage


class Stage(Protocol):
    """A stage module has a function of this form. `out_dir` may hold leftovers of an interrupted run of the same key.

    Files under out_dir/scratch/ are deleted at commit; files under out_dir/logs/ are kept but not part of the digest.
    """

    def __call__(self, section: Any, inputs: Inputs, out_dir: Path, ctx: Context) -> Outcome: ...


class Pool(Protocol):
    """Runs a function over many items, here, in processes or on machines."""

    def map(self, function: Callable[[T], R], items: Iterable[T], /) -> Iterator[R]:
        """function(item) of each, in the order of the items, which are taken a few at a time. An item whose worker died is
        given to another. What the function raises is raised here; WorkerError where workers die again and again.

        function and items must be picklable; function comes from a module (functools.partial may bind arguments).
        """
        ...

    def close(self) -> None: ...


class Reader(Protocol):
    """Turns one file into examples. A bad row is yielded as Excluded, never raised and never dropped."""

    def __call__(self, path: Path) -> Iterator[Example | Excluded]: ...


Verdict = tuple[str, str] | Conversation | None
"""What a filter says of a row: None keeps it, (reason, detail for people) excludes it, and a Conversation keeps that in
its stead: the row rewritten (a mask) or with more metadata (a score, a class, weights)."""


class Filter(Protocol):
    """Judges a row by itself: its verdict depends on no other row, so rows may be judged in any order, in any process."""

    def __call__(self, conversation: Conversation, /) -> Verdict: ...


@runtime_checkable
class SetFilter(Protocol):
    """Judges rows that must be seen together (likeness, ranks) or that are cheaper together (scores of a model).

    There may be millions of rows, read from disk each time they are gone through: hold numbers, not rows or texts.
    """

    def judge_all(self, rows: Sequence[Conversation], /) -> Iterable[Verdict]:
        """One verdict per row, in the order of the rows."""
        ...


class TextScorer(Protocol):
    """A small language model that says how likely texts are."""

    def losses(self, pairs: Sequence[tuple[str, str]], /) -> Sequence[float | None]:
        """Mean negative log-likelihood, in nats per token, of each (context, text)'s text after its context; context ""
        = none. None for a text without tokens. What the model's window cannot hold is cut from the end of the text."""
        ...


@dataclass(frozen=True)
class FilterContext:
    """What a listed filter may use beside its options. The stage builds it; every model in it opens when first asked."""

    task: Task
    open_scorer: Callable[[str], TextScorer]  # by name of a base model
    open_counter: Callable[[str], Callable[[Sequence[str]], Sequence[int]]]  # model name -> tokens of each text
    ask_all: Callable[[Sequence[TeacherRequest]], Sequence[Completion]]  # the judge, behind its ledger
    num_threads: int
    scratch: Path | None = None  # folder for temporary files, which may be large; None = the system's


@dataclass(frozen=True)
class Attempt:
    """An answer that wants a reward: what was asked, what the model wrote, and the answer of the data where there is one.

    stop_string: where it ended the answer, which is then the text before it: a head, of which more was never drawn.
    """

    prompt: Sequence[Message]
    completion: str
    reference: str | None = None
    stop_string: str | None = None


class Reward(Protocol):
    """Says how good answers are. A score of None is an answer that could not be scored, with the reason in `explanation`:
    it is counted and left out, never taken for 0."""

    def __call__(self, attempts: Sequence[Attempt], /) -> Sequence[Score]:
        """One score per attempt, in their order. An attempt's score depends on no other one."""
        ...


@dataclass(frozen=True)
class RewardContext:
    """What a reward may use beside its options. The stage builds it; models open when first asked."""

    task: Task
    references: Sequence[str]  # answers of the data, from which fields are told where the schema leaves them open
    files: Mapping[str, Path]  # those the options name, by the name as written
    ask_all: Callable[[Sequence[TeacherRequest]], Sequence[Completion]]  # the judge, behind its ledger
    open_reward_model: Callable[
        [Path], Callable[[Sequence[Attempt]], Sequence[float]]
    ]  # a checkpoint's folder -> scores
    where: str = "recipe.align.rewards"  # recipe path of the list, for messages


class NoveltyIndex(Protocol):
    """A growing pool of texts that says how near a new text is to the nearest one in it."""

    def nearest(self, text: str) -> tuple[float, int]:
        """(highest ROUGE-L F1 against the pool in [0, 1], index of that pool text, -1 for an empty pool)."""
        ...

    def nearest_above(self, text: str, threshold: float) -> tuple[float, int] | None:
        """nearest() where its F1 is above `threshold`, else None."""
        ...

    def add(self, text: str) -> int:
        """Put a text into the pool; returns its index."""
        ...

    def __len__(self) -> int: ...


@dataclass(frozen=True)
class Price:
    """US dollars per million tokens."""

    input_usd_per_mtok: float
    output_usd_per_mtok: float
    source: str = "recipe"

    def cost(self, prompt_tokens: int, completion_tokens: int) -> float:
        """Cost of one request in US dollars."""
        return (prompt_tokens * self.input_usd_per_mtok + completion_tokens * self.output_usd_per_mtok) / 1_000_000


class Teacher(Protocol):
    """A model that writes. `identity` goes into every request key (kind, model, endpoint; never a secret)."""

    identity: str
    price: Price

    async def complete(self, request: TeacherRequest) -> Completion:
        """One answer. Failures that retries could not mend come back as finish_reason "error"; TeacherError is for
        faults that every further request would meet too (wrong key, unknown model)."""
        ...

    def count_prompt_tokens(self, request: TeacherRequest) -> int:
        """An upper estimate of the prompt's tokens, for reserving cost before sending."""
        ...

    async def aclose(self) -> None: ...


class TeacherClient(Protocol):
    """What a generator talks to: a teacher behind its ledger and budget. Asking twice for the same thing pays once."""

    identity: str
    concurrency: int  # requests it has out at a time, at most

    async def ask(self, request: TeacherRequest) -> Completion: ...

    async def ask_repaired(
        self, request: TeacherRequest, fault: Callable[[Completion], str | None]
    ) -> tuple[Completion, ...]:
        """Ask, and once more where `fault` has a message to send back (what is wrong with the answer, and that it is wanted
        again); all answers, the last counts."""
        ...


@dataclass
class GenerationContext:
    """What a generator may use. The stage builds it."""

    task: Task
    seeds: Sequence[Conversation]  # never holds a test row
    client: TeacherClient
    novelty: NoveltyIndex  # already holds the seeds' prompts
    rng_seed: int
    accept: Callable[[Conversation], None] = field(default=lambda conversation: None)
    reject: Callable[[Excluded], None] = field(default=lambda excluded: None)
    files: Mapping[str, Path] = field(default_factory=dict[str, Path])  # `generate.files` by the name as written
    user_client: TeacherClient | None = None  # plays the user where the recipe names a second teacher
    detect_language: Callable[[str], tuple[str, float]] | None = None  # ISO 639-1 code, probability; None = not at hand


class Generator(Protocol):
    """Writes new rows. Calls ctx.accept or ctx.reject once per row it parsed; returns the task it worked with
    (distill adds a system prompt)."""

    async def __call__(self, options: Any, ctx: GenerationContext, wanted: int) -> Task: ...


@dataclass(frozen=True)
class Prompt:
    """Token ids a model continues, as the renderer made them."""

    input_ids: tuple[int, ...]
    stop_ids: tuple[int, ...]


class BatchEngine(Protocol):
    """Answers many prompts, offline, with exact weights (evaluation, export checks)."""

    def generate(
        self,
        prompts: Sequence[Prompt],
        sampling: SamplingParams,
        on_done: Callable[[int, Completion], None] | None = None,
    ) -> list[Completion]:
        """Answers in the order of the prompts. on_done(index, completion) is called as each one ends."""
        ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class TokenLogprob:
    """A token the engine emitted, with the most likely alternatives at that place."""

    token_id: int
    text: str
    data: bytes
    logprob: float
    top: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True)
class Chunk:
    """A piece of a streamed answer. The last chunk has finish_reason and usage."""

    text: str = ""
    logprobs: tuple[TokenLogprob, ...] = ()
    finish_reason: str | None = None  # "stop" | "length"
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0


class ServingEngine(Protocol):
    """Answers one prompt at a time, streamed, many at once. The gateway puts the protocol around it."""

    context_length: int  # tokens one request may use, prompt and answer together
    num_slots: int  # requests that run side by side

    async def start(self) -> None: ...

    def stream(
        self, prompt: Prompt, sampling: SamplingParams, *, top_logprobs: int | None = None
    ) -> AsyncIterator[Chunk]:
        """Closing the iterator cancels the request in the engine."""
        ...

    async def healthy(self) -> bool: ...

    async def stop(self) -> None: ...


class Exporter(Protocol):
    """Writes one format from a merged transformers folder into out_dir, returns the files it wrote."""

    def __call__(self, merged_dir: Path, out_dir: Path) -> Iterable[Path]: ...
