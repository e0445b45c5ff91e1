"""What an objective returns. Knows no formula."""

from __future__ import annotations

from typing import NamedTuple

import torch


class Summed(NamedTuple):
    """A loss and what people watch beside it, both summed over the rows of one forward pass.

    loss: scalar with a gradient. sums: name -> scalar without one; divide them by the same count as the loss, after adding up the
    passes of a step.
    """

    loss: torch.Tensor  # ()
    sums: dict[str, torch.Tensor]  # each ()


def detached(**values: torch.Tensor) -> dict[str, torch.Tensor]:
    """Sums over all elements of each, in fp32 or wider and without gradients."""
    return {name: _wide(value.detach()).sum() for name, value in values.items()}


def _wide(value: torch.Tensor) -> torch.Tensor:
    return value if value.dtype == torch.float64 else value.float()
