"""Two questions asked of every model before its first step, and one after a step went wrong.

Does the training forward compute what the model itself computes? Can a sample see its neighbour? Which layer first made
a number that is not finite? Refuses to know optimisers and files.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from tunesmith.errors import ModelError, TrainingError
from tunesmith.training.attention import NAME, build_segments
from tunesmith.training.batches import Batch
from tunesmith.training.head import Head
from tunesmith.training.kernels import restore_layers, swap_norms

_TOLERANCE = {torch.float32: (1e-4, 1e-3), torch.float16: (1e-2, 0.1), torch.bfloat16: (1e-2, 0.3)}
"""Largest relative difference (head, body). Thirty blocks in bf16 drift by 2 to 8 % on such short nonsense, torch's own
two kernels by half of that; in fp32 the same comparison gives 1e-6."""

_PROBE_TOKENS = 12


@contextmanager
def varlen_forward(model: PreTrainedModel) -> Any:
    """Inside, the model's layers attend by segments and its norms are the fast ones; outside it is as it was."""
    before = model.config._attn_implementation or "sdpa"
    swapped = swap_norms(model)
    model.set_attn_implementation(NAME)
    try:
        yield
    finally:
        model.set_attn_implementation(before)
        restore_layers(model, swapped)


def hidden_states(model: PreTrainedModel, batch: Batch) -> torch.Tensor:
    """(T, D) what the output head reads, at every position. Inside `varlen_forward`."""
    decoder: Any = model.get_decoder()
    output = decoder(
        input_ids=batch.input_ids, position_ids=batch.position_ids, segments=batch.segments, use_cache=False
    )
    return output.last_hidden_state[0]


def draws_dropout(model: nn.Module) -> bool:
    """Whether some layer of the model zeroes activations at random while it trains."""
    names = ("dropout", "attention_dropout")
    rates = [getattr(layer, name, 0.0) for layer in model.modules() for name in names]
    rates += [layer.p for layer in model.modules() if isinstance(layer, nn.Dropout)]
    return any(isinstance(rate, float) and rate > 0 for rate in rates)


def output_head(model: PreTrainedModel) -> Head:
    """The model's output head. ModelError where it is no linear map."""
    head: Any = model.get_output_embeddings()
    if head is None or not isinstance(head, nn.Linear):
        raise ModelError(f"{type(model).__name__} has no linear output head", hint="choose a causal language model")
    return Head(head.weight, head.bias)


@torch.no_grad()
def probe_model(model: PreTrainedModel) -> None:
    """ModelError where the packed forward differs from the model's own, or a change in one sample moves another.

    Two short samples of ordinary ids, once packed by us, once alone through the model itself.
    """
    name, device = type(model).__name__, next(model.parameters()).device
    first = torch.arange(_PROBE_TOKENS) * 7 % model.config.vocab_size
    second = (torch.arange(_PROBE_TOKENS) * 5 + 3) % model.config.vocab_size
    training = model.training
    model.eval()
    head_map = output_head(model)
    logits = model(input_ids=first[None].to(device), use_cache=False).logits[0]
    decoder: Any = model.get_decoder()
    own = decoder(input_ids=first[None].to(device), use_cache=False).last_hidden_state[0]
    with varlen_forward(model):
        packed = [hidden_states(model, _probe_batch([first, other], device)) for other in (second, second.flip(0))]
    ours, disturbed = (hidden[:_PROBE_TOKENS] for hidden in packed)
    model.train(training)
    if not bool(torch.isfinite(logits).all()):
        raise ModelError(f"{name} computes numbers that are not finite", hint="its weights are damaged")
    if not torch.equal(ours, disturbed):
        raise ModelError(f"{name}: a packed sample can see its neighbour", hint="choose another model")
    hint = "its attention or output head has a form that training does not compute yet; choose another model"
    head_limit, body_limit = _TOLERANCE[head_map.weight.dtype]
    head = _relative_difference(nn.functional.linear(own, head_map.weight, head_map.bias), logits)
    if not head <= head_limit:
        raise ModelError(f"{name}: its logits are no linear map of its last layer ({head:.1%} apart)", hint=hint)
    body = _relative_difference(ours, own)
    if not body <= body_limit:
        raise ModelError(f"{name}: the training forward differs from the model's own by {body:.1%}", hint=hint)


def _relative_difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.float() - expected.float()).norm() / expected.float().norm())


def find_bad_layer(model: PreTrainedModel, batch: Batch) -> str | None:
    """Path of the first layer whose output is not finite on this batch, None where all are finite.

    One more forward pass with a hook on every layer. Inside `varlen_forward`.
    """
    found: list[str] = []

    def watch(path: str) -> Any:
        def look(_module: nn.Module, _inputs: Any, output: Any) -> None:
            tensor = output[0] if isinstance(output, tuple) else output
            if not found and isinstance(tensor, torch.Tensor) and not bool(torch.isfinite(tensor).all()):
                found.append(path)

        return look

    # A layer's hook runs when it is done, so inner layers speak before the ones around them.
    hooks = [layer.register_forward_hook(watch(path)) for path, layer in model.named_modules()]
    try:
        with torch.no_grad():
            hidden_states(model, batch)
    finally:
        for hook in hooks:
            hook.remove()
    return found[0] if found else None


def refuse_loss(model: PreTrainedModel, batch: Batch, rows: list[str], step: int, what: str) -> TrainingError:
    """The error for a step that must be the last one: which rows, and which layer first went bad."""
    layer = find_bad_layer(model, batch)
    place = f"; first bad layer: {layer}" if layer else "; every layer's output is finite on this batch"
    named = ", ".join(rows[:8]) + (f" and {len(rows) - 8} more" if len(rows) > 8 else "")
    return TrainingError(
        f"{what} at step {step + 1}{place}; rows of the batch: {named}",
        where="recipe.train",
        hint="look at these rows (`tunesmith show`), lower train.learning_rate, or set runtime.precision: fp32",
    )


def _probe_batch(samples: list[torch.Tensor], device: torch.device) -> Batch:
    ids = torch.cat(samples)[None].to(device)
    positions = torch.cat([torch.arange(len(sample)) for sample in samples])[None].to(device)
    nothing = torch.empty(0, dtype=torch.int64, device=device)
    return Batch(ids, positions, build_segments([len(s) for s in samples]), nothing, nothing, (), ids.shape[1])
