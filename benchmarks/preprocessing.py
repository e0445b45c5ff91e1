"""Long chats to training samples (render, tokenise, mask, pack): the stage `tokenize` against peers' dataset preparation.

    python -m venv /tmp/trl && /tmp/trl/bin/pip install "trl[peft]==1.16.0" torch
    python -m venv /tmp/lf && /tmp/lf/bin/pip install llamafactory==0.9.5 torch
    python -m venv /tmp/axolotl && /tmp/axolotl/bin/pip install axolotl==0.19.0
    python benchmarks/preprocessing.py --trl-python /tmp/trl/bin/python --llamafactory-python /tmp/lf/bin/python \
        --axolotl-python /tmp/axolotl/bin/python --data gsm8k_train.json --rows 1000 --rounds 3

A chat is `--exchanges` questions and answers of different rows of the data, one after another: real texts, made long. Every run is
a process of its own, in alternation. Imports are left out on every side (ours: numba with the loops it compiled before, too); all
else counts: loading the tokenizer, reading the rows' file, rendering, tokens, masks, packs (axolotl makes those while it trains), and
writing what was made, workers' start included. Ours is the stage as a run has it; TRL is its tokenizer, `load_dataset` and
SFTTrainer's preparation (assistant_only_loss with the same template and generation tags in it, BFD packing); LLaMA-Factory its
tokenizer and dataset (sft, packing, its chatml template); axolotl its tokenizer and datasets as `axolotl preprocess` has them
(chat_template, the tokenizer's own). Two processes each. What came out is compared: samples with the same ids, and with the same ids
and targets (LLaMA-Factory also trains the line break after a turn's end: it is told apart, and no other difference is). Prints
seconds and those of peers' preparation alone (rows and tokenizer at hand), rows/s, tokens/s, ratios round by round with their
median, and the peak memory of the process and its children; --out keeps all of it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import statistics
import time
from collections import Counter
from pathlib import Path
from typing import Any

import rounds
from training_ours import answered, find_model, read_data

SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"  # what its template writes by itself
PEERS = ("trl", "llamafactory", "axolotl")

TRL_BEST: dict[str, Any] = {"dataset_num_proc": 2}
TRL_TRIED: dict[str, dict[str, Any]] = {"best": TRL_BEST, "one process": {"dataset_num_proc": None}}


def main() -> None:
    """Parse, make the chats once, run all sides `--rounds` times, print and keep the figures."""
    parser = rounds.new_parser(__doc__, rounds=2)
    for peer in PEERS:
        parser.add_argument(f"--{peer}-python", help=f"Python of an environment that has {peer}; none = left out")
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--exchanges", type=int, nargs=2, default=(10, 30), metavar=("LEAST", "MOST"))
    parser.add_argument("--pack-length", type=int, default=8192, help="chats are cut short of it, between exchanges")
    parser.add_argument("--workers", type=int, help="of ours; none = what the recipe's auto takes")
    parser.add_argument("--trl", choices=sorted(TRL_TRIED), default="best", help="which of TRL's settings")
    rounds.run(parser, compare, print_report, run_ours)


def compare(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Alternate all sides; returns everything that was measured."""
    model_dir = find_model(args.model)
    facts = write_chats(model_dir, args, folder)
    spec = {
        "model": str(model_dir),
        "template": str(folder / "template.jinja"),
        "rows": str(folder / "train.jsonl"),
        "chats": str(folder / "chats.jsonl"),
        "scratch": str(folder / "scratch"),
        "pack_length": args.pack_length,
        "workers": args.workers,
        "system": SYSTEM,
        "settings": TRL_TRIED[args.trl],
    }
    pythons = {peer: getattr(args, f"{peer}_python") for peer in PEERS}
    peers = {
        peer: [python, str(rounds.HERE / "preprocessing_peers.py"), peer] for peer, python in pythons.items() if python
    }
    digests: dict[str, Any] = {}

    def tell(measured: dict[str, Any]) -> str:
        digests.update({name: run.pop("digests") for name, run in measured.items()})
        return ", ".join(f"{name} {run['seconds']:.2f} s" for name, run in measured.items())

    entries = rounds.measure(args, folder, spec, script=__file__, peers=peers, tell=tell, watch_tree=True)
    return {
        "chats": facts,
        "pack_length": args.pack_length,
        "trl": TRL_TRIED[args.trl],
        "agreement": {name: agreement(digests[rounds.OURS], digests[name]) for name in peers},
        "rounds": entries,
    }


def write_chats(model_dir: Path, args: argparse.Namespace, folder: Path) -> dict[str, float]:
    """The chats as the stage reads them (train.jsonl) and as peers do (chats.jsonl), and the template with generation tags."""
    from tunesmith.chat.renderer import Renderer
    from tunesmith.text.jsonl import write_records
    from tunesmith.types import Conversation, Message, Task

    rows = [
        row
        for row in answered(read_data(args.data))
        if [each.role for each in row.messages if each.role != "system"] == ["user", "assistant"]
    ]
    renderer, source = Renderer.for_model(model_dir), random.Random(5)
    chats: list[Conversation] = []
    while len(chats) < args.rows:
        messages = [Message(role="system", content=SYSTEM)]
        for row in source.sample(rows, min(source.randint(*args.exchanges), len(rows))):
            messages += [each for each in row.messages if each.role != "system"]
        while len(renderer.render(messages, "all_turns").input_ids) > args.pack_length:
            del messages[-2:]
        chats.append(Conversation(messages=messages, source=f"chats.jsonl:{len(chats) + 1}"))
    write_records(folder / "train.jsonl", chats)
    write_records(folder / "test.jsonl", chats[:1])
    (folder / "task.json").write_text(Task().model_dump_json())
    plain = [[{"role": each.role, "content": each.content} for each in chat.messages] for chat in chats]
    rounds.write_lines(folder / "chats.jsonl", [{"messages": messages} for messages in plain])
    (folder / "template.jinja").write_text(with_generation_tags(renderer.template))
    counts = [len(chat.messages) - 1 for chat in chats]
    return {"rows": len(chats), "turns": statistics.mean(counts), "most_turns": max(counts)}


