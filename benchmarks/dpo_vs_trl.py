"""Learning from pairs (DPO): tunesmith against TRL's DPOTrainer, same token ids, same adapter, same pairs in every step, in alternation.

    python -m venv /tmp/trl && /tmp/trl/bin/pip install "trl[peft]==1.16.0" torch
    python benchmarks/dpo_vs_trl.py --peer-python /tmp/trl/bin/python --data rows.json --pairs 8 --pairs-per-step 2 --turns 3

Every run is a process of its own. Both sides start from one adapter file and see the same pairs in the same order, so that
the two loss curves can be laid over each other. A pair is a chat of `--turns` exchanges of the file, then one more question:
chosen is its own reply, rejected the reply of another row; `--common-turns` puts the same exchanges before all chats, like the
examples of a prompt; files of preferences are taken as they are. The first epoch counts the reference model's
log-probabilities, later ones have them (TRL: where its settings keep them). A run's speed is real tokens, prompt and answer of
both sequences of a pair, over seconds; loading is not counted, our rehearsal of the largest pack is. Prints tokens/s, their
ratio round by round with its median, peak memory and both loss curves; --out keeps all of it. Beside the ratio stands how far
ahead of TRL those matrix products alone would be that the training cannot do without (see sft_vs_trl.py), at the rate they
reach here.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import rounds
from training_ours import (
    RANK,
    Watch,
    answered,
    computed_rows,
    exchanges,
    find_model,
    load_adapted,
    measure_product,
    needed_flops,
    read_data,
    train_on,
    write_adapter,
)

BETA, LEARNING_RATE = 0.1, 2e-5

TRL_BEST: dict[str, Any] = {
    # The fastest of those of TRL_TRIED that were measured: docs/benchmarks.md has their seconds.
    "dtype": "bfloat16",
    "per_device": 1,  # pairs; a step's other pairs are accumulated
    "settings": {"bf16": False, "precompute_ref_log_probs": True},
}
TRL_TRIED: dict[str, dict[str, Any]] = {
    "best": TRL_BEST,
    "reference on the fly": {**TRL_BEST, "settings": {"bf16": False, "precompute_ref_log_probs": False}},
    "2 pairs at once": {**TRL_BEST, "per_device": 2},
    "4 pairs at once": {**TRL_BEST, "per_device": 4},
    "reference of 4 pairs at once": {**TRL_BEST, "settings": {**TRL_BEST["settings"], "precompute_ref_batch_size": 4}},
    "autocast": {**TRL_BEST, "settings": {**TRL_BEST["settings"], "bf16": True}},
    "fp32 weights, autocast": {**TRL_BEST, "dtype": "float32", "settings": {**TRL_BEST["settings"], "bf16": True}},
    "padding-free": {**TRL_BEST, "settings": {**TRL_BEST["settings"], "padding_free": True}},  # 1.16 warns and pads
}


def main() -> None:
    """Parse, prepare the pairs once, run both sides `--rounds` times, print and keep the figures."""
    parser = rounds.new_parser(__doc__, rounds=2)
    rounds.add_trl(parser, TRL_TRIED, alone=True)
    parser.add_argument("--pairs", type=int, default=16)
    parser.add_argument("--turns", type=int, default=3, help="exchanges before the one that is compared")
    parser.add_argument("--common-turns", type=int, default=0, help="exchanges before these, the same for all")
    parser.add_argument("--pairs-per-step", type=int, default=4)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--pack-length", type=int, default=2048, help="tokens of our packs, shared beginnings once")
    rounds.run(parser, compare, print_report, run_ours)


def compare(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Alternate ours and TRL's; returns everything that was measured."""
    model_dir = find_model(args.model)
    peer = TRL_TRIED[args.trl]
    pairs = folder / "pairs.jsonl"
    facts = write_pairs(model_dir, args, pairs)
    write_adapter(model_dir, folder / "adapter")
    setup = {
        "beta": BETA,
        "learning_rate": LEARNING_RATE,
        "pairs_per_step": args.pairs_per_step,
        "epochs": args.epochs,
        "threads": args.threads,
        "pack_length": args.pack_length,
    }
    places = {"pairs": str(pairs), "adapter": str(folder / "adapter"), "scratch": str(folder / "scratch")}
    spec = {**setup, **places, "model": str(model_dir), **peer}
    peers = {"trl": [args.peer_python, str(rounds.HERE / "trl_dpo_peer.py")]}
    entries = rounds.measure(args, folder, spec, script=__file__, peers=peers, tell=ratios_in_words)
    return {"model": args.model, "pairs": facts, "trl": peer, "setup": setup, "rounds": entries}


