"""One step of GRPO on long prompts: tunesmith against TRL's GRPOTrainer, same prompts, group size and answer lengths, in alternation.

    python -m venv /tmp/trl && /tmp/trl/bin/pip install "trl[peft]==1.16.0" torch
    python benchmarks/grpo_vs_trl.py --peer-python /tmp/trl/bin/python --data rows.json --prompt-tokens 1000 --max-tokens 48

Every run is a process of its own. Both sides start from one adapter file, get the same prompt ids, sample the full softmax at
temperature 1 and never stop before --max-tokens, so that both do the same work; the reward is a line of Python. What they draw
differs. A step is split into sampling, with the rewards, and training: everything after it. Ours samples with the rollout
sampler of the stage `align`, TRL with transformers' `generate` and its cache (no inference server). Loading is not counted.
Prints the seconds of each part, the ratios round by round with their median, peak memory and the mean rewards; --out keeps
all of it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import rounds
from training_ours import Watch, answered, find_model, load_adapted, read_data, train_on, write_adapter

LEARNING_RATE = 2e-5
PARTS = ("sampling", "training", "step")

TRL_BEST: dict[str, Any] = {
    # The fastest of TRL_TRIED on two threads, prompts of 1,000 tokens: docs/benchmarks.md has the others' seconds.
    "dtype": "bfloat16",
    "micro_batch": 2,  # answers of one forward and backward pass; all of a step are sampled together
    "settings": {"bf16": False, "cache_implementation": "static"},
}
_GROWING: dict[str, Any] = {**TRL_BEST, "settings": {"bf16": False}}  # transformers' cache as it is without asking
TRL_TRIED: dict[str, dict[str, Any]] = {
    "best": TRL_BEST,
    "growing cache": _GROWING,
    "1 answer at once": {**_GROWING, "micro_batch": 1},
    "4 answers at once": {**_GROWING, "micro_batch": 4},
    "8 answers at once": {**_GROWING, "micro_batch": 8},
    "8 answers at once, static cache": {**TRL_BEST, "micro_batch": 8},
    "autocast": {**_GROWING, "settings": {"bf16": True}},
    "fp32 weights, autocast": {**_GROWING, "dtype": "float32", "settings": {"bf16": True}},
    "continuous batching": {**_GROWING, "settings": {"bf16": False, "use_transformers_continuous_batching": True}},
}


def main() -> None:
    """Parse, prepare the prompts once, run both sides `--rounds` times, print and keep the figures."""
    parser = rounds.new_parser(__doc__, rounds=2)
    rounds.add_trl(parser, TRL_TRIED, alone=True)
    parser.add_argument("--prompt-tokens", type=int, default=1000, help="earlier exchanges fill a prompt up to this")
    parser.add_argument("--prompts", type=int, default=1, help="of one step")
    parser.add_argument("--group-size", type=int, default=8)
    parser.add_argument("--max-tokens", type=int, default=48, help="of an answer")
    parser.add_argument("--steps", type=int, default=2)
    rounds.run(parser, compare, print_report, run_ours)


def compare(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Alternate ours and TRL's; returns everything that was measured."""
    model_dir = find_model(args.model)
    peer = TRL_TRIED[args.trl]
    prompts = folder / "prompts.jsonl"
    facts = write_prompts(model_dir, args, prompts)
    write_adapter(model_dir, folder / "adapter")
    setup = {
        "prompts": args.prompts,
        "group_size": args.group_size,
        "max_tokens": args.max_tokens,
        "steps": args.steps,
        "learning_rate": LEARNING_RATE,
        "threads": args.threads,
    }
    places = {"prompt_file": str(prompts), "adapter": str(folder / "adapter"), "scratch": str(folder / "scratch")}
    spec = {**setup, **places, "model": str(model_dir), **peer}
    peers = {"trl": [args.peer_python, str(rounds.HERE / "trl_grpo_peer.py")]}
    entries = rounds.measure(args, folder, spec, script=__file__, peers=peers, tell=in_words)
    return {"model": args.model, "prompts": facts, "trl": peer, "setup": setup, "rounds": entries}


