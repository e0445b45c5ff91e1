"""Weight deltas: a tuned model published as its difference from a base that everybody must get for themselves, as Alpaca,
Vicuna and BELLE were.

A difference of rounded floating-point numbers is not exact: base + (tuned - base) is off by the roundings of two operations.
Here the difference is taken of the *bits*, read as unsigned integers of the same width, modulo 2^width. That is a group:
(t - b) + b = t holds for every pair of bit patterns, NaN and -0 included, whatever the machine. Neighbouring floats have
neighbouring bits, so small changes stay small integers.

    DELTA/delta.json                what is expected of the base, and the sha256 of every file of the result
    DELTA/weights/*.safetensors     the differences, as signed integers under the tensors' names
    DELTA/files/*                   configuration, tokenizer, template of the tuned model

Applying it gives the weight files of the tuned model byte for byte. Memory holds one tensor at a time. Deltas published as
floating-point differences (Alpaca's and Vicuna's, as safetensors) can be applied too: rounded, and without a checksum.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field, ValidationError

from tunesmith.errors import ModelError
from tunesmith.events import Note, Progress
from tunesmith.hashing import digest_file
from tunesmith.model.folder import read_safetensors_header, weight_files
from tunesmith.model.tensor_files import (
    DTYPES,
    Spec,
    Tensors,
    bytes_of,
    check_room,
    copy_companions,
    new_folder,
    refuse_existing,
    write_file,
)
from tunesmith.protocols import EventSink
from tunesmith.store import write_atomic
from tunesmith.types import Record

MANIFEST = "delta.json"
_WEIGHTS, _FILES = "weights", "files"
_BITS = {1: ("I8", np.uint8), 2: ("I16", np.uint16), 4: ("I32", np.uint32), 8: ("I64", np.uint64)}


class BaseTensor(Record):
    """What the base must hold under a tensor's name."""

    dtype: str
    shape: list[int]
    sha256: str


class ResultFile(Record):
    """A weight file of the tuned model."""

    header: str  # its beginning, letter for letter
    sha256: str
    size_bytes: int


class DeltaManifest(Record):
    """delta.json."""

    format: Literal["tunesmith-delta-1"] = "tunesmith-delta-1"
    base: dict[str, BaseTensor]  # tensors without an entry are stored whole
    weights: dict[str, ResultFile] = Field(min_length=1)
    files: dict[str, str]  # companion file -> sha256
    unused: list[str] = Field(default_factory=list)  # tensors of the base that the tuned model has not


@dataclass(frozen=True)
class DeltaSummary:
    """What was done."""

    num_differences: int
    num_whole: int
    num_unchanged: int  # differences that are zero throughout
    size_bytes: int


def make_delta(base_dir: Path, tuned_dir: Path, out_dir: Path, events: EventSink) -> DeltaSummary:
    """Write the delta that turns the weights of base_dir into those of tuned_dir (both transformers folders).

    The tuned model may have more rows in a tensor than the base (a grown vocabulary) and tensors of its own; those are
    stored as they are. ModelError where a tensor has another shape otherwise.
    """
    base, tuned = Tensors(base_dir), Tensors(tuned_dir)
    refuse_existing(out_dir)
    _check_likeness(base, tuned)
    check_room(out_dir, tuned.num_bytes, "the delta")
    kept: dict[str, BaseTensor] = {}
    files: dict[str, ResultFile] = {}
    unchanged = done = 0
    with new_folder(out_dir) as making:
        (making / _WEIGHTS).mkdir()
        (making / _FILES).mkdir()
        for file in weight_files(tuned_dir):
            beginning, entries = _beginning(file)
            digest = sha256(beginning)

            def parts(entries: list[Spec] = entries, digest: Any = digest) -> Iterator[memoryview]:
                nonlocal done, unchanged
                for spec in entries:
                    difference = _bits(tuned.read(spec.name))
                    digest.update(difference)
                    if spec.name in base:
                        kept[spec.name] = _describe(base, spec.name)
                        difference = difference - _bits(_as_base(base, spec))
                        unchanged += not difference.any()
                    yield difference.view(np.uint8).data
                    done += spec.num_bytes
                    events.emit(Progress(task="make delta", done=done, total=tuned.num_bytes, unit="bytes"))

            write_file(making / _WEIGHTS / file.name, _as_integers(beginning), parts())
            files[file.name] = ResultFile(
                header=beginning[8:].decode(), sha256=digest.hexdigest(), size_bytes=file.stat().st_size
            )
        names = copy_companions(tuned_dir, making / _FILES, without=())
        manifest = DeltaManifest(
            base=kept,
            weights=files,
            files={name: digest_file(making / _FILES / name) for name in names},
            unused=sorted(name for name in base if name not in tuned),
        )
        write_atomic(making / MANIFEST, manifest.model_dump_json(indent=1).encode() + b"\n")
    return DeltaSummary(len(kept), len(list(tuned)) - len(kept), unchanged, tuned.num_bytes)


