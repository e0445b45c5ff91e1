"""Two ways of putting tokens through a model: a whole sequence (prefill), and one more token of many rows (decode).

Owns the calls and the ids that many sequences begin with, which are computed once. Knows no sampling and no request.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers.cache_utils import DynamicCache

from tunesmith.errors import EngineError
from tunesmith.inference.kv_slots import ROW_MULTIPLE, Layers, SlotCache, StepMask, layers_of, round_up, seeded

_CHUNK_TOKENS = 512
"""Tokens of one sequence that go through the model at once: bounds the memory of long rows."""


class Prefill:
    """Runs single sequences through the model, and the ids that many of them start with only once."""

    def __init__(self, model: Any, ids: Sequence[int]) -> None:
        self._model = model
        self._ids = tuple(ids)
        self._layers: Layers | None = None

    def extend(self, ids: Sequence[int]) -> tuple[Layers, torch.Tensor]:
        """Keys and values of the whole sequence, and the logits (1, V) after its last token."""
        cache, start = self._start(ids, len(ids) - 1)
        return self._forward(cache, ids, start)

    def _start(self, ids: Sequence[int], longest: int) -> tuple[DynamicCache, int]:
        """A cache to continue from and the number of ids in it, at most `longest`."""
        length = len(self._ids)
        if not length or length > longest or tuple(ids[:length]) != self._ids:
            return DynamicCache(), 0
        if self._layers is None:
            self._layers, _ = self._forward(DynamicCache(), self._ids, 0)
        return seeded(self._layers), length

    def _forward(self, cache: DynamicCache, ids: Sequence[int], start: int) -> tuple[Layers, torch.Tensor]:
        logits = torch.empty(0)
        for first in range(start, len(ids), _CHUNK_TOKENS):
            piece = ids[first : first + _CHUNK_TOKENS]
            logits = self._model(
                input_ids=torch.tensor([piece], device=self._model.device),
                position_ids=torch.arange(first, first + len(piece), device=self._model.device)[None],
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            ).logits
        return layers_of(cache), logits[0]


def decode_step(
    model: Any, mask: StepMask, slots: SlotCache, last_tokens: Sequence[int], lengths: Sequence[int]
) -> torch.Tensor:
    """Logits (R, V) after one more token of each of R rows; row r lives in slot r.

    last_tokens: the token each row got last; lengths: places of its slot that are filled, where the token is written.
    """
    # Rows that only fill up the shape write to place 0 of slots that are not in use.
    spare = [0] * (round_up(len(last_tokens), ROW_MULTIPLE) - len(last_tokens))
    last = torch.tensor([*last_tokens, *spare], device=model.device)  # (R,)
    positions = torch.tensor([*lengths, *spare], device=model.device)  # (R,)
    width = slots.prepare(positions)
    logits = model(
        input_ids=last[:, None],
        attention_mask=mask.build(positions, width),
        position_ids=positions[:, None],
        past_key_values=slots,
        use_cache=True,
    ).logits
    return logits[: len(last_tokens), -1]


def refuse_infinite(logits: torch.Tensor) -> None:
    """EngineError where the largest logit of some row is not finite."""
    if not bool(torch.isfinite(logits.amax(dim=-1)).all()):
        raise EngineError(
            "the model computes logits that are not finite",
            hint="its weights are damaged, or the precision is too low: try `--set runtime.precision=fp32`",
        )


def check_attention(model: Any) -> None:
    """EngineError where the model's attention cannot take the mask of a decoding step."""
    kind = getattr(model.config, "_attn_implementation", None)
    if kind not in ("sdpa", "eager"):
        raise EngineError(
            f"the model was loaded with attention {kind!r}, and this engine needs 'sdpa' or 'eager'",
            hint="load it with attn_implementation='sdpa'",
        )


def context_length_of(model: Any) -> int:
    """Tokens one sequence may have; a model without a table of positions has no end."""
    length = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
    return int(length) if length else 1 << 62
