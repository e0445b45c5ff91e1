"""A transformers folder as found on disk: is it safe and whole, how large is it, what is its digest.

Reads headers and JSON only; loads no weights and no torch.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith.errors import ModelError
from tunesmith.hashing import digest_json
from tunesmith.model.cache import digest_large_file

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
VALUE_HEAD = "value_head.safetensors"
"""A scalar head beside a model (value_head.py): no weight of the language model."""

_MAX_HEADER_BYTES = 100_000_000  # the safetensors library's own limit


@dataclass(frozen=True)
class FolderFacts:
    """What config.json and the safetensors headers say."""

    weights_digest: str
    num_parameters: int
    architecture: str
    context_length: int
    licence: str | None


def inspect_folder(path: Path) -> FolderFacts:
    """Check a transformers folder and read its facts. ModelError says what is missing, unsafe or damaged."""
    config = read_config(path)
    refuse_remote_code(path)
    files = weight_files(path)
    architectures = config.get("architectures")
    if not architectures:
        raise ModelError("config.json has no `architectures`", where=str(path / "config.json"))
    context_length = context_length_of(config, path / "config.json")
    if "quantization_config" in config:
        raise ModelError(
            "the weights are quantised, and training needs them whole",
            where=str(path / "config.json"),
            hint="name the unquantised model, or a .gguf file (which is dequantised on loading)",
        )
    return FolderFacts(
        weights_digest=digest_json([[file.name, digest_large_file(file)] for file in files]),
        num_parameters=sum(_count_parameters(file) for file in files),
        architecture=str(architectures[0]),
        context_length=context_length,
        licence=_licence_of(path),
    )


def read_config(path: Path) -> dict[str, Any]:
    """config.json of a model folder. ModelError where there is none."""
    config_path = path / "config.json"
    if (path / "adapter_config.json").is_file() and not config_path.is_file():
        raise ModelError(
            "this folder holds an adapter, not a model", where=str(path), hint="name the model it was trained on"
        )
    return read_json(config_path)


def context_length_of(config: dict[str, Any], where: Path) -> int:
    """Tokens the model of a config.json reads. With dynamic scaling its limit is the length at which scaling begins."""
    inner = config.get("text_config") or config
    if not isinstance(inner, dict):
        raise ModelError(f"expected an object under `text_config`, found {inner!r}", where=str(where))
    limit = inner.get("max_position_embeddings") or inner.get("n_positions")
    if not limit:
        raise ModelError("config.json has no `max_position_embeddings`", where=str(where))
    if not isinstance(limit, int) or isinstance(limit, bool) or limit < 1:
        raise ModelError(
            f"expected a number of tokens under `max_position_embeddings`, found {limit!r}", where=str(where)
        )
    rope: dict[str, Any] = {}
    for key in ("rope_scaling", "rope_parameters"):
        given = inner.get(key) or {}
        if not isinstance(given, dict):
            raise ModelError(f"expected an object under `{key}`, found {given!r}", where=str(where))
        rope |= given
    if (rope.get("rope_type") or rope.get("type")) != "dynamic":
        return limit
    factor = rope.get("factor") or 1
    if not isinstance(factor, int | float):
        raise ModelError(f"expected a number as the factor of rotary scaling, found {factor!r}", where=str(where))
    return round(limit * factor)


def refuse_remote_code(path: Path) -> None:
    """ModelError where config.json or tokenizer_config.json ask for Python code from the folder to be run."""
    for name in ("config.json", "tokenizer_config.json"):
        if (path / name).is_file() and "auto_map" in read_json(path / name):
            raise ModelError(
                "the model brings code of its own (`auto_map`), which tunesmith never runs",
                where=str(path / name),
                hint="use a model whose architecture transformers knows by itself",
            )


def weight_files(path: Path) -> list[Path]:
    """The safetensors files of a folder's model, sorted; every shard that the index names. ModelError for pickles alone."""
    if not path.is_dir():
        raise ModelError("there is no such model folder", where=str(path))
    files = sorted(file for file in path.glob("*.safetensors") if file.name != VALUE_HEAD)
    if not files:
        refuse_pickles([entry.name for entry in path.iterdir()], str(path))
        raise ModelError("there are no weights here: no *.safetensors file", where=str(path))
    index = path / "model.safetensors.index.json"
    if index.is_file():
        places = read_json(index).get("weight_map", {})
        if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()):
            raise ModelError("expected `weight_map` to name the file of each tensor", where=str(index))
        named = set(places.values())
        missing = sorted(named - {file.name for file in files})
        if missing:
            raise ModelError(f"{len(missing)} of {len(named)} shards are missing: {missing[0]}", where=str(path))
    return files


def refuse_pickles(names: list[str], where: str) -> None:
    """ModelError where a model has pickled weights (loading one can run any code)."""
    pickles = sorted(name for name in names if name.endswith(PICKLES) and not name.startswith("training_args"))
    if pickles:
        raise ModelError(
            f"the weights are a pickle ({pickles[0]}), which can run code when it is read: refused",
            where=where,
            hint="if you trust its author, convert it once: load it with transformers and save_pretrained() "
            "to a new folder, which writes safetensors",
        )


def _count_parameters(file: Path) -> int:
    total = 0
    for entry in read_safetensors_header(file).values():
        total += math.prod(entry["shape"])
    return total


def read_safetensors_header(file: Path) -> dict[str, Any]:
    """Tensor name -> {dtype, shape, data_offsets}. ModelError where the file is damaged or cut."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 or length > min(size - 8, _MAX_HEADER_BYTES):
            raise ModelError("this is not a whole safetensors file", where=str(file), hint="fetch it again")
        try:
            header = json.loads(stream.read(length))
            dict(header.pop("__metadata__", {}) or {})
            for name, entry in header.items():
                _check_entry(name, entry)
            end = 8 + length + max((entry["data_offsets"][1] for entry in header.values()), default=0)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ModelError(f"the header is damaged: {error}", where=str(file), hint="fetch it again") from error
    if end != size:
        raise ModelError(
            f"the file has {size:,} bytes, its header says {end:,}", where=str(file), hint="fetch it again"
        )
    return header


def _check_entry(name: str, entry: dict[str, Any]) -> None:
    """ValueError (or another fault) where a tensor's entry is not type, sizes and beginning and end of its bytes."""
    start, end = entry["data_offsets"]
    whole = all(isinstance(number, int) and number >= 0 for number in (*entry["shape"], start, end))
    if not whole or not isinstance(entry["dtype"], str) or end < start:
        raise ValueError(f"{name} is described as {entry}")


def _licence_of(path: Path) -> str | None:
    """The `license:` line of the model card's front matter."""
    card = path / "README.md"
    if not card.is_file():
        return None
    lines = card.read_text(encoding="utf-8", errors="replace").split("---", 2)
    for line in lines[1].splitlines() if len(lines) == 3 else ():
        if line.startswith("license:"):
            return line.removeprefix("license:").strip() or None
    return None


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object of a model folder. ModelError where it is none."""
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise ModelError(
            f"there is no {path.name}",
            where=str(path.parent),
            hint="a model folder holds config.json, *.safetensors and a tokenizer",
        ) from None
    except ValueError as error:
        raise ModelError(f"this is not JSON: {error}", where=str(path)) from error
    if not isinstance(value, dict):
        raise ModelError("expected a JSON object", where=str(path))
    return value