def write_pairs(model_dir: Path, args: argparse.Namespace, out: Path) -> dict[str, float]:
    """Pairs as token ids, {prompt_ids, chosen_ids, rejected_ids} a line, pairs of like length in the same step."""
    from tunesmith.chat.renderer import Renderer

    renderer = Renderer.for_model(model_dir)
    found: list[dict[str, list[int]]] = []
    for prompt, *answers in read_pairs(args.data, args.turns, args.common_turns):
        if len(found) == args.pairs:
            break
        rendered = [renderer.render([*prompt, answer], "last_turn") for answer in answers]
        starts = [list(each.loss_mask).index(True) for each in rendered]
        chosen, rejected = (list(each.input_ids) for each in rendered)
        length = starts[0]
        assert chosen[:length] == rejected[: starts[1]], "a pair's prompts differ"
        found.append({"prompt_ids": chosen[:length], "chosen_ids": chosen[length:], "rejected_ids": rejected[length:]})
    size = args.pairs_per_step
    if len(found) < args.pairs or args.pairs % size:
        sys.exit(
            f"{len(found)} pairs of {args.pairs} wanted, and a step has {size}: give --data more rows, or ask for less"
        )
    found.sort(key=tokens_of)
    steps = [found[start : start + size] for start in range(0, len(found), size)]
    random.Random(17).shuffle(steps)
    rounds.write_lines(out, [pair for step in steps for pair in step])
    tokens = sum(map(tokens_of, found))
    once = tokens - sum(len(pair["prompt_ids"]) for pair in found)
    return {
        "pairs": len(found),
        "tokens": tokens,
        "prompt": statistics.mean(len(pair["prompt_ids"]) for pair in found),
        "answer": statistics.mean(len(pair[name]) for pair in found for name in ("chosen_ids", "rejected_ids")),
        "shared_ratio": tokens / once,
    }


def read_pairs(data: list[Path] | None, turns: int, common_turns: int) -> Any:
    """(prompt messages, chosen, rejected) of each pair."""
    from tunesmith.types import Message, Preference

    rows = read_data(data)
    for row in rows:
        if isinstance(row, Preference):
            answers = (Message(role="assistant", content=text) for text in (row.chosen, row.rejected))
            yield (row.prompt, *answers)
    chats = answered(rows)
    common = exchanges(chats[:common_turns])
    for start in range(common_turns, len(chats) - turns - 1, turns + 1):
        row, stranger = chats[start + turns], chats[start + turns + 1]
        system = [message for message in row.prompt if message.role == "system"]
        rest = [message for message in row.prompt if message.role != "system"]
        before = common + exchanges(chats[start : start + turns])
        yield [*system, *before, *rest], row.messages[-1], stranger.messages[-1]


def tokens_of(pair: dict[str, list[int]]) -> int:
    """Of both sequences of a pair."""
    return 2 * len(pair["prompt_ids"]) + len(pair["chosen_ids"]) + len(pair["rejected_ids"])


def run_ours(spec: dict[str, Any]) -> dict[str, Any]:
    """The same training through tunesmith's reference store and loop."""
    from tunesmith.recipe.align import Align
    from tunesmith.training.losses import LOSSES
    from tunesmith.training.pairs import with_reference
    from tunesmith.training.reference import reference_log_probs

    model, precision = load_adapted(spec)
    product_rate = measure_product(model, spec["pack_length"])
    section = Align(loss="dpo", beta=spec["beta"], num_epochs=spec["epochs"], lr_schedule="constant", warmup_ratio=0)
    samples = read_samples(spec["pairs"])
    watch = Watch()
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        samples = with_reference(
            samples, reference_log_probs(model, samples, Path(folder) / "reference.jsonl", lambda done, total: None)
        )
        reference_seconds = time.perf_counter() - started
        source = given_order(samples, section, spec)
        begin = time.perf_counter()
        trained = train_on(model, source, section, spec, watch, Path(folder), LOSSES.load("dpo", where="")(section))
    per_epoch = len(watch.steps) // spec["epochs"]
    marks = [begin, *watch.ends[per_epoch - 1 :: per_epoch]]
    counts = computed_rows(source, range(per_epoch)), int(samples.num_targets.sum())
    later = needed_flops(model, *counts)
    return {
        "epoch_flops": [later + needed_flops(model, *counts, backward=False), *[later] * (spec["epochs"] - 1)],
        "product_flops_per_second": product_rate,
        "reference_seconds": reference_seconds,
        "rehearsal_seconds": (watch.begin or begin) - begin,
        "epoch_seconds": [end - start for start, end in pairwise(marks)],
        "tokens": int(samples.lengths.sum()),
        "steps": watch.steps,
        "peak_memory_bytes": trained.peak_memory_bytes,
        "precision": precision,
    }


def read_samples(path: str) -> Any:
    """The pairs as the stage `align` has them."""
    import numpy as np

    from tunesmith.chat.renderer import RenderedArrays
    from tunesmith.training.pairs import pair_samples

    def answer(prompt: list[int], ids: list[int]) -> RenderedArrays:
        mask = np.arange(len(prompt) + len(ids)) >= len(prompt)
        return RenderedArrays(np.array(prompt + ids, np.int32), np.zeros(len(mask), np.int16), mask, "")

    rows = rounds.read_lines(path)
    pairs = [
        (answer(row["prompt_ids"], row["chosen_ids"]), answer(row["prompt_ids"], row["rejected_ids"])) for row in rows
    ]
    return pair_samples(pairs, [str(number) for number in range(len(rows))])


