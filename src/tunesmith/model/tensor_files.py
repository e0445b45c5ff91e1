"""Weights as streams: safetensors read one tensor at a time and written in one pass, so that memory holds one tensor and not
the model. Also: a folder that appears whole or not at all.

Refuses to know what the tensors are for.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open

from tunesmith.errors import ModelError, RecipeError, StoreError
from tunesmith.model.folder import read_safetensors_header, weight_files
from tunesmith.store import disk_error, put_in_place

DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""safetensors' names of number types, and torch's."""

_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_MOST_BYTES_PER_FILE = 4_000_000_000  # larger models are written as several files, as transformers does
_INDEX = "model.safetensors.index.json"


class Spec(NamedTuple):
    """A tensor that will be written."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        """Bytes of its numbers."""
        return math.prod(self.shape) * self.dtype.itemsize


class Tensors:
    """The tensors of a transformers folder, read one at a time. ModelError where a file is missing or damaged."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._places: dict[str, tuple[Path, Spec]] = {}
        for file in weight_files(folder):
            for name, entry in read_safetensors_header(file).items():
                if entry["dtype"] not in DTYPES:
                    raise ModelError(f"{name} has numbers of the unknown type {entry['dtype']}", where=str(file))
                self._places[name] = (file, Spec(name, DTYPES[entry["dtype"]], tuple(entry["shape"])))

    def __contains__(self, name: str) -> bool:
        return name in self._places

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def spec(self, name: str) -> Spec:
        """Type and shape of one tensor."""
        return self._places[name][1]

    @property
    def num_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(spec.num_bytes for _, spec in self._places.values())

    def read(self, name: str) -> torch.Tensor:
        """One tensor."""
        with safe_open(self._places[name][0], framework="pt") as file:
            return file.get_tensor(name)

    def read_part(self, name: str, axis: int, part: int, num_parts: int) -> torch.Tensor:
        """Part number `part` of a tensor that is cut into `num_parts` equal ones along an axis (0 or 1)."""
        size = self.spec(name).shape[axis] // num_parts
        wanted = slice(part * size, (part + 1) * size)
        with safe_open(self._places[name][0], framework="pt") as file:
            whole = file.get_slice(name)
            return whole[wanted] if axis == 0 else whole[:, wanted]


def bytes_of(tensor: torch.Tensor) -> memoryview:
    """The bytes of a tensor's numbers, row by row."""
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data


def make_header(specs: Sequence[Spec]) -> bytes:
    """The beginning of a safetensors file that holds these tensors in this order, length field included."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for spec in specs:
        start, end = end, end + spec.num_bytes
        header[spec.name] = {"dtype": _NAMES[spec.dtype], "shape": list(spec.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # so that the numbers begin at a multiple of 8
    return len(text).to_bytes(8, "little") + text


def write_file(path: Path, header: bytes, parts: Iterable[memoryview]) -> str:
    """Write one safetensors file and return its sha256. StoreError where the disk is full."""
    digest = sha256(header)
    written = len(header)
    try:
        with path.open("wb") as stream:
            stream.write(header)
            for part in parts:
                stream.write(part)
                digest.update(part)
                written += part.nbytes
    except OSError as error:
        raise disk_error(error, path, written) from error
    return digest.hexdigest()


def write_tensors(
    folder: Path, specs: Iterable[Spec], read: Callable[[str], torch.Tensor], on_done: Callable[[int], None]
) -> None:
    """Write model.safetensors, or several files and their index. read(name) gives each tensor when its turn comes;
    on_done(bytes so far) is called after each."""
    files = _divide(specs)
    done = 0

    def parts(file: Sequence[Spec]) -> Iterator[memoryview]:
        nonlocal done
        for spec in file:
            tensor = read(spec.name)
            if tensor.dtype != spec.dtype or tuple(tensor.shape) != spec.shape:
                raise ModelError(f"{spec.name} is {tensor.dtype} {tuple(tensor.shape)}, expected {spec[1:]}")
            yield bytes_of(tensor)
            done += spec.num_bytes
            on_done(done)

    names = [
        "model.safetensors" if len(files) == 1 else f"model-{number:05d}-of-{len(files):05d}.safetensors"
        for number in range(1, len(files) + 1)
    ]
    for name, file in zip(names, files, strict=True):
        write_file(folder / name, make_header(file), parts(file))
    if len(files) > 1:
        places = {spec.name: name for name, file in zip(names, files, strict=True) for spec in file}
        total = sum(spec.num_bytes for file in files for spec in file)
        write_json(folder / _INDEX, {"metadata": {"total_size": total}, "weight_map": places})


def _divide(specs: Iterable[Spec]) -> list[list[Spec]]:
    """Into files of a bounded size; in each, wide numbers first, so that every tensor begins where its type may."""
    files: list[list[Spec]] = [[]]
    size = 0
    for spec in specs:
        if files[-1] and size + spec.num_bytes > _MOST_BYTES_PER_FILE:
            files.append([])
            size = 0
        files[-1].append(spec)
        size += spec.num_bytes
    return [sorted(file, key=lambda spec: -spec.dtype.itemsize) for file in files]


def write_json(path: Path, value: Any) -> None:
    """Readable JSON with the same bytes for the same value."""
    try:
        path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise disk_error(error, path, 0) from error


def check_room(folder: Path, size_bytes: int, what: str) -> None:
    """StoreError where the disk of a folder (or of the nearest one above it that exists) has less than size_bytes free."""
    there = next(place for place in (folder, *folder.absolute().parents) if place.is_dir())
    free = shutil.disk_usage(there).free
    if free < size_bytes:
        raise StoreError(
            f"{what} needs {size_bytes / 1e9:.2f} GB, and {free / 1e9:.2f} GB are free",
            where=str(folder),
            hint="free some space, or name a folder on another disk",
        )


def refuse_existing(out_dir: Path) -> None:
    """RecipeError where something is there already (an empty folder may be)."""
    if out_dir.exists() and not (out_dir.is_dir() and not any(out_dir.iterdir())):
        raise RecipeError("there is something here already", where=str(out_dir), hint="name a new folder")


@contextmanager
def new_folder(out_dir: Path) -> Generator[Path]:
    """A folder to fill, which gets its name when the block ends well; nothing is left where it does not.

    RecipeError where there is something under the name already.
    """
    refuse_existing(out_dir)
    out_dir = out_dir.absolute()
    making = out_dir.with_name(f".{out_dir.name}.making")
    shutil.rmtree(making, ignore_errors=True)  # what a killed process left
    try:
        making.mkdir(parents=True)
        yield making
        if out_dir.is_dir():
            out_dir.rmdir()
        put_in_place(making, out_dir)
    finally:
        shutil.rmtree(making, ignore_errors=True)


def copy_companions(model_dir: Path, out_dir: Path, *, without: Sequence[str]) -> list[str]:
    """Copy the small files of a model folder (configuration, tokenizer, template, card), not its weights. Returns their names."""
    names: list[str] = []
    for path in sorted(model_dir.iterdir()):
        if path.is_file() and not path.name.startswith(".") and is_companion(path.name) and path.name not in without:
            shutil.copyfile(path, out_dir / path.name)
            names.append(path.name)
    return names


def is_companion(name: str) -> bool:
    """Whether a file of a model folder is neither weights nor a pickle nor the record of a cache."""
    weights = (".safetensors", ".gguf", ".bin", ".pt", ".pth", ".ckpt", ".pkl", ".h5", ".msgpack", ".onnx")
    return not name.endswith(weights) and name != "tunesmith.json"
