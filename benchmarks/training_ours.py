"""Our side of the training benchmarks: rows, models, adapters and steps as tunesmith's own stages have them."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from rounds import HERE, read_lines, write_lines

RANK, ALPHA = 16, 32
SEEDS = HERE.parent / "examples" / "support-desk" / "seeds.jsonl"


def find_model(name: str) -> Path:
    """A folder as it is, or a built-in model's."""
    if Path(name).is_dir():
        return Path(name)
    from tunesmith.events import NullSink
    from tunesmith.model.catalog import fetch_model

    return fetch_model(name, events=NullSink()).path


def read_data(paths: list[Path] | None) -> list[Any]:
    """The rows of the files, or of the example."""
    from tunesmith.data.readers import read_examples

    return [row for path in paths or [SEEDS] for row in read_examples(path)]


def answered(rows: list[Any]) -> list[Any]:
    """Conversations that end in a reply."""
    from tunesmith.types import Conversation

    return [row for row in rows if isinstance(row, Conversation) and row.reply is not None]


def exchanges(chats: list[Any]) -> list[Any]:
    """The messages of some chats, one after another."""
    return [message for row in chats for message in row.messages if message.role != "system"]


def write_rows(
    model_dir: Path, data: list[Path] | None, limit: int, out: Path, common_turns: int = 0
) -> dict[str, int]:
    """Render rows with the model's own template: {input_ids, labels} a line, -100 where nothing is learnt.

    common_turns: of so many rows at the beginning the exchanges stand before all others, and the last reply alone is learnt.
    """
    from tunesmith.chat.renderer import Renderer
    from tunesmith.types import Conversation

    renderer = Renderer.for_model(model_dir)
    conversations = [row for row in read_data(data) if isinstance(row, Conversation)]
    before = exchanges(conversations[:common_turns])
    chosen = conversations[common_turns : common_turns + limit]
    learnt = "last_turn" if before else "all_turns"
    rendered = [renderer.render([*before, *row.messages], learnt) for row in chosen]
    rows = [
        {
            "input_ids": list(each.input_ids),
            "labels": [token if wanted else -100 for token, wanted in zip(each.input_ids, each.loss_mask, strict=True)],
        }
        for each in rendered
    ]
    write_lines(out, rows)
    return {
        "rows": len(rows),
        "tokens": sum(len(row["labels"]) for row in rows),
        "supervised": sum(sum(each.loss_mask) for each in rendered),
    }


def read_samples(path: str) -> Any:
    """What `write_rows` wrote, as the stage `train` has it."""
    import numpy as np

    from tunesmith.training.batches import Samples

    rows = read_lines(path)
    return Samples(
        input_ids=np.concatenate([row["input_ids"] for row in rows]).astype(np.int32),
        loss_mask=np.concatenate([np.array(row["labels"]) != -100 for row in rows]).astype(np.uint8),
        lengths=np.array([len(row["input_ids"]) for row in rows], dtype=np.int64),
        ids=tuple(str(index) for index in range(len(rows))),
    )


def load_base(spec: dict[str, Any]) -> tuple[Any, str]:
    """The model in the number format that `precision: auto` takes, and why; on as many threads as the spec says."""
    import torch

    torch.set_num_threads(spec["threads"])
    from tunesmith.model.load import load_model
    from tunesmith.training.precision import choose_precision

    config = json.loads((Path(spec["model"]) / "config.json").read_text())
    precision = choose_precision("auto", torch.device("cpu"), config["hidden_size"], config["intermediate_size"])
    return load_model(Path(spec["model"]), device="cpu", dtype=precision.dtype), precision.reason


def add_lora(model: Any, blocks: int | Literal["all"] = "all") -> Any:
    """A fresh adapter on every linear layer, or those of the top blocks; returns its config."""
    from tunesmith.model.adapters import AdapterConfig, add_adapter, choose_targets, target_names
    from tunesmith.model.freezing import within_top

    targets = within_top(model, choose_targets(model, ("all-linear",)), blocks)
    config = AdapterConfig(RANK, ALPHA, 0.0, targets, target_names(model, targets), "")
    add_adapter(model, config, rng_seed=17)
    return config


