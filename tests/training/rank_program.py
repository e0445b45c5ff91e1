"""One rank of a training, started by test_ranks.py: trains the model of a folder and writes what came out."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from tunesmith.events import CallbackSink
from tunesmith.model.load import load_model
from tunesmith.recipe import Train
from tunesmith.training.batches import Samples
from tunesmith.training.loop import train
from tunesmith.training.losses import CrossEntropy
from tunesmith.training.step import Pace


def main(spec: dict[str, object], rank: int, size: int) -> None:
    torch.set_num_threads(1)
    if size > 1:
        store = dist.FileStore(str(spec["store"]), size)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=size)
    model = load_model(Path(str(spec["model"])), device="cpu", dtype=torch.float32)
    model.requires_grad_(True)
    lengths = np.array(spec["lengths"], dtype=np.int64)
    rng = np.random.default_rng(3)
    samples = Samples(
        input_ids=rng.integers(3, 300, size=int(lengths.sum())).astype(np.int32),
        loss_mask=np.concatenate([np.arange(n) >= n // 2 for n in lengths]).astype(np.uint8),
        lengths=lengths,
        ids=tuple(f"row-{n}" for n in range(len(lengths))),
    )
    out = Path(str(spec["out"]))
    trained = train(
        model,
        samples,
        Train(method="full", global_batch_size=4, num_epochs=2, max_steps=spec.get("max_steps")),  # type: ignore[arg-type]
        learning_rate=1e-2,
        pack_length=40,
        pace=Pace(1, 2, 2, 1, False, True),
        checkpoint_dir=out / "checkpoints",
        metrics_path=out / f"metrics-{rank}.jsonl",
        events=CallbackSink(lambda event: None),
        loss=CrossEntropy(),
    )
    torch.save({name: weight.detach() for name, weight in trained.weights.items()}, out / f"weights-{size}-{rank}.pt")
    (out / f"losses-{size}-{rank}.json").write_text(json.dumps([line.loss for line in trained.losses]))
    if size > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
