"""How likely a small model finds given texts (protocol TextScorer): mean loss per token, many texts side by side.

Texts are scored as plain text, without a chat template, in fp32: scores become part of the data, and bf16 would make them
differ between machines beyond rounding. Knows no recipe and no filter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch.nn import functional

_TOKENS_PER_BATCH = 4096
"""Padded tokens of one forward pass: bounds the memory of the logits (4,096 x 49,152 in fp32 are 0.8 GB)."""

_MOST_TOKENS = 1024
"""Tokens of one text with its context: enough for a score, and bounded work for a book."""

_MOST_CONTEXT_SHARE = 0.5
"""Of those, the context gets at most this share, from its end: there is always text left to score."""


class _Item(NamedTuple):
    index: int
    ids: list[int]  # start token, context, text
    num_given: int  # start token and context


class TransformersScorer:
    """Scores with a loaded causal model. encode: text to ids without special tokens; start_id: the token every text
    begins with, so that its first token is predicted too."""

    def __init__(self, model: Any, *, encode: Callable[[str], Sequence[int]], start_id: int) -> None:
        self._model = model
        self._encode = encode
        self._start_id = start_id
        context = getattr(model.config, "max_position_embeddings", None) or _MOST_TOKENS
        self._most_tokens = min(_MOST_TOKENS, int(context))

    def losses(self, pairs: Sequence[tuple[str, str]]) -> list[float | None]:
        """See protocols.TextScorer. The same texts give the same losses up to rounding, whatever stands beside them."""
        values: list[float | None] = [None] * len(pairs)
        for batch in _batches(
            [item for item in map(self._item, range(len(pairs)), pairs) if len(item.ids) > item.num_given]
        ):
            for item, loss in zip(batch, self._score(batch), strict=True):
                values[item.index] = loss
        return values

    def _item(self, index: int, pair: tuple[str, str]) -> _Item:
        context = list(self._encode(pair[0])) if pair[0] else []
        most_context = int(self._most_tokens * _MOST_CONTEXT_SHARE)
        given = [self._start_id, *context[max(0, len(context) - most_context) :]]
        text = list(self._encode(pair[1])) if pair[1] else []
        return _Item(index, [*given, *text[: self._most_tokens - len(given)]], len(given))

    @torch.inference_mode()
    def _score(self, batch: Sequence[_Item]) -> list[float]:
        longest = max(len(item.ids) for item in batch)
        device = self._model.device
        ids = torch.zeros((len(batch), longest), dtype=torch.long)  # (B, T)
        attended = torch.zeros_like(ids)
        wanted = torch.zeros((len(batch), longest - 1), dtype=torch.float32)  # (B, T-1): targets that count
        for row, item in enumerate(batch):
            ids[row, : len(item.ids)] = torch.tensor(item.ids)
            attended[row, : len(item.ids)] = 1
            wanted[row, item.num_given - 1 : len(item.ids) - 1] = 1
        ids, attended, wanted = ids.to(device), attended.to(device), wanted.to(device)
        logits = self._model(input_ids=ids, attention_mask=attended, use_cache=False).logits  # (B, T, V)
        loss = functional.cross_entropy(
            logits[:, :-1].float().transpose(1, 2), ids[:, 1:], reduction="none"
        )  # (B, T-1)
        return ((loss * wanted).sum(1) / wanted.sum(1)).tolist()


def _batches(items: list[_Item]) -> Iterator[list[_Item]]:
    """Texts of like length together, longest first; padding right of a text cannot reach it."""
    batch: list[_Item] = []
    for item in sorted(items, key=lambda item: (-len(item.ids), item.index)):
        if batch and len(batch[0].ids) * (len(batch) + 1) > _TOKENS_PER_BATCH:
            yield batch
            batch = []
        batch.append(item)
    if batch:
        yield batch
