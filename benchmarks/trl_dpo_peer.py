"""One TRL DPOTrainer run in its own environment. Started by dpo_vs_trl.py; imports nothing of tunesmith.

PEER_PYTHON trl_dpo_peer.py SPEC.json RESULT.json
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any


def main(spec_path: str, result_path: str) -> None:
    """Train on pre-tokenized pairs; write seconds of the reference and of each epoch, losses and the peak memory."""
    spec = json.loads(Path(spec_path).read_text())
    os.environ["HF_DATASETS_CACHE"] = f"{spec['scratch']}/datasets-{os.getpid()}"  # nothing of an earlier round
    os.environ["TQDM_DISABLE"] = "1"
    import torch

    torch.set_num_threads(spec["threads"])
    from datasets import Dataset
    from peft import LoraConfig, set_peft_model_state_dict
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import DPOConfig, DPOTrainer

    rows = [json.loads(line) for line in Path(spec["pairs"]).read_text().splitlines()]
    model = AutoModelForCausalLM.from_pretrained(spec["model"], dtype=spec["dtype"], attn_implementation="sdpa")
    adapter = json.loads((Path(spec["adapter"]) / "adapter_config.json").read_text())
    steps: list[dict[str, float]] = []
    marks: list[float] = []
    reference = {"seconds": 0.0}

    class Watch(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if not marks:
                marks.append(time.perf_counter())

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            marks.append(time.perf_counter())

        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
            if logs and "loss" in logs:
                steps.append({"step": state.global_step, "loss": logs["loss"]})

    class Tokenized(DPOTrainer):
        """The rows hold token ids already; the time of the reference is kept."""

        def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
            return dataset

        def _precompute_ref_logps(self, *args: Any) -> Any:
            started = time.perf_counter()
            found = super()._precompute_ref_logps(*args)
            reference["seconds"] = time.perf_counter() - started
            return found

    config = DPOConfig(
        output_dir=spec["scratch"],
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        logging_steps=1,
        disable_tqdm=True,
        beta=spec["beta"],
        learning_rate=spec["learning_rate"],
        lr_scheduler_type="constant",
        num_train_epochs=spec["epochs"],
        per_device_train_batch_size=spec["per_device"],
        gradient_accumulation_steps=spec["pairs_per_step"] // spec["per_device"],
        train_sampling_strategy="sequential",
        gradient_checkpointing=False,
        max_length=None,
        seed=17,
        **spec["settings"],
    )
    lora = LoraConfig(
        r=adapter["r"],
        lora_alpha=adapter["lora_alpha"],
        target_modules=adapter["target_modules"],
        task_type="CAUSAL_LM",
    )
    trainer = Tokenized(
        model=model,
        args=config,
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(spec["model"]),
        peft_config=lora,
        callbacks=[Watch()],
    )
    loaded = set_peft_model_state_dict(trainer.model, load_file(f"{spec['adapter']}/adapter_model.safetensors"))
    if loaded.unexpected_keys:
        sys.exit(f"the adapter does not fit: {loaded.unexpected_keys[:3]}")
    trainer.train()
    per_epoch = (len(marks) - 1) // spec["epochs"]
    result = {
        "reference_seconds": reference["seconds"],
        "epoch_seconds": [end - start for start, end in pairwise(marks[::per_epoch])],
        "tokens": sum(2 * len(row["prompt_ids"]) + len(row["chosen_ids"]) + len(row["rejected_ids"]) for row in rows),
        "steps": steps,
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }
    Path(result_path).write_text(json.dumps(result))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
