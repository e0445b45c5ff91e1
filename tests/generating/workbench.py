"""Runs a generator with the shipped scripted teacher and no stage around it."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tunesmith.data.novelty import RougeNoveltyIndex, novelty_text
from tunesmith.errors import BudgetExceeded
from tunesmith.generating import GENERATORS
from tunesmith.protocols import GenerationContext, Price
from tunesmith.recipe import Generate
from tunesmith.teachers.scripted import ScriptedTeacher
from tunesmith.types import Completion, Conversation, Excluded, Message, Task, TeacherRequest

Answer = Callable[[TeacherRequest], str]
MAX_ASKED = 300
"""A generator whose every row is rejected ends here instead of never."""


def seed(asked: str, answered: str, system: str | None = None, **fields: Any) -> Conversation:
    messages = [Message(role="system", content=system)] if system else []
    messages += [Message(role="user", content=asked), Message(role="assistant", content=answered)]
    return Conversation(messages=messages, **{"split": "train", **fields})


SEEDS = [
    seed("How do I patch a bicycle tyre?", "Find the hole, roughen it, glue a patch on."),
    seed("Sort these fruits by size: melon, cherry, apple.", "cherry, apple, melon"),
    seed("Write a short greeting for a baker.", "Good morning, your bread smells wonderful!"),
]


class Repairing:
    """The second try as the real client has it, without its ledger."""

    identity: str
    asked: list[TeacherRequest]

    async def ask(self, request: TeacherRequest) -> Completion:
        raise NotImplementedError

    async def ask_repaired(
        self, request: TeacherRequest, fault: Callable[[Completion], str | None]
    ) -> tuple[Completion, ...]:
        first = await self.ask(request)
        if first.finish_reason in ("error", "length") or (wrong := fault(first)) is None:
            return (first,)
        shown = Message(role="assistant", content=first.text), Message(role="user", content=wrong)
        return first, await self.ask(request.model_copy(update={"messages": (*request.messages, *shown)}))


class ScriptedClient(Repairing):
    """The scripted teacher as a client that pays once per key and remembers what was asked."""

    concurrency = 8

    def __init__(self, script: Path) -> None:
        self._teacher = ScriptedTeacher(script, price=Price(0, 0), where="recipe.generate.teacher")
        self.identity = self._teacher.identity
        self.asked: list[TeacherRequest] = []

    async def ask(self, request: TeacherRequest) -> Completion:
        if len(self.asked) >= MAX_ASKED:
            raise BudgetExceeded("enough")
        self.asked.append(request)
        await asyncio.sleep(0)
        return await self._teacher.complete(request)


class FunctionClient(Repairing):
    """A teacher that answers with a function of the request, a little out of order."""

    identity = "function"
    concurrency = 8

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self.asked: list[TeacherRequest] = []

    async def ask(self, request: TeacherRequest) -> Completion:
        if len(self.asked) >= MAX_ASKED:
            raise BudgetExceeded("enough")
        self.asked.append(request)
        await asyncio.sleep((hash(request.key("f")) % 7) / 2000)
        return Completion(text=self._answer(request))


@dataclass
class Outcome:
    kept: list[Conversation] = field(default_factory=list)
    rejected: list[Excluded] = field(default_factory=list)
    asked: list[TeacherRequest] = field(default_factory=list)
    task: Task = field(default_factory=Task)

    @property
    def reasons(self) -> list[str]:
        return [row.reason for row in self.rejected]


def last(request: TeacherRequest) -> str:
    return request.messages[-1].content if request.messages else ""


def generate(
    generator: str,
    script: list[dict[str, Any]] | Answer,
    folder: Path,
    *,
    num_rows: int = 3,
    seeds: list[Conversation] | None = None,
    task: Task | None = None,
    files: dict[str, Path] | None = None,
    user_client: Any = None,
    detect_language: Any = None,
    **options: Any,
) -> Outcome:
    """Run it until it ends. A script is lines of the scripted teacher, or a function of the request."""
    teacher = {"kind": "scripted", "script": "s.jsonl", **options.pop("teacher", {})}
    section = Generate(generator=generator, teacher=teacher, num_rows=num_rows, files=tuple(files or ()), **options)
    if callable(script):
        client: Any = FunctionClient(script)
    else:
        path = folder / "s.jsonl"
        path.write_text("".join(json.dumps(line) + "\n" for line in script))
        client = ScriptedClient(path)
    outcome = Outcome()
    novelty = RougeNoveltyIndex()
    rows = SEEDS if seeds is None else seeds
    for row in rows:
        novelty.add(novelty_text(row))
    ctx = GenerationContext(
        task or Task(), rows, client, novelty, section.rng_seed, outcome.kept.append, outcome.rejected.append,
        files or {}, user_client, detect_language,
    )  # fmt: skip
    run = GENERATORS.load(generator)
    outcome.task = asyncio.run(run(section, ctx, num_rows))
    outcome.asked = client.asked
    return outcome


def words(request: TeacherRequest, count: int) -> str:
    """Words that depend on the request alone and differ from request to request."""
    digest = request.key("words")
    return " ".join(
        re.sub(r"\d", lambda d: "ghijklmnop"[int(d.group())], digest[4 * n : 4 * n + 4]) for n in range(count)
    )
