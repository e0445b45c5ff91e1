"""Filters that compare rows with each other: repetitions, conflicting replies, near copies, the same meaning.

The comparing itself is the kernels'; here their matches become verdicts that name the row which stays.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tunesmith.data.filters.parts import text_of
from tunesmith.data.identity import prompt_key, reply_key
from tunesmith.hashing import digest_json
from tunesmith.protocols import Filter, FilterContext, Verdict
from tunesmith.recipe_filters import ConflictingOptions, ExactOptions, MinhashOptions, RougeOptions, SemanticOptions
from tunesmith.types import Conversation

if TYPE_CHECKING:
    from tunesmith.data.matches import Matches


def exact(options: ExactOptions, _ctx: FilterContext) -> Filter:
    """Reason exact. Holds one digest per row."""
    first: dict[str, str] = {}

    def key(row: Conversation) -> str:
        if options.normalise:
            keys = {"prompt": (prompt_key,), "reply": (reply_key,), "conversation": (prompt_key, reply_key)}
            return "".join(of(row) for of in keys[options.on])
        start, end = {"prompt": (None, -1), "reply": (-1, None), "conversation": (None, None)}[options.on]
        return digest_json([[each.role, each.content, each.tool_calls] for each in row.messages[start:end]])

    def judge(row: Conversation) -> Verdict:
        name = row.source or row.id
        earlier = first.setdefault(key(row), name)
        return None if earlier is name else ("exact", f"the {options.on} of {earlier}")

    return judge


class Conflicting:
    """Reason conflicting_reply, for every row of a prompt that has different replies: none of them can be trusted."""

    def __init__(self, _options: ConflictingOptions, _ctx: FilterContext) -> None:
        pass

    def judge_all(self, rows: Sequence[Conversation]) -> list[Verdict]:
        replies: dict[str, dict[str, str]] = {}
        keys = [(prompt_key(row), reply_key(row)) for row in rows]
        for (prompt, reply), row in zip(keys, rows, strict=True):
            replies.setdefault(prompt, {}).setdefault(reply, row.source or row.id)
        return [self._verdict(replies[prompt], reply) for prompt, reply in keys]

    def _verdict(self, replies: dict[str, str], own: str) -> Verdict:
        other = next((where for reply, where in replies.items() if reply != own), None)
        if other is None:
            return None
        return "conflicting_reply", f"its prompt has {len(replies)} different replies, another is that of {other}"


class RougeL:
    """Reason rouge_l: the greedy loop of Self-Instruct over the rows in order."""

    def __init__(self, options: RougeOptions, _ctx: FilterContext) -> None:
        self._options = options

    def judge_all(self, rows: Sequence[Conversation]) -> list[Verdict]:
        from tunesmith.data.novelty import find_alike
        from tunesmith.text.rouge import rouge_score_tokens, unicode_tokens

        tokenize = unicode_tokens if self._options.tokens == "unicode" else rouge_score_tokens
        texts = [text_of(row, self._options.of) for row in rows]
        matches = find_alike(texts, max_similarity=self._options.max_similarity, tokenize=tokenize)
        return _verdicts(
            rows, matches, "rouge_l", f"ROUGE-L {{:.3f}} with {{}}, allowed is {self._options.max_similarity:g}"
        )


class NearCopies:
    """Reason near_copy."""

    def __init__(self, options: MinhashOptions, ctx: FilterContext) -> None:
        self._options = options
        self._num_threads = ctx.num_threads

    def judge_all(self, rows: Sequence[Conversation]) -> list[Verdict]:
        from tunesmith.data.minhash import find_near

        options = self._options
        matches = find_near(
            [text_of(row, options.of) for row in rows],
            threshold=options.min_jaccard,
            ngram=options.ngram_words,
            num_bands=options.num_bands,
            rows_per_band=options.rows_per_band,
            num_threads=self._num_threads,
            rng_seed=options.rng_seed,
        )
        return _verdicts(
            rows, matches, "near_copy", f"Jaccard {{:.3f}} with {{}}, from {options.min_jaccard:g} on rows are copies"
        )


class SameMeaning:
    """Reason same_meaning."""

    def __init__(self, options: SemanticOptions, _ctx: FilterContext) -> None:
        self._options = options

    def judge_all(self, rows: Sequence[Conversation]) -> list[Verdict]:
        from tunesmith.data.semantic import find_semantic, wordllama_embedder

        options = self._options
        matches = find_semantic(
            [text_of(row, options.of) for row in rows],
            embed=wordllama_embedder(),
            threshold=options.max_cosine,
            keep=options.keep,
            num_clusters=options.num_clusters,
            rng_seed=options.rng_seed,
        )
        return _verdicts(
            rows, matches, "same_meaning", f"cosine {{:.3f}} with {{}}, allowed is below {options.max_cosine:g}"
        )


def _verdicts(rows: Sequence[Conversation], matches: Matches, reason: str, detail: str) -> list[Verdict]:
    verdicts: list[Verdict] = []
    for other, score in zip(matches.dup_of.tolist(), matches.score.tolist(), strict=True):
        kept = rows[other] if other >= 0 else None
        verdicts.append(None if kept is None else (reason, detail.format(score, kept.source or kept.id)))
    return verdicts
