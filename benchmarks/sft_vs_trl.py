"""Supervised fine-tuning: tunesmith against TRL's SFTTrainer, same rows, same cores, same adapter, in alternation.

    python -m venv /tmp/trl && /tmp/trl/bin/pip install "trl[peft]==1.16.0" torch
    python benchmarks/sft_vs_trl.py --peer-python /tmp/trl/bin/python --data rows.json --rows 96

Every run is a process of its own. Both sides get the same token ids and the same targets. A run's speed is real tokens
(no padding) over the seconds from the first step's begin to the last step's end; loading is not counted on either side.
Prints tokens/s, their ratio round by round with its median, peak memory and both loss curves; --out keeps all of it.
Beside tokens/s stands the share of this machine's rate of matrix products: the operations of the products that the training
cannot do without (forward, backward by inputs, adapters, the head on supervised rows; attention not counted), per second, over
what a bf16 product of the model's MLP reaches alone on as many threads, measured before each of our runs.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

RANK, ALPHA = 16, 32
LEARNING_RATES = {"lora": 2e-4, "full": 1e-5}

TRL_BEST: dict[str, Any] = {
    # The fastest of the settings in TRL_TRIED on two AVX512-BF16 cores.
    "dtype": "bfloat16",
    "settings": {"bf16": False, "per_device_train_batch_size": 1, "packing": True, "max_length": 512},
}
TRL_TRIED: dict[str, dict[str, Any]] = {
    "best": TRL_BEST,
    "packed 512, autocast": {**TRL_BEST, "settings": {**TRL_BEST["settings"], "bf16": True}},
    "packed 2048": {**TRL_BEST, "settings": {**TRL_BEST["settings"], "max_length": 2048}},
    "packed 1024": {**TRL_BEST, "settings": {**TRL_BEST["settings"], "max_length": 1024}},
    "grouped by length, batch 4": {
        "dtype": "bfloat16",
        "settings": {
            "bf16": False,
            "per_device_train_batch_size": 4,
            "train_sampling_strategy": "group_by_length",
        },
    },
    "padding-free, batch 4": {
        "dtype": "bfloat16",
        "settings": {"bf16": False, "per_device_train_batch_size": 4, "padding_free": True, "max_length": None},
    },
    "fp32 weights, autocast, packed 512": {
        "dtype": "float32",
        "settings": {**TRL_BEST["settings"], "bf16": True},
    },
}


def main() -> None:
    """Parse, prepare the rows once, run both sides `--rounds` times, print and keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python", required=True, help="Python of an environment that has TRL")
    parser.add_argument("--model", default="smollm2-135m", help="built-in name or model folder")
    parser.add_argument("--data", type=Path, help="rows of any format `ingest` reads; none = the support-desk seeds")
    parser.add_argument("--rows", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--method", choices=("lora", "full"), default="lora")
    parser.add_argument("--trl", choices=sorted(TRL_TRIED), default="best", help="which of TRL's settings")
    parser.add_argument("--pack-length", type=int, help="tokens of our packs; none = 1024")
    parser.add_argument("--out", type=Path, help="JSON file for every figure")
    parser.add_argument("--worker", nargs=2, metavar=("SPEC", "RESULT"), help=argparse.SUPPRESS)
    if "--worker" in sys.argv:
        place = sys.argv.index("--worker")
        run_ours(Path(sys.argv[place + 1]), Path(sys.argv[place + 2]))
        return
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        report = compare(args, Path(folder))
    print_report(report)
    if args.out:
        args.out.write_text(json.dumps(report, indent=1))


def compare(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Alternate ours and TRL's; returns everything that was measured."""
    model_dir = find_model(args.model)
    peer = TRL_TRIED[args.trl]
    rows = folder / "rows.jsonl"
    facts = write_rows(model_dir, args.data, args.rows, rows)
    spec = {
        "model": str(model_dir),
        "rows": str(rows),
        "method": args.method,
        "rank": RANK,
        "alpha": ALPHA,
        "learning_rate": LEARNING_RATES[args.method],
        "threads": args.threads,
        "pack_length": args.pack_length or 1024,
        **peer,
    }
    spec_path = folder / "spec.json"
    spec_path.write_text(json.dumps(spec))
    here = Path(__file__).resolve()
    commands = {
        "tunesmith": [sys.executable, str(here), "--worker", str(spec_path)],
        "trl": [args.peer_python, str(here.with_name("trl_peer.py")), str(spec_path)],
    }
    rounds: list[dict[str, Any]] = []
    for number in range(args.rounds):
        order = list(commands) if number % 2 == 0 else list(commands)[::-1]
        measured = {name: run_side(commands[name], folder / f"{name}.json", args.threads) for name in order}
        ratio = speed(measured["tunesmith"]) / speed(measured["trl"])
        rounds.append({**measured, "ratio": ratio})
        print(f"round {number + 1}: {ratio:.2f}x", flush=True)
    public = {key: spec[key] for key in ("method", "rank", "alpha", "learning_rate", "threads", "pack_length")}
    return {"model": args.model, "rows": facts, "trl": peer, "setup": public, "rounds": rounds}


def find_model(name: str) -> Path:
    """A folder as it is, or a built-in model's."""
    if Path(name).is_dir():
        return Path(name)
    from tunesmith.events import NullSink
    from tunesmith.model.catalog import fetch_model

    return fetch_model(name, events=NullSink()).path


def write_rows(model_dir: Path, data: Path | None, limit: int, out: Path) -> dict[str, int]:
    """Render rows with the model's own template: {input_ids, labels} a line, -100 where nothing is learnt."""
    from tunesmith.chat.renderer import Renderer
    from tunesmith.data.readers import read_examples
    from tunesmith.types import Conversation

    path = data or Path(__file__).resolve().parent.parent / "examples" / "support-desk" / "seeds.jsonl"
    renderer = Renderer.for_model(model_dir)
    conversations = [row for row in read_examples(path) if isinstance(row, Conversation)]
    counts = {"rows": 0, "tokens": 0, "supervised": 0}
    with out.open("w") as stream:
        for conversation in conversations[:limit]:
            rendered = renderer.render(conversation.messages, "all_turns")
            pairs = zip(rendered.input_ids, rendered.loss_mask, strict=True)
            labels = [token if wanted else -100 for token, wanted in pairs]
            stream.write(json.dumps({"input_ids": list(rendered.input_ids), "labels": labels}) + "\n")
            counts["rows"] += 1
            counts["tokens"] += len(labels)
            counts["supervised"] += sum(rendered.loss_mask)
    return counts


def run_side(command: list[str], result: Path, threads: int) -> dict[str, Any]:
    """One process; its output is shown only where it fails."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run([*command, str(result)], env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr[-3000:]}")
    return json.loads(result.read_text())


def run_ours(spec_path: Path, result_path: Path) -> None:
    """The same training through tunesmith's loop."""
    spec = json.loads(spec_path.read_text())
    import numpy as np
    import torch

    torch.set_num_threads(spec["threads"])
    from tunesmith.events import CallbackSink, Metric
    from tunesmith.model.adapters import AdapterConfig, add_adapter, choose_targets, target_names
    from tunesmith.model.load import load_model
    from tunesmith.recipe import Train
    from tunesmith.training.batches import Samples
    from tunesmith.training.loop import train
    from tunesmith.training.losses import CrossEntropy
    from tunesmith.training.precision import choose_precision
    from tunesmith.training.step import Pace

    rows = [json.loads(line) for line in Path(spec["rows"]).read_text().splitlines()]
    samples = Samples(
        input_ids=np.concatenate([row["input_ids"] for row in rows]).astype(np.int32),
        loss_mask=np.concatenate([np.array(row["labels"]) != -100 for row in rows]).astype(np.uint8),
        lengths=np.array([len(row["input_ids"]) for row in rows], dtype=np.int64),
        ids=tuple(str(index) for index in range(len(rows))),
    )
    config = json.loads((Path(spec["model"]) / "config.json").read_text())
    precision = choose_precision("auto", torch.device("cpu"), config["hidden_size"], config["intermediate_size"])
    model = load_model(Path(spec["model"]), device="cpu", dtype=precision.dtype)
    product_rate = measure_product(spec["pack_length"], config["hidden_size"], config["intermediate_size"])
    if spec["method"] == "lora":
        targets = choose_targets(model, ("all-linear",))
        names = target_names(model, targets)
        add_adapter(model, AdapterConfig(spec["rank"], spec["alpha"], 0.0, targets, names, ""), rng_seed=17)
    else:
        model.requires_grad_(True)
    section = Train(method=spec["method"], num_epochs=1, lr_schedule="constant", warmup_ratio=0)
    steps: list[dict[str, float]] = []

    def watch(event: Any) -> None:
        if isinstance(event, Metric):
            steps.append({"step": event.step, "loss": event.values["loss"]})

    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        trained = train(
            model,
            samples,
            section,
            learning_rate=spec["learning_rate"],
            pack_length=spec["pack_length"],
            pace=Pace(1, 1_000_000, 1, 1, False, True, True, True, False),
            checkpoint_dir=Path(folder) / "checkpoints",
            metrics_path=Path(folder) / "metrics.jsonl",
            events=CallbackSink(watch),
            loss=CrossEntropy(),
        )
        seconds = time.perf_counter() - started
    result = {
        "flops": needed_flops(model, samples),
        "product_flops_per_second": product_rate,
        "seconds": seconds,
        "tokens": int(samples.lengths.sum()),
        "steps": steps,
        "peak_memory_bytes": trained.peak_memory_bytes,
        "precision": precision.reason,
    }
    result_path.write_text(json.dumps(result))


def measure_product(rows: int, inputs: int, outputs: int) -> float:
    """Operations per second of the best of 30 bf16 products (rows, inputs) x (inputs, outputs)."""
    import torch

    left, right = torch.randn(rows, inputs).bfloat16(), torch.randn(outputs, inputs).bfloat16()
    best = float("inf")
    for _ in range(30):
        started = time.perf_counter()
        torch.nn.functional.linear(left, right)
        best = min(best, time.perf_counter() - started)
    return 2 * rows * inputs * outputs / best


def needed_flops(model: Any, samples: Any) -> float:
    """Operations of the matrix products of one epoch, two for each multiplication. A weight that is trained costs a third
    product."""
    head = model.get_output_embeddings().weight
    per_token = sum(
        (6 if p.requires_grad else 4) * p.numel()
        for p in model.get_decoder().parameters()
        if p.dim() == 2 and p is not head
    )
    per_target = (6 if head.requires_grad else 4) * head.numel()
    return per_token * float(samples.lengths.sum()) + per_target * float(samples.num_targets.sum())


def speed(run: dict[str, Any]) -> float:
    """Real tokens per second."""
    return run["tokens"] / run["seconds"]


def print_report(report: dict[str, Any]) -> None:
    """The table for people."""
    rounds = report["rounds"]
    rows = report["rows"]
    print(f"\n{report['model']}, {report['setup']['method']}, {report['setup']['threads']} threads; ", end="")
    print(f"{rows['rows']} rows, {rows['tokens']:,} tokens, {rows['supervised']:,} supervised")
    print(f"TRL: {report['trl']}\n")
    ours = [entry["tunesmith"] for entry in rounds]
    rate = statistics.median(run["product_flops_per_second"] for run in ours)
    print(f"{'':12}{'tokens/s':>10}{'of rate':>10}{'peak GB':>10}{'steps':>8}{'first loss':>12}{'last loss':>12}")
    for name in ("tunesmith", "trl"):
        runs = [entry[name] for entry in rounds]
        tokens, memory = (
            statistics.median(values) for values in ([speed(r) for r in runs], [r["peak_memory_bytes"] for r in runs])
        )
        curve = runs[0]["steps"]
        first, last = curve[0]["loss"], curve[-1]["loss"]
        share = ours[0]["flops"] / ours[0]["tokens"] * tokens / rate
        print(f"{name:12}{tokens:10.0f}{share:10.0%}{memory / 1e9:10.2f}{len(curve):8}{first:12.3f}{last:12.3f}")
    limit = rate / (ours[0]["flops"] / ours[0]["tokens"])
    print(f"\nproducts alone: {rate / 1e9:.0f} GFLOP/s, so {limit:.0f} tokens/s would be all of it")
    ratios = [entry["ratio"] for entry in rounds]
    print(f"\nratio: median {statistics.median(ratios):.2f}x (from {min(ratios):.2f} to {max(ratios):.2f})")
    print("\nloss by step (tunesmith | trl)")
    ours, theirs = (rounds[0][name]["steps"] for name in ("tunesmith", "trl"))
    for index in range(max(len(ours), len(theirs))):
        cells = [f"{curve[index]['loss']:.4f}" if index < len(curve) else "" for curve in (ours, theirs)]
        print(f"{index + 1:5} {cells[0]:>8} | {cells[1]:>8}")


if __name__ == "__main__":
    main()
