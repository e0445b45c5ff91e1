"""Longer context: the configuration that lets a model with rotary positions read beyond the length it was trained for, and a
model folder that carries it, together with new tokens.

Methods (factor = new length / old length):
- linear: positions are divided by the factor (Chen et al. 2023, arXiv 2306.15595; needs tuning);
- dynamic: the rotary base grows with the text, only beyond the old length ("NTK-aware"; works untuned);
- yarn: high frequencies stay, low ones are divided, attention is sharpened (Peng et al. 2023, arXiv 2309.00071, section 3);
- extrapolate: nothing but a higher limit, as OpenChat did for 8,192 tokens (works only with tuning on long text).

Refuses to know training: how long text is learnt from is the recipe's.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from transformers import AutoConfig

from tunesmith.errors import ModelError, RecipeError
from tunesmith.model.config_faults import CONFIG_FAULTS, first_line
from tunesmith.model.folder import context_length_of, read_config, read_json, refuse_remote_code, weight_files
from tunesmith.model.gguf import quiet_transformers
from tunesmith.model.new_tokens import GrownRows, add_to_tokenizer, plan_rows
from tunesmith.model.tensor_files import Tensors, check_room, copy_companions, write_json, write_tensors

METHODS = ("none", "linear", "dynamic", "yarn", "extrapolate")
_WHERE = "recipe.base_model.context_length"


@dataclass(frozen=True)
class Extended:
    """What an extended model folder has that the original had not."""

    context_length: int
    old_context_length: int
    new_tokens: tuple[tuple[str, int], ...]  # text, id; those that the tokenizer did not know before


def extend_config(config: dict[str, Any], *, rope_scaling: str, context_length: int | None) -> dict[str, Any]:
    """config.json of a model that reads context_length tokens, with the fields transformers 5 reads.

    Raises RecipeError where method and length do not fit each other or the model: a length without a method that is above
    the model's own, a method without a longer length, a model that is scaled already or has no rotary positions.
    """
    if rope_scaling not in METHODS:
        raise RecipeError(f"expected one of {', '.join(METHODS)}, found {rope_scaling!r}", where="rope_scaling")
    old = context_length_of(config, Path("config.json"))
    inner = config.get("text_config") or config
    limit = "max_position_embeddings"
    if not inner.get(limit):
        raise RecipeError(
            f"the model has a table of positions, not rotary ones, so it reads {old:,} tokens at most", where=_WHERE
        )
    if rope_scaling == "none":
        if context_length is None or context_length == old:
            return config
        if context_length > old:
            raise RecipeError(
                f"the model reads {old:,} tokens, not {context_length:,}",
                where=_WHERE,
                hint="say how it is to read more: rope_scaling: yarn (or linear, dynamic, extrapolate)",
            )
        return _with(config, {limit: context_length})
    if context_length is None or context_length <= old:
        found = "none is named" if context_length is None else f"{context_length:,} is not more"
        raise RecipeError(
            f"rope_scaling: {rope_scaling} is for more than the model's {old:,} tokens, and {found}", where=_WHERE
        )
    if rope_scaling == "extrapolate":
        return _with(config, {limit: context_length})
    rope = _rope_of(inner)
    if rope["rope_type"] != "default":
        raise RecipeError(
            f"the model's positions are scaled already ({rope['rope_type']})",
            where="recipe.base_model.rope_scaling",
            hint="rope_scaling: extrapolate raises its limit and leaves them as they are",
        )
    rope |= {"rope_type": rope_scaling, "factor": context_length / old}
    if rope_scaling == "yarn":
        rope["original_max_position_embeddings"] = old
    # Dynamic scaling begins where the text passes max_position_embeddings, so that stays the old length.
    kept = old if rope_scaling == "dynamic" else context_length
    return _with(config, {limit: kept, "rope_parameters": rope})


def extend_model(
    model_dir: Path,
    out_dir: Path,
    *,
    rope_scaling: str,
    context_length: int | None,
    add_tokens: Sequence[str],
    on_done: Callable[[int, int], None],
) -> Extended:
    """Write a model folder with the scaling in its configuration and the tokens in its vocabulary.

    Weight files are hard-linked where the disk allows, else copied. Only where the tables must grow are weights written
    anew, tensor by tensor; on_done(bytes, of bytes) is called meanwhile. New rows of input and output are the mean of the
    old ones (as in Alpaca and OpenChat). out_dir must not exist. ModelError where transformers would read back other
    values than were written.
    """
    refuse_remote_code(model_dir)
    config = read_config(model_dir)
    extended = extend_config(config, rope_scaling=rope_scaling, context_length=context_length)
    context = context_length_of(extended, model_dir / "config.json")
    out_dir.mkdir(parents=True)
    copy_companions(model_dir, out_dir, without=("config.json", "model.safetensors.index.json"))
    added = add_to_tokenizer(out_dir, add_tokens) if add_tokens else ()
    rows = plan_rows(model_dir, [index for _, index in added]) if added else None
    if rows is not None and rows.vocab_size != _vocab_size(extended):
        extended = _with(extended, {"vocab_size": rows.vocab_size})
    write_json(out_dir / "config.json", extended)
    _write_weights(model_dir, out_dir, rows, on_done)
    _raise_tokenizer_limit(out_dir, context)
    _check_read_back(out_dir, extended)
    return Extended(context, context_length_of(config, model_dir / "config.json"), added)


@contextmanager
def scaled_view(model_dir: Path, *, rope_scaling: str, context_length: int | None) -> Generator[Path]:
    """A folder that lasts as long as the block, with the scaling in its configuration and links to all else: what a method
    does to a model before anything is written or trained."""
    config = read_config(model_dir)
    extended = extend_config(config, rope_scaling=rope_scaling, context_length=context_length)
    with TemporaryDirectory(prefix="tunesmith-") as folder:
        for path in model_dir.iterdir():
            if path.is_file() and path.name != "config.json":
                (Path(folder) / path.name).symlink_to(path.resolve())
        write_json(Path(folder) / "config.json", extended)
        yield Path(folder)


def _write_weights(model_dir: Path, out_dir: Path, rows: GrownRows | None, on_done: Callable[[int, int], None]) -> None:
    files = weight_files(model_dir)
    if rows is None:
        for file in files:
            _link(file, out_dir / file.name)
        index = model_dir / "model.safetensors.index.json"
        if index.is_file():
            shutil.copyfile(index, out_dir / index.name)
        return
    tensors = Tensors(model_dir)
    specs = [rows.spec(tensors.spec(name)) for name in tensors]
    total = sum(spec.num_bytes for spec in specs)
    check_room(out_dir, total, "the model with new tokens")
    write_tensors(out_dir, specs, lambda name: rows.grow(name, tensors.read(name)), lambda done: on_done(done, total))


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source.resolve(), target)
    except OSError:  # another disk, or a file system without links
        check_room(target.parent, source.stat().st_size, "a copy of the weights")
        shutil.copyfile(source, target)


def _rope_of(config: dict[str, Any]) -> dict[str, Any]:
    """Rotary parameters under transformers 5's names, of a configuration of any age. RecipeError where there are several
    sets (one per kind of layer) or none."""
    try:
        with quiet_transformers():
            known = AutoConfig.for_model(**config)
    except CONFIG_FAULTS as error:
        raise RecipeError(f"transformers does not know this model: {first_line(error)}", where="config.json") from error
    rope = getattr(known, "rope_parameters", None)
    if not isinstance(rope, dict) or "rope_type" not in rope:
        what = "several kinds of rotary positions" if rope else "no rotary positions"
        raise RecipeError(
            f"the model ({config.get('model_type')}) has {what}, so they cannot be scaled by one factor",
            where="recipe.base_model.rope_scaling",
        )
    return dict(rope)


def _with(config: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """The configuration with fields changed, at the level where the text model's sizes are; without older forms of them."""
    inner = {**(config.get("text_config") or config), **changes}
    if "rope_parameters" in changes:
        for old in ("rope_scaling", "rope_theta"):
            inner.pop(old, None)
    return {**config, "text_config": inner} if config.get("text_config") else inner


