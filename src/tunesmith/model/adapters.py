"""LoRA and DoRA adapters: added to a loaded model, written and read in PEFT's exact file format, merged into the base.

Owns which linear maps get one, how it is initialised (Hu et al. 2021, arXiv 2106.09685; rsLoRA: Kalajdzievski 2023, arXiv
2312.03732), and the two files. The layers are low_rank.py's. Refuses to know optimisers, losses and data.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from tunesmith.errors import ModelError, RecipeError, nearest
from tunesmith.model.low_rank import DoraLinear, LoraLinear, is_linear
from tunesmith.store import write_atomic

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
ALL_LINEAR = "all-linear"

_PREFIX = "base_model.model."  # PEFT wraps a model twice, and its keys say so
_MAGNITUDE = "lora_magnitude_vector"  # PEFT's files have it without ".weight"
_DRAWN_BESIDE = ("gaussian", "eva", "orthogonal")  # ways of drawing A and B that leave the base as it is


@dataclass(frozen=True)
class AdapterConfig:
    """What adapter_config.json says."""

    rank: int
    alpha: float
    dropout: float
    targets: tuple[str, ...]  # full module paths: "model.layers.0.self_attn.q_proj"
    target_names: tuple[str, ...]  # what PEFT's target_modules says to mean exactly these paths
    base_model: str  # name for people and other programs; never a path of this machine
    use_dora: bool = False
    use_rslora: bool = False
    fan_in_fan_out: bool = False  # the maps are Conv1D, which stores W as (in, out)

    @property
    def scale(self) -> float:
        """What the added map counts: alpha / rank, for rsLoRA alpha / sqrt(rank)."""
        return self.alpha / (math.sqrt(self.rank) if self.use_rslora else self.rank)


def linear_paths(model: nn.Module) -> list[str]:
    """Paths of the linear maps that may get an adapter: every one (Conv1D too) except the output head."""
    head = model.get_output_embeddings() if isinstance(model, PreTrainedModel) else None
    return [name for name, module in model.named_modules() if is_linear(module) and module is not head]


def store_transposed(model: nn.Module, targets: Sequence[str]) -> bool:
    """Whether the targets are Conv1D maps: what PEFT calls fan_in_fan_out."""
    return any(isinstance(model.get_submodule(path), Conv1D) for path in targets)


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
    every = [name for name, module in model.named_modules() if is_linear(module)]
    meant = {path for path in every if path.rpartition(".")[2] in leaves}
    return tuple(sorted(leaves if meant == set(targets) else targets))


def add_adapter(model: nn.Module, config: AdapterConfig, rng_seed: int) -> None:
    """Freeze the model and put a LoraLinear (or DoraLinear) in the place of every target; A is drawn as PEFT does, B is
    zero, DoRA's magnitudes are the lengths of the rows of W.

    The draw is made in fp32 on the CPU, in the order of the targets, so it depends on the seed alone.
    """
    model.requires_grad_(False)
    generator = torch.Generator().manual_seed(rng_seed)
    for layer in _attach(model, config):
        bound = 1 / math.sqrt(layer.lora_A.shape[1])  # Kaiming uniform with a = sqrt(5)
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
        f"{_PREFIX}{name}{'' if name.endswith(_MAGNITUDE) else '.weight'}": weights[name]
        .detach()
        .to("cpu", torch.float32)
        .contiguous()
        for name in sorted(weights)
    }
    write_atomic(folder / WEIGHTS, save(tensors, metadata={"format": "pt"}))
    fields: dict[str, Any] = {
        "alpha_pattern": {},
        "auto_mapping": None,
        "base_model_name_or_path": config.base_model,
        "bias": "none",
        "fan_in_fan_out": config.fan_in_fan_out,
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
        "use_dora": config.use_dora,
        "use_rslora": config.use_rslora,
    }
    write_atomic(folder / CONFIG, (json.dumps(fields, indent=2, sort_keys=True) + "\n").encode())


def load_adapter(model: nn.Module, folder: Path) -> AdapterConfig:
    """Attach the adapter of a folder (ours or PEFT's) to a model, frozen. ModelError where anything is missing or
    left over, has another shape, or asks for a kind of adapter that is neither LoRA nor DoRA."""
    fields = read_fields(folder)
    targets = _targets_of(model, fields["target_modules"], folder)
    config = AdapterConfig(
        rank=int(fields["r"]),
        alpha=float(fields["lora_alpha"]),
        dropout=float(fields.get("lora_dropout", 0.0)),
        targets=targets,
        target_names=target_names(model, targets),
        base_model=str(fields.get("base_model_name_or_path") or ""),
        use_dora=bool(fields.get("use_dora")),
        use_rslora=bool(fields.get("use_rslora")),
        fan_in_fan_out=store_transposed(model, targets),
    )
    found = read_weights(folder)
    model.requires_grad_(False)
    _attach(model, config)
    expected = {
        f"{path}.{part}": getattr(layer, part) for path, layer in adapter_layers(model).items() for part in layer.parts
    }
    missing, extra = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
    if missing or extra:
        raise ModelError(
            f"the adapter has {len(found)} tensors, expected {len(expected)}"
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


def read_weights(folder: Path) -> dict[str, torch.Tensor]:
    """Tensors of an adapter by parameter name ("...q_proj.lora_A"). ModelError where the file is missing or damaged."""
    tensors = read_tensors(folder / WEIGHTS)
    return {name.removeprefix(_PREFIX).removesuffix(".weight"): tensor for name, tensor in tensors.items()}


def merge_adapter(model: PreTrainedModel) -> PreTrainedModel:
    """Fold every adapter into its base weight (fp32 arithmetic, one cast) and put the plain linear maps back.

    Changes the model in place and returns it. ModelError where it has no adapter.
    """
    layers = adapter_layers(model)
    if not layers:
        raise ModelError(f"this {type(model).__name__} has no adapter to merge")
    if any(layer.quantised for layer in layers.values()):
        raise ModelError("an adapter cannot be merged into 4-bit weights without loss", hint="load the base in fp32")
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
        if not is_linear(base):
            raise ModelError(f"{path} is a {type(base).__name__}, expected a linear map without an adapter")
        kind = DoraLinear if config.use_dora else LoraLinear
        layer = kind(base, config.rank, config.scale, config.dropout).train(model.training)
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


def read_fields(folder: Path) -> dict[str, Any]:
    """What adapter_config.json says. ModelError where it is missing, or asks for what is not supported, by name."""
    path = folder / CONFIG
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
        "modules_to_save",
        "rank_pattern",
        "alpha_pattern",
        "layers_to_transform",
        "layer_replication",
        "lora_bias",
        "alora_invocation_tokens",
    ):
        if fields.get(key):
            raise ModelError(f"`{key}: {fields[key]}` is not supported", where=str(path), hint="merge it with PEFT")
    drawn = fields.get("init_lora_weights", True)
    if isinstance(drawn, str) and drawn not in _DRAWN_BESIDE:  # PiSSA and its like change the base weights too
        raise ModelError(f"`init_lora_weights: {drawn}` is not supported", where=str(path), hint="merge it with PEFT")
    if fields.get("bias", "none") != "none":
        raise ModelError(f"`bias: {fields['bias']}` is not supported", where=str(path), hint="merge it with PEFT")
    return fields
