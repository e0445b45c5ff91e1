"""Weight deltas: the tuned model comes back byte for byte, from the right base alone."""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tunesmith.errors import ModelError, RecipeError
from tunesmith.model import tensor_files
from tunesmith.model.deltas import MANIFEST, apply_delta, make_delta


def save(folder: Path, tensors: dict[str, torch.Tensor], *, files: int = 1) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (folder / "tokenizer.json").write_text(folder.name)
    names = list(tensors)
    for number in range(files):
        part = {name: tensors[name].contiguous() for name in names[number::files]}
        name = "model.safetensors" if files == 1 else f"model-{number + 1:05d}-of-{files:05d}.safetensors"
        save_file(part, folder / name, metadata={"format": "pt"})
    return folder


def hard_numbers(dtype: torch.dtype, rows: int) -> torch.Tensor:
    """Every kind of float: not a number, infinities, both zeros, the smallest and the largest, and random bits."""
    torch.manual_seed(rows)
    ends = torch.tensor([float("nan"), float("inf"), -float("inf"), 0.0, -0.0]).to(dtype)
    limits = torch.tensor([torch.finfo(dtype).tiny, torch.finfo(dtype).max], dtype=dtype)
    integers = {2: torch.int16, 4: torch.int32}[dtype.itemsize]
    low, high = torch.iinfo(integers).min, torch.iinfo(integers).max
    wild = torch.randint(low, high, (rows * 8 - 7,), dtype=torch.int64).to(integers).view(dtype)
    return torch.cat([ends, limits, wild])[torch.randperm(rows * 8)].view(rows, 8)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("files", [1, 3])
def test_the_tuned_model_comes_back_byte_for_byte_whatever_its_numbers_are(
    dtype: torch.dtype, files: int, tmp_path: Path, sink
):
    base = save(
        tmp_path / "base", {"embed": hard_numbers(dtype, 10), "w": hard_numbers(dtype, 4), "same": torch.ones(3)}
    )
    tuned_tensors = {
        "embed": hard_numbers(dtype, 13),  # a grown vocabulary
        "w": hard_numbers(dtype, 4).flip(0),
        "same": torch.ones(3),
        "lm_head": hard_numbers(dtype, 13),  # the base has none: it is tied
        "step": torch.tensor(7),
    }
    tuned = save(tmp_path / "tuned", tuned_tensors, files=files)
    made = make_delta(base, tuned, tmp_path / "delta", sink)
    assert (made.num_differences, made.num_whole, made.num_unchanged) == (3, 2, 1)
    done = apply_delta(base, tmp_path / "delta", tmp_path / "again", sink)
    assert done == made
    for path in tuned.iterdir():
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes(), path.name
    assert sink.events[-1].done == sink.events[-1].total


def test_floating_point_differences_would_not_have_been_exact():
    """Why the difference is taken of the bits."""
    base, tuned = torch.tensor([1.0], dtype=torch.bfloat16), torch.tensor([1e-4], dtype=torch.bfloat16)
    assert base + (tuned - base) != tuned


def test_a_delta_tells_nothing_of_unchanged_weights_and_names_the_sha256_of_the_result(tmp_path: Path, sink):
    base = save(tmp_path / "base", {"a": torch.randn(5, 4), "b": torch.randn(5, 4)})
    tensors = load_file(base / "model.safetensors")
    tuned = save(tmp_path / "tuned", {"a": tensors["a"], "b": tensors["b"] + 1e-6})
    make_delta(base, tuned, tmp_path / "delta", sink)
    stored = load_file(tmp_path / "delta" / "weights" / "model.safetensors")
    assert not stored["a"].any()
    assert stored["b"].dtype == torch.int32
    assert stored["b"].abs().max() < 2**20  # small steps of a float are small steps of its bits
    manifest = json.loads((tmp_path / "delta" / MANIFEST).read_text())
    wanted = sha256((tuned / "model.safetensors").read_bytes()).hexdigest()
    assert manifest["weights"]["model.safetensors"]["sha256"] == wanted
    assert not list((tmp_path / "delta").glob("*.safetensors"))  # so that nobody takes it for a model


