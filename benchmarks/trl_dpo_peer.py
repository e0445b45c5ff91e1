"""One TRL DPOTrainer run in its own environment. Started by dpo_vs_trl.py; imports nothing of tunesmith.

PEER_PYTHON trl_dpo_peer.py SPEC.json RESULT.json
"""

from __future__ import annotations

import time
from itertools import pairwise
from typing import Any

from dpo_vs_trl import tokens_of
from rounds import read_lines, work
from trl_peer import adapter_like, common_arguments, common_parts, new_watch, start_quietly, train_from


def main(spec: dict[str, Any]) -> dict[str, Any]:
    """Train on pre-tokenized pairs: seconds of the reference and of each epoch, and losses."""
    start_quietly(spec)
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    rows = read_lines(spec["pairs"])
    reference = {"seconds": 0.0}

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
        beta=spec["beta"],
        num_train_epochs=spec["epochs"],
        per_device_train_batch_size=spec["per_device"],
        gradient_accumulation_steps=spec["pairs_per_step"] // spec["per_device"],
        train_sampling_strategy="sequential",
        max_length=None,
        **common_arguments(spec),
    )
    watch = new_watch()
    trainer = Tokenized(
        args=config,
        train_dataset=Dataset.from_list(rows),
        peft_config=adapter_like(spec["adapter"]),
        **common_parts(spec, watch),
    )
    train_from(spec["adapter"], trainer)
    per_epoch = (len(watch.marks) - 1) // spec["epochs"]
    return {
        "reference_seconds": reference["seconds"],
        "epoch_seconds": [end - start for start, end in pairwise(watch.marks[::per_epoch])],
        "tokens": sum(map(tokens_of, rows)),
        "steps": watch.steps,
    }


if __name__ == "__main__":
    work(main)
