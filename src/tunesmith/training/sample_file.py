"""Samples of any number as one safetensors file, written a sample at a time.

Owns the layout of samples.safetensors: `lengths` (samples,), and `input_ids`, `owner` and `loss_mask`, each (tokens,), the
samples one after another; `loss_weights` (tokens,) only where some token counts other than 1. The bytes are those that
safetensors itself writes.
"""

from __future__ import annotations

import json
import shutil
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from tunesmith.store import disk_error

# In the file's order: wider types first, so that each tensor is aligned.
_TENSORS = (
    ("lengths", "I64", "<i8"),
    ("loss_weights", "F32", "<f4"),
    ("input_ids", "I32", "<i4"),
    ("owner", "I16", "<i2"),
    ("loss_mask", "U8", "u1"),
)
_COPIED_BYTES = 1 << 22
_ONES_AT_ONCE = 1 << 20


class SampleWriter:
    """Use it in a with block; nothing is under the final name before finish(). StoreError where the disk is full."""

    def __init__(self, path: Path, scratch: Path) -> None:
        self._path = path
        self._scratch = scratch
        try:
            scratch.mkdir(parents=True, exist_ok=True)
            self._streams = {name: (scratch / name).open("wb") for name, _, _ in _TENSORS}
        except OSError as error:
            raise disk_error(error, scratch, 0) from error
        self._sizes = dict.fromkeys(self._streams, 0)
        self._weighted = False

    def __enter__(self) -> SampleWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for stream in self._streams.values():
            with suppress(OSError):  # scratch: what finish() did not copy is not wanted
                stream.close()
        shutil.rmtree(self._scratch, ignore_errors=True)

    def add(
        self,
        input_ids: NDArray[np.int32],
        loss_mask: NDArray[np.bool_],
        owner: NDArray[np.int16],
        loss_weights: NDArray[np.float32] | None = None,
    ) -> None:
        """One sample; each array is (tokens,). loss_weights: what a target counts; None = 1."""
        values = {"lengths": np.array([len(input_ids)]), "input_ids": input_ids, "owner": owner, "loss_mask": loss_mask}
        if loss_weights is not None or self._weighted:
            if not self._weighted:
                self._weighted = True  # all tokens until now count 1
                for start in range(0, self._sizes["loss_mask"], _ONES_AT_ONCE):
                    count = min(_ONES_AT_ONCE, self._sizes["loss_mask"] - start)
                    self._write("loss_weights", np.ones(count, "<f4").data)
            values["loss_weights"] = np.ones(len(input_ids)) if loss_weights is None else loss_weights
        for name, _, kind in _TENSORS:
            if name in values:
                self._write(name, np.ascontiguousarray(values[name], dtype=kind).data)

    def _write(self, name: str, data: memoryview) -> None:
        try:
            self._streams[name].write(data)
        except OSError as error:
            raise disk_error(error, self._path, data.nbytes) from error
        self._sizes[name] += data.nbytes

    def finish(self) -> None:
        """Put the file under its name."""
        temporary = self._path.with_name(f".{self._path.name}.tmp")
        try:
            with temporary.open("wb") as target:
                target.write(self._header())
                for name, stream in self._streams.items():
                    stream.close()
                    if name not in self._names():
                        continue
                    with Path(stream.name).open("rb") as source:
                        _copy(source, target)
            temporary.replace(self._path)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise disk_error(error, self._path, sum(self._sizes.values())) from error

    def _names(self) -> set[str]:
        return {name for name, _, _ in _TENSORS if self._weighted or name != "loss_weights"}

    def _header(self) -> bytes:
        header: dict[str, object] = {}
        begin = 0
        for name, kind, numpy_kind in _TENSORS:
            if name not in self._names():
                continue
            end = begin + self._sizes[name]
            shape = [self._sizes[name] // np.dtype(numpy_kind).itemsize]
            header[name] = {"dtype": kind, "shape": shape, "data_offsets": [begin, end]}
            begin = end
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        return len(text).to_bytes(8, "little") + text


def _copy(source: BinaryIO, target: BinaryIO) -> None:
    shutil.copyfileobj(source, target, _COPIED_BYTES)