def write_prompts(model_dir: Path, args: argparse.Namespace, out: Path) -> dict[str, float]:
    """Conversations that end in a question, {messages, ids} a line: as many exchanges of the file as fit before it."""
    from tunesmith.chat.renderer import Renderer

    renderer, rows = Renderer.for_model(model_dir), answered(read_data(args.data))
    chats: list[tuple[list[Any], tuple[int, ...]]] = []
    start = 0
    while len(chats) < args.prompts * args.steps:
        end, kept = start, None
        while end < len(rows):
            before = [message for row in rows[start:end] for message in row.messages]
            messages = [each for each in [*before, *rows[end].prompt] if each.role != "system"]
            ids = renderer.prompt(messages).input_ids
            if kept is not None and len(ids) > args.prompt_tokens:
                break
            kept = messages, ids
            end += 1
        if kept is None:
            sys.exit(f"the rows are too few for {args.prompts * args.steps} prompts of {args.prompt_tokens} tokens")
        chats.append(kept)
        start = end
    lines = [
        {"messages": [{"role": each.role, "content": each.content} for each in messages], "ids": ids}
        for messages, ids in chats
    ]
    rounds.write_lines(out, lines)
    return {"prompts": len(chats), "mean_tokens": statistics.mean(len(ids) for _, ids in chats)}


def run_ours(spec: dict[str, Any]) -> dict[str, Any]:
    """The steps through the rollouts of the stage `align` and the loop."""
    from tunesmith.chat.renderer import Renderer
    from tunesmith.events import NullSink
    from tunesmith.judging.rewards.combining import Rewarded
    from tunesmith.protocols import Prompt
    from tunesmith.recipe.align import Align
    from tunesmith.stages.rollouts import Rollouts
    from tunesmith.training.on_policy import OnPolicy
    from tunesmith.training.policy_losses import PolicyLoss
    from tunesmith.types import Conversation, Message

    rows = [
        Conversation(messages=[*(Message(**each) for each in line["messages"]), Message(role="assistant", content="?")])
        for line in rounds.read_lines(spec["prompt_file"])
    ]
    model, precision = load_adapted(spec)
    section = Align.model_validate(
        {
            "loss": "grpo",
            "rewards": ["exact"],
            "num_generations": spec["group_size"],
            "prompts_per_rollout": spec["prompts"],
            "max_tokens": spec["max_tokens"],
            "max_steps": spec["steps"],
            "lr_schedule": "constant",
            "warmup_ratio": 0,
        }
    )
    template = Renderer.for_model(Path(spec["model"]))
    rewards: list[list[float]] = []

    class Endless:
        """The renderer with prompts that no token ends."""

        def prompt(self, messages: Any) -> Prompt:
            return Prompt(template.prompt(messages).input_ids, ())

        def decode(self, ids: Any) -> str:
            return template.decode(ids)

    def reward(attempts: Any) -> list[Rewarded]:
        rewards.append([share_of_vowels(attempt.completion) for attempt in attempts])
        return [Rewarded(value, {}) for value in rewards[-1]]

    watch = Watch()
    with tempfile.TemporaryDirectory() as folder:
        rollouts = Rollouts(
            model, Endless(), rows, reward, section,  # pyright: ignore[reportArgumentType]
            batch_size=32, value_head=None, log=Path(folder) / "rollouts.jsonl", events=NullSink(), length_limit=8192,
        )  # fmt: skip
        sampled = time_sampling(rollouts)
        source = OnPolicy(
            rollouts.draw,
            num_rollouts=spec["steps"],
            rollout_epochs=1,
            max_steps=spec["steps"],
            pack_length=2048,
            rng_seed=17,
        )
        begin = time.perf_counter()
        trained = train_on(model, source, section, spec, watch, Path(folder), PolicyLoss(section))
    return {
        "seconds": split_steps(begin, watch.ends, sampled["seconds"]),
        "prompt_tokens": sampled["prompt_tokens"],
        "answer_tokens": sampled["answer_tokens"],
        "rewards": [statistics.mean(each) for each in rewards],
        "steps": watch.steps,
        "peak_memory_bytes": trained.peak_memory_bytes,
        "precision": precision,
    }