def with_generation_tags(template: str) -> str:
    """A ChatML template as TRL needs it to know what the assistant says: the same text."""
    begin, rest = template.split(
        "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    )
    written = (
        "{{ '<|im_start|>' + message['role'] + '\n' }}{% if message['role'] == 'assistant' %}"
        "{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}"
        "{% else %}{{ message['content'] + '<|im_end|>' }}{% endif %}{{ '\n' }}"
    )
    return begin + written + rest


def run_ours(spec: dict[str, Any]) -> dict[str, Any]:
    """The stage, from the rows' file to samples and the number of packs."""
    from safetensors.numpy import load_file

    from tunesmith.chat.tokenizer import load_tokenizer
    from tunesmith.chat.word_table import has_compiler
    from tunesmith.events import NullSink
    from tunesmith.protocols import Context
    from tunesmith.recipe import Runtime, Tokenize
    from tunesmith.stages import tokenize
    from tunesmith.types import Artifact, Inputs, Manifest

    rest: dict[str, Any] = {"section": {}, "inputs": {}, "counts": {}, "files": {}, "provenance": {}}

    def artifact(path: Path, facts: dict[str, Any]) -> Artifact:
        return Artifact(path, Manifest(kind="", stage="", stage_version=1, key="", digest="", facts=facts, **rest))

    tokenize.base_model_path = lambda _: Path(spec["model"])
    inputs = Inputs(
        {
            "curate": artifact(Path(spec["rows"]).parent, {}),
            "base_model": artifact(Path(spec["model"]), {"context_length": spec["pack_length"]}),
        },
        {},
    )
    out = Path(spec["scratch"]) / f"ours-{os.getpid()}"
    out.mkdir(parents=True)
    runtime = Runtime() if spec["workers"] is None else Runtime(num_workers=spec["workers"])
    load_tokenizer(Path(spec["model"]))  # what it imports; peers have theirs loaded too
    if has_compiler():
        import tunesmith.chat.word_loops  # noqa: F401 - compiles on a machine's first run
    started = time.perf_counter()
    outcome = tokenize.run(Tokenize(pack_length=spec["pack_length"]), inputs, out, Context(NullSink(), runtime))
    seconds = time.perf_counter() - started
    arrays = load_file(out / tokenize.SAMPLES)
    ends = arrays["lengths"].cumsum().tolist()
    ids, masks = arrays["input_ids"].tolist(), arrays["loss_mask"].tolist()
    samples = [
        (
            ids[end - length : end],
            [t if m else -100 for t, m in zip(ids[end - length : end], masks[end - length : end], strict=True)],
        )
        for end, length in zip(ends, arrays["lengths"].tolist(), strict=True)
    ]
    return {
        "seconds": seconds,
        "tokens": outcome.counts["tokens"],
        "packs": outcome.counts["packs"],
        "digests": [digests_of(*sample) for sample in samples],
    }


def digests_of(ids: list[int], labels: list[int]) -> tuple[str, str]:
    """Of a sample's ids, and of its ids with its targets."""
    first = hashlib.sha256(json.dumps(ids).encode()).hexdigest()[:16]
    return first, first + hashlib.sha256(json.dumps(labels).encode()).hexdigest()[:16]


def agreement(ours: list[list[str]], theirs: list[list[str]]) -> dict[str, int]:
    """How many of our samples they made too, by ids, and by ids and targets."""
    found: dict[str, int] = {"ours": len(ours), "theirs": len(theirs)}
    for place, name in enumerate(("same ids", "same ids and targets")):
        left, right = (Counter(each[place] for each in side) for side in (ours, theirs))
        found[name] = (left & right).total()
    return found


def print_report(report: dict[str, Any]) -> None:
    """The table for people."""
    entries, chats = report["rounds"], report["chats"]
    print(
        f"\n{chats['rows']} chats of {chats['turns']:.0f} turns on average, {chats['most_turns']} at most; packs of {report['pack_length']}\n"
    )
    heads = f"{'seconds':>9}{'preparing':>11}{'rows/s':>9}{'tokens/s':>11}{'packs':>8}{'peak GB':>10}"
    print(f"{'':14}{heads}   ours over it")
    for name in entries[0]:
        runs = [entry[name] for entry in entries]
        seconds = rounds.median_of(runs, "seconds")
        ratios = [entry[name]["seconds"] / entry[rounds.OURS]["seconds"] for entry in entries]
        alone = f"{rounds.median_of(runs, 'preparing'):11.2f}" if "preparing" in runs[0] else f"{'':11}"
        print(
            f"{name:14}{seconds:9.2f}{alone}{chats['rows'] / seconds:9.1f}{runs[0]['tokens'] / seconds:11,.0f}", end=""
        )
        print(f"{runs[0]['packs'] or '-':>8}{rounds.peak_gigabytes(runs):10.2f}   {rounds.spread(ratios)}")
    for name, found in report["agreement"].items():
        print(f"\n{name}: of {found['ours']} samples {found['same ids']} have the same ids, ", end="")
        print(f"{found['same ids and targets']} the same ids and targets")


if __name__ == "__main__":
    main()
