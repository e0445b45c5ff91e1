"""One TRL SFTTrainer run in its own environment, and what the other trainers' runs share with it. Imports nothing of tunesmith.

PEER_PYTHON trl_peer.py SPEC.json RESULT.json
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from rounds import read_lines, work


def main(spec: dict[str, Any]) -> dict[str, Any]:
    """Train on pre-tokenized rows once: seconds and losses."""
    start_quietly(spec)
    from datasets import Dataset
    from peft import LoraConfig
    from trl import SFTConfig, SFTTrainer

    rows = read_lines(spec["rows"])
    lora = LoraConfig(r=spec["rank"], lora_alpha=spec["alpha"], target_modules="all-linear", task_type="CAUSAL_LM")
    watch = new_watch()
    trainer = SFTTrainer(
        args=SFTConfig(num_train_epochs=1, **common_arguments(spec)),
        train_dataset=Dataset.from_list(rows),
        peft_config=lora if spec["method"] == "lora" else None,
        **common_parts(spec, watch),
    )
    trainer.train()
    return {
        "seconds": watch.marks[-1] - watch.marks[0],
        "tokens": sum(len(row["input_ids"]) for row in rows),
        "steps": watch.steps,
    }


def common_arguments(spec: dict[str, Any]) -> dict[str, Any]:
    """Of every trainer's config."""
    return {
        "output_dir": spec["scratch"],
        "use_cpu": True,
        "report_to": [],
        "save_strategy": "no",
        "logging_steps": 1,
        "disable_tqdm": True,
        "learning_rate": spec["learning_rate"],
        "lr_scheduler_type": "constant",
        "gradient_checkpointing": False,
        "seed": 17,
        **spec["settings"],
    }


def common_parts(spec: dict[str, Any], watch: Any) -> dict[str, Any]:
    """What every trainer is made of."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    return {
        "model": AutoModelForCausalLM.from_pretrained(spec["model"], dtype=spec["dtype"], attn_implementation="sdpa"),
        "processing_class": AutoTokenizer.from_pretrained(spec["model"]),
        "callbacks": [watch],
    }


def new_watch() -> Any:
    """A callback that keeps when the first step began and each ended (marks), and their losses (steps)."""
    from transformers import TrainerCallback

    class Watch(TrainerCallback):
        def __init__(self) -> None:
            self.steps: list[dict[str, float]] = []
            self.marks: list[float] = []

        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if not self.marks:
                self.marks.append(time.perf_counter())

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.marks.append(time.perf_counter())

        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
            if logs and "loss" in logs:
                tokens = logs.get("num_tokens", 0)
                self.steps.append({"step": state.global_step, "loss": logs["loss"], "tokens": tokens})

    return Watch()


def start_quietly(spec: dict[str, Any]) -> None:
    """Before anything is imported: threads, no progress bars, and nothing of an earlier round."""
    os.environ["HF_DATASETS_CACHE"] = f"{spec['scratch']}/datasets-{os.getpid()}"
    os.environ["TQDM_DISABLE"] = "1"
    import torch

    torch.set_num_threads(spec["threads"])


def adapter_like(folder: str) -> Any:
    """PEFT's config of the adapter that both sides start from."""
    from peft import LoraConfig

    adapter = json.loads((Path(folder) / "adapter_config.json").read_text())
    return LoraConfig(
        r=adapter["r"],
        lora_alpha=adapter["lora_alpha"],
        target_modules=adapter["target_modules"],
        task_type="CAUSAL_LM",
    )


def train_from(adapter: str, trainer: Any) -> None:
    """Train, from the numbers of the adapter's file on."""
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file

    loaded = set_peft_model_state_dict(trainer.model, load_file(f"{adapter}/adapter_model.safetensors"))
    if loaded.unexpected_keys:
        sys.exit(f"the adapter does not fit: {loaded.unexpected_keys[:3]}")
    trainer.train()


if __name__ == "__main__":
    work(main)
