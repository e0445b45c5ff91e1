"""A data set in one pass: counts, lengths, verbs and equal rows of all rows; clusters and near copies of a sample of them.

Memory: 4 bytes per measured length, some 30 per row for the search of equal rows, and the sampled rows. A part whose package
is not installed is named in `missing`, with what to install, and the rest is there.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from tunesmith.data.semantic import wordllama_embedder
from tunesmith.data.statistics.clusters import Cluster, find_clusters
from tunesmith.data.statistics.counts import Count, Tally, language_namer, model_of, source_of
from tunesmith.data.statistics.duplicates import ExactDuplicates, NearDuplicates, RepeatCounter, near_duplicates
from tunesmith.data.statistics.exclusions import Exclusions, Taken
from tunesmith.data.statistics.lengths import Distribution, Lengths
from tunesmith.data.statistics.texts import encodable, instruction_of, messages_of, prompt_of, reply_of, whole_of
from tunesmith.data.statistics.verbs import QUESTION, root_of
from tunesmith.errors import MissingExtra
from tunesmith.text.rouge import count_words
from tunesmith.types import Example, Excluded, Preference

CountTokens = Callable[[Sequence[str]], list[int]]

_ROWS_AT_ONCE = 1024
_NUM_VERBS = 20
_NUM_NOUNS = 4
_MOST_ROOTS = 100_000
_LONGEST_SAMPLED = 8000  # characters of a sampled text


@dataclass(frozen=True)
class Verb:
    """A root verb with its most frequent nouns; "?" stands for questions, whose nouns are the question words."""

    verb: str
    num: int
    nouns: list[Count]


@dataclass(frozen=True)
class Missing:
    """A part that could not be made."""

    part: str
    why: str
    what_to_do: str


@dataclass(frozen=True)
class Survey:
    """What `tunesmith data stats` shows. Every list of counts adds up to the rows it counts."""

    name: str
    num_rows: int
    num_excluded: int
    kinds: list[Count]
    turns: Distribution | None  # messages of a row without the system's
    lengths: dict[str, dict[str, Distribution]]  # prompt, reply, rejected reply -> chars, words, tokens
    num_without_reply: int
    num_with_system: int
    tables: dict[str, list[Count]]  # sources, models, licences, splits, languages ...
    num_language_changes: int  # rows whose reply is in another language than the prompt
    verbs: list[Verb]
    num_verbs: int  # different ones
    num_instructions: int  # rows with an instruction
    num_rootless: int  # of these without a verb or question that was found
    equal_rows: ExactDuplicates
    equal_prompts: ExactDuplicates
    near: NearDuplicates
    clusters: list[Cluster]
    num_sampled: int  # rows that near copies and clusters were sought among
    taken: list[Taken]
    missing: list[Missing] = field(default_factory=list)


@dataclass(frozen=True)
class SurveyOptions:
    """How closely to look: rows for clusters and near copies, clusters at most, names of a table, randomness, threads."""

    max_rows: int
    num_clusters: int
    num_names: int
    rng_seed: int
    num_threads: int
    closely: bool  # False = without verbs, duplicates and clusters


def survey(
    rows: Iterable[Example | Excluded],
    *,
    name: str,
    options: SurveyOptions,
    count_tokens: CountTokens | None,
    on_rows: Callable[[int], None],
) -> Survey:
    """Look at all rows once. on_rows is told how many were read, from time to time."""
    surveyor = Surveyor(options, count_tokens)
    for number, row in enumerate(rows, start=1):
        surveyor.add(row)
        if number % _ROWS_AT_ONCE == 0:
            on_rows(number)
    return surveyor.finish(name)


class Surveyor:
    """Rows go in one by one (`add`), the survey comes out once (`finish`)."""

    def __init__(self, options: SurveyOptions, count_tokens: CountTokens | None) -> None:
        self._options = options
        self._count_tokens = count_tokens
        self._name_language, self._no_detector = language_namer()
        self._chunk: list[Example] = []
        self._exclusions = Exclusions()
        self._turns = Lengths()
        self._lengths: dict[str, dict[str, Lengths]] = {}
        self._kinds: Counter[str] = Counter()
        self._tables = {
            title: Tally() for title in ("sources", "models", "licences", "splits", *self._language_titles())
        }
        self._roots: Counter[tuple[str, str]] = Counter()
        self._numbers: Counter[str] = Counter()
        self._equal_rows = RepeatCounter(options.num_threads)
        self._equal_prompts = RepeatCounter(options.num_threads)
        self._drawn: list[tuple[str, str]] = []  # (prompt or text, everything) of a sampled row
        self._random = random.Random(options.rng_seed)

    def _language_titles(self) -> tuple[str, str]:
        kind = "languages" if self._no_detector is None else "scripts"
        return f"{kind} of prompts", f"{kind} of replies"

    def add(self, row: Example | Excluded) -> None:
        if isinstance(row, Excluded):
            self._exclusions.add(row)
            return
        self._chunk.append(row)
        if len(self._chunk) == _ROWS_AT_ONCE:
            self._look()

    def _look(self) -> None:
        rows, self._chunk = self._chunk, []
        prompts, replies = [prompt_of(row) for row in rows], [reply_of(row) for row in rows]
        asked = [prompt for prompt in prompts if prompt]
        self._measure("prompt", asked)
        self._measure("reply", [reply for reply in replies if reply is not None])
        self._measure("rejected reply", [row.rejected for row in rows if isinstance(row, Preference)])
        self._turns.add(sum(message.role != "system" for message in messages_of(row)) for row in rows)
        for row, prompt, reply in zip(rows, prompts, replies, strict=True):
            self._tally(row, prompt, reply)
        if self._options.closely:
            self._look_closely(rows, prompts, replies)

    def _measure(self, part: str, texts: Sequence[str]) -> None:
        if not texts:
            return
        units = self._lengths.setdefault(part, {})
        units.setdefault("chars", Lengths()).add(map(len, texts))
        units.setdefault("words", Lengths()).add(map(count_words, texts))
        if self._count_tokens is not None:
            units.setdefault("tokens", Lengths()).add(self._count_tokens(texts))

    def _tally(self, row: Example, prompt: str, reply: str | None) -> None:
        self._kinds[type(row).__name__.lower()] += 1
        self._numbers["without_reply"] += reply is None
        self._numbers["with_system"] += any(message.role == "system" for message in messages_of(row))
        tables, (asked_in, answered_in) = self._tables, self._language_titles()
        tables["sources"].add(source_of(row))
        tables["models"].add(model_of(row))
        tables["licences"].add(row.licence or "(not stated)")
        tables["splits"].add(row.split or "(undecided)")
        of_prompt = self._name_language(prompt) if prompt else ""
        of_reply = self._name_language(reply) if reply else ""
        if of_prompt:
            tables[asked_in].add(of_prompt)
        if of_reply:
            tables[answered_in].add(of_reply)
        known = of_prompt and of_reply and "(" not in of_prompt + of_reply
        self._numbers["language_changes"] += bool(known and of_prompt != of_reply)

    def _look_closely(self, rows: Sequence[Example], prompts: Sequence[str], replies: Sequence[str | None]) -> None:
        for row in rows:
            instruction = instruction_of(row)
            if not instruction.strip():
                continue
            root = root_of(instruction)
            self._numbers["instructions"] += 1
            self._numbers["rootless"] += root is None
            if root is not None:
                known = root in self._roots or len(self._roots) < _MOST_ROOTS
                self._roots[root if known else (root.verb, "")] += 1
        whole = [whole_of(row) for row in rows]
        self._equal_rows.add(whole)
        self._equal_prompts.add([prompt for prompt in prompts if prompt])
        for prompt, reply, text in zip(prompts, replies, whole, strict=True):
            self._draw(encodable((prompt or reply or "")[:_LONGEST_SAMPLED]), encodable(text[:_LONGEST_SAMPLED]))

    def _draw(self, subject: str, whole: str) -> None:
        """Reservoir sampling (Vitter 1985, algorithm R): every row is equally likely to be among the drawn."""
        self._numbers["seen"] += 1
        if len(self._drawn) < self._options.max_rows:
            self._drawn.append((subject, whole))
            return
        place = self._random.randrange(self._numbers["seen"])
        if place < self._options.max_rows:
            self._drawn[place] = (subject, whole)

    def finish(self, name: str) -> Survey:
        """Everything that was found. Clusters and near copies are sought now."""
        self._look()
        clusters, missing = self._clusters()
        whole = [text for _, text in self._drawn]
        numbers = self._numbers
        return Survey(
            name=name,
            num_rows=self._kinds.total(),
            num_excluded=self._exclusions.num,
            kinds=[Count(kind, num) for kind, num in self._kinds.most_common()],
            turns=self._turns.summary(),
            lengths={
                part: {unit: found for unit, each in units.items() if (found := each.summary()) is not None}
                for part, units in self._lengths.items()
            },
            num_without_reply=numbers["without_reply"],
            num_with_system=numbers["with_system"],
            tables={title: tally.most(self._options.num_names) for title, tally in self._tables.items()},
            num_language_changes=numbers["language_changes"],
            verbs=self._verbs(),
            num_verbs=len({verb for verb, _ in self._roots} - {QUESTION}),
            num_instructions=numbers["instructions"],
            num_rootless=numbers["rootless"],
            equal_rows=self._equal_rows.found(),
            equal_prompts=self._equal_prompts.found(),
            near=near_duplicates(whole, self._options.num_threads),
            clusters=clusters,
            num_sampled=len(self._drawn),
            taken=self._exclusions.taken(),
            missing=missing,
        )

    def _verbs(self) -> list[Verb]:
        totals: Counter[str] = Counter()
        nouns: dict[str, Counter[str]] = {}
        for (verb, noun), num in self._roots.items():
            totals[verb] += num
            if noun:
                nouns.setdefault(verb, Counter())[noun] += num
        found: list[Verb] = []
        for verb, num in sorted(totals.items(), key=lambda item: (-item[1], item[0]))[:_NUM_VERBS]:
            most = sorted(nouns.get(verb, Counter()).items(), key=lambda item: (-item[1], item[0]))[:_NUM_NOUNS]
            found.append(Verb(verb, num, [Count(noun, each) for noun, each in most]))
        return found

    def _clusters(self) -> tuple[list[Cluster], list[Missing]]:
        missing = [] if self._no_detector is None else [_missing("languages", self._no_detector)]
        if not self._options.closely:
            return [], missing
        subjects = [subject for subject, _ in self._drawn]
        try:
            embed = wordllama_embedder()
        except MissingExtra as error:
            return [], [*missing, _missing("clusters", error)]
        options = self._options
        found = find_clusters(subjects, embed=embed, num_clusters=options.num_clusters, rng_seed=options.rng_seed)
        return found, missing


def _missing(part: str, error: MissingExtra) -> Missing:
    return Missing(part, error.message, error.hint or "")
