"""The forward pass of training: samples end to end or as a trie, each of which sees itself alone.

Owns the layers that are swapped for it, and what training asks of a model before it: its output head, its dropout. Refuses
to know losses and steps.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from tunesmith.errors import ModelError
from tunesmith.training.alibi import give_segments, swap_bloom_attention
from tunesmith.training.attention import NAME
from tunesmith.training.batches import Batch
from tunesmith.training.head import Head
from tunesmith.training.kernels import restore_layers, swap_norms
from tunesmith.training.last_block import trimmed_last_block


@contextmanager
def varlen_forward(model: PreTrainedModel) -> Generator[None]:
    """Inside, the model's layers attend by segments and its norms are the fast ones; outside it is as it was.

    ModelError for a model whose attention cannot be replaced.
    """
    before = model.config._attn_implementation or "sdpa"
    swapped = swap_norms(model)
    bloom = swap_bloom_attention(model)
    try:
        if bloom:
            model.config._attn_implementation = NAME  # read by no layer of Bloom; it keeps the model from making a mask
        else:
            _set_attention(model)
        with trimmed_last_block(model):
            yield
    finally:
        if bloom:
            model.config._attn_implementation = before
        elif model.config._attn_implementation != before:
            model.set_attn_implementation(before)
        restore_layers(model, swapped + bloom)


def _set_attention(model: PreTrainedModel) -> None:
    decoder: Any = model.get_decoder()
    if model._can_set_attn_implementation():
        model.set_attn_implementation(NAME)
    if decoder.config._attn_implementation != NAME:
        raise ModelError(
            f"{type(model).__name__} computes attention inside its layers, so samples cannot be kept apart there",
            hint="choose a model of another architecture; docs/architectures.md lists those that can be trained",
        )


def hidden_states(model: PreTrainedModel, batch: Batch, start: torch.Tensor | None = None) -> torch.Tensor:
    """(T, D) what the output head reads, at every position. Inside `varlen_forward`.

    start (1, T, D): what the lowest block reads, in place of embeddings.
    """
    decoder: Any = model.get_decoder()
    _refuse_shared_rotation(decoder.config, batch)
    with give_segments(decoder, batch.segments, batch.input_ids) as more:
        output = decoder(
            **({"input_ids": batch.input_ids} if start is None else {"inputs_embeds": start}),
            position_ids=batch.position_ids,
            segments=batch.segments,
            use_cache=False,
            **more,
        )
    return output.last_hidden_state[0]


def _refuse_shared_rotation(config: Any, batch: Batch) -> None:
    """Two kinds of rotary scaling turn a whole forward pass by its longest sample. Up to a length they turn as if there
    were no scaling; beyond, a long sample would change its neighbours."""
    parameters = getattr(config, "rope_parameters", None) or {}
    for rope in [value for value in parameters.values() if isinstance(value, Mapping)] or [parameters]:
        if rope.get("rope_type") not in ("dynamic", "longrope"):
            continue
        limit = rope.get("original_max_position_embeddings") or config.max_position_embeddings
        longest = max(segment.num_seen for segment in batch.segments)
        if longest > limit:
            raise ModelError(
                f"a sample has {longest:,} tokens; beyond {limit:,} the model's rotary scaling ({rope['rope_type']}) "
                "turns every sample of a batch by the longest one",
                where="recipe.tokenize.max_length",
                hint=f"lower tokenize.max_length to {limit}",
            )


def draws_dropout(model: nn.Module) -> bool:
    """Whether some layer of the model zeroes activations at random while it trains."""
    rates = [rate for layer in model.modules() for name, rate in vars(layer).items() if "drop" in name]
    rates += [layer.p for layer in model.modules() if isinstance(layer, nn.Dropout)]
    return any(isinstance(rate, float) and rate > 0 for rate in rates)


def output_head(model: PreTrainedModel) -> Head:
    """The model's output head. ModelError where it is no linear map."""
    head: Any = model.get_output_embeddings()
    if head is None or not isinstance(head, nn.Linear):
        raise ModelError(f"{type(model).__name__} has no linear output head", hint="choose a causal language model")
    return Head(head.weight, head.bias)
