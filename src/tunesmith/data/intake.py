"""Examples on their way in: kept on disk, with about 34 bytes of each in memory, while it is decided which are held out.

A split needs to have seen every row, and the rows may not fit into memory. So they go to a scratch file as they are read;
their ids, origins, prompts and splits stay here as numbers; then they are read again with what was decided. Refuses to know
files of examples and recipes.
"""

from __future__ import annotations

import re
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal, TypeVar

from tunesmith.data.identity import normalise, prompt_key, with_system_prompt
from tunesmith.data.split import hold_out
from tunesmith.hashing import digest_text
from tunesmith.text.jsonl import parse_record, write_records
from tunesmith.types import Conversation, Document, Example, Excluded, Labelled, Preference

KINDS: tuple[type[Example], ...] = (Conversation, Preference, Labelled, Document)
FILES = {Conversation: "conversations.jsonl", Preference: "preferences.jsonl", Labelled: "labelled.jsonl", Document: "documents.jsonl"}  # fmt: skip

_ID = re.compile(r"[0-9a-f]{16}")
_UNDECIDED, _TRAIN, _TEST = 0, 1, 2
_CODES = {None: _UNDECIDED, "train": _TRAIN, "test": _TEST}
_NAMES: dict[int, Literal["train", "test"] | None] = {_UNDECIDED: None, _TRAIN: "train", _TEST: "test"}
_KEPT, _SAME_PROMPT, _SAME_ORIGIN = 0, 1, 2

T = TypeVar("T", bound=Example)


class Intake:
    """Rows go in once (`fill`), are decided on once (`decide`), and come out by kind (`kept`, `leaked`)."""

    def __init__(self, scratch: Path, system_prompt: str | None) -> None:
        self._path = scratch
        self._system_prompt = system_prompt
        self._kinds = bytearray()
        self._splits = bytearray()
        self._fates = bytearray()
        self._origins = array("Q")
        self._prompts = array("Q")  # what must not stand on both sides of the split
        self._own = array("Q")  # id of a row that names no origin, 0 for others
        self._asked = array("Q")  # prompt of such a row, as it came
        self._renamed: dict[int, int] = {}  # id -> prompt: the origin of rows that name none
        self._test_sources: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self._kinds)

    def fill(self, examples: Iterable[Example]) -> None:
        """Take every example, writing it to the scratch file."""
        write_records(self._path, map(self._note, examples))

    def _note(self, example: Example) -> Example:
        asked = _number(_key(example))
        names_itself = example.origin == example.id
        self._own.append(_number(example.id) if names_itself else 0)
        self._origins.append(_number(example.origin))
        self._asked.append(asked)
        if self._system_prompt and isinstance(example, Conversation):
            example = with_system_prompt(example, self._system_prompt)
            asked = _number(_key(example))
        self._prompts.append(asked)
        self._kinds.append(KINDS.index(type(example)))
        self._splits.append(_CODES[example.split])
        if example.split == "test":
            self._test_sources[asked] = example.source
        return example

    def decide(self, fraction: float, rng_seed: int) -> None:
        """Give rows without an origin that of their prompt, hold out `fraction` of the undecided rows by origin, and find
        the rows that would show a test row to the trainer."""
        self._name_origins()
        if fraction:
            self._hold_out(fraction, rng_seed)
        tested = {origin for origin, split in zip(self._origins, self._splits, strict=True) if split == _TEST}
        others = {o for o, split in zip(self._origins, self._splits, strict=True) if split != _TEST and o in tested}
        # With equal prompts in one origin, a prompt is on both sides only where a person marked it so.
        for prompt, origin, split in zip(self._prompts, self._origins, self._splits, strict=True):
            fate = _KEPT
            if split != _TEST and self._test_sources:
                fate = _SAME_PROMPT if prompt in self._test_sources else _SAME_ORIGIN if origin in others else _KEPT
            self._fates.append(fate)

    def _name_origins(self) -> None:
        """Rows that name no origin get one that is equal for equal prompts; who named such a row's id follows it."""
        named = {origin for origin, own in zip(self._origins, self._own, strict=True) if not own}
        for place, (own, asked) in enumerate(zip(self._own, self._asked, strict=True)):
            if own:
                self._origins[place] = asked
                if own in named:
                    self._renamed[own] = asked
        if self._renamed:
            for place, own in enumerate(self._own):
                if not own:
                    self._origins[place] = self._renamed.get(self._origins[place], self._origins[place])

    def _hold_out(self, fraction: float, rng_seed: int) -> None:
        pairs = list(zip(self._origins, self._splits, strict=True))
        tested = {origin for origin, split in pairs if split == _TEST}
        trained = {origin for origin, split in pairs if split == _TRAIN}
        free = Counter(
            f"{origin:016x}"
            for origin, split in pairs
            if split == _UNDECIDED and origin not in tested and origin not in trained
        )
        tested |= {int(origin, 16) for origin in hold_out(free, fraction, rng_seed)}
        for place, (origin, split) in enumerate(pairs):
            if split == _UNDECIDED:
                self._splits[place] = _TEST if origin in tested else _TRAIN
        sources = self._test_sources
        for prompt, split in zip(self._prompts, self._splits, strict=True):
            if split == _TEST:
                sources.setdefault(prompt, "")

    def num(self, kind: type[Example], split: Literal["train", "test"]) -> int:
        """Rows of a kind that stay, of one side; undecided ones count as train."""
        code, number = KINDS.index(kind), 0
        for k, s, fate in zip(self._kinds, self._splits, self._fates, strict=True):
            number += k == code and fate == _KEPT and (s == _TEST) == (split == "test")
        return number

    def kept(self, kind: type[T]) -> Iterator[T]:
        """The rows of a kind that stay, in their order, with origin and split as decided."""
        for example, fate in self._rows(kind):
            if fate == _KEPT:
                yield example

    def leaked(self) -> Iterator[Excluded]:
        """The rows that would show a test row to the trainer, with the reason. The test row stays."""
        if not any(self._fates):
            return
        for kind in KINDS:
            for example, fate in self._rows(kind):
                if fate == _KEPT:
                    continue
                if fate == _SAME_PROMPT:
                    source = self._test_sources[_number(_key(example))] or "that was held out"
                    detail = f"the prompt is that of the test row {source}"
                else:
                    detail = f"its origin {example.origin!r} also has test rows"
                row = example if isinstance(example, Conversation) else None
                raw = None if row else example.model_dump(mode="json", exclude_none=True)
                yield Excluded(reason="in_test", detail=detail, where=example.source, conversation=row, raw=raw)

    def _rows(self, kind: type[T]) -> Iterator[tuple[T, int]]:
        code = KINDS.index(kind)
        if code not in self._kinds:
            return
        with self._path.open("rb") as stream:
            for place, line in enumerate(stream):
                if self._kinds[place] != code:
                    continue
                example = parse_record(line, kind, where=f"{self._path.name}:{place + 1}")
                own, origin = self._own[place], self._origins[place]
                if own or origin != _number(example.origin):
                    example.origin = f"{origin:016x}"
                example.split = _NAMES[self._splits[place]]
                yield example, self._fates[place]


def _key(example: Example) -> str:
    if isinstance(example, Document):
        return digest_text(normalise(example.text))[:16]
    return prompt_key(example)[:16]


def _number(name: str) -> int:
    """64 bits of a name: an id is 16 hex digits, which are those bits; anything else is digested."""
    if _ID.fullmatch(name):
        return int(name, 16)
    return int(digest_text(name)[:16], 16)
