"""What each part of the training step saves: the same training again and again, with one part more every time.

    python benchmarks/training_ablation.py --data rows.json --rows 96 --rounds 3

Every run is a process of its own, in alternation; all take the same optimiser steps over the same samples, so the loss of
every step must be the same to rounding, and the script prints how far apart they are. Speed is real tokens (no padding) over
the time of all steps but the first. The last two lines train the top third of the blocks for several epochs, with and
without keeping what the frozen ones compute: another training, compared with each other alone.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from rounds import add_threads, median_of, new_parser, orders, peak_gigabytes, run, run_side
from training_ours import RANK, add_lora, find_model, load_base, read_samples, write_rows

LEARNING_RATE, PADDED_BATCH = 2e-4, 4

VARIANTS: dict[str, dict[str, Any]] = {
    "padded batches of 4, logits of every token": {"step": "padded"},
    "+ packed, no padding": {"step": "packed"},
    "+ fused head on supervised rows": {"step": "ours", "share": False, "trim": False},
    "+ common beginnings once (trie)": {"step": "ours", "share": True, "trim": False},
    "+ last block on the rows that are read": {"step": "ours", "share": True, "trim": True},
    "+ blocks compiled": {"step": "ours", "share": True, "trim": True, "compile": True},
    "top third trained, 3 epochs": {"step": "ours", "share": True, "trim": True, "top": True, "keep": False},
    "+ frozen blocks computed once": {"step": "ours", "share": True, "trim": True, "top": True, "keep": True},
}
EPOCHS_OF_TOP = 3


def main() -> None:
    """Parse, prepare the rows once, run every variant `--rounds` times, print the table."""
    parser = new_parser(__doc__, rounds=3)
    add_threads(parser)
    parser.add_argument("--rows", type=int, default=96)
    parser.add_argument("--pack-length", type=int, default=2048)
    parser.add_argument("--only", help="comma-separated numbers of the variants, from 1")
    run(parser, measure, print_report, run_variant)


def measure(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Every chosen variant, round after round."""
    names = list(VARIANTS)
    chosen = [names[int(number) - 1] for number in args.only.split(",")] if args.only else names
    model_dir = find_model(args.model)
    rows = folder / "rows.jsonl"
    facts = write_rows(model_dir, args.data, args.rows, rows)
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in chosen}
    for number, order in orders(chosen, args.rounds):
        for name in order:
            spec = {
                "model": str(model_dir),
                "rows": str(rows),
                "threads": args.threads,
                "pack_length": args.pack_length,
                "folder": str(folder),
                **VARIANTS[name],
            }
            (folder / "spec.json").write_text(json.dumps(spec))
            command = [sys.executable, str(Path(__file__).resolve()), "--worker", str(folder / "spec.json")]
            runs[name].append(run_side(command, folder / "result.json", args.threads))
            print(f"round {number}: {name}: {runs[name][-1]['tokens_per_second']:.0f} tokens/s", flush=True)
    return {"model": args.model, "rows": facts, "threads": args.threads, "pack_length": args.pack_length, "runs": runs}


