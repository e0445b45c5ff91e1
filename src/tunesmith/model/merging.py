"""Several adapters of one base model become one: their weighted sum, exactly or at a lower rank, or what TIES keeps of it.

Owns the arithmetic on adapters' files. A weighted sum of low-rank maps is their concatenation (rank r1 + r2 + ...). The
mean of their A times the mean of their B is another map, so that is not offered. Refuses to know recipes and runs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from tunesmith.errors import ModelError, RecipeError
from tunesmith.model.adapters import AdapterConfig, read_fields, read_weights, save_adapter
from tunesmith.model.folder import read_safetensors_header, weight_files
from tunesmith.model.low_rank import with_lengths

TIES_DENSITY = 0.2
"""Share of an adapter's numbers that TIES keeps: the 20 % of its authors (Yadav et al. 2023, arXiv 2306.01708)."""

_PARTS = ("lora_A", "lora_B", "lora_magnitude_vector")


@dataclass(frozen=True)
class SavedAdapter:
    """An adapter as its files have it: `config` with the paths of its maps, and its tensors by "path.part"."""

    folder: Path
    config: AdapterConfig
    tensors: Mapping[str, torch.Tensor]

    def factors(self, path: str) -> tuple[torch.Tensor, torch.Tensor]:
        """A (rank, in) and scale B (out, rank) of one map, fp32."""
        a, b = (self.tensors[f"{path}.{part}"].float() for part in ("lora_A", "lora_B"))
        return a, b * self.config.scale

    def delta(self, path: str, weight: torch.Tensor | None) -> torch.Tensor:
        """(out, in) what the adapter adds to one map, fp32. weight: that of the base (out, in), read for DoRA only."""
        a, b = self.factors(path)
        if not self.config.use_dora:
            return b @ a
        if weight is None:
            raise ModelError("what a DoRA adapter adds depends on the base model's weights", where=str(self.folder))
        magnitude = self.tensors[f"{path}.lora_magnitude_vector"].float()
        return with_lengths(weight.float() + b @ a, magnitude) - weight.float()


@dataclass(frozen=True)
class Combined:
    """One adapter made of several. error: what a lower rank lost, |D - D_r| / |D| over all maps; 0 where nothing was cut."""

    config: AdapterConfig
    tensors: dict[str, torch.Tensor]
    error: float


def read_adapter(folder: Path) -> SavedAdapter:
    """Read both files of an adapter. ModelError where they are damaged, or belong to an adapter of another kind."""
    fields = read_fields(folder)
    tensors = read_weights(folder)
    paths = tuple(dict.fromkeys(name.rpartition(".")[0] for name in tensors))
    names = fields["target_modules"]
    config = AdapterConfig(
        rank=int(fields["r"]),
        alpha=float(fields["lora_alpha"]),
        dropout=0.0,
        targets=paths,
        target_names=(names,) if isinstance(names, str) else tuple(names),
        base_model=str(fields.get("base_model_name_or_path") or ""),
        use_dora=bool(fields.get("use_dora")),
        use_rslora=bool(fields.get("use_rslora")),
        fan_in_fan_out=bool(fields.get("fan_in_fan_out")),
    )
    wanted = _PARTS if config.use_dora else _PARTS[:2]
    expected = {f"{path}.{part}" for path in paths for part in wanted}
    odd = sorted(expected ^ tensors.keys())
    if odd:
        what = "is missing" if odd[0] in expected else "is not expected"
        raise ModelError(f"{odd[0]} {what}", where=str(folder), hint="the file is incomplete")
    return SavedAdapter(folder, config, tensors)


def equal_shares(number: int) -> tuple[float, ...]:
    """Weights of a plain mean."""
    return (1 / number,) * number


def check_together(adapters: Sequence[SavedAdapter], weights: Sequence[float]) -> None:
    """RecipeError or ModelError where these adapters cannot be summed with these weights."""
    if len(weights) != len(adapters):
        raise RecipeError(f"{len(adapters)} adapters need as many weights, found {len(weights)}", where="--weights")
    if not all(math.isfinite(weight) for weight in weights) or not any(weights):
        raise RecipeError(f"expected finite weights, not all of them 0, found {list(weights)}", where="--weights")
    shapes: dict[str, tuple[int, int]] = {}
    for adapter in adapters:
        for path in adapter.config.targets:
            a, b = (adapter.tensors[f"{path}.{part}"] for part in ("lora_A", "lora_B"))
            shape = (b.shape[0], a.shape[1])
            if shapes.setdefault(path, shape) != shape:
                raise ModelError(
                    f"{path} maps {shape[1]} to {shape[0]} numbers here, and {shapes[path][1]} to {shapes[path][0]} in "
                    "an adapter before it",
                    where=str(adapter.folder),
                    hint="these adapters belong to different base models",
                )


