"""A tree of topics, subtopics and opening questions (UltraChat, Ding et al. 2023), walked leaf by leaf.

Topics come from a table, or where the task is known from the teacher; the lists below them are the teacher's. Knows
nothing of the talks that begin with its questions.

A leaf is a function of its number: neighbours have different topics, and a list is asked for by whoever needs it. The
client pays once for equal requests, so a list that many leaves hang on costs one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, partial
from importlib.resources import files

import yaml

from tunesmith.generating.asking import Pen, TeacherFailed
from tunesmith.generating.constraints import STRING, array_of
from tunesmith.generating.parsing import Broken
from tunesmith.generating.texts import list_of_texts
from tunesmith.protocols import GenerationContext
from tunesmith.recipe import Generate


@dataclass(frozen=True)
class Leaf:
    """question is None where the lists are shorter than what was asked for. broken: what could not be read of the lists
    that this leaf is the first to need; answer: where it was."""

    topic: str = ""
    subtopic: str = ""
    question: str | None = None
    broken: tuple[Broken, ...] = ()
    answer: str = ""


@dataclass(frozen=True)
class _Place:
    """Where leaf `number` hangs, with `num_topics` topics and lists of `width`. Its question's place changes first after
    its topic, so that a list is used up before the next one is paid for; a new pass draws all lists anew."""

    topic: int
    subtopic: int
    question: int
    topic_node: int  # counts the lists of subtopics
    subtopic_node: int  # counts the lists of questions

    @classmethod
    def of(cls, number: int, num_topics: int, width: int) -> _Place:
        rest, topic = divmod(number, num_topics)
        rest, question = divmod(rest, width)
        num_pass, subtopic = divmod(rest, width)
        node = num_pass * num_topics + topic
        return cls(topic, subtopic, question, node, node * width + subtopic)


@dataclass(frozen=True)
class _List:
    good: tuple[str, ...]
    broken: tuple[Broken, ...]
    answer: str


class TopicTree:
    """The leaves of one run."""

    def __init__(self, options: Generate, ctx: GenerationContext) -> None:
        self._pen = Pen.of(options, ctx, "topic_tree")
        self._width = options.rows_per_request

    async def leaf(self, number: int) -> Leaf:
        """Raises TeacherFailed where a list that this leaf is the first to need could not be had."""
        topics = await self._topics(number == 0)
        if not topics.good:
            return Leaf(broken=topics.broken, answer=topics.answer)
        order = self._pen.rng("all", "topics").sample(topics.good, len(topics.good))
        place = _Place.of(number, len(order), self._width)
        topic = order[place.topic]
        is_first = place.subtopic == place.question == 0
        subtopics = await self._list("subtopics", {"topic": topic}, place.topic_node, is_first=is_first)
        broken = (*topics.broken, *subtopics.broken)
        if place.subtopic >= len(subtopics.good):
            return Leaf(topic, broken=broken, answer=subtopics.answer)
        subtopic = subtopics.good[place.subtopic]
        values = {"topic": topic, "subtopic": subtopic}
        questions = await self._list("questions", values, place.subtopic_node, is_first=place.question == 0)
        broken = (*broken, *questions.broken)
        if place.question >= len(questions.good):
            return Leaf(topic, subtopic, broken=broken, answer=questions.answer)
        return Leaf(topic, subtopic, questions.good[place.question], broken)

    async def _topics(self, is_first: bool) -> _List:
        if not self._pen.task.description:
            return _List(topics(self._pen.options.language), (), "")
        found = await self._list("areas", {}, 0, is_first=True)
        return found if is_first or not found.good else _List(found.good, (), found.answer)

    async def _list(self, section: str, values: Mapping[str, object], number: int, *, is_first: bool) -> _List:
        """The texts of one list. What is wrong with it is told to the first leaf that needs it and to no other, so that
        it counts once."""
        request = self._pen.request(
            section, {**values, "num_rows": self._width}, number, schema=array_of(STRING, self._width)
        )
        try:
            found, completion = await self._pen.ask_form(request, partial(list_of_texts, most=self._width))
        except TeacherFailed:
            if is_first:
                raise
            return _List((), (), "")
        good: list[str] = []
        broken: list[Broken] = []
        for text in found:
            if isinstance(text, Broken):
                broken.append(text)
            elif text in good:
                broken.append(Broken("duplicate", "the list holds this text twice", text))
            else:
                good.append(text)
        return _List(tuple(good), tuple(broken) if is_first else (), completion.text)


@cache
def topics(language: str) -> tuple[str, ...]:
    """The table of topics for talks about anything."""
    text = (files("tunesmith.generating") / f"topics.{language}.yaml").read_text(encoding="utf-8")
    return tuple(yaml.safe_load(text))