def time_sampling(rollouts: Any) -> dict[str, Any]:
    """Puts a clock around sampling and rewarding; what it finds, as it comes."""
    found: dict[str, Any] = {"seconds": [], "prompt_tokens": [], "answer_tokens": []}
    sampler, reward = rollouts._sampler, rollouts._reward
    sample = sampler.sample

    def timed_sample(prompts: Any, *args: Any, **options: Any) -> Any:
        started = time.perf_counter()
        groups = sample(prompts, *args, **options)
        found["seconds"].append(time.perf_counter() - started)
        found["prompt_tokens"].append(sum(len(prompt.input_ids) for prompt in prompts))
        found["answer_tokens"].append(sum(len(each.token_ids) for group in groups for each in group))
        return groups

    def timed_reward(*args: Any) -> Any:
        started = time.perf_counter()
        rewarded = reward(*args)
        found["seconds"][-1] += time.perf_counter() - started
        return rewarded

    sampler.sample, rollouts._reward = timed_sample, timed_reward
    return found


def split_steps(begin: float, ends: list[float], sampling: list[float]) -> dict[str, list[float]]:
    """Seconds of each step, and of its parts."""
    whole = [end - start for start, end in zip([begin, *ends], ends, strict=False)]
    return {
        "sampling": sampling,
        "training": [step - part for step, part in zip(whole, sampling, strict=True)],
        "step": whole,
    }


def share_of_vowels(text: str) -> float:
    """The reward of both sides: hardly ever the same twice, so that every group teaches something and is computed."""
    return sum(text.lower().count(vowel) for vowel in "aeiou") / max(len(text), 1)


def check_same_work(measured: dict[str, Any]) -> None:
    """Stops where the two sides did not sample as many tokens from as long prompts."""
    work = {name: (run["prompt_tokens"], run["answer_tokens"]) for name, run in measured.items()}
    if len({json.dumps(each) for each in work.values()}) > 1:
        sys.exit(f"the two sides did not do the same work (prompt tokens, answer tokens by step): {work}")


def seconds_of(run: dict[str, Any], part: str) -> float:
    """Of a step, the median over the run's steps."""
    return statistics.median(run["seconds"][part])


def ratios_of(measured: dict[str, Any]) -> dict[str, float]:
    """Ours over TRL's speed, by part; nothing where one side ran alone."""
    if len(measured) < 2:
        return {}
    ours, theirs = measured[rounds.OURS], measured["trl"]
    return {part: seconds_of(theirs, part) / seconds_of(ours, part) for part in PARTS}


def in_words(measured: dict[str, Any]) -> str:
    check_same_work(measured)
    ratios = [f"{part} {ratio:.2f}x" for part, ratio in ratios_of(measured).items()]
    alone = [
        f"{name}: " + " ".join(f"{part} {seconds_of(run, part):.2f} s" for part in PARTS)
        for name, run in measured.items()
    ]
    return ", ".join([*ratios, *alone])


def print_report(report: dict[str, Any]) -> None:
    """The table for people."""
    entries, setup = report["rounds"], report["setup"]
    print(f"\n{report['model']}, LoRA, GRPO, {setup['threads']} threads; {setup['prompts']} prompts of ", end="")
    print(
        f"{report['prompts']['mean_tokens']:.0f} tokens, {setup['group_size']} answers of {setup['max_tokens']} tokens each"
    )
    print(f"TRL: {report['trl']}\n")
    print(f"{'seconds':12}" + "".join(f"{part:>10}" for part in PARTS) + f"{'peak GB':>10}{'mean reward':>13}")
    for name in entries[0]:
        runs = [entry[name] for entry in entries]
        cells = [statistics.median(seconds_of(run, part) for run in runs) for part in PARTS]
        rewards = statistics.mean(value for run in runs for value in run["rewards"])
        print(
            f"{name:12}"
            + "".join(f"{cell:10.2f}" for cell in [*cells, rounds.peak_gigabytes(runs)])
            + f"{rewards:13.3f}"
        )
    if len(entries[0]) < 2:
        return
    print()
    for part in PARTS:
        print(f"{part}: {rounds.spread([ratios_of(entry)[part] for entry in entries])}")
    note = ": advantages of a group sum to 0, so a first step is near 0 on both sides"
    rounds.print_losses(entries[0], note, digits=5)


if __name__ == "__main__":
    main()
