"""A whole model written as a transformers folder: weights in one dtype, tokenizer files byte for byte, template, stop ids.

Refuses to know where the weights come from.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import GenerationConfig, PreTrainedModel

from tunesmith.errors import StoreError
from tunesmith.model.folder import read_config, read_safetensors_header, weight_files
from tunesmith.model.gguf import quiet_transformers

TEMPLATE = "chat_template.jinja"
_TOKENIZER_STARTS = ("tokenizer", "special_tokens", "added_tokens", "vocab", "merges", "generation_config", TEMPLATE)


def load_stored_dtype(base_dir: Path) -> torch.dtype:
    """The dtype of a model's files."""
    names = {"F64": torch.float32, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
    found = {entry["dtype"] for file in weight_files(base_dir) for entry in read_safetensors_header(file).values()}
    return torch.bfloat16 if "BF16" in found else names.get(sorted(found)[0], torch.float32)


def save_whole(model: PreTrainedModel, base_dir: Path, folder: Path) -> torch.dtype:
    """Write the model, cast once to the dtype of the base model's files, with the base's tokenizer and template. Returns
    that dtype.

    `model` is cast in place. StoreError where the disk is full.
    """
    stored = load_stored_dtype(base_dir)
    with quiet_transformers():
        model.to(stored)  # pyright: ignore[reportArgumentType]
        model.config.dtype = stored
        model.generation_config = GenerationConfig()  # the base's own file is copied below
        try:
            model.save_pretrained(folder, max_shard_size="4GB")
        except (OSError, SafetensorError) as error:
            free = shutil.disk_usage(folder if folder.is_dir() else folder.absolute().parent).free
            raise StoreError(
                f"the model cannot be written ({free:,} bytes free): {error}", where=str(folder), hint="free some space"
            ) from error
    for file in folder.glob("*.safetensors"):
        file.chmod(0o644)  # written readable by their owner alone
    _forget_place(folder / "config.json", base_dir)
    copy_tokenizer(base_dir, folder)
    return stored


def copy_tokenizer(base_dir: Path, folder: Path) -> None:
    """Every file of the tokenizer, the template and the generation settings."""
    for path in sorted(base_dir.iterdir()):
        if path.is_file() and path.name.startswith(_TOKENIZER_STARTS):
            shutil.copyfile(path, folder / path.name)


def set_template(folder: Path, chat_template: str, stop_ids: Sequence[int]) -> None:
    """Make this the folder's chat template, and these the ids that end an answer."""
    tokenizer = folder / "tokenizer_config.json"
    if tokenizer.is_file():
        fields = json.loads(tokenizer.read_bytes())
        fields.pop("chat_template", None)  # its place is chat_template.jinja
        _write_json(tokenizer, fields)
    (folder / TEMPLATE).write_text(chat_template, encoding="utf-8", newline="")
    path = folder / "generation_config.json"
    fields = json.loads(path.read_bytes()) if path.is_file() else {}
    _write_json(path, {**fields, "eos_token_id": list(stop_ids)})


def _forget_place(path: Path, base_dir: Path) -> None:
    """Keep the folder the model was loaded from out of config.json, and who made it in."""
    config: dict[str, Any] = json.loads(path.read_bytes())
    for key in ("_name_or_path", "transformers_version"):
        config.pop(key, None)
    base = read_config(base_dir)
    if "transformers_version" in base:
        config["transformers_version"] = base["transformers_version"]
    _write_json(path, config)


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
