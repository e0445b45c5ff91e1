"""One TRL GRPOTrainer run in its own environment. Started by grpo_vs_trl.py; imports nothing of tunesmith.

PEER_PYTHON trl_grpo_peer.py SPEC.json RESULT.json
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any


def main(spec_path: str, result_path: str) -> None:
    """Take some steps; write the seconds of sampling and of the rest, rewards, losses and the peak memory."""
    spec = json.loads(Path(spec_path).read_text())
    os.environ["HF_DATASETS_CACHE"] = f"{spec['scratch']}/datasets-{os.getpid()}"
    os.environ["TQDM_DISABLE"] = "1"
    import torch

    torch.set_num_threads(spec["threads"])
    from datasets import Dataset
    from peft import LoraConfig, set_peft_model_state_dict
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    lines = [json.loads(line) for line in Path(spec["prompt_file"]).read_text().splitlines()]
    model = AutoModelForCausalLM.from_pretrained(spec["model"], dtype=spec["dtype"], attn_implementation="sdpa")
    adapter = json.loads((Path(spec["adapter"]) / "adapter_config.json").read_text())
    steps: list[dict[str, float]] = []
    marks: list[float] = []
    found: dict[str, list[Any]] = {"seconds": [], "prompt_tokens": [], "answer_tokens": [], "rewards": []}

    class Watch(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if not marks:
                marks.append(time.perf_counter())

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            marks.append(time.perf_counter())

        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
            if logs and "loss" in logs:
                steps.append({"step": state.global_step, "loss": logs["loss"]})

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

    def share_of_vowels(completions: Any, **_: Any) -> list[float]:
        texts = [completion[0]["content"] for completion in completions]
        values = [sum(text.lower().count(vowel) for vowel in "aeiou") / max(len(text), 1) for text in texts]
        found["rewards"].append(statistics.mean(values))
        return values

    answers = spec["prompts"] * spec["group_size"]
    at_once = min(spec["micro_batch"], answers)
    config = GRPOConfig(
        output_dir=spec["scratch"],
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        logging_steps=1,
        disable_tqdm=True,
        learning_rate=spec["learning_rate"],
        lr_scheduler_type="constant",
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
        gradient_checkpointing=False,
        seed=17,
        **spec["settings"],
    )
    lora = LoraConfig(
        r=adapter["r"],
        lora_alpha=adapter["lora_alpha"],
        target_modules=adapter["target_modules"],
        task_type="CAUSAL_LM",
    )
    trainer = Timed(
        model=model,
        reward_funcs=share_of_vowels,
        args=config,
        train_dataset=Dataset.from_list([{"prompt": line["messages"]} for line in lines]),
        processing_class=AutoTokenizer.from_pretrained(spec["model"]),
        peft_config=lora,
        callbacks=[Watch()],
    )
    loaded = set_peft_model_state_dict(trainer.model, load_file(f"{spec['adapter']}/adapter_model.safetensors"))
    if loaded.unexpected_keys:
        sys.exit(f"the adapter does not fit: {loaded.unexpected_keys[:3]}")
    trainer.train()
    whole = [end - start for start, end in pairwise(marks)]
    result = {
        "seconds": {
            "sampling": found["seconds"],
            "training": [step - part for step, part in zip(whole, found["seconds"], strict=True)],
            "step": whole,
        },
        "prompt_tokens": found["prompt_tokens"],
        "answer_tokens": found["answer_tokens"],
        "rewards": found["rewards"],
        "steps": steps,
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }
    Path(result_path).write_text(json.dumps(result))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
