"""LoRA adapters: added to a loaded model, written and read in PEFT's exact file format, merged into the base.

Owns the low-rank map (Hu et al. 2021, arXiv 2106.09685: y = W x + (alpha / rank) B A x), which linear maps get one, and
the two files. Refuses to know optimisers, losses and data.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import nn
from transformers import PreTrainedModel

from tunesmith.errors import ModelError, RecipeError, nearest
from tunesmith.store import write_atomic

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
ALL_LINEAR = "all-linear"

_PREFIX = "base_model.model."  # PEFT wraps a model twice, and its keys say so


@dataclass(frozen=True)
class AdapterConfig:
    """What adapter_config.json says."""

    rank: int
    alpha: float
    dropout: float
    targets: tuple[str, ...]  # full module paths: "model.layers.0.self_attn.q_proj"
    target_names: tuple[str, ...]  # what PEFT's target_modules says to mean exactly these paths
    base_model: str  # name for people and other programs; never a path of this machine

    @property
    def scale(self) -> float:
        """What the added map counts: alpha / rank."""
        return self.alpha / self.rank


class _LowRank(torch.autograd.Function):
    """y = x W^T (+ bias) + scale (x A^T) B^T with W and bias frozen. Saves x and x A^T, forms no product of size W."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        a: torch.Tensor,
        b: torch.Tensor,
        scale: float,
    ) -> torch.Tensor:
        flat = x.reshape(-1, x.shape[-1])  # (N, I)
        low = flat @ a.t()  # (N, R)
        out = F.linear(flat, weight, bias)  # (N, O)
        out.addmm_(low, b.t(), alpha=scale)
        ctx.save_for_backward(flat, weight, a, b, low)
        ctx.scale, ctx.shape = scale, x.shape
        return out.view(*x.shape[:-1], out.shape[-1])

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        flat, weight, a, b, low = ctx.saved_tensors
        grad = grads[0].reshape(-1, grads[0].shape[-1])  # (N, O)
        grad_low = (grad @ b).mul_(ctx.scale)  # (N, R)
        grad_a = grad_low.t() @ flat if ctx.needs_input_grad[3] else None
        grad_b = (grad.t() @ low).mul_(ctx.scale) if ctx.needs_input_grad[4] else None
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = (grad @ weight).addmm_(grad_low, a).view(ctx.shape)
        return grad_x, None, None, grad_a, grad_b, None