def run_variant(spec: dict[str, Any]) -> dict[str, Any]:
    """One training in this process."""
    from tunesmith.recipe import Train
    from tunesmith.training.compiled import compiled_blocks
    from tunesmith.training.forward import varlen_forward
    from tunesmith.training.frozen_blocks import FrozenBlocks
    from tunesmith.training.losses import CrossEntropy
    from tunesmith.training.sources import FixedSamples
    from tunesmith.training.step import Pace

    samples = read_samples(spec["rows"])
    model, _ = load_base(spec)
    add_lora(model, model.config.num_hidden_layers // 3 if spec.get("top") else "all")
    epochs = EPOCHS_OF_TOP if spec.get("top") else 1
    section = Train(num_epochs=epochs, lr_schedule="constant", warmup_ratio=0)
    source = FixedSamples(samples, spec["pack_length"], section)
    pace = Pace(
        1,
        1_000_000,
        1,
        1,
        False,
        spec.get("share", False),
        spec.get("trim", False),
        spec.get("keep", False),
        spec.get("compile", False),
    )
    stepper = steppers(samples)[spec["step"]](model, CrossEntropy(), section, pace, learning_rate=LEARNING_RATE)
    model.train()
    losses: list[float] = []
    seconds: list[float] = []
    tokens: list[int] = []
    ours = varlen_forward(model) if spec["step"] != "padded" else nullcontext()
    with ours, compiled_blocks(model, spec.get("compile", False)):
        if spec.get("keep"):
            stepper.below = FrozenBlocks(model, samples, Path(spec["folder"]))
        for step in range(source.num_steps):
            started = time.perf_counter()
            result = stepper.take(*source.take(step), step, LEARNING_RATE)
            seconds.append(time.perf_counter() - started)
            losses.append(result.loss)
            tokens.append(result.num_tokens)
    return {"tokens_per_second": sum(tokens[1:]) / sum(seconds[1:]), "losses": losses}


def steppers(samples: Any) -> dict[str, Any]:
    """Ours, and two plain forms of its forward and backward pass over these samples."""
    import torch
    import torch.nn.functional as F

    from tunesmith.training.batches import Batch
    from tunesmith.training.forward import hidden_states, output_head
    from tunesmith.training.step import Stepper

    class Padded(Stepper):
        """transformers' own forward, padded batches, fp32 logits of every token."""

        def _forward_backward(self, batch: Batch, units: float, sums: Any) -> None:
            for first in range(0, len(batch.samples), PADDED_BATCH):
                members = batch.samples[first : first + PADDED_BATCH]
                longest = max(int(samples.lengths[index]) for index in members)
                ids = torch.zeros(len(members), longest, dtype=torch.int64)
                labels, real = torch.full_like(ids, -100), torch.zeros_like(ids)
                for place, index in enumerate(members):
                    rows, length = samples.rows(index), int(samples.lengths[index])
                    ids[place, :length] = torch.from_numpy(samples.input_ids[rows].astype("int64"))
                    wanted = torch.from_numpy(samples.loss_mask[rows].astype(bool))
                    labels[place, :length] = torch.where(wanted, ids[place, :length], -100)
                    real[place, :length] = 1
                logits = self.model(input_ids=ids, attention_mask=real, use_cache=False).logits[:, :-1].float()
                summed = F.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), reduction="sum")
                (summed / units).backward()
                sums["loss"] += float(summed.detach())

    class Packed(Stepper):
        """Samples end to end without padding; fp32 logits of every token."""

        def _forward_backward(self, batch: Batch, units: float, sums: Any) -> None:
            hidden, head = hidden_states(self.model, batch), output_head(self.model)
            logits = F.linear(hidden, head.weight, head.bias).float()
            labels = torch.full((len(logits),), -100)
            labels[batch.rows] = batch.targets
            summed = F.cross_entropy(logits, labels, reduction="sum")
            (summed / units).backward()
            sums["loss"] += float(summed.detach())

    return {"padded": Padded, "packed": Packed, "ours": Stepper}


def print_report(report: dict[str, Any]) -> None:
    """The table for people."""
    rows = report["rows"]
    print(f"\n{report['model']}, LoRA {RANK}, {report['threads']} threads, packs of {report['pack_length']}; ", end="")
    print(f"{rows['rows']} rows, {rows['tokens']:,} tokens, {rows['supervised']:,} supervised\n")
    print(f"{'':44}{'tokens/s':>10}{'x before':>10}{'x first':>9}{'peak GB':>9}{'loss apart':>12}")
    first = before = curve = None
    for name, runs in report["runs"].items():
        if VARIANTS[name].get("top") and not VARIANTS[name]["keep"]:
            first = before = curve = None  # another training from here on
        speed = median_of(runs, "tokens_per_second")
        curve = curve or runs[0]["losses"]
        apart = max(abs(a - b) / b for a, b in zip(runs[0]["losses"], curve, strict=True))
        cells = f"{speed:10.0f}{speed / (before or speed):10.2f}{speed / (first or speed):9.2f}"
        print(f"{name:44}{cells}{peak_gigabytes(runs):9.2f}{apart:12.1e}")
        first, before = first or speed, speed


if __name__ == "__main__":
    main()