def apply_delta(base_dir: Path, delta_dir: Path, out_dir: Path, events: EventSink) -> DeltaSummary:
    """Write the tuned model: a transformers folder whose weight files have the sha256 that the delta names.

    ModelError where the base is not the one the delta was made from, where the delta is damaged, or where the result is
    not what its maker had; then nothing is left under out_dir.
    """
    refuse_existing(out_dir)
    if not (delta_dir / MANIFEST).is_file():
        return _apply_sum(base_dir, delta_dir, out_dir, events)
    manifest = _read_manifest(delta_dir)
    base, stored = Tensors(base_dir), Tensors(delta_dir / _WEIGHTS)
    total = stored.num_bytes
    check_room(out_dir, total, "the tuned model")
    unchanged = done = num_tensors = 0
    with new_folder(out_dir) as making:
        for name, file in manifest.weights.items():
            specs = _expected(stored, name, file)
            num_tensors += len(specs)

            def parts(specs: list[Spec] = specs) -> Iterator[memoryview]:
                nonlocal done, unchanged
                for spec in specs:
                    value = difference = _bits(stored.read(spec.name))
                    if spec.name in manifest.base:
                        _check_base(base, spec.name, manifest)
                        unchanged += not difference.any()
                        value = _bits(_as_base(base, spec)) + difference
                    yield value.view(np.uint8).data
                    done += spec.num_bytes
                    events.emit(Progress(task="apply delta", done=done, total=total, unit="bytes"))

            found = write_file(making / name, _raw(file.header), parts())
            if found != file.sha256:
                raise ModelError(
                    f"the checksum is wrong: the result has sha256 {found[:16]}…, its maker had {file.sha256[:16]}…",
                    where=str(stored.folder / name),
                    hint="the base is the right one, so the delta was damaged or changed on its way: get it again",
                )
        _copy_files(manifest, delta_dir, making)
    return DeltaSummary(len(manifest.base), num_tensors - len(manifest.base), unchanged, total)


def _apply_sum(base_dir: Path, delta_dir: Path, out_dir: Path, events: EventSink) -> DeltaSummary:
    """base + delta in floating point, in the delta's number type: what the tools of Alpaca and Vicuna did. Rows that the
    base has not count as the mean of its rows, which is what those tools added to the base before."""
    base, delta = Tensors(base_dir), Tensors(delta_dir)
    missing = sorted(name for name in delta if name not in base and not name.endswith("rotary_emb.inv_freq"))
    if missing:
        raise ModelError(
            f"the base lacks {len(missing)} tensors of the delta, first {missing[0]}",
            where=str(base_dir),
            hint=f"a delta of tunesmith has a {MANIFEST}; without it the folder must hold floating-point differences",
        )
    _check_likeness(base, delta)
    check_room(out_dir, delta.num_bytes, "the tuned model")
    done, total, unchanged = 0, 0.0, 0
    with new_folder(out_dir) as making:
        for file in weight_files(delta_dir):
            beginning, entries = _beginning(file)

            def parts(entries: list[Spec] = entries) -> Iterator[memoryview]:
                nonlocal done, total, unchanged
                for spec in entries:
                    difference = delta.read(spec.name)
                    unchanged += not bool(difference.any())
                    value = _sum(base, spec, difference)
                    total += float(value.sum(dtype=torch.float64))
                    yield bytes_of(value)
                    done += spec.num_bytes
                    events.emit(Progress(task="apply delta", done=done, total=delta.num_bytes, unit="bytes"))

            write_file(making / file.name, beginning, parts())
        copy_companions(delta_dir, making, without=())
    message = (
        f"a floating-point delta carries no checksum; the sum of all weights is {total:.4f} (Alpaca 7B's is 50637.1836)"
    )
    events.emit(Note(level="warning", message=message))
    return DeltaSummary(len(list(delta)), 0, unchanged, delta.num_bytes)


def _sum(base: Tensors, spec: Spec, difference: torch.Tensor) -> torch.Tensor:
    """fp32 holds the sum of two 16-bit floats closely enough for one rounding to be the right one."""
    if spec.name not in base or not spec.dtype.is_floating_point:
        return difference
    wide = torch.float64 if spec.dtype == torch.float64 else torch.float32
    known = base.read(spec.name).to(wide)
    if known.ndim and known.shape[0] < spec.shape[0]:
        mean = known.mean(0, keepdim=True)
        known = torch.cat([known, mean.expand(spec.shape[0] - known.shape[0], *known.shape[1:])])
    return (known + difference.to(wide)).to(spec.dtype)


def _check_likeness(base: Tensors, tuned: Tensors) -> None:
    """Tensors of one name have one shape; the tuned one may have more rows."""
    for name in tuned:
        if name not in base:
            continue
        here, there = base.spec(name).shape, tuned.spec(name).shape
        grown = len(here) == len(there) > 0 and here[1:] == there[1:] and there[0] > here[0]
        if here != there and not grown:
            raise ModelError(
                f"{name} has the shape {list(there)}, and {list(here)} in the base",
                where=str(tuned.folder),
                hint="a delta is made between a model and the base it was tuned from",
            )