class LoraLinear(nn.Module):
    """A frozen linear map with a trainable low-rank one beside it. lora_A (rank, in), lora_B (out, rank)."""

    def __init__(self, base: nn.Linear, rank: int, scale: float, dropout: float) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.scale = scale
        self.dropout = dropout
        like: dict[str, Any] = {"dtype": torch.float32, "device": base.weight.device}
        self.lora_A = nn.Parameter(torch.zeros(rank, base.in_features, **like))
        self.lora_B = nn.Parameter(torch.zeros(base.out_features, rank, **like))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., in) -> (..., out), in the dtype of the base weight."""
        a, b = self.lora_A.to(x.dtype), self.lora_B.to(x.dtype)
        if self.training and self.dropout > 0:
            low = F.linear(F.dropout(x, self.dropout), a)
            return torch.add(self.base(x), F.linear(low, b), alpha=self.scale)
        return _LowRank.apply(x, self.base.weight, self.base.bias, a, b, self.scale)  # pyright: ignore[reportReturnType]

    def merged_weight(self) -> torch.Tensor:
        """W + scale B A, computed in fp32 and cast once to the dtype of W."""
        weight = self.base.weight
        delta = self.lora_B.float() @ self.lora_A.float()
        return (weight.float() + self.scale * delta).to(weight.dtype)


def linear_paths(model: nn.Module) -> list[str]:
    """Paths of the linear maps that may get an adapter: every nn.Linear except the output head."""
    head = model.get_output_embeddings() if isinstance(model, PreTrainedModel) else None
    return [name for name, module in model.named_modules() if isinstance(module, nn.Linear) and module is not head]


def choose_targets(model: nn.Module, wanted: Sequence[str]) -> tuple[str, ...]:
    """Module paths meant by `wanted`: "all-linear", or names as PEFT matches them (the path, or its end after a dot).

    Raises RecipeError for a name that matches nothing, naming the nearest one.
    """
    paths = linear_paths(model)
    if not paths:
        raise ModelError(f"{type(model).__name__} has no linear maps that could get an adapter")
    if tuple(wanted) == (ALL_LINEAR,):
        return tuple(paths)
    where = "recipe.train.lora_target_modules"
    if ALL_LINEAR in wanted or not wanted:
        raise RecipeError(f"expected {ALL_LINEAR!r} alone, or names of linear maps, found {list(wanted)}", where=where)
    chosen: set[str] = set()
    for name in wanted:
        matching = [path for path in paths if path == name or path.endswith(f".{name}")]
        if not matching:
            leaves = sorted({path.rpartition(".")[2] for path in paths})
            close = nearest(name, leaves)
            raise RecipeError(
                f"the model has no linear map named {name!r}; it has {', '.join(leaves)}",
                where=where,
                hint=f"did you mean {close!r}?" if close else f"take some of these names, or {ALL_LINEAR!r} for all",
            )
        chosen.update(matching)
    return tuple(path for path in paths if path in chosen)


def target_names(model: nn.Module, targets: Sequence[str]) -> tuple[str, ...]:
    """The last parts of the paths where these mean the targets and nothing else of the model, else the full paths."""
    leaves = {path.rpartition(".")[2] for path in targets}
    every = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    meant = {path for path in every if path.rpartition(".")[2] in leaves}
    return tuple(sorted(leaves if meant == set(targets) else targets))


def add_adapter(model: nn.Module, config: AdapterConfig, rng_seed: int) -> None:
    """Freeze the model and put a LoraLinear in the place of every target; A is drawn as PEFT does, B is zero.

    The draw is made in fp32 on the CPU, in the order of the targets, so it depends on the seed alone.
    """
    model.requires_grad_(False)
    generator = torch.Generator().manual_seed(rng_seed)
    for layer in _attach(model, config):
        bound = 1 / math.sqrt(layer.base.in_features)  # Kaiming uniform with a = sqrt(5)
        drawn = torch.empty(layer.lora_A.shape).uniform_(-bound, bound, generator=generator)
        layer.lora_A.data.copy_(drawn)


def adapter_layers(model: nn.Module) -> dict[str, LoraLinear]:
    """The adapted layers by path, in the model's order."""
    return {name: module for name, module in model.named_modules() if isinstance(module, LoraLinear)}


