"""Weights as Meta published LLaMA 1, 2 and 3, and the transformers folder of the same model, in both directions.

    FOLDER/params.json              sizes
    FOLDER/consolidated.NN.pth      one file per model-parallel rank: 7B 1, 13B 2, 30B 4, 65B and 70B 8
    FOLDER/checklist.chk            md5 of each, checked where it is there
    FOLDER/tokenizer.model          SentencePiece (1, 2) or tiktoken ranks (3); may lie beside FOLDER
    FOLDER/tokenizer.json           instead of it, of a model that never had a tokenizer.model

Numbers are moved, never computed: both directions are bit-exact. The original rotates neighbouring rows of q and k (complex
pairs), transformers the two halves of a head; so q and k rows change places, (heads, width/2, 2) <-> (heads, 2, width/2).
Every tensor is joined and written by itself. Files are read with weights_only: nothing in them is executed.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tunesmith.errors import ModelError, RecipeError
from tunesmith.events import Note, Progress
from tunesmith.model.consolidated import CHECKLIST, Shard, check_sums, digest_md5, load_shard, save_shard, shard_files
from tunesmith.model.folder import read_config
from tunesmith.model.llama_agreement import COMPUTED, check_layers, check_rotary, check_same_model
from tunesmith.model.llama_sizes import LlamaSizes, params_of, sizes_of_config, sizes_of_params
from tunesmith.model.llama_tokenizer import (
    TOKENIZER,
    TOKENIZER_JSON,
    check_convertible,
    convert_tokenizer_model,
    copy_tokenizer_json,
)
from tunesmith.model.tensor_files import (
    Spec,
    Tensors,
    check_room,
    new_folder,
    refuse_existing,
    write_json,
    write_tensors,
)
from tunesmith.protocols import EventSink

PARAMS = "params.json"
_ORIGINAL = "original"  # folder inside a transformers folder that keeps params.json as it was published

# name in the original -> (name in transformers, axis along which ranks share the tensor; None: every rank has it whole)
_OUTER: dict[str, tuple[str, int | None]] = {
    "tok_embeddings.weight": ("model.embed_tokens.weight", 1),  # Llama 3: 0
    "norm.weight": ("model.norm.weight", None),
    "output.weight": ("lm_head.weight", 0),
}
_LAYER: dict[str, tuple[str, int | None]] = {
    "attention.wq.weight": ("self_attn.q_proj.weight", 0),
    "attention.wk.weight": ("self_attn.k_proj.weight", 0),
    "attention.wv.weight": ("self_attn.v_proj.weight", 0),
    "attention.wo.weight": ("self_attn.o_proj.weight", 1),
    "feed_forward.w1.weight": ("mlp.gate_proj.weight", 0),
    "feed_forward.w2.weight": ("mlp.down_proj.weight", 1),
    "feed_forward.w3.weight": ("mlp.up_proj.weight", 0),
    "attention_norm.weight": ("input_layernorm.weight", None),
    "ffn_norm.weight": ("post_attention_layernorm.weight", None),
}
_HEAD, _EMBEDDING = "output.weight", "tok_embeddings.weight"


@dataclass(frozen=True)
class Converted:
    """What a conversion found and wrote."""

    sizes: LlamaSizes
    num_shards: int
    num_parameters: int
    tied: bool


@dataclass(frozen=True)
class _Place:
    """One tensor of the original."""

    name: str
    hf_name: str
    axis: int | None
    rotary_heads: int  # of q and k; 0 for other tensors


def read_original(
    folder: Path, out_dir: Path, *, context_length: int | None, tokenizer: Path | None, events: EventSink
) -> Converted:
    """Write the transformers folder of an original checkpoint.

    context_length: tokens the model was trained for, which params.json does not say; None = what its sizes tell (see
    llama_sizes.py), with a note. tokenizer: tokenizer.model or tokenizer.json, None = in the folder or beside it. An output
    matrix equal to the embedding is tied. ModelError where something is missing, damaged, or no LLaMA.
    """
    refuse_existing(out_dir)
    params = _read_params(folder)
    files = shard_files(folder)
    check_room(out_dir, sum(file.stat().st_size for file in files), "the transformers folder")
    tokenizer = _find_tokenizer(folder) if tokenizer is None else tokenizer
    check_convertible(tokenizer)
    as_published = check_sums(folder, files, events)
    shards = [load_shard(file) for file in files]
    sizes = sizes_of_params(params, _shapes(shards[0]), len(shards), context_length, folder / PARAMS)
    check_layers(shards[0], sizes, folder / PARAMS)
    places = {place.name: place for place in _places(sizes)}
    _check_names(shards, places, files)
    check_rotary(shards, sizes, files)
    if not as_published:
        check_same_model(shards, files)
    specs = {place.hf_name: _joined_spec(place, shards, sizes, folder) for place in places.values()}
    tied = torch.equal(_join(places[_HEAD], shards), _join(places[_EMBEDDING], shards))
    if tied:
        del specs[places[_HEAD].hf_name]
    by_hf_name = {place.hf_name: place for place in places.values()}
    total = sum(spec.num_bytes for spec in specs.values())
    with new_folder(out_dir) as making:
        ids = convert_tokenizer_model(tokenizer, making, sizes=sizes, events=events)
        write_tensors(
            making,
            specs.values(),
            lambda name: _permute(_join(by_hf_name[name], shards), by_hf_name[name], to_original=False),
            lambda done: events.emit(Progress(task="convert weights", done=done, total=total, unit="bytes")),
        )
        dtype = next(iter(specs.values())).dtype
        _write_configs(making, sizes, tied=tied, dtype=dtype, ids=ids)
        (making / _ORIGINAL).mkdir()
        (making / _ORIGINAL / PARAMS).write_bytes((folder / PARAMS).read_bytes())
    if sizes.context_is_guessed:
        message = f"the context length is taken to be {sizes.context_length:,} tokens, which params.json does not say"
        events.emit(Note(level="warning", message=message))
    parameters = sum(spec.num_bytes // spec.dtype.itemsize for spec in specs.values())
    return Converted(sizes, len(shards), parameters, tied)


def write_original(model_dir: Path, out_dir: Path, *, num_shards: int, events: EventSink) -> Converted:
    """Write an original checkpoint of a transformers folder (LlamaForCausalLM), cut for so many model-parallel ranks.

    A tied output matrix is written out, as the original code needs it. Memory holds one shard. ModelError for a model
    that the original code cannot run, or cannot cut so.
    """
    refuse_existing(out_dir)
    config = read_config(model_dir)
    sizes = sizes_of_config(config, model_dir / "config.json")
    tensors = Tensors(model_dir)
    _check_divisible(sizes, num_shards)
    places = _places(sizes)
    tied = bool(config.get("tie_word_embeddings")) and "lm_head.weight" not in tensors
    sources = {
        place.name: "model.embed_tokens.weight" if tied and place.name == _HEAD else place.hf_name for place in places
    }
    _check_whole(tensors, places, sources, sizes)
    total = sum(tensors.spec(name).num_bytes for name in sources.values())
    check_room(out_dir, total, "the original checkpoint")
    done, sums = 0, {}
    with new_folder(out_dir) as making:
        for number in range(num_shards):
            shard: dict[str, torch.Tensor] = {}
            for place in places:
                shard[place.name] = _cut(tensors, place, sources[place.name], number, num_shards)
                done += shard[place.name].nbytes
                events.emit(Progress(task="convert weights", done=min(done, total), total=total, unit="bytes"))
            if not sizes.is_llama_3:
                shard[COMPUTED] = sizes.rotary_frequencies().to(shard[_EMBEDDING].dtype)
            file = making / f"consolidated.{number:02d}.pth"
            save_shard(shard, file)
            sums[file.name] = digest_md5(file)
        write_json(making / PARAMS, _params(model_dir, sizes))
        sums[PARAMS] = digest_md5(making / PARAMS)
        lines = [f"{digest}  {name}\n" for name, digest in sums.items()]
        (making / CHECKLIST).write_text("".join(lines), encoding="utf-8")
        _copy_tokenizer(model_dir, making, events)
    parameters = sum(
        tensors.spec(name).num_bytes // tensors.spec(name).dtype.itemsize for name in set(sources.values())
    )
    return Converted(sizes, num_shards, parameters, tied)


def _places(sizes: LlamaSizes) -> list[_Place]:
    """Every tensor of the original, in its order."""
    heads = {"attention.wq.weight": sizes.num_heads, "attention.wk.weight": sizes.num_kv_heads}
    found = [
        _Place(name, hf_name, sizes.embedding_axis if name == _EMBEDDING else axis, 0)
        for name, (hf_name, axis) in _OUTER.items()
    ]
    for layer in range(sizes.num_layers):
        found += [
            _Place(f"layers.{layer}.{name}", f"model.layers.{layer}.{hf_name}", axis, heads.get(name, 0))
            for name, (hf_name, axis) in _LAYER.items()
        ]
    return found


def _permute(tensor: torch.Tensor, place: _Place, *, to_original: bool, parts: int = 1) -> torch.Tensor:
    """(rows, D) with the rows of each head between pairs (original) and halves (transformers). parts: the tensor is one
    of so many equal parts, each of whole heads."""
    if not place.rotary_heads:
        return tensor
    heads = place.rotary_heads // parts
    half = tensor.shape[0] // heads // 2
    order = (heads, 2, half) if to_original else (heads, half, 2)
    return tensor.view(*order, tensor.shape[1]).transpose(1, 2).reshape(tensor.shape)


def _join(place: _Place, shards: list[Shard]) -> torch.Tensor:
    parts = [shard[place.name] for shard in shards]
    if place.axis is None or len(parts) == 1:
        return parts[0]  # norms: every rank has the same
    return torch.cat(parts, place.axis)


def _joined_spec(place: _Place, shards: list[Shard], sizes: LlamaSizes, folder: Path) -> Spec:
    parts = [shard[place.name] for shard in shards]
    shape = list(parts[0].shape)
    if place.axis is not None and all(part.ndim == 2 for part in parts):
        shape[place.axis] = sum(part.shape[place.axis] for part in parts)
    expected = sizes.shape_of(place.hf_name)
    if tuple(shape) != expected or len({part.dtype for part in parts}) > 1:
        raise ModelError(
            f"{place.name} has the shape {shape} over {len(parts)} files, expected {list(expected)}",
            where=str(folder),
            hint="params.json and the weights do not belong together",
        )
    return Spec(place.hf_name, parts[0].dtype, expected)


def _cut(tensors: Tensors, place: _Place, source: str, number: int, num_shards: int) -> torch.Tensor:
    """The part of one rank, in memory of its own (torch.save writes whatever storage a tensor lies in)."""
    if place.axis is None:
        return tensors.read(source).clone()
    part = tensors.read_part(source, place.axis, number, num_shards)
    return _permute(part, place, to_original=True, parts=num_shards).clone(memory_format=torch.contiguous_format)


def _shapes(shard: Shard) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in shard.items()}


def _check_names(shards: list[Shard], places: Mapping[str, _Place], files: list[Path]) -> None:
    for shard, file in zip(shards, files, strict=True):
        names = {name for name in shard if not name.endswith(COMPUTED)}
        odd = sorted(names ^ set(places))
        if odd:
            state = "lacks" if odd[0] in places else "holds"
            raise ModelError(
                f"it {state} {odd[0]} ({len(odd)} tensors are missing or unknown)",
                where=str(file),
                hint="expected LLaMA 1, 2 or 3 with the sizes of params.json",
            )


def _read_params(folder: Path) -> dict[str, Any]:
    path = folder / PARAMS
    try:
        params = json.loads(path.read_bytes())
    except FileNotFoundError:
        below = sorted(entry.parent.name for entry in folder.glob(f"*/{PARAMS}")) if folder.is_dir() else []
        hint = (
            f"name one of its folders: {', '.join(below)}" if below else "a folder of one size (7B, 13B, ...) is meant"
        )
        raise ModelError(f"there is no {PARAMS}", where=str(folder), hint=hint) from None
    except ValueError as error:
        raise ModelError(f"this is not JSON: {error}", where=str(path)) from error
    if not isinstance(params, dict):
        raise ModelError("expected a JSON object", where=str(path))
    return params


def _find_tokenizer(folder: Path) -> Path:
    for place in (folder, folder.absolute().parent):
        for name in (TOKENIZER, TOKENIZER_JSON):
            if (place / name).is_file():
                return place / name
    raise ModelError(
        f"there is no {TOKENIZER} here or in the folder above",
        where=str(folder),
        hint="it is published beside the weights; name it with --tokenizer",
    )


def _write_configs(out_dir: Path, sizes: LlamaSizes, *, tied: bool, dtype: torch.dtype, ids: tuple[int, int]) -> None:
    """config.json and generation_config.json, with the fields transformers 5 reads."""
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": sizes.vocab_size,
        "hidden_size": sizes.dim,
        "intermediate_size": sizes.ffn_dim,
        "num_hidden_layers": sizes.num_layers,
        "num_attention_heads": sizes.num_heads,
        "num_key_value_heads": sizes.num_kv_heads,
        "head_dim": sizes.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": sizes.context_length,
        "initializer_range": 0.02,
        "rms_norm_eps": sizes.norm_eps,
        "rope_parameters": sizes.rope_parameters(),
        "attention_bias": False,
        "attention_dropout": 0.0,
        "mlp_bias": False,
        "tie_word_embeddings": tied,
        "use_cache": True,
        "bos_token_id": ids[0],
        "eos_token_id": ids[1],
        "dtype": str(dtype).removeprefix("torch."),
    }
    write_json(out_dir / "config.json", config)
    write_json(out_dir / "generation_config.json", {"bos_token_id": ids[0], "eos_token_id": ids[1]})


def _check_divisible(sizes: LlamaSizes, num_shards: int) -> None:
    if num_shards < 1:
        raise RecipeError(f"expected at least 1 shard, found {num_shards}", where="--shards")
    shared = {
        "attention heads": sizes.num_heads,
        "key-value heads": sizes.num_kv_heads,
        "feed-forward columns": sizes.ffn_dim,
        "tokens of the vocabulary": sizes.vocab_size,
        "columns": sizes.dim,
    }
    for what, number in shared.items():
        if number % num_shards:
            divisor = math.gcd(*shared.values())
            fitting = ", ".join(str(count) for count in range(1, divisor + 1) if divisor % count == 0)
            raise ModelError(
                f"{number:,} {what} cannot be shared by {num_shards} ranks",
                where="--shards",
                hint=f"this model can be cut into {fitting}",
            )


def _check_whole(tensors: Tensors, places: list[_Place], sources: Mapping[str, str], sizes: LlamaSizes) -> None:
    for place in places:
        source = sources[place.name]
        found = tensors.spec(source).shape if source in tensors else None
        if found != sizes.shape_of(source):
            raise ModelError(
                f"{source} is {list(found) if found else 'missing'}, expected {list(sizes.shape_of(source))}",
                where=str(tensors.folder),
                hint="config.json and the weights do not belong together",
            )
    known = {*sources.values(), "lm_head.weight"}
    surplus = sorted(name for name in tensors if name not in known and not name.endswith("rotary_emb.inv_freq"))
    if surplus:
        raise ModelError(
            f"the original LLaMA code has no place for {surplus[0]} ({len(surplus)} such tensors)",
            where=str(tensors.folder),
        )


def _params(model_dir: Path, sizes: LlamaSizes) -> dict[str, Any]:
    """params.json as it was published, where the folder came from an original and still has its sizes."""
    kept = model_dir / _ORIGINAL / PARAMS
    made = params_of(sizes)
    if not kept.is_file():
        return made
    published = _read_params(kept.parent)
    names = ("dim", "n_layers", "n_heads", "norm_eps")
    same = all(published.get(name) == made[name] for name in names) and published.get("vocab_size") in (
        None,
        -1,
        sizes.vocab_size,
    )
    same = same and int(published.get("n_kv_heads") or sizes.num_heads) == sizes.num_kv_heads
    same = same and float(published.get("rope_theta") or 10_000.0) == sizes.rope_theta
    return published if same else made


def _copy_tokenizer(model_dir: Path, out_dir: Path, events: EventSink) -> None:
    if (model_dir / TOKENIZER).is_file():
        shutil.copyfile(model_dir / TOKENIZER, out_dir / TOKENIZER)
        return
    message = f"the model has no {TOKENIZER}, and the original code reads no other tokenizer"
    if (model_dir / TOKENIZER_JSON).is_file():
        copy_tokenizer_json(model_dir / TOKENIZER_JSON, out_dir)
        message += f": its {TOKENIZER_JSON} lies beside the weights, for `tunesmith weights from-llama`"
    events.emit(Note(level="warning", message=message))
