"""Filters that compare rows with each other: repetitions, conflicting replies, near copies, the same meaning.

The comparing itself is the kernels'; here their matches become verdicts that name the row which stays.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, overload

import numpy as np

from tunesmith.data.filters.parts import text_of
from tunesmith.data.identity import prompt_and_reply_keys, prompt_key, reply_key
from tunesmith.data.keys import first_equal, keys_array
from tunesmith.data.rows import map_rows
from tunesmith.hashing import digest_json
from tunesmith.protocols import FilterContext, Verdict
from tunesmith.recipe.duplicate_filters import (
    ConflictingOptions,
    ExactOptions,
    MinhashOptions,
    RougeOptions,
    SemanticOptions,
)
from tunesmith.types import Conversation

if TYPE_CHECKING:
    from tunesmith.data.matches import Matches


class Exact:
    """Reason exact."""

    def __init__(self, options: ExactOptions, ctx: FilterContext) -> None:
        self._options = options
        self._num_threads = ctx.num_threads

    def judge_all(self, rows: Sequence[Conversation]) -> Sequence[Verdict]:
        from tunesmith.data.exact import find_exact

        keys = map_rows(partial(_exact_key, self._options), rows)  # digests: nothing is left to normalise
        matches = find_exact(
            keys, nfkc=False, collapse_whitespace=False, ignore_case=False, num_threads=self._num_threads
        )
        return MatchVerdicts(rows, matches, "exact", f"the {self._options.of} of {{1}}")


class Conflicting:
    """Reason conflicting_reply, for every row of a prompt that has different replies: none of them can be trusted.
    Holds 32 bytes per row."""

    def __init__(self, _options: ConflictingOptions, _ctx: FilterContext) -> None:
        pass

    def judge_all(self, rows: Sequence[Conversation]) -> Iterator[Verdict]:
        keys = keys_array(chain.from_iterable(map_rows(prompt_and_reply_keys, rows)), 16).reshape(-1, 4)
        prompts, pairs = first_equal(keys[:, :2]), first_equal(keys)
        others: dict[int, list[int]] = {}  # a prompt's first row -> the first row of each further reply
        for place in np.flatnonzero((pairs == np.arange(len(keys))) & (prompts != pairs)).tolist():
            others.setdefault(int(prompts[place]), []).append(place)
        for place, first in enumerate(prompts.tolist()):
            further = others.get(first)
            if further is None:
                yield None
                continue
            other = _name(rows[further[0] if pairs[place] == first else first])
            yield (
                "conflicting_reply",
                f"its prompt has {1 + len(further)} different replies, another is that of {other}",
            )


class RougeL:
    """Reason rouge_l: the greedy loop of Self-Instruct over the rows in order."""

    def __init__(self, options: RougeOptions, _ctx: FilterContext) -> None:
        self._options = options

    def judge_all(self, rows: Sequence[Conversation]) -> Sequence[Verdict]:
        from tunesmith.data.novelty import find_alike
        from tunesmith.text.rouge import rouge_score_tokens, unicode_tokens

        tokenize = unicode_tokens if self._options.tokens == "unicode" else rouge_score_tokens
        texts = map_rows(partial(text_of, part=self._options.of), rows)
        matches = find_alike(texts, max_similarity=self._options.max_similarity, tokenize=tokenize)
        return MatchVerdicts(
            rows, matches, "rouge_l", f"ROUGE-L {{0:.3f}} with {{1}}, allowed is {self._options.max_similarity:g}"
        )


class NearCopies:
    """Reason near_copy."""

    def __init__(self, options: MinhashOptions, ctx: FilterContext) -> None:
        self._options = options
        self._num_threads = ctx.num_threads
        self._scratch = ctx.scratch

    def judge_all(self, rows: Sequence[Conversation]) -> Sequence[Verdict]:
        from tunesmith.data.minhash import find_near

        options = self._options
        matches = find_near(
            map_rows(partial(text_of, part=options.of), rows),
            threshold=options.min_jaccard,
            ngram=options.ngram_words,
            num_bands=options.num_bands,
            rows_per_band=options.rows_per_band,
            num_threads=self._num_threads,
            rng_seed=options.rng_seed,
            folder=self._scratch,
        )
        return MatchVerdicts(
            rows, matches, "near_copy", f"Jaccard {{0:.3f}} with {{1}}, from {options.min_jaccard:g} on rows are copies"
        )


class SameMeaning:
    """Reason same_meaning."""

    def __init__(self, options: SemanticOptions, ctx: FilterContext) -> None:
        self._options = options
        self._scratch = ctx.scratch

    def judge_all(self, rows: Sequence[Conversation]) -> Sequence[Verdict]:
        from tunesmith.data.semantic import find_semantic, wordllama_embedder

        options = self._options
        matches = find_semantic(
            map_rows(partial(text_of, part=options.of), rows),
            embed=wordllama_embedder(),
            threshold=options.max_cosine,
            keep=options.keep,
            num_clusters=options.num_clusters,
            rng_seed=options.rng_seed,
            folder=self._scratch,
        )
        return MatchVerdicts(
            rows, matches, "same_meaning", f"cosine {{0:.3f}} with {{1}}, allowed is below {options.max_cosine:g}"
        )


def _exact_key(options: ExactOptions, row: Conversation) -> str:
    if options.normalise:
        keys = {"prompt": (prompt_key,), "reply": (reply_key,), "conversation": (prompt_key, reply_key)}
        return digest_json([key(row) for key in keys[options.of]])
    start, end = {"prompt": (None, -1), "reply": (-1, None), "conversation": (None, None)}[options.of]
    return digest_json([[each.role, each.content, each.tool_calls] for each in row.messages[start:end]])


def _name(row: Conversation) -> str:
    return row.place


class MatchVerdicts(Sequence[Verdict]):
    """The matches of a kernel as verdicts, each made when it is looked at: the rows may be many, and lie on disk.

    detail: a format of {0} the score and {1} the name of the row that stays.
    """

    def __init__(self, rows: Sequence[Conversation], matches: Matches, reason: str, detail: str) -> None:
        self._rows = rows
        self._matches = matches
        self._reason = reason
        self._detail = detail

    def __len__(self) -> int:
        return len(self._matches)

    @overload
    def __getitem__(self, index: int) -> Verdict: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Verdict]: ...
    def __getitem__(self, index: int | slice) -> Verdict | Sequence[Verdict]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        other = int(self._matches.dup_of[index])
        if other < 0:
            return None
        kept = self._rows[other]
        return self._reason, self._detail.format(self._matches.score[index], kept.place)
