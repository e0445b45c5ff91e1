"""Writes a GGUF file from a transformers folder, tensor by tensor, with the same bytes for the same input.

Knows nothing of engines; architectures.py, vocabulary.py and tensor_types.py say what goes in.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from gguf import MODEL_ARCH_NAMES, GGMLQuantizationType, GGUFWriter, quant_shape_to_byte_shape
from safetensors import safe_open

from tunesmith.errors import ExportError
from tunesmith.exporting.architectures import Shape, add_shape, arrange, extra_tensors, name_map, shape_of
from tunesmith.exporting.tensor_types import QUANTISATIONS, Quantisation, choose_type, encode
from tunesmith.exporting.vocabulary import Vocabulary, add_vocabulary, read_vocabulary
from tunesmith.model.folder import read_config, read_safetensors_header, weight_files

_NOT_WEIGHTS = (".rotary_emb.inv_freq", ".attention.masked_bias")
_IN_FLIGHT = 4  # tensors being encoded ahead of the one being written


@dataclass(frozen=True)
class Labels:
    """What the file says about itself to people."""

    name: str
    licence: str
    base_model: str


@dataclass(frozen=True)
class _Tensor:
    name: str  # llama.cpp's
    hf_name: str
    file: Path
    shape: tuple[int, ...]
    kind: GGMLQuantizationType


@dataclass(frozen=True)
class GgufPlan:
    """Everything that goes into one file, decided before a byte is written."""

    shape: Shape
    vocabulary: Vocabulary
    chat_template: str
    quantisation: Quantisation
    labels: Labels
    tensors: tuple[_Tensor, ...]

    @property
    def size_bytes(self) -> int:
        """Bytes of the tensors: the file, but for its header."""
        return sum(_num_bytes(tensor) for tensor in self.tensors)


def check_exportable(model_dir: Path, stop_ids: tuple[int, ...]) -> None:
    """ExportError where no GGUF file can be written for a model: its architecture, its tokenizer, a tensor."""
    config = read_config(model_dir)
    shape = shape_of(config, model_dir / "config.json")
    read_vocabulary(model_dir, config["vocab_size"], stop_ids)
    _list_tensors(model_dir, shape, QUANTISATIONS["f16"])


def plan_gguf(
    model_dir: Path, *, quantisation: str, chat_template: str, stop_ids: tuple[int, ...], labels: Labels
) -> GgufPlan:
    """Decide names and types of every tensor. ExportError for a model that cannot be written."""
    config = read_config(model_dir)
    shape = shape_of(config, model_dir / "config.json")
    wanted = QUANTISATIONS[quantisation]
    vocabulary = read_vocabulary(model_dir, config["vocab_size"], stop_ids)
    return GgufPlan(shape, vocabulary, chat_template, wanted, labels, _list_tensors(model_dir, shape, wanted))


def write_gguf(plan: GgufPlan, path: Path, *, num_threads: int, on_done: Callable[[int], None]) -> None:
    """Write the file. on_done(bytes so far) is called after each tensor."""
    writer = GGUFWriter(path, MODEL_ARCH_NAMES[plan.shape.architecture.gguf])
    try:
        _add_metadata(writer, plan)
        extra = list(extra_tensors(plan.shape))
        for name, values in extra:
            writer.add_tensor_info(name, values.shape, values.dtype, values.nbytes)
        for tensor in plan.tensors:
            shape = tensor.shape
            if tensor.kind not in (GGMLQuantizationType.F32, GGMLQuantizationType.F16):
                shape = quant_shape_to_byte_shape(shape, tensor.kind)
            dtype = np.dtype({0: np.float32, 1: np.float16}.get(tensor.kind.value, np.uint8))
            writer.add_tensor_info(tensor.name, shape, dtype, _num_bytes(tensor), raw_dtype=tensor.kind)
        writer.write_header_to_file(path)
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for _, values in extra:
            writer.write_tensor_data(values)
        done = 0
        for encoded in _encoded(plan, num_threads):
            writer.write_tensor_data(encoded)
            done += encoded.nbytes
            on_done(done)
        writer.flush()
    finally:
        writer.close()


def _add_metadata(writer: GGUFWriter, plan: GgufPlan) -> None:
    writer.add_type("model")
    writer.add_name(plan.labels.name)
    writer.add_license(plan.labels.licence)
    writer.add_base_model_count(1)
    writer.add_base_model_name(0, plan.labels.base_model)
    writer.add_file_type(plan.quantisation.file_type)
    writer.add_quantization_version(2)
    add_shape(writer, plan.shape)
    add_vocabulary(writer, plan.vocabulary, plan.chat_template)


def _list_tensors(model_dir: Path, shape: Shape, quantisation: Quantisation) -> tuple[_Tensor, ...]:
    names = name_map(shape)
    found: list[_Tensor] = []
    for file in weight_files(model_dir):
        for hf_name, entry in read_safetensors_header(file).items():
            if hf_name.endswith(_NOT_WEIGHTS) or (shape.tied and hf_name == "lm_head.weight"):
                continue
            name = names.get_name(hf_name, try_suffixes=(".weight", ".bias"))
            if name is None:
                raise ExportError(f"llama.cpp has no place for the tensor {hf_name}", where=str(file))
            size = tuple(entry["shape"])
            kind = choose_type(quantisation, name, size, shape.num_blocks, shape.tied)
            found.append(_Tensor(name, hf_name, file, size, kind))
    _check_complete({tensor.name for tensor in found}, shape, model_dir)
    return tuple(sorted(found, key=lambda tensor: _order(tensor.name)))


def _check_complete(names: set[str], shape: Shape, model_dir: Path) -> None:
    """Every block has the same tensors, and the ones outside the blocks are there."""
    expected = {"token_embd.weight", "output_norm.weight"} | (set() if shape.tied else {"output.weight"})
    first = {name.removeprefix("blk.0.") for name in names if name.startswith("blk.0.")}
    expected |= {f"blk.{block}.{part}" for block in range(shape.num_blocks) for part in first}
    if names != expected or not first:
        odd = sorted(names ^ expected)[:3] or ["blk.0"]
        raise ExportError(
            f"the weights do not fit config.json: missing or surplus {', '.join(odd)}", where=str(model_dir)
        )


def _order(name: str) -> tuple[int, int, str]:
    """Embeddings, blocks by number, the rest."""
    found = re.match(r"blk\.(\d+)\.", name)
    if found:
        return (1, int(found[1]), name)
    return (0 if name.startswith("token_embd") else 2, 0, name)


def _encoded(plan: GgufPlan, num_threads: int) -> Iterator[np.ndarray]:
    """The tensors' bytes in order; the next few are encoded meanwhile (numpy lets go of the interpreter)."""
    with ThreadPoolExecutor(max(1, num_threads)) as pool:
        waiting: deque[Future[np.ndarray]] = deque()
        tensors: Iterable[_Tensor] = plan.tensors
        for tensor in tensors:
            waiting.append(pool.submit(_read_and_encode, tensor, plan.shape))
            if len(waiting) >= _IN_FLIGHT:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _read_and_encode(tensor: _Tensor, shape: Shape) -> np.ndarray:
    with safe_open(tensor.file, framework="pt") as file:
        values = file.get_tensor(tensor.hf_name).float().numpy()
    return encode(arrange(values, tensor.hf_name, shape), tensor.kind, tensor.name)


def _num_bytes(tensor: _Tensor) -> int:
    count = int(np.prod(tensor.shape))
    if tensor.kind is GGMLQuantizationType.F32:
        return 4 * count
    if tensor.kind is GGMLQuantizationType.F16:
        return 2 * count
    return int(np.prod(quant_shape_to_byte_shape(tensor.shape, tensor.kind)))