def check_base(model_dir: Path, adapters: Sequence[SavedAdapter]) -> None:
    """ModelError where a map of an adapter has another shape than the base model's file says. Reads headers only."""
    shapes = {
        name: tuple(entry["shape"])
        for file in weight_files(model_dir)
        for name, entry in read_safetensors_header(file).items()
    }
    for adapter in adapters:
        for path in adapter.config.targets:
            found = shapes.get(f"{path}.weight")  # None where files name maps otherwise than modules
            a, b = (adapter.tensors[f"{path}.{part}"] for part in ("lora_A", "lora_B"))
            if found not in (None, (b.shape[0], a.shape[1]), (a.shape[1], b.shape[0])):
                raise ModelError(
                    f"{path} maps {a.shape[1]} to {b.shape[0]} numbers, the base model's is {found}",
                    where=str(adapter.folder),
                    hint="the adapter belongs to another base model",
                )


def concatenate(adapters: Sequence[SavedAdapter], weights: Sequence[float]) -> Combined:
    """The weighted sum as one LoRA adapter, exact: A stacked, weight times scale in B. Its rank is the sum of the ranks.

    A map that one adapter does not have gets zeros for it, so that all maps have one rank. RecipeError for DoRA adapters,
    whose sum has no low rank.
    """
    check_together(adapters, weights)
    if any(adapter.config.use_dora for adapter in adapters):
        raise RecipeError(
            "what a DoRA adapter adds has full rank, so a sum with it is no adapter",
            where="--method",
            hint="merge it into the model (--into-model), or give the --rank that the sum is cut to",
        )
    config = _config_of(adapters, sum(adapter.config.rank for adapter in adapters))
    tensors: dict[str, torch.Tensor] = {}
    for path in config.targets:
        rows: list[torch.Tensor] = []
        columns: list[torch.Tensor] = []
        like = next(adapter for adapter in adapters if path in adapter.config.targets).factors(path)
        for adapter, weight in zip(adapters, weights, strict=True):
            if path in adapter.config.targets:
                a, b = adapter.factors(path)
            else:
                a, b = (like[0].new_zeros(adapter.config.rank, like[0].shape[1]),
                        like[1].new_zeros(like[1].shape[0], adapter.config.rank))  # fmt: skip
            rows.append(a)
            columns.append(weight * b)
        tensors[f"{path}.lora_A"] = torch.cat(rows)
        tensors[f"{path}.lora_B"] = torch.cat(columns, dim=1)
    return Combined(config, tensors, 0.0)


def compress(combined: Combined, rank: int) -> Combined:
    """The best adapter of a lower rank (Eckart and Young 1936), with what it lost.

    The singular values of B A come from the two small factors of its QR decompositions; no (out, in) matrix is formed.
    """
    if rank >= combined.config.rank:
        raise RecipeError(f"the sum has rank {combined.config.rank} already", where="--rank", hint="leave it out")
    tensors: dict[str, torch.Tensor] = {}
    lost = total = 0.0
    for path in combined.config.targets:
        left, left_small = torch.linalg.qr(combined.tensors[f"{path}.lora_B"].double())
        right, right_small = torch.linalg.qr(combined.tensors[f"{path}.lora_A"].double().t())
        u, s, vh = torch.linalg.svd(left_small @ right_small.t(), full_matrices=False)
        cut = _cut(left @ u, s, vh @ right.t(), rank)
        tensors[f"{path}.lora_A"], tensors[f"{path}.lora_B"] = cut
        lost, total = lost + float(s[rank:].square().sum()), total + float(s.square().sum())
    return Combined(_with_rank(combined.config, rank), tensors, _share(lost, total))


def compress_deltas(
    adapters: Sequence[SavedAdapter], deltas: Iterator[tuple[str, torch.Tensor]], rank: int
) -> Combined:
    """The best adapter of this rank for what is added to each map, with what it lost. One matrix at a time."""
    tensors: dict[str, torch.Tensor] = {}
    lost = total = 0.0
    for path, delta in deltas:
        u, s, vh = torch.linalg.svd(delta, full_matrices=False)
        tensors[f"{path}.lora_A"], tensors[f"{path}.lora_B"] = _cut(u, s, vh, rank)
        lost, total = lost + float(s[rank:].square().sum()), total + float(s.square().sum())
    return Combined(_config_of(adapters, rank), tensors, _share(lost, total))


