"""From a folder to a model in memory: plain transformers models, and trained checkpoints with their adapter active.

Only safetensors are read, no code from a model folder ever runs, and nothing is fetched. Knows nothing of where models come
from (catalog.py) and nothing of training.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from tunesmith.errors import ModelError
from tunesmith.model.adapters import linear_paths, load_adapter
from tunesmith.model.config_faults import CONFIG_FAULTS, first_line
from tunesmith.model.folder import read_config, read_safetensors_header, refuse_remote_code, weight_files
from tunesmith.model.gguf import quiet_transformers
from tunesmith.model.quantised import loading_options, round_like_4_bits
from tunesmith.types import Artifact

ADAPTER_DIR = "adapter"
"""Folder of a checkpoint artifact that holds the two PEFT files."""

MODEL_DIR = "model"
"""Folder of a checkpoint artifact that holds a whole model (full fine-tuning)."""

ADAPTER_METHODS = ("lora", "dora", "qlora")
"""Methods of training whose checkpoint holds an adapter."""


def load_model(path: Path, *, device: str, dtype: torch.dtype, quantised: bool = False) -> PreTrainedModel:
    """A causal language model in eval mode. Raises ModelError for a folder that is missing, damaged, incomplete, pickled,
    or needs code of its own.

    quantised: its linear maps in 4 bits, by bitsandbytes (MissingExtra without it), the rest in `dtype`.
    """
    if not path.is_dir():
        raise ModelError("there is no such model folder", where=str(path))
    read_config(path)
    refuse_remote_code(path)
    for file in weight_files(path):
        read_safetensors_header(file)
    options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    more = loading_options(device) if quantised else {}
    try:
        with quiet_transformers():
            config = AutoConfig.from_pretrained(path, **options)
            loaded = AutoModelForCausalLM.from_pretrained(
                path,
                config=config,
                dtype=dtype,
                use_safetensors=True,
                output_loading_info=True,
                **more,
                **options,
            )
    except CONFIG_FAULTS as error:
        raise ModelError(f"transformers cannot load this model: {first_line(error)}", where=str(path)) from error
    model, info = cast("tuple[PreTrainedModel, dict[str, Any]]", loaded)
    _check_whole(info, path)
    if quantised:  # transformers put it on its device and refuses to move it
        return model.eval()
    return cast("PreTrainedModel", model.to(torch.device(device)).eval())  # pyright: ignore[reportArgumentType]


def load_checkpoint(checkpoint: Artifact, base_dir: Path, *, device: str, dtype: torch.dtype) -> PreTrainedModel:
    """The model a train stage made: the base with its adapter active, or the whole tuned model. Eval mode.

    base_dir: folder of the base model it was trained on (not read for method full). For method qlora its linear maps get
    the values that they had in 4 bits.
    """
    method = checkpoint.facts.get("method")
    if method == "full":
        return load_model(checkpoint.path / MODEL_DIR, device=device, dtype=dtype)
    if method not in ADAPTER_METHODS:
        expected = ", ".join((*ADAPTER_METHODS, "full"))
        raise ModelError(f"expected a checkpoint of method {expected}, found {method!r}", where=str(checkpoint.path))
    model = load_model(base_dir, device=device, dtype=dtype)
    if method == "qlora":
        round_like_4_bits(model, linear_paths(model))
    load_adapter(model, checkpoint.path / ADAPTER_DIR)
    return model


def _check_whole(info: dict[str, Any], path: Path) -> None:
    """transformers fills what a file lacks with random numbers and says so in a log line: here it is an error."""
    for key, problem in (("missing_keys", "lack"), ("mismatched_keys", "have another shape of")):
        names = sorted(str(name[0] if isinstance(name, tuple) else name) for name in info.get(key) or ())
        if names:
            raise ModelError(
                f"the weights {problem} {len(names)} tensors that the architecture needs, first {names[0]}",
                where=str(path),
                hint="config.json and the weights do not belong together, or the download is incomplete",
            )
