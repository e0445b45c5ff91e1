"""Supervised fine-tuning: tunesmith against TRL's SFTTrainer, same rows, same cores, same adapter, in alternation.

    python -m venv /tmp/trl && /tmp/trl/bin/pip install "trl[peft]==1.16.0" torch
    python benchmarks/sft_vs_trl.py --peer-python /tmp/trl/bin/python --data rows.json --rows 96

Every run is a process of its own. Both sides get the same token ids and the same targets. A run's speed is real tokens
(no padding) over the seconds from the first step's begin to the last step's end; loading is not counted on either side.
Prints tokens/s, their ratio round by round with its median, peak memory and both loss curves; --out keeps all of it.
Beside tokens/s stands the share of this machine's rate of matrix products: the operations of the products that the training
cannot do without (forward, backward by inputs, adapters, the head on supervised rows; attention not counted), per second, over
what a bf16 product of the model's MLP reaches alone on as many threads, measured before each of our runs. Beginnings that the
rows of a pack share are counted once.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import rounds
from training_ours import (
    ALPHA,
    RANK,
    Watch,
    add_lora,
    computed_rows,
    find_model,
    load_base,
    measure_product,
    needed_flops,
    read_samples,
    train_on,
    write_rows,
)

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
    parser = rounds.new_parser(__doc__, rounds=3)
    rounds.add_trl(parser, TRL_TRIED, alone=False)
    parser.add_argument("--rows", type=int, default=96)
    parser.add_argument("--method", choices=("lora", "full"), default="lora")
    parser.add_argument("--pack-length", type=int, help="tokens of our packs; none = 1024")
    parser.add_argument(
        "--common-turns", type=int, default=0, help="exchanges that stand before every row, the same for all"
    )
    rounds.run(parser, compare, print_report, run_ours)


def compare(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Alternate ours and TRL's; returns everything that was measured."""
    model_dir = find_model(args.model)
    peer = TRL_TRIED[args.trl]
    rows = folder / "rows.jsonl"
    facts = write_rows(model_dir, args.data, args.rows, rows, args.common_turns)
    setup = {
        "method": args.method,
        "rank": RANK,
        "alpha": ALPHA,
        "learning_rate": LEARNING_RATES[args.method],
        "threads": args.threads,
        "pack_length": args.pack_length or 1024,
    }
    spec = {**setup, "model": str(model_dir), "rows": str(rows), "scratch": str(folder / "scratch"), **peer}

    def tell(measured: dict[str, Any]) -> str:
        measured["ratio"] = speed(measured[rounds.OURS]) / speed(measured["trl"])
        return f"{measured['ratio']:.2f}x"

    peers = {"trl": [args.peer_python, str(rounds.HERE / "trl_peer.py")]}
    entries = rounds.measure(args, folder, spec, script=__file__, peers=peers, tell=tell)
    return {"model": args.model, "rows": facts, "trl": peer, "setup": setup, "rounds": entries}


def run_ours(spec: dict[str, Any]) -> dict[str, Any]:
    """The same training through tunesmith's loop."""
    from tunesmith.recipe import Train
    from tunesmith.training.losses import CrossEntropy
    from tunesmith.training.sources import FixedSamples

    samples = read_samples(spec["rows"])
    model, precision = load_base(spec)
    product_rate = measure_product(model, spec["pack_length"])
    if spec["method"] == "lora":
        add_lora(model)
    else:
        model.requires_grad_(True)
    section = Train(method=spec["method"], num_epochs=1, lr_schedule="constant", warmup_ratio=0)
    watch = Watch()
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        source = FixedSamples(samples, spec["pack_length"], section)
        trained = train_on(model, source, section, spec, watch, Path(folder), CrossEntropy())
        seconds = time.perf_counter() - started
    return {
        "flops": needed_flops(model, computed_rows(source, range(source.num_steps)), int(samples.num_targets.sum())),
        "product_flops_per_second": product_rate,
        "seconds": seconds,
        "tokens": int(samples.lengths.sum()),
        "steps": watch.steps,
        "peak_memory_bytes": trained.peak_memory_bytes,
        "precision": precision,
    }


def speed(run: dict[str, Any]) -> float:
    """Real tokens per second."""
    return run["tokens"] / run["seconds"]


def print_report(report: dict[str, Any]) -> None:
    """The table for people."""
    entries = report["rounds"]
    rows = report["rows"]
    print(f"\n{report['model']}, {report['setup']['method']}, {report['setup']['threads']} threads; ", end="")
    print(f"{rows['rows']} rows, {rows['tokens']:,} tokens, {rows['supervised']:,} supervised")
    print(f"TRL: {report['trl']}\n")
    ours = [entry[rounds.OURS] for entry in entries]
    rate = rounds.median_of(ours, "product_flops_per_second")
    per_token = ours[0]["flops"] / ours[0]["tokens"]
    print(f"{'':12}{'tokens/s':>10}{'of rate':>10}{'peak GB':>10}{'steps':>8}{'first loss':>12}{'last loss':>12}")
    for name in (rounds.OURS, "trl"):
        runs = [entry[name] for entry in entries]
        tokens, curve = rounds.median_of(runs, speed), runs[0]["steps"]
        print(
            f"{name:12}{tokens:10.0f}{per_token * tokens / rate:10.0%}{rounds.peak_gigabytes(runs):10.2f}{len(curve):8}",
            end="",
        )
        print(f"{curve[0]['loss']:12.3f}{curve[-1]['loss']:12.3f}")
    print(f"\nproducts alone: {rate / 1e9:.0f} GFLOP/s, so {rate / per_token:.0f} tokens/s would be all of it")
    print(f"\nratio: {rounds.spread([entry['ratio'] for entry in entries])}")
    rounds.print_losses(entries[0])


if __name__ == "__main__":
    main()