def save_adapter(folder: Path, config: AdapterConfig, weights: Mapping[str, torch.Tensor]) -> None:
    """Write both files. weights: parameter name in the model ("...q_proj.lora_A") -> tensor; stored in fp32.

    The bytes depend on the arguments alone.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        f"{_PREFIX}{name}.weight": weights[name].detach().to("cpu", torch.float32).contiguous()
        for name in sorted(weights)
    }
    write_atomic(folder / WEIGHTS, save(tensors, metadata={"format": "pt"}))
    fields: dict[str, Any] = {
        "alpha_pattern": {},
        "auto_mapping": None,
        "base_model_name_or_path": config.base_model,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "layer_replication": None,
        "layers_pattern": None,
        "layers_to_transform": None,
        "loftq_config": {},
        "lora_alpha": int(config.alpha) if config.alpha == int(config.alpha) else config.alpha,
        "lora_dropout": config.dropout,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": config.rank,
        "rank_pattern": {},
        "revision": None,
        "target_modules": list(config.target_names),
        "task_type": "CAUSAL_LM",
        "use_dora": False,
        "use_rslora": False,
    }
    write_atomic(folder / CONFIG, (json.dumps(fields, indent=2, sort_keys=True) + "\n").encode())


def load_adapter(model: nn.Module, folder: Path) -> AdapterConfig:
    """Attach the adapter of a folder (ours or PEFT's) to a model, frozen. ModelError where anything is missing or
    left over, has another shape, or asks for a kind of adapter that is not plain LoRA."""
    fields = _read_config(folder / CONFIG)
    targets = _targets_of(model, fields["target_modules"], folder)
    config = AdapterConfig(
        rank=int(fields["r"]),
        alpha=float(fields["lora_alpha"]),
        dropout=float(fields.get("lora_dropout", 0.0)),
        targets=targets,
        target_names=target_names(model, targets),
        base_model=str(fields.get("base_model_name_or_path") or ""),
    )
    tensors = read_tensors(folder / WEIGHTS)
    model.requires_grad_(False)
    _attach(model, config)
    found = {name.removeprefix(_PREFIX).removesuffix(".weight"): tensor for name, tensor in tensors.items()}
    expected = {
        f"{path}.{part}": getattr(layer, part)
        for path, layer in adapter_layers(model).items()
        for part in ("lora_A", "lora_B")
    }
    missing, extra = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
    if missing or extra:
        raise ModelError(
            f"the adapter has {len(found)} matrices, expected {len(expected)}"
            + (f"; missing {missing[0]}" if missing else "")
            + (f"; unexpected {extra[0]}" if extra else ""),
            where=str(folder / WEIGHTS),
            hint="the file is incomplete, or the adapter belongs to another base model",
        )
    for name, parameter in expected.items():
        if found[name].shape != parameter.shape:
            raise ModelError(
                f"{name} is {tuple(found[name].shape)}, expected {tuple(parameter.shape)}",
                where=str(folder / WEIGHTS),
                hint="the adapter belongs to another base model",
            )
        parameter.data.copy_(found[name])
        parameter.requires_grad_(False)
    return config


def merge_adapter(model: PreTrainedModel) -> PreTrainedModel:
    """Fold every adapter into its base weight (fp32 arithmetic, one cast) and put the plain linear maps back.

    Changes the model in place and returns it. ModelError where it has no adapter.
    """
    layers = adapter_layers(model)
    if not layers:
        raise ModelError(f"this {type(model).__name__} has no adapter to merge")
    with torch.no_grad():
        for path, layer in layers.items():
            layer.base.weight.copy_(layer.merged_weight())
            _replace(model, path, layer.base)
    return model


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """All tensors of a safetensors file. ModelError where it is missing or damaged."""
    try:
        return load_file(path)
    except FileNotFoundError:
        raise ModelError("the file is missing", where=str(path)) from None
    except (SafetensorError, OSError) as error:
        raise ModelError(f"this is no whole safetensors file: {error}", where=str(path)) from error


def _attach(model: nn.Module, config: AdapterConfig) -> list[LoraLinear]:
    layers: list[LoraLinear] = []
    for path in config.targets:
        base = model.get_submodule(path)
        if not isinstance(base, nn.Linear):
            raise ModelError(f"{path} is a {type(base).__name__}, expected a linear map without an adapter")
        layer = LoraLinear(base, config.rank, config.scale, config.dropout).train(model.training)
        _replace(model, path, layer)
        layers.append(layer)
    return layers


def _replace(model: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, leaf = path.rpartition(".")
    setattr(model.get_submodule(parent), leaf, module)


def _targets_of(model: nn.Module, names: Any, folder: Path) -> tuple[str, ...]:
    wanted = [names] if isinstance(names, str) else list(names)
    try:
        return choose_targets(model, wanted)
    except RecipeError as error:
        raise ModelError(
            error.message, where=str(folder / CONFIG), hint="the adapter belongs to another base model"
        ) from error


def _read_config(path: Path) -> dict[str, Any]:
    try:
        fields = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise ModelError("the file is missing", where=str(path), hint="an adapter is two files") from None
    except ValueError as error:
        raise ModelError(f"this is not JSON: {error}", where=str(path)) from error
    if not isinstance(fields, dict) or fields.get("peft_type") != "LORA":
        raise ModelError("expected a LoRA adapter's configuration", where=str(path))
    absent = [key for key in ("r", "lora_alpha", "target_modules") if not fields.get(key)]
    if absent:
        raise ModelError(f"`{absent[0]}` is missing", where=str(path))
    for key in (
        "use_dora",
        "use_rslora",
        "modules_to_save",
        "rank_pattern",
        "alpha_pattern",
        "fan_in_fan_out",
        "layers_to_transform",
        "layer_replication",
    ):
        if fields.get(key):
            raise ModelError(f"`{key}: {fields[key]}` is not supported", where=str(path), hint="merge it with PEFT")
    if fields.get("bias", "none") != "none":
        raise ModelError(f"`bias: {fields['bias']}` is not supported", where=str(path), hint="merge it with PEFT")
    return fields
