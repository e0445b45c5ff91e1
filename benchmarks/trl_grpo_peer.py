"""One TRL GRPOTrainer run in its own environment. Started by grpo_vs_trl.py; imports nothing of tunesmith.

PEER_PYTHON trl_grpo_peer.py SPEC.json RESULT.json
"""

from __future__ import annotations

import statistics
import sys
import time
from typing import Any

from grpo_vs_trl import share_of_vowels, split_steps
from rounds import read_lines, work
from trl_peer import adapter_like, common_arguments, common_parts, new_watch, start_quietly, train_from


def main(spec: dict[str, Any]) -> dict[str, Any]:
    """Take some steps: the seconds of sampling and of the rest, rewards and losses."""
    start_quietly(spec)
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    lines = read_lines(spec["prompt_file"])
    found: dict[str, list[Any]] = {"seconds": [], "prompt_tokens": [], "answer_tokens": [], "rewards": []}

    class Timed(GRPOTrainer):
        """With a clock around sampling and rewarding."""

        def _generate(self, prompts: Any) -> Any:
            started = time.perf_counter()
            made = super()._generate(prompts)
            found["seconds"].append(time.perf_counter() - started)
            expected = {tuple(line["ids"]) for line in lines}
            if not {tuple(ids) for ids in made[0]} <= expected:
                sys.exit("TRL made other prompt ids of the same messages")
            found["prompt_tokens"].append(sum(map(len, made[0])) // spec["group_size"])
            found["answer_tokens"].append(sum(map(len, made[1])))
            return made

        def _calculate_rewards(self, *args: Any) -> Any:
            started = time.perf_counter()
            rewards = super()._calculate_rewards(*args)
            found["seconds"][-1] += time.perf_counter() - started
            return rewards

    def reward(completions: Any, **_: Any) -> list[float]:
        values = [share_of_vowels(completion[0]["content"]) for completion in completions]
        found["rewards"].append(statistics.mean(values))
        return values

    answers = spec["prompts"] * spec["group_size"]
    at_once = min(spec["micro_batch"], answers)
    config = GRPOConfig(
        max_steps=spec["steps"],
        per_device_train_batch_size=at_once,
        gradient_accumulation_steps=answers // at_once,
        steps_per_generation=answers // at_once,
        num_generations=spec["group_size"],
        max_completion_length=spec["max_tokens"],
        generation_kwargs={"min_new_tokens": spec["max_tokens"]},
        temperature=1.0,
        top_p=1.0,
        top_k=0,
        shuffle_dataset=False,
        **common_arguments(spec),
    )
    watch = new_watch()
    trainer = Timed(
        reward_funcs=reward,
        args=config,
        train_dataset=Dataset.from_list([{"prompt": line["messages"]} for line in lines]),
        peft_config=adapter_like(spec["adapter"]),
        **common_parts(spec, watch),
    )
    train_from(spec["adapter"], trainer)
    seconds = split_steps(watch.marks[0], watch.marks[1:], found.pop("seconds"))
    return {"seconds": seconds, **found, "steps": watch.steps}


if __name__ == "__main__":
    work(main)
