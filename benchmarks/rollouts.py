"""Sampling groups of answers for reinforcement learning: ours against transformers' `generate`, which TRL samples with where
no inference server is at hand.

Both sample from the same model at temperature 1, the same prompts, the same group size; speed is sampled tokens per second,
prompts included in the time. `generate` gets the prompts padded on the left and every prompt G times, as TRL gives them.

    python benchmarks/rollouts.py --prompt-tokens 400 --group-size 8 --num-prompts 4 --max-tokens 64
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable
from typing import Any

import torch

from tunesmith.chat.renderer import Renderer
from tunesmith.events import NullSink
from tunesmith.inference.rollouts import RolloutSampler
from tunesmith.model.catalog import fetch_model
from tunesmith.model.load import load_model
from tunesmith.protocols import Prompt
from tunesmith.types import Message, SamplingParams

WORDS = [
    "order",
    "bicycle",
    "wheel",
    "refund",
    "delivery",
    "invoice",
    "address",
    "broken",
    "chain",
    "brake",
    "saddle",
    "colour",
    "late",
    "missing",
    "paid",
]


def build_prompts(renderer: Renderer, num_prompts: int, prompt_tokens: int) -> list[Prompt]:
    """Different user messages of about so many tokens; half to all of the wanted length, as real prompts vary."""
    source = random.Random(3)
    prompts: list[Prompt] = []
    for _ in range(num_prompts):
        wanted = source.randint(prompt_tokens // 2, prompt_tokens)
        text = "Write a long story with these words: " + " ".join(source.choice(WORDS) for _ in range(wanted))
        prompts.append(renderer.prompt([Message(role="user", content=text)]))
    return prompts


def ours(model: Any, prompts: list[Prompt], group_size: int, max_tokens: int, seed: int) -> int:
    """Sampled tokens."""
    sampling = SamplingParams(max_tokens=max_tokens, temperature=1.0, rng_seed=seed)
    sampler = RolloutSampler(model, batch_size=group_size * len(prompts))
    groups = sampler.sample(prompts, sampling, group_size=group_size, shared_prefix=())
    return sum(len(each.token_ids) for group in groups for each in group)


def theirs(model: Any, prompts: list[Prompt], group_size: int, max_tokens: int, seed: int) -> int:
    """Sampled tokens, padding after the stop token not counted."""
    rows = [prompt.input_ids for prompt in prompts for _ in range(group_size)]
    width = max(map(len, rows))
    stops = list(prompts[0].stop_ids)
    ids = torch.tensor([[stops[0]] * (width - len(row)) + list(row) for row in rows])
    attended = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    torch.manual_seed(seed)
    with torch.inference_mode():
        made = model.generate(
            ids, attention_mask=attended, max_new_tokens=max_tokens, do_sample=True, temperature=1.0, top_k=0, top_p=1.0,
            eos_token_id=stops, pad_token_id=stops[0],
        )[:, width:]  # fmt: skip
    ended = torch.isin(made, torch.tensor(stops))
    before = ended.int().cumsum(1) - ended.int()
    return int((before == 0).sum())


def speeds(samplers: dict[str, Callable[[int], int]], repeats: int) -> dict[str, float]:
    """Tokens per second of each, the best of some repeats, in turn: other work on the machine touches all alike."""
    best = dict.fromkeys(samplers, 0.0)
    for seed in range(repeats):
        for name, sample in samplers.items():
            started = time.perf_counter()
            best[name] = max(best[name], sample(seed) / (time.perf_counter() - started))
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="bf16")
    parser.add_argument("--prompt-tokens", type=int, default=400)
    parser.add_argument("--num-prompts", type=int, default=4)
    parser.add_argument("--group-size", type=int, default=8)
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=2)
    options = parser.parse_args()
    folder = fetch_model(options.model, events=NullSink()).path
    dtype = torch.bfloat16 if options.precision == "bf16" else torch.float32
    model = load_model(folder, device="cpu", dtype=dtype)
    prompts = build_prompts(Renderer.for_model(folder), options.num_prompts, options.prompt_tokens)
    mean = sum(len(prompt.input_ids) for prompt in prompts) / len(prompts)
    given = (options.group_size, options.max_tokens)
    samplers: dict[str, Callable[[int], int]] = {
        "ours": lambda seed: ours(model, prompts, *given, seed),
        "generate": lambda seed: theirs(model, prompts, *given, seed),
    }
    found = speeds(samplers, options.repeats)
    print(f"{options.model} {options.precision}, {len(prompts)} prompts of {mean:.0f} tokens on average, ", end="")
    print(
        f"{options.group_size} answers each of at most {options.max_tokens} tokens, {torch.get_num_threads()} threads"
    )
    for name, value in found.items():
        print(f"  {name:9} {value:8.1f} tokens/s   {value / found['generate']:.2f}x")


if __name__ == "__main__":
    main()