def _as_base(base: Tensors, spec: Spec) -> torch.Tensor:
    """The base's tensor in the type and shape of the tuned one: cast (round to nearest, ties to even), rows it lacks zero."""
    known = base.read(spec.name).to(spec.dtype)
    if tuple(known.shape) == spec.shape:
        return known
    padded = torch.zeros(spec.shape, dtype=spec.dtype)
    padded[: known.shape[0]] = known
    return padded


def _bits(tensor: torch.Tensor) -> np.ndarray:
    """The numbers' bits as unsigned integers, flat: numpy's arithmetic of those is modulo 2^width."""
    return np.frombuffer(bytes_of(tensor), dtype=_BITS[tensor.dtype.itemsize][1])


def _beginning(file: Path) -> tuple[bytes, list[Spec]]:
    """The first bytes of a safetensors file up to the numbers, and its tensors in the order of their numbers."""
    header = read_safetensors_header(file)
    with file.open("rb") as stream:
        length = stream.read(8)
        beginning = length + stream.read(int.from_bytes(length, "little"))
    return beginning, _specs(header, file)


def _specs(header: dict[str, Any], file: Path) -> list[Spec]:
    ordered = sorted(header.items(), key=lambda item: item[1]["data_offsets"])
    position = 0
    for name, entry in ordered:
        start, end = entry["data_offsets"]
        spec = Spec(name, DTYPES[entry["dtype"]], tuple(entry["shape"]))
        if start != position or end - start != spec.num_bytes:
            raise ModelError(f"the numbers of {name} do not follow those before it", where=str(file))
        position = end
    return [Spec(name, DTYPES[entry["dtype"]], tuple(entry["shape"])) for name, entry in ordered]


def _as_integers(beginning: bytes) -> bytes:
    """The header with integer types of the same widths: every tensor keeps its place."""
    header = json.loads(beginning[8:])
    for name, entry in header.items():
        if name != "__metadata__":
            entry["dtype"] = _BITS[DTYPES[entry["dtype"]].itemsize][0]
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    return _raw((text + b" " * (-len(text) % 8)).decode())


def _raw(header: str) -> bytes:
    text = header.encode()
    return len(text).to_bytes(8, "little") + text


def _describe(base: Tensors, name: str) -> BaseTensor:
    spec = base.spec(name)
    return BaseTensor(
        dtype=str(spec.dtype).removeprefix("torch."),
        shape=list(spec.shape),
        sha256=sha256(bytes_of(base.read(name))).hexdigest(),
    )


def _check_base(base: Tensors, name: str, manifest: DeltaManifest) -> None:
    wanted = manifest.base.get(name)
    if wanted is None:
        return
    if name not in base:
        raise ModelError(f"the base lacks the tensor {name}", where=str(base.folder), hint=_OTHER_BASE)
    found = _describe(base, name)
    if found != wanted:
        same_form = (found.dtype, found.shape) == (wanted.dtype, wanted.shape)
        here, there = (f"sha256 {t.sha256[:16]}…" if same_form else f"{t.dtype} {t.shape}" for t in (found, wanted))
        raise ModelError(
            f"this is not the base that the delta was made from: {name} is {here}, expected {there}",
            where=str(base.folder),
            hint=_OTHER_BASE,
        )


_OTHER_BASE = "get the base in the very version and number type its maker used"


def _read_manifest(delta_dir: Path) -> DeltaManifest:
    path = delta_dir / MANIFEST
    try:
        manifest = DeltaManifest.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise ModelError(f"this is no {MANIFEST} of a delta: {error.error_count()} faults", where=str(path)) from error
    for name in (*manifest.weights, *manifest.files):
        if Path(name).name != name or name in ("", ".", ".."):
            raise ModelError(f"it names a file outside its folder: {name!r}", where=str(path))
    return manifest


def _expected(stored: Tensors, name: str, file: ResultFile) -> list[Spec]:
    """The tensors of one file of the result, in order. ModelError where the delta holds others."""
    path = stored.folder / name
    try:
        header = {key: entry for key, entry in json.loads(file.header).items() if key != "__metadata__"}
        specs = _specs(header, path)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(
            f"delta.json holds no header of a safetensors file: {error}", where=str(path), hint="get the delta again"
        ) from error
    for spec in specs:
        held = stored.spec(spec.name) if spec.name in stored else None
        if held is None or held.shape != spec.shape or held.num_bytes != spec.num_bytes:
            raise ModelError(
                f"it does not hold the tensor {spec.name} as delta.json has it",
                where=str(path),
                hint="get the delta again",
            )
    return specs


def _copy_files(manifest: DeltaManifest, delta_dir: Path, making: Path) -> None:
    for name, wanted in manifest.files.items():
        path = delta_dir / _FILES / name
        if not path.is_file() or digest_file(path) != wanted:
            state = "was changed" if path.is_file() else "is missing"
            raise ModelError(f"a file of the delta {state}", where=str(path), hint="get the delta again")
        shutil.copyfile(path, making / name)
