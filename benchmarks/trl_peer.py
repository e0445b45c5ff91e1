"""One TRL SFTTrainer run in its own environment. Started by sft_vs_trl.py; imports nothing of tunesmith.

PEER_PYTHON trl_peer.py SPEC.json RESULT.json
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any


def main(spec_path: str, result_path: str) -> None:
    """Train on pre-tokenized rows once; write steps, seconds, losses and the peak memory."""
    spec = json.loads(Path(spec_path).read_text())
    import torch

    torch.set_num_threads(spec["threads"])
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    rows = [json.loads(line) for line in Path(spec["rows"]).read_text().splitlines()]
    model = AutoModelForCausalLM.from_pretrained(spec["model"], dtype=spec["dtype"], attn_implementation="sdpa")
    steps: list[dict[str, float]] = []
    clock = {"start": 0.0, "end": 0.0}

    class Watch(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            clock["start"] = clock["start"] or time.perf_counter()

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            clock["end"] = time.perf_counter()

        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
            if logs and "loss" in logs:
                steps.append({"step": state.global_step, "loss": logs["loss"], "tokens": logs.get("num_tokens", 0)})

    lora = LoraConfig(r=spec["rank"], lora_alpha=spec["alpha"], target_modules="all-linear", task_type="CAUSAL_LM")
    with tempfile.TemporaryDirectory() as folder:
        config = SFTConfig(
            output_dir=folder,
            use_cpu=True,
            report_to=[],
            save_strategy="no",
            logging_steps=1,
            disable_tqdm=True,
            learning_rate=spec["learning_rate"],
            lr_scheduler_type="constant",
            num_train_epochs=1,
            gradient_checkpointing=False,
            seed=17,
            **spec["settings"],
        )
        trainer = SFTTrainer(
            model=model,
            args=config,
            train_dataset=Dataset.from_list(rows),
            processing_class=AutoTokenizer.from_pretrained(spec["model"]),
            peft_config=lora if spec["method"] == "lora" else None,
            callbacks=[Watch()],
        )
        trainer.train()
    result = {
        "seconds": clock["end"] - clock["start"],
        "tokens": sum(len(row["input_ids"]) for row in rows),
        "steps": steps,
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }
    Path(result_path).write_text(json.dumps(result))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
