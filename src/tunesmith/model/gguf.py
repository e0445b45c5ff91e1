"""GGUF files read: metadata, and conversion to a trainable transformers folder.

Knows the pre-tokenizers by the names llama.cpp has for them (also used in the other direction, by exporting/).
"""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Generator
from contextlib import contextmanager, redirect_stderr
from functools import lru_cache
from pathlib import Path
from typing import Any

from tunesmith.errors import MissingExtra, ModelError
from tunesmith.model.pretokenizers import PRE_TOKENIZERS, TRANSFORMERS_KNOWS, WHOLE_WORDS_FIRST

ARCHITECTURES = ("llama", "qwen2")  # those whose conversion is tested here


def read_gguf_metadata(path: Path) -> dict[str, Any]:
    """Key -> value of a GGUF file, without token and merge lists; with `num_parameters` and `context_length` added. ModelError where the file is damaged."""
    try:
        stat = path.stat()
    except OSError as error:
        raise ModelError(f"cannot be read: {error.strerror}", where=str(path)) from error
    return dict(_read_metadata(path, stat.st_size, stat.st_mtime_ns))


@lru_cache(maxsize=4)  # its reader takes seconds, and a conversion asks several times
def _read_metadata(path: Path, size_bytes: int, modified_ns: int) -> dict[str, Any]:
    from gguf import GGUFReader

    with path.open("rb") as stream:
        if stream.read(4) != b"GGUF":
            raise ModelError("this is not a GGUF file", where=str(path), hint="it should begin with the bytes GGUF")
    try:
        reader = GGUFReader(path)  # maps the file and checks that every tensor lies inside it
        values = {
            name: field.contents()
            for name, field in reader.fields.items()
            if not name.startswith(("tokenizer.ggml.tokens", "tokenizer.ggml.merges", "tokenizer.ggml.scores"))
        }
        values["context_length"] = int(values.get(f"{values.get('general.architecture')}.context_length", 0))
        values["num_parameters"] = sum(int(tensor.n_elements) for tensor in reader.tensors)
    except (ValueError, TypeError, IndexError, OverflowError, MemoryError, KeyError, OSError) as error:
        raise ModelError(f"the GGUF file is damaged: {error}", where=str(path), hint="fetch it again") from error
    if values.get("split.count", 1) > 1:
        raise ModelError("the GGUF file is one part of several", where=str(path), hint="merge the parts first")
    return values


def convert_gguf(path: Path, out_dir: Path) -> None:
    """Write a transformers folder (bf16 safetensors, tokenizer, chat template, generation config) from a GGUF file.

    The weights stay rounded as the file has them. ModelError for architectures and pre-tokenizers that cannot be
    converted faithfully.
    """
    metadata = read_gguf_metadata(path)
    architecture = metadata.get("general.architecture")
    if architecture not in ARCHITECTURES:
        raise ModelError(
            f"a GGUF file of architecture {architecture!r} cannot be made trainable",
            where=str(path),
            hint=f"convertible: {', '.join(ARCHITECTURES)}; else name the model's hub id or transformers folder",
        )
    convert_gguf_tokenizer(path, out_dir)
    with _quietly("turning a GGUF file into a trainable model", path):
        import torch
        from transformers import AutoModelForCausalLM, GgufConfig

        AutoModelForCausalLM.from_pretrained(
            path.parent,
            gguf_file=path.name,
            local_files_only=True,
            dtype=torch.bfloat16,
            quantization_config=GgufConfig(dequantize=True),
        ).save_pretrained(out_dir)
    for file in out_dir.glob("*.safetensors"):
        file.chmod(0o644)  # they are written readable by their owner alone
    config_path = out_dir / "config.json"
    config = json.loads(config_path.read_bytes())
    for key in ("_name_or_path", "_model_name_or_path", "quantization_config", "unk_token_id"):
        config.pop(key, None)  # describes the conversion, not the model
    _write_json(config_path, config)
    _write_generation_config(out_dir, metadata)


