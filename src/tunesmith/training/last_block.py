"""The last block, past its attention, only on the rows that predict something.

Nothing reads the other rows of the last block's output, so its MLP (three quarters of a block) and the final norm skip
them; keys and values are computed everywhere. Owns that form of a block and the proof that a block has it. Refuses to know
batches.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import PreTrainedModel

from tunesmith.errors import ModelError
from tunesmith.model.freezing import block_paths
from tunesmith.training.segments import build_segments

_PARTS = {"input_layernorm", "self_attn", "post_attention_layernorm", "mlp"}
"""Children of a block that adds attention and then MLP to its input, each behind a norm (Llama's form)."""


_PROOF_ROWS = 6


@contextmanager
def trimmed_last_block(model: PreTrainedModel) -> Generator[None]:
    """Inside, the last block leaves out what `reading_rows` does not name, if it has the form that allows it. One whose
    activations are recomputed stays whole: the backward pass computes it again when nobody names rows any more."""
    block = _last_block(model)
    if block is None or getattr(block, "gradient_checkpointing", False) or not _has_the_form(model, block):
        yield
        return
    block.forward = _Trimmed(block)
    try:
        yield
    finally:
        del block.forward


@contextmanager
def reading_rows(model: PreTrainedModel, rows: torch.Tensor | None) -> Generator[bool]:
    """Inside, a forward pass of the decoder gives these rows (M,) alone: (1, M, D). Yields whether it does: it gives all for
    None, outside `trimmed_last_block`, and where the block has another form."""
    block = _last_block(model)
    if rows is None or not is_trimmed(block):
        yield False
        return
    trimmed: Any = block.forward
    trimmed.rows = rows
    try:
        yield True
    finally:
        trimmed.rows = None


def is_trimmed(block: Any) -> bool:
    """Whether this block's forward pass is the one of this module."""
    return isinstance(getattr(block, "forward", None), _Trimmed)


class _Trimmed:
    """The forward pass of one block. rows (M,): what is read of it; None: all."""

    def __init__(self, block: Any) -> None:
        self.block = block
        self.rows: torch.Tensor | None = None

    def __call__(self, hidden_states: torch.Tensor, **options: Any) -> torch.Tensor:
        """(1, T, D) -> (1, M, D)"""
        mixed, _ = self.block.self_attn(hidden_states=self.block.input_layernorm(hidden_states), **options)
        hidden = hidden_states + mixed
        if self.rows is not None:
            hidden = hidden.index_select(1, self.rows)
        return hidden + self.block.mlp(self.block.post_attention_layernorm(hidden))


def _last_block(model: PreTrainedModel) -> Any:
    """None where it cannot be told."""
    try:
        return model.get_submodule(block_paths(model)[-1])
    except ModelError:
        return None


@torch.no_grad()
def _has_the_form(model: PreTrainedModel, block: Any) -> bool:
    """Llama's parts, and on a few random rows Llama's arithmetic, bit by bit: other models scale what these parts give."""
    if {name for name, _ in block.named_children()} != _PARTS:
        return False
    weight = next(block.input_layernorm.parameters())
    rows = torch.randn(1, _PROOF_ROWS, weight.shape[-1], generator=torch.Generator().manual_seed(0)).to(weight)
    positions = torch.arange(_PROOF_ROWS, device=weight.device)[None]
    decoder: Any = model.get_decoder()
    training = block.training
    block.eval()
    try:
        options: dict[str, Any] = {
            "attention_mask": None,
            "position_ids": positions,
            "position_embeddings": decoder.rotary_emb(rows, position_ids=positions),
            "segments": build_segments([_PROOF_ROWS]),
        }
        own = type(block).forward(block, rows, **options)
        return isinstance(own, torch.Tensor) and torch.equal(own, _Trimmed(block)(rows, **options))
    except (TypeError, ValueError, AttributeError, RuntimeError):
        return False
    finally:
        block.train(training)
