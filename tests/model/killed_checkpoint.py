"""Saves a checkpoint over and over, each time in a process of its own that dies at another point, and looks at what is left.

Every death is without any clean-up: SIGKILL just before a call that changes the file system (and around every fsync),
SIGKILL after the n-th byte of the tensors, the kernel's own SIGXFSZ at the n-th byte of the state. What is saved is the state of
a real training: masters and both moments of a small model, of LoRA factors or of all its weights; what is found goes into a
training begun anew. Prints one JSON object.

    killed_checkpoint.py FOLDER lora|full
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import sys
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from transformers import LlamaConfig, LlamaForCausalLM

from tunesmith.model import checkpoint
from tunesmith.model.adapters import AdapterConfig, add_adapter, choose_targets, target_names
from tunesmith.model.checkpoint import Checkpoint, newest_checkpoint, save_checkpoint
from tunesmith.training.weights import TrainableWeights

NUM_POINTS = 100
NUM_STATE_CUTS = 10
_CALLS = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.scandir", "os.listdir", "shutil.rmtree")


METHOD = sys.argv[2]


def begin() -> tuple[Any, TrainableWeights]:
    """A model of two blocks before its first step."""
    torch.manual_seed(1)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=64, **sizes)).to(torch.bfloat16)
    if METHOD == "lora":
        targets = choose_targets(model, ("all-linear",))
        names = target_names(model, targets)
        add_adapter(
            model,
            AdapterConfig(rank=4, alpha=8, dropout=0.0, targets=targets, target_names=names, base_model="small"),
            1,
        )
    return model, TrainableWeights(model, learning_rate=1e-2, betas=(0.9, 0.99), epsilon=1e-8, weight_decay=0.01)


@cache
def build(step: int) -> Checkpoint:
    """What a training has after so many steps."""
    model, weights = begin()
    for number in range(step):
        ids = torch.arange(12)[None] + number
        model(input_ids=ids, labels=ids).loss.backward()
        weights.step(1e-2)
    state = {name: tensor.clone() for name, tensor in weights.state().items()}
    kinds = {name.partition("/")[0] for name in state}
    assert kinds == {"weights", "exp_avg", "exp_avg_sq", "step"} and any("lora_A" in name for name in state) == (
        METHOD == "lora"
    )
    return Checkpoint(step, state, {"losses": [step / 7] * 200})


def call_watcher(on_call: Callable[[str, str], None]) -> None:
    """on_call(what, path) before every call that changes the file system, and before and after every fsync."""
    sync = os.fsync

    def synced(handle: int) -> None:
        on_call("before fsync", "")
        sync(handle)
        on_call("after fsync", "")

    os.fsync = synced
    sys.addaudithook(lambda event, given: on_call(event, str(given[0])) if event in _CALLS else None)


def in_child(work: Callable[[], Any]) -> int:
    """Run in a forked process; the signal that ended it, 0 where it came to its end."""
    child = os.fork()
    if child == 0:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        work()
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, f"the save failed with {os.WEXITSTATUS(status)}"
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0


def save_and_die_at_call(folder: Path, number: int | None) -> None:
    """SIGKILL at the number-th call; None: write the number of calls beside the folder instead."""
    seen = 0

    def count(_what: str, _path: str) -> None:
        nonlocal seen
        if seen == number:
            os.kill(os.getpid(), signal.SIGKILL)
        seen += 1

    call_watcher(count)
    save_checkpoint(folder, build(2), keep=1)
    if number is None:
        folder.with_name("calls").write_text(str(seen))


def save_and_die_in_tensors(folder: Path, byte: int, *, sized: bool) -> None:
    """SIGKILL after `byte` bytes of the tensors. sized: the file has its full length before its content, as safetensors
    makes it, so what was not written is zeros."""

    def cut(tensors: dict[str, torch.Tensor], path: Path) -> None:
        data = save(tensors)
        with path.open("wb", buffering=0) as stream:
            if sized:
                stream.truncate(len(data))
            stream.write(data[:byte])
            os.kill(os.getpid(), signal.SIGKILL)

    checkpoint.save_file = cut
    save_checkpoint(folder, build(2), keep=1)


def save_and_die_in_state(folder: Path, byte: int) -> None:
    """The kernel ends the process when state.json should grow beyond `byte` bytes."""
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # Python ignores it, so that writes fail with an error instead

    def limit(what: str, path: str) -> None:
        if what == "open" and path.endswith("state.json"):
            resource.setrlimit(resource.RLIMIT_FSIZE, (byte, resource.RLIM_INFINITY))

    call_watcher(limit)
    save_checkpoint(folder, build(2), keep=1)


def look(folder: Path) -> int:
    """The step that is there; it and only it, whole, and the next save works."""
    found, damaged = newest_checkpoint(folder)
    assert found is not None and damaged == [], damaged
    expected = build(found.step)
    assert found.state == expected.state and found.tensors.keys() == expected.tensors.keys()
    assert all(torch.equal(found.tensors[name], tensor) for name, tensor in expected.tensors.items())
    _, weights = begin()
    weights.restore(found.tensors)
    again = weights.state()
    assert all(torch.equal(again[name], tensor) for name, tensor in expected.tensors.items())
    save_checkpoint(folder, build(3), keep=1)
    assert [path.name for path in folder.iterdir() if not path.name.startswith(".")] == ["step-000003"]
    assert newest_checkpoint(folder)[0].step == 3  # type: ignore[union-attr]
    return found.step


def main(place: Path) -> None:
    torch.set_num_threads(1)
    folder = place / "checkpoints"

    def fresh() -> Path:
        shutil.rmtree(folder, ignore_errors=True)
        save_checkpoint(folder, build(1), keep=1)
        return folder

    for step in (1, 2, 3):
        build(step)  # before the first fork: children share them
    fresh()
    assert in_child(lambda: save_and_die_at_call(folder, None)) == 0
    sizes = {path.name: path.stat().st_size for path in (folder / "step-000002").iterdir()}
    num_calls = int((place / "calls").read_text())
    points: list[tuple[int, Callable[[], None]]] = [
        (signal.SIGKILL, partial(save_and_die_at_call, folder, number)) for number in range(num_calls)
    ]
    num_cuts = max(NUM_POINTS - num_calls - NUM_STATE_CUTS, 50)
    for index in range(num_cuts):  # from nothing to all but the last byte
        byte = index * (sizes["tensors.safetensors"] - 1) // (num_cuts - 1)
        cut = partial(save_and_die_in_tensors, folder, byte, sized=index % 2 == 0)
        points.append((signal.SIGKILL, cut))
    for index in range(NUM_STATE_CUTS):
        byte = index * (sizes["state.json"] - 1) // (NUM_STATE_CUTS - 1)
        points.append((signal.SIGXFSZ, partial(save_and_die_in_state, folder, byte)))
    left: dict[int, int] = {1: 0, 2: 0}
    for expected, work in points:
        fresh()
        died = in_child(work)
        assert died == expected, f"ended by signal {died}, expected {expected}"
        left[look(folder)] += 1
    print(json.dumps({"calls": num_calls, "points": len(points), "previous": left[1], "new": left[2]}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