def write_adapter(model_dir: Path, folder: Path) -> None:
    """A fresh adapter in PEFT's format: both sides start from the same numbers."""
    import torch

    from tunesmith.model.adapters import save_adapter
    from tunesmith.model.load import load_model

    model = load_model(model_dir, device="cpu", dtype=torch.float32)
    config = add_lora(model)
    save_adapter(folder, config, {name: p for name, p in model.named_parameters() if p.requires_grad})


def load_adapted(spec: dict[str, Any]) -> tuple[Any, str]:
    """`load_base` with the spec's adapter, to be trained on."""
    from tunesmith.model.adapters import adapter_layers, load_adapter

    model, reason = load_base(spec)
    load_adapter(model, Path(spec["adapter"]))
    for layer in adapter_layers(model).values():
        for parameter in layer.parameters(recurse=False):
            parameter.requires_grad_(True)
    return model, reason


class Watch:
    """An event sink that keeps the loss of every step, when it ended, and when the first one began."""

    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = []
        self.ends: list[float] = []
        self.begin: float | None = None

    def emit(self, event: Any) -> None:
        if event.type == "progress" and self.begin is None:
            self.begin = time.perf_counter()
        if event.type == "metric" and "loss" in event.values:
            self.steps.append({"step": event.step, "loss": event.values["loss"]})
            self.ends.append(time.perf_counter())


def train_on(model: Any, source: Any, section: Any, spec: dict[str, Any], watch: Watch, folder: Path, loss: Any) -> Any:
    """tunesmith's loop at the pace of a stage that nobody slowed down, without checkpoints on the way."""
    from tunesmith.training import loop
    from tunesmith.training.step import Pace

    return loop.train_on(
        model,
        source,
        section,
        learning_rate=spec["learning_rate"],
        pace=Pace(1, 1_000_000, 1, 1, False, True, True, True, False),
        places=loop.Places(folder / "checkpoints", folder / "metrics.jsonl", watch),
        loss=loss,
    )


def measure_product(model: Any, rows: int) -> float:
    """Operations per second of the best of 200 bf16 products, this many rows through the model's MLP."""
    import torch

    inputs, outputs = model.config.hidden_size, model.config.intermediate_size
    left, right = torch.randn(rows, inputs).bfloat16(), torch.randn(outputs, inputs).bfloat16()
    best = float("inf")
    for _ in range(200):
        started = time.perf_counter()
        torch.nn.functional.linear(left, right)
        best = min(best, time.perf_counter() - started)
    return 2 * rows * inputs * outputs / best


def computed_rows(source: Any, steps: Iterable[int]) -> int:
    """Rows of the forward passes of these steps: tokens, what the samples of a pack begin with in common once."""
    import torch

    from tunesmith.training.batches import build_batch

    taken = (source.take(step) for step in steps)
    passes = (
        build_batch(samples, pack, torch.device("cpu"), share_prefixes=True)
        for samples, packs in taken
        for pack in packs
    )
    return sum(batch.input_ids.shape[1] for batch in passes)


def needed_flops(model: Any, num_rows: int, num_targets: int, *, backward: bool = True) -> float:
    """Operations of the matrix products that training so many rows and targets cannot do without, two for each multiplication:
    forward, gradients of inputs, and of weights that are trained. Without `backward` those of the frozen model's forward pass.
    Attention is not counted."""
    head = model.get_output_embeddings().weight

    def per_row(weight: Any) -> int:
        if not backward:
            return 0 if weight.requires_grad else 2 * weight.numel()
        return (6 if weight.requires_grad else 4) * weight.numel()

    matrices = [p for p in model.get_decoder().parameters() if p.dim() == 2 and p is not head]
    return float(sum(map(per_row, matrices)) * num_rows + per_row(head) * num_targets)
