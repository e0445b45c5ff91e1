"""The processes of one training: which one this is, and sums over all of them.

One program runs on every rank (torchrun starts them); a single process is rank 0 of 1 and sums nothing. Refuses to know
models and data.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

T = TypeVar("T")

_BUCKET_NUMBERS = 16 << 20  # fp32 numbers summed at once: 64 MB


class AgreedStop(Exception):
    """What a rank other than the first raises when all have agreed to stop."""


@dataclass(frozen=True)
class Ranks:
    """This process among those that train together."""

    rank: int = 0
    size: int = 1

    @classmethod
    def current(cls) -> Ranks:
        """As torch.distributed has it; alone where that was not started."""
        if dist.is_available() and dist.is_initialized():
            return cls(dist.get_rank(), dist.get_world_size())
        return cls()

    @property
    def is_first(self) -> bool:
        """The one that writes files and speaks."""
        return self.rank == 0

    @property
    def device_index(self) -> int:
        """The CUDA device of this machine that is this rank's."""
        return int(os.environ.get("LOCAL_RANK", "0")) if self.size > 1 else 0

    def from_first(self, make: Callable[[], T]) -> T:
        """What the first rank makes, on every rank; the others wait for it."""
        if self.size == 1:
            return make()
        made: list[Any] = [make() if self.is_first else None]
        dist.broadcast_object_list(made, src=0)
        return made[0]

    def gather(self, value: T) -> list[T]:
        """What every rank has, by rank."""
        if self.size == 1:
            return [value]
        everyone: list[Any] = [None] * self.size
        dist.all_gather_object(everyone, value)
        return everyone

    def share(self, packs: Sequence[tuple[int, ...]], lengths: NDArray[np.int64]) -> list[tuple[int, ...]]:
        """This rank's packs of a step: the dearest pack first, each to the rank with the least work so far.

        lengths: tokens of each sample. The cost of a pack is its tokens plus its attention, which grows with the square of
        a sample's length; a token's other work counts as much as the attention over about 4,096 others.
        """
        if self.size == 1:
            return list(packs)
        costs = [float((lengths[list(pack)] * (1 + lengths[list(pack)] / 4096)).sum()) for pack in packs]
        work = [0.0] * self.size
        mine: list[int] = []
        for index in sorted(range(len(packs)), key=lambda index: (-costs[index], index)):
            rank = work.index(min(work))
            work[rank] += costs[index]
            if rank == self.rank:
                mine.append(index)
        return [packs[index] for index in sorted(mine)]

    def share_out(self, keys: Sequence[Hashable], work: Callable[[Sequence[int]], Sequence[T]]) -> list[T]:
        """work(indices) gives one result for each; every rank does its share and gets all results, in the order of the keys.
        Indices with equal keys go to the same rank, in order."""
        owners = {key: number % self.size for number, key in enumerate(dict.fromkeys(keys))}
        mine = [index for index, key in enumerate(keys) if owners[key] == self.rank]
        done = dict(zip(mine, work(mine), strict=True)) if mine else {}
        everyone = {index: result for each in self.gather(done) for index, result in each.items()}
        return [everyone[index] for index in range(len(keys))]

    def any(self, value: bool) -> bool:
        """Whether it is so on some rank."""
        if self.size == 1:
            return value
        flag = torch.tensor([int(value)])
        dist.all_reduce(flag, op=dist.ReduceOp.MAX)
        return bool(flag.item())

    def stop(self, error: BaseException) -> NoReturn:
        """Called by every rank: the first one raises the error, the others AgreedStop."""
        raise error if self.is_first else AgreedStop(str(error))

    def sum_named(self, values: Mapping[str, float]) -> dict[str, float]:
        """Of every name over all ranks; a rank that had no work names nothing."""
        if self.size == 1:
            return dict(values)
        everyone = self.gather(dict(values))
        names = dict.fromkeys(name for each in everyone for name in each)  # in the order of one process
        return {name: sum(each.get(name, 0.0) for each in everyone) for name in names}

    def sum_gradients(self, weights: Iterable[torch.Tensor]) -> None:
        """The gradients of fp32 weights, over all ranks; a rank that has none adds nothing. The same order on each."""
        if self.size == 1:
            return
        bucket: list[torch.Tensor] = []
        for weight in weights:
            if weight.grad is None:
                weight.grad = torch.zeros_like(weight)
            bucket.append(weight.grad)
            if sum(grad.numel() for grad in bucket) >= _BUCKET_NUMBERS:
                _sum_bucket(bucket)
                bucket = []
        if bucket:
            _sum_bucket(bucket)

    def wait(self) -> None:
        """Until every rank is here."""
        if self.size > 1:
            dist.barrier()


def _sum_bucket(gradients: Sequence[torch.Tensor]) -> None:
    flat = torch.cat([grad.reshape(-1) for grad in gradients])
    dist.all_reduce(flat)
    for grad, part in zip(gradients, flat.split([grad.numel() for grad in gradients]), strict=True):
        grad.copy_(part.view_as(grad))