def _vocab_size(config: dict[str, Any]) -> int:
    return int((config.get("text_config") or config).get("vocab_size", 0))  # 0: any size is written then


def _raise_tokenizer_limit(folder: Path, context_length: int) -> None:
    """tokenizer_config.json says how many tokens the model takes, and transformers warns beyond."""
    path = folder / "tokenizer_config.json"
    if path.is_file():
        settings = read_json(path)
        if isinstance(settings.get("model_max_length"), int) and settings["model_max_length"] < 10**9:
            write_json(path, {**settings, "model_max_length": context_length})


def _check_read_back(folder: Path, written: dict[str, Any]) -> None:
    try:
        with quiet_transformers():
            read = AutoConfig.from_pretrained(folder, local_files_only=True).get_text_config()
    except CONFIG_FAULTS as error:
        raise ModelError(
            f"transformers cannot use this model: {first_line(error)}", where=str(folder / "config.json")
        ) from error
    wanted = written.get("text_config") or written
    for key in ("max_position_embeddings", "vocab_size", "rope_parameters"):
        if key in wanted and getattr(read, key, None) != wanted[key]:
            raise ModelError(
                f"transformers reads {key} as {getattr(read, key, None)!r}, not as {wanted[key]!r}",
                where=str(folder / "config.json"),
            )