def convert_gguf_tokenizer(path: Path, out_dir: Path) -> None:
    """Write the tokenizer, chat template and generation config of a GGUF file, as a transformers folder has them; no
    weights. ModelError for a tokenizer that cannot be rebuilt exactly."""
    metadata = read_gguf_metadata(path)
    kind, pre_tokenizer = metadata.get("tokenizer.ggml.model"), metadata.get("tokenizer.ggml.pre", "default")
    if kind != "gpt2" or (pre_tokenizer not in PRE_TOKENIZERS and pre_tokenizer not in TRANSFORMERS_KNOWS):
        raise ModelError(
            f"the tokenizer ({kind}, {pre_tokenizer}) cannot be rebuilt exactly",
            where=str(path),
            hint="name the model's hub id or transformers folder instead",
        )
    with _quietly("reading a GGUF file's tokenizer", path):
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name, local_files_only=True)
        tokenizer.save_pretrained(out_dir)
    _mend_tokenizer(out_dir, pre_tokenizer, int(metadata["context_length"]))
    _write_generation_config(out_dir, metadata)


@contextmanager
def quiet_transformers() -> Generator[None]:
    """Silence transformers' log lines and progress bars: tunesmith speaks in events."""
    from transformers.utils import logging as library_logging

    verbosity, bars = library_logging.get_verbosity(), library_logging.is_progress_bar_enabled()
    library_logging.set_verbosity(logging.ERROR)
    library_logging.disable_progress_bar()
    try:
        yield
    finally:
        library_logging.set_verbosity(verbosity)
        if bars:
            library_logging.enable_progress_bar()


@contextmanager
def _quietly(purpose: str, path: Path) -> Generator[None]:
    """quiet_transformers, and no progress bar of its GGUF reader, which has no switch. MissingExtra without it, ModelError
    where it cannot read the file."""
    try:
        with quiet_transformers(), redirect_stderr(io.StringIO()):
            yield
    except ImportError as error:
        raise MissingExtra(error.name or "transformers", "train", purpose) from error
    except Exception as error:  # a damaged file may fail anywhere; the tokenizers library raises bare Exception
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the disk
        said = str(error).strip().partition("\n")[0]
        raise ModelError(
            f"transformers cannot read this GGUF file: {said}",
            where=str(path),
            hint="it may be damaged: fetch it again",
        ) from error


def _write_generation_config(out_dir: Path, metadata: dict[str, Any]) -> None:
    """Which ids end an answer, in the form transformers reads."""
    prefix = "tokenizer.ggml."
    stops = [metadata.get(f"{prefix}{name}_token_id") for name in ("eos", "eot", "eom")]
    generation = {
        "bos_token_id": metadata.get(f"{prefix}bos_token_id"),
        "eos_token_id": list(dict.fromkeys(stop for stop in stops if stop is not None)),
        "pad_token_id": metadata.get(f"{prefix}padding_token_id"),
    }
    _write_json(out_dir / "generation_config.json", {k: v for k, v in generation.items() if v is not None})


def _mend_tokenizer(out_dir: Path, pre_tokenizer: str, context_length: int) -> None:
    """Split text as the vocabulary was trained: transformers falls back to GPT-2's rule for names it does not know
    (SmolLM2's `smollm` splits digits; without that, 2024 becomes tokens the model has never seen)."""
    tokenizer_path = out_dir / "tokenizer.json"
    tokenizer = json.loads(tokenizer_path.read_bytes())
    if pre_tokenizer in PRE_TOKENIZERS:
        tokenizer["pre_tokenizer"] = PRE_TOKENIZERS[pre_tokenizer]
    if pre_tokenizer in WHOLE_WORDS_FIRST:
        tokenizer["model"]["ignore_merges"] = True
    tokenizer_path.write_text(json.dumps(tokenizer, ensure_ascii=False, separators=(",", ":")), encoding="utf-8")
    config_path = out_dir / "tokenizer_config.json"
    config = json.loads(config_path.read_bytes())
    for key in ("is_local", "local_files_only"):
        config.pop(key, None)
    config["model_max_length"] = context_length
    _write_json(config_path, config)


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