def combined_deltas(
    adapters: Sequence[SavedAdapter],
    weights: Sequence[float],
    *,
    method: Literal["cat", "ties"],
    density: float,
    model: PreTrainedModel | None,
) -> Iterator[tuple[str, torch.Tensor]]:
    """(path, (out, in) what is added to the base weight, fp32) of every map that some adapter has.

    cat: the weighted sum. ties: see `ties`. model: the base, for DoRA adapters.
    """
    check_together(adapters, weights)
    for path in _paths_of(adapters):
        weight = base_weight(model, path) if model is not None else None
        present = [
            (adapter.delta(path, weight), share)
            for adapter, share in zip(adapters, weights, strict=True)
            if path in adapter.config.targets
        ]
        if method == "ties":
            yield path, ties([delta for delta, _ in present], [share for _, share in present], density)
        else:
            total = torch.zeros_like(present[0][0])
            for delta, share in present:
                total.add_(delta, alpha=share)
            yield path, total


def ties(deltas: Sequence[torch.Tensor], weights: Sequence[float], density: float) -> torch.Tensor:
    """What TIES keeps of several deltas of one map (Yadav et al. 2023, arXiv 2306.01708, section 3).

    Of each delta the largest `density` share of its numbers stay; of each number the sign with the larger weighted sum
    wins; those of the winning sign are averaged by their weights. Here per map, where the paper trims whole models.
    """
    trimmed = [_trim(delta, density) for delta in deltas]
    summed = torch.zeros_like(deltas[0])
    for delta, weight in zip(trimmed, weights, strict=True):
        summed.add_(delta, alpha=weight)
    sign = summed.sign()
    total, counted = torch.zeros_like(summed), torch.zeros_like(summed)
    for delta, weight in zip(trimmed, weights, strict=True):
        agrees = (delta * weight).sign() == sign
        total.add_(delta * agrees, alpha=weight)
        counted.add_((agrees & (delta != 0)).to(counted.dtype), alpha=abs(weight))
    return torch.where(counted > 0, total / counted.clamp_min(torch.finfo(counted.dtype).tiny), 0.0)


@torch.no_grad()
def add_to_model(model: PreTrainedModel, deltas: Iterator[tuple[str, torch.Tensor]]) -> int:
    """Add what `combined_deltas` gives to the model's weights, in place: fp32 arithmetic, one cast. Returns how many
    maps changed."""
    number = 0
    for path, delta in deltas:
        number += 1
        layer: Any = model.get_submodule(path)
        added = delta.t() if isinstance(layer, Conv1D) else delta
        layer.weight.copy_(layer.weight.float() + added)
    return number


def base_weight(model: PreTrainedModel, path: str) -> torch.Tensor:
    """(out, in) of one map of the base. ModelError where it has no such map."""
    try:
        layer: Any = model.get_submodule(path)
    except AttributeError:
        raise ModelError(
            f"the base model has no map {path}", hint="the adapter belongs to another base model"
        ) from None
    return layer.weight.detach().t() if isinstance(layer, Conv1D) else layer.weight.detach()


def save_combined(folder: Path, combined: Combined, base_model: str) -> None:
    """Write the two files. base_model: its name for people and programs."""
    save_adapter(folder, replace(combined.config, base_model=base_model), combined.tensors)


def _paths_of(adapters: Sequence[SavedAdapter]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(path for adapter in adapters for path in adapter.config.targets))


def _config_of(adapters: Sequence[SavedAdapter], rank: int) -> AdapterConfig:
    """Names stay short where all adapters have the same maps; else each map is named in full."""
    paths = _paths_of(adapters)
    first = adapters[0].config
    alike = all(set(adapter.config.targets) == set(paths) for adapter in adapters)
    return AdapterConfig(
        rank=rank,
        alpha=float(rank),  # the scale of the files is 1: the weights are in B
        dropout=0.0,
        targets=paths,
        target_names=first.target_names if alike else tuple(sorted(paths)),
        base_model=first.base_model,
        fan_in_fan_out=any(adapter.config.fan_in_fan_out for adapter in adapters),
    )


def _with_rank(config: AdapterConfig, rank: int) -> AdapterConfig:
    return replace(config, rank=rank, alpha=float(rank))


def _cut(u: torch.Tensor, s: torch.Tensor, vh: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A (rank, in) and B (out, rank) of the largest singular values, which both sides share; zeros fill a lower rank."""
    root = s[:rank].sqrt()
    a, b = (root[:, None] * vh[:rank]).float(), (u[:, :rank] * root).float()
    missing = rank - len(root)
    if missing > 0:
        a, b = torch.cat([a, a.new_zeros(missing, a.shape[1])]), torch.cat([b, b.new_zeros(b.shape[0], missing)], dim=1)
    return a.contiguous(), b.contiguous()


def _trim(delta: torch.Tensor, density: float) -> torch.Tensor:
    kept = max(1, math.ceil(density * delta.numel()))
    smallest = delta.abs().flatten().kthvalue(delta.numel() - kept + 1).values
    return torch.where(delta.abs() >= smallest, delta, 0.0)


def _share(lost: float, total: float) -> float:
    return math.sqrt(lost / total) if total > 0 else 0.0
