"""The merged transformers folder: weights in the base model's type, tokenizer as it was, the template it was trained with,
the ids that end an answer."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import GenerationConfig

from tunesmith.errors import ExportError
from tunesmith.model.folder import read_config
from tunesmith.model.gguf import quiet_transformers

_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
)


def base_dtype(base_dir: Path) -> torch.dtype:
    """The number type a model's weights are kept in."""
    config = read_config(base_dir)
    name = config.get("dtype") or config.get("torch_dtype") or "float32"
    dtype = getattr(torch, str(name), None)
    if not isinstance(dtype, torch.dtype):
        raise ExportError(f"config.json names an unknown number type {name!r}", where=str(base_dir / "config.json"))
    return dtype


def save_merged(
    model: Any, base_dir: Path, out_dir: Path, *, dtype: torch.dtype, chat_template: str, stop_ids: tuple[int, ...]
) -> None:
    """Write a whole model folder. `model` is cast to `dtype` in place, once; tokenizer files are copied byte for byte.

    ExportError where the disk is full.
    """
    with quiet_transformers():
        model.to(dtype)
        model.config.dtype = dtype
        model.generation_config = GenerationConfig()  # written below, with the ids this model was trained to stop at
        try:
            model.save_pretrained(out_dir)
        except (OSError, SafetensorError) as error:
            free = shutil.disk_usage(out_dir).free
            raise ExportError(
                f"the merged model cannot be written ({free:,} bytes free): {error}",
                where=str(out_dir),
                hint="free some space and run the same command again: finished work is kept",
            ) from error
    for file in out_dir.glob("*.safetensors"):
        file.chmod(0o644)  # written readable by their owner alone
    _mend_config(out_dir / "config.json", base_dir)
    for name in _TOKENIZER_FILES:
        if (base_dir / name).is_file():
            shutil.copyfile(base_dir / name, out_dir / name)
    tokenizer_config = json.loads((base_dir / "tokenizer_config.json").read_bytes())
    tokenizer_config.pop("chat_template", None)  # its place is chat_template.jinja
    write_json(out_dir / "tokenizer_config.json", tokenizer_config)
    (out_dir / "chat_template.jinja").write_text(chat_template, encoding="utf-8", newline="")
    generation = read_generation_config(base_dir)
    write_json(out_dir / "generation_config.json", {**generation, "eos_token_id": list(stop_ids)})


def read_generation_config(model_dir: Path) -> dict[str, Any]:
    """generation_config.json, {} where there is none."""
    path = model_dir / "generation_config.json"
    return json.loads(path.read_bytes()) if path.is_file() else {}


def write_json(path: Path, value: Any) -> None:
    """Readable JSON with the same bytes for the same value."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _mend_config(path: Path, base_dir: Path) -> None:
    """Keep the folder the model was loaded from out of the file, and who made it in."""
    config = json.loads(path.read_bytes())
    for key in ("_name_or_path", "transformers_version"):
        config.pop(key, None)
    base = read_config(base_dir)
    if "transformers_version" in base:
        config["transformers_version"] = base["transformers_version"]
    write_json(path, config)