def test_a_base_in_another_number_type_serves_if_it_is_the_one_that_was_used(tmp_path: Path, sink):
    weights = torch.randn(6, 4)
    base = save(tmp_path / "base", {"w": weights})
    tuned = save(tmp_path / "tuned", {"w": (weights + 0.01).to(torch.bfloat16)})
    make_delta(base, tuned, tmp_path / "delta", sink)
    apply_delta(base, tmp_path / "delta", tmp_path / "again", sink)
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (tuned / "model.safetensors").read_bytes()
    half = save(tmp_path / "half", {"w": weights.to(torch.float16)})
    with pytest.raises(ModelError, match=r"w is float16 \[6, 4\], expected float32 \[6, 4\]"):
        apply_delta(half, tmp_path / "delta", tmp_path / "other", sink)


def test_another_base_is_refused_by_the_first_tensor_that_differs(tmp_path: Path, sink):
    base = save(tmp_path / "base", {"a": torch.ones(2, 2), "b": torch.ones(2, 2)})
    tuned = save(tmp_path / "tuned", {"a": torch.zeros(2, 2), "b": torch.zeros(2, 2)})
    make_delta(base, tuned, tmp_path / "delta", sink)
    other = save(tmp_path / "other", {"a": torch.ones(2, 2), "b": torch.full((2, 2), 2.0)})
    with pytest.raises(ModelError, match=r"not the base that the delta was made from: b is sha256 .*, expected sha256"):
        apply_delta(other, tmp_path / "delta", tmp_path / "new", sink)
    lacking = save(tmp_path / "lacking", {"a": torch.ones(2, 2)})
    with pytest.raises(ModelError, match="the base lacks the tensor b"):
        apply_delta(lacking, tmp_path / "delta", tmp_path / "new", sink)
    assert not (tmp_path / "new").exists()


def test_a_changed_delta_fails_its_checksum_and_leaves_nothing(tmp_path: Path, sink):
    base = save(tmp_path / "base", {"a": torch.ones(2, 2)})
    tuned = save(tmp_path / "tuned", {"a": torch.zeros(2, 2)})
    make_delta(base, tuned, tmp_path / "delta", sink)
    stored = tmp_path / "delta" / "weights" / "model.safetensors"
    data = bytearray(stored.read_bytes())
    data[-1] ^= 1
    stored.write_bytes(data)
    with pytest.raises(ModelError, match="the checksum is wrong: the result has sha256"):
        apply_delta(base, tmp_path / "delta", tmp_path / "new", sink)
    data[-1] ^= 1
    stored.write_bytes(data)
    (tmp_path / "delta" / "files" / "config.json").write_text("{}")
    with pytest.raises(ModelError, match="a file of the delta was changed"):
        apply_delta(base, tmp_path / "delta", tmp_path / "new", sink)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "delta", "tuned"]


def test_a_manifest_that_is_none_or_writes_outside_its_folder_is_refused(tmp_path: Path, sink):
    base = save(tmp_path / "base", {"a": torch.ones(2, 2)})
    make_delta(base, save(tmp_path / "tuned", {"a": torch.zeros(2, 2)}), tmp_path / "delta", sink)
    path = tmp_path / "delta" / MANIFEST
    whole = path.read_text()
    manifest = json.loads(whole)
    manifest["weights"]["model.safetensors"]["header"] = '{"a": 1}'
    path.write_text(json.dumps(manifest))
    with pytest.raises(ModelError, match=r"delta\.json holds no header"):
        apply_delta(base, tmp_path / "delta", tmp_path / "new", sink)
    path.write_text(whole.replace('"config.json"', '"../evil.json"'))
    with pytest.raises(ModelError, match="a file outside its folder"):
        apply_delta(base, tmp_path / "delta", tmp_path / "new", sink)
    path.write_text("{}")
    with pytest.raises(ModelError, match=r"no delta.json of a delta"):
        apply_delta(base, tmp_path / "delta", tmp_path / "new", sink)