def given_order(samples: Any, section: Any, spec: dict[str, Any]) -> Any:
    """A source of samples that keeps the file's order, the same pairs in a step as TRL has; packed within the step."""
    from tunesmith.training.packing import plan_packs
    from tunesmith.training.sources import FixedSamples, spell_out

    size = spec["pairs_per_step"]
    pack_length = max(spec["pack_length"], int(samples.group_lengths.max()))

    class GivenOrder(FixedSamples):
        def take(self, step: int) -> Any:
            start = step * size % len(samples.groups)
            plan = plan_packs(samples.group_lengths[start : start + size], pack_length, rng_seed=step)
            packs = tuple(tuple(start + group for group in pack) for pack in plan.packs)
            return self.samples, spell_out(self.samples, packs)

    source = GivenOrder(samples, int(samples.group_lengths.max()), section.model_copy(update={"global_batch_size": 1}))
    source.num_steps = len(samples.groups) // size * spec["epochs"]
    return source


def seconds_of(run: dict[str, Any], epoch: int) -> float:
    """Of an epoch; the first one pays for the reference."""
    return run["epoch_seconds"][epoch] + (run["reference_seconds"] if epoch == 0 else 0)


def ratios_of(measured: dict[str, Any]) -> list[float]:
    """Ours over TRL's speed, by epoch; nothing where one side ran alone."""
    if len(measured) < 2:
        return []
    ours, theirs = measured[rounds.OURS], measured["trl"]
    return [seconds_of(theirs, epoch) / seconds_of(ours, epoch) for epoch in range(len(ours["epoch_seconds"]))]


def ratios_in_words(measured: dict[str, Any]) -> str:
    names = [f"epoch {epoch + 1}: {ratio:.2f}x" for epoch, ratio in enumerate(ratios_of(measured))]
    alone = [
        f"{name}: {[round(seconds_of(run, e), 1) for e in range(len(run['epoch_seconds']))]} s"
        for name, run in measured.items()
    ]
    return ", ".join([*names, *alone])


def print_report(report: dict[str, Any]) -> None:
    """The table for people."""
    entries, pairs, setup = report["rounds"], report["pairs"], report["setup"]
    print(
        f"\n{report['model']}, LoRA rank {RANK}, DPO beta {setup['beta']}, {setup['threads']} threads; {pairs['pairs']} pairs, ",
        end="",
    )
    print(
        f"{pairs['tokens']:,} tokens; prompt {pairs['prompt']:.0f} and answer {pairs['answer']:.0f} tokens on average, ",
        end="",
    )
    print(f"prompts once: {pairs['shared_ratio']:.2f}x fewer tokens\nTRL: {report['trl']}\n")
    print(
        f"{'':12}{'tokens/s, epoch by epoch':>28}{'reference s':>13}{'peak GB':>10}{'first loss':>12}{'last loss':>12}"
    )
    for name in entries[0]:
        runs = [entry[name] for entry in entries]
        speeds = [
            statistics.median(run["tokens"] / seconds_of(run, epoch) for run in runs)
            for epoch in range(setup["epochs"])
        ]
        reference, curve = rounds.median_of(runs, "reference_seconds"), runs[0]["steps"]
        shown = ", ".join(f"{speed:.0f}" for speed in speeds)
        print(f"{name:12}{shown:>28}{reference:13.1f}{rounds.peak_gigabytes(runs):10.2f}", end="")
        print(f"{curve[0]['loss']:12.4f}{curve[-1]['loss']:12.4f}")
    if len(entries[0]) < 2:
        return
    print()
    ours, theirs = ([entry[name] for entry in entries] for name in (rounds.OURS, "trl"))
    rate = rounds.median_of(ours, "product_flops_per_second")
    for epoch, ratios in enumerate(zip(*(ratios_of(entry) for entry in entries), strict=True)):
        what = "with the reference" if epoch == 0 else "reference known"
        alone = ours[0]["epoch_flops"][epoch] / rate
        bound = statistics.median(seconds_of(run, epoch) for run in theirs) / alone
        print(f"epoch {epoch + 1} ({what}): {rounds.spread(ratios)}; its products alone {alone:.1f} s, {bound:.1f}x")
    rehearsal = rounds.median_of(ours, "rehearsal_seconds")
    print(f"rehearsal of the largest pack, once in a training: {rehearsal:.1f} s of the first epoch")
    print(f"products alone: at {rate / 1e9:.0f} GFLOP/s, what a bf16 product of the model's MLP reaches")
    rounds.print_losses(entries[0])


if __name__ == "__main__":
    main()
