"""A scalar head: one number per token from the last hidden state, for reward models and for PPO's value function.

Owns the linear map, its file, and the token at which an answer's score is read. Refuses to know losses and data. It lives
beside the adapters because training makes it and rewards read it.

The file is `value_head.safetensors` with v_head.summary.weight (1, D) and .bias (1,), the names under which TRL and
LLaMA-Factory keep theirs, in fp32.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn

from tunesmith.errors import DataError, ModelError
from tunesmith.model.folder import VALUE_HEAD
from tunesmith.store import write_atomic

ATTACHED = "value_head"
"""Name of a head that is trained with a model, among the model's modules."""

_WEIGHT, _BIAS = "v_head.summary.weight", "v_head.summary.bias"


class ValueHead(nn.Module):
    """hidden (..., D) -> (...), computed in fp32 whatever the model computes in: a score is a sum over thousands of
    numbers, and pairs are told apart by its last digits."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, width))
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return F.linear(hidden.float(), self.weight, self.bias)[..., 0]


def new_value_head(width: int, rng_seed: int) -> ValueHead:
    """Weights from N(0, 1 / (D + 1)), bias 0 (Stiennon et al. 2020, arXiv 2009.01325, appendix): scores begin near 0.

    Drawn in fp32 on the CPU, so they depend on the seed alone.
    """
    head = ValueHead(width)
    generator = torch.Generator().manual_seed(rng_seed)
    head.weight.data.normal_(0, 1 / math.sqrt(width + 1), generator=generator)
    return head


def save_value_head(folder: Path, head: ValueHead) -> None:
    """Write the file into a checkpoint's folder. The bytes depend on the weights alone."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().to("cpu", torch.float32).contiguous() for name, tensor in _named(head).items()}
    write_atomic(folder / VALUE_HEAD, save(tensors, metadata={"format": "pt"}))


def load_value_head(folder: Path, width: int) -> ValueHead:
    """The inverse of save_value_head, bit by bit. ModelError where there is none, or one of another width.

    width: of the model's last hidden state.
    """
    path = folder / VALUE_HEAD
    if not path.is_file():
        raise ModelError(
            f"there is no {VALUE_HEAD}: this is no reward model",
            where=str(folder),
            hint="name the folder of a reward model: adapter or model, chat_template.jinja, and this file as TRL writes it",
        )
    head = ValueHead(width)
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    except SafetensorError as error:
        raise ModelError(f"the file is damaged: {error}", where=str(path)) from error
    for name, parameter in _named(head).items():
        found = tensors.get(name)
        if found is None or found.shape != parameter.shape:
            shape = "nothing" if found is None else f"shape {tuple(found.shape)}"
            raise ModelError(
                f"{name}: expected shape {tuple(parameter.shape)}, found {shape}",
                where=str(path),
                hint="the head belongs to another model",
            )
        parameter.data.copy_(found)
    return head


def scored_token(loss_mask: NDArray[np.integer] | NDArray[np.bool_] | Sequence[bool]) -> int:
    """Where a rendered answer's score is read: its last supervised token, which is the stop token of the turn.

    What the template writes after it says nothing about the answer, and a causal model has not read it there. Training a
    reward model and asking one take the same place. DataError for a mask without a target.
    """
    places = np.flatnonzero(np.asarray(loss_mask))
    if not len(places):
        raise DataError("the answer has no token, so it has no place where a score could be read")
    return int(places[-1])


@contextmanager
def attached(model: nn.Module, head: ValueHead) -> Generator[None]:
    """Inside, the head is one of the model's modules, so what trains the model trains it too."""
    model.add_module(ATTACHED, head)
    try:
        yield
    finally:
        delattr(model, ATTACHED)


def _named(head: ValueHead) -> dict[str, nn.Parameter]:
    return {_WEIGHT: head.weight, _BIAS: head.bias}
