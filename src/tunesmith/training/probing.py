"""Two questions asked of every model before its first step, and one after a step went wrong.

Does the training forward compute what the model itself computes, samples end to end and with a shared beginning? Can a
sample see its neighbour? Which layer first made a number that is not finite? Refuses to know optimisers and files.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from transformers import PreTrainedModel

from tunesmith.errors import ModelError, TrainingError
from tunesmith.training.batches import Batch
from tunesmith.training.forward import hidden_states, output_head, varlen_forward
from tunesmith.training.prefixes import Layout, lay_as_trie, lay_end_to_end

_TOLERANCE = {torch.float32: (1e-4, 1e-3), torch.float16: (1e-2, 0.1), torch.bfloat16: (1e-2, 0.3)}
"""Largest relative difference (head, body). Thirty blocks in bf16 drift by 2 to 8 % on such short nonsense, torch's own
two kernels by half of that; in fp32 the same comparison gives 1e-6."""

_ROUNDING = {torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 2e-2}

_PROBE_TOKENS = 12
_PROBE_SHARED = 8  # a beginning that is long enough to be shared
_PROBE_WINDOW = 5
_LAYER_KINDS = ("full_attention", "sliding_attention")  # of config.layer_types, those that training computes
_HINT = "its attention or output head has a form that training does not compute yet; choose another model"


@torch.no_grad()
def probe_model(model: PreTrainedModel) -> None:
    """ModelError where the training forward differs from the model's own, or a change in one sample moves another.

    Short samples of ordinary ids: packed by us, end to end and as a trie, and each alone through the model itself. Where
    layers have a sliding window, once more with a window that is shorter than the samples.
    """
    _refuse_by_name(model)
    training = model.training
    model.eval()
    try:
        _probe_head(model)
        _probe_packs(model)
        with _short_windows(model) as any_window:
            if any_window:
                _probe_packs(model)
    except (TrainingError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise ModelError(f"{type(model).__name__}: the training forward fails: {error}", hint=_HINT) from error
    finally:
        model.train(training)


def _refuse_by_name(model: PreTrainedModel) -> None:
    """What short samples may not show: layers that act only on long ones, and logits that are bent but a little."""
    name, decoder = type(model).__name__, model.get_decoder()
    config: Any = decoder.config
    other = sorted(set(getattr(config, "layer_types", None) or ()) - set(_LAYER_KINDS))
    if other:
        raise ModelError(
            f"{name} has layers of type {other[0]!r}, which training does not compute yet",
            hint="choose a model whose layers have full or sliding-window attention",
        )
    if getattr(config, "final_logit_softcapping", None) is not None:
        raise ModelError(
            f"{name} soft-caps its logits (`final_logit_softcapping`), which training does not compute yet",
            hint="choose another model",
        )


def _probe_head(model: PreTrainedModel) -> None:
    """Are the logits finite, and what a loss takes them for: a linear map of the last hidden states?"""
    name, head = type(model).__name__, output_head(model)
    ids = _probe_samples(model)[0]
    logits = model(input_ids=_as_row(ids, model), use_cache=False).logits[0]
    if not bool(torch.isfinite(logits).all()):
        raise ModelError(f"{name} computes numbers that are not finite", hint="its weights are damaged")
    difference = _relative_difference(nn.functional.linear(_own_hidden(model, ids), head.weight, head.bias), logits)
    if not difference <= _TOLERANCE[head.weight.dtype][0]:
        raise ModelError(f"{name}: its logits are no linear map of its last layer ({difference:.1%} apart)", hint=_HINT)


def _probe_packs(model: PreTrainedModel) -> None:
    name, dtype = type(model).__name__, output_head(model).weight.dtype
    first, second, third = _probe_samples(model)
    with varlen_forward(model):
        packed = _packed_hidden(model, lay_end_to_end((first, second, third)))
        disturbed = _packed_hidden(model, lay_end_to_end((third, second, first)))
        shared = _packed_hidden(model, lay_as_trie((first, second)))
    _refuse_leak(model, packed[1], disturbed[1], dtype)
    for index, ids in enumerate((first, second)):
        own = _own_hidden(model, ids)
        for what, found in (("forward", packed), ("forward of a shared beginning", shared)):
            difference = _relative_difference(found[index], own)
            if not difference <= _TOLERANCE[dtype][1]:
                raise ModelError(
                    f"{name}: the training {what} differs from the model's own by {difference:.1%}", hint=_HINT
                )


def _refuse_leak(model: PreTrainedModel, found: torch.Tensor, disturbed: torch.Tensor, dtype: torch.dtype) -> None:
    """The same sample between other neighbours: no bit may differ, except for what layers of experts round: they gather
    the tokens of all samples, and a matrix product of other height may round otherwise."""
    decoder: Any = model.get_decoder()
    experts = any(getattr(decoder.config, key, None) for key in ("num_experts", "num_local_experts"))
    if torch.equal(found, disturbed) or (experts and _relative_difference(disturbed, found) <= _ROUNDING[dtype]):
        return
    raise ModelError(
        f"{type(model).__name__}: a packed sample can see its neighbour, a change of which moves it by "
        f"{_relative_difference(disturbed, found):.0e}",
        hint="choose another model",
    )


def _probe_samples(model: PreTrainedModel) -> tuple[NDArray[np.int64], ...]:
    """Three samples; the first two begin alike."""
    size = model.config.get_text_config().vocab_size
    first, second, third = (np.arange(1, _PROBE_TOKENS + 1) * step % size for step in (7, 5, 3))
    second[:_PROBE_SHARED] = first[:_PROBE_SHARED]
    return first, second, third


def _as_row(values: NDArray[np.int64], model: PreTrainedModel) -> torch.Tensor:
    return torch.from_numpy(values)[None].to(next(model.parameters()).device)


def _own_hidden(model: PreTrainedModel, ids: NDArray[np.int64]) -> torch.Tensor:
    decoder: Any = model.get_decoder()
    return decoder(input_ids=_as_row(ids, model), use_cache=False).last_hidden_state[0]


def _packed_hidden(model: PreTrainedModel, layout: Layout) -> list[torch.Tensor]:
    """Hidden states of each sample. Inside `varlen_forward`."""
    ids, positions = _as_row(layout.input_ids, model), _as_row(layout.position_ids, model)
    nothing = torch.empty(0, dtype=torch.int64, device=ids.device)
    hidden = hidden_states(model, Batch(ids, positions, layout.segments, nothing, nothing, (), ids.shape[1]))
    return [hidden[torch.from_numpy(rows).to(ids.device)] for rows in layout.row_of]


@contextmanager
def _short_windows(model: PreTrainedModel) -> Generator[bool]:
    """Inside, sliding windows reach five tokens, in our forward and in the model's own. Yields whether there are any."""
    decoder: Any = model.get_decoder()
    owners: list[Any] = [
        each for each in (decoder.config, *model.modules()) if isinstance(vars(each).get("sliding_window"), int)
    ]
    before = [owner.sliding_window for owner in owners]
    try:
        for owner in owners:
            owner.sliding_window = min(owner.sliding_window, _PROBE_WINDOW)
        yield bool(owners)
    finally:
        for owner, window in zip(owners, before, strict=True):
            owner.sliding_window = window


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


def refuse_loss(what: str, step: int, layer: str | None, rows: Sequence[str]) -> TrainingError:
    """The error for a step that must be the last one: which rows, and which layer first went bad (`find_bad_layer`)."""
    place = f"; first bad layer: {layer}" if layer else "; every layer's output is finite on this batch"
    named = ", ".join(rows[:8]) + (f" and {len(rows) - 8} more" if len(rows) > 8 else "")
    return TrainingError(
        f"{what} at step {step + 1}{place}; rows of the batch: {named}",
        where="recipe.train",
        hint="look at these rows (`tunesmith show`), lower train.learning_rate, or set runtime.precision: fp32",
    )