def test_models_of_other_shapes_and_a_used_name_are_refused(tmp_path: Path, sink):
    base = save(tmp_path / "base", {"a": torch.ones(2, 2)})
    wide = save(tmp_path / "wide", {"a": torch.ones(2, 3)})
    with pytest.raises(ModelError, match=r"a has the shape \[2, 3\], and \[2, 2\] in the base"):
        make_delta(base, wide, tmp_path / "delta", sink)
    fewer = save(tmp_path / "fewer", {"a": torch.ones(1, 2)})
    with pytest.raises(ModelError, match=r"a has the shape \[1, 2\]"):
        make_delta(base, fewer, tmp_path / "delta", sink)
    with pytest.raises(RecipeError, match="something here already"):
        make_delta(base, base, wide, sink)


def test_a_full_disk_is_named_before_any_work(tmp_path: Path, sink, monkeypatch):
    base = save(tmp_path / "base", {"a": torch.ones(2, 2)})
    usage = type("Usage", (), {"free": 10})
    monkeypatch.setattr(tensor_files.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(OSError, match=r"the delta needs 0.00 GB, and 0.00 GB are free"):
        make_delta(base, base, tmp_path / "delta", sink)
    assert [path.name for path in tmp_path.iterdir()] == ["base"]


def test_published_floating_point_differences_are_added_and_new_rows_count_from_the_mean(tmp_path: Path, sink):
    """As the tools of Alpaca and Vicuna did it: the base first gets rows that are the mean of its own."""
    rows = torch.randn(4, 2).to(torch.float16)
    tuned = torch.randn(5, 2).to(torch.float16)
    grown = torch.cat([rows.float(), rows.float().mean(0, keepdim=True)])
    delta = (tuned.float() - grown).to(torch.float16)
    base = save(tmp_path / "base", {"embed": rows, "w": torch.ones(2, dtype=torch.float16)})
    folder = save(tmp_path / "delta", {"embed": delta, "w": torch.full((2,), 0.5, dtype=torch.float16)})
    apply_delta(base, folder, tmp_path / "new", sink)
    result = load_file(tmp_path / "new" / "model.safetensors")
    assert torch.equal(result["embed"], (grown + delta.float()).to(torch.float16))
    assert torch.equal(result["embed"][:4], rows + delta[:4])  # what fp16 arithmetic itself gives
    assert result["w"].tolist() == [1.5, 1.5]
    total = sum(float(value.double().sum()) for value in result.values())
    assert f"the sum of all weights is {total:.4f}" in sink.events[-1].message


def test_memory_holds_one_tensor_and_not_the_model(tmp_path: Path, sink, monkeypatch):
    base = save(tmp_path / "base", {f"t{number}": torch.ones(64, 64) for number in range(6)})
    tuned = save(tmp_path / "tuned", {f"t{number}": torch.zeros(64, 64) for number in range(6)})
    order: list[str] = []
    read, write = tensor_files.Tensors.read, tensor_files.write_file

    def logged(self: tensor_files.Tensors, name: str) -> torch.Tensor:
        order.append(name)
        return read(self, name)

    monkeypatch.setattr(tensor_files.Tensors, "read", logged)

    def slow_write(path: Path, header: bytes, parts) -> str:
        def seen():
            for part in parts:
                order.append("written")
                yield part

        return write(path, header, seen())

    monkeypatch.setattr("tunesmith.model.deltas.write_file", slow_write)
    make_delta(base, tuned, tmp_path / "delta", sink)
    assert order.count("written") == 6
    groups = " ".join(order).split("written")[:-1]  # what was read before each tensor was written
    assert [set(group.split()) for group in groups] == [{f"t{number}"} for number in range(6)]
