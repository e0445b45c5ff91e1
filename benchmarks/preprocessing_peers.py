"""A peer's preparation of long chats in its own environment. Started by preprocessing.py; imports nothing of tunesmith.

PEER_PYTHON preprocessing_peers.py trl|llamafactory SPEC.json RESULT.json
"""

from __future__ import annotations

import json
import os
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from preprocessing import digests_of
from rounds import work


def trl(spec: dict[str, Any]) -> dict[str, Any]:
    """SFTTrainer's preparation, timed where it is called; the trainer gets a model of one narrow layer."""
    from datasets import load_dataset
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM
    from trl import SFTConfig, SFTTrainer

    class Prepared(Exception):
        """The preparation is done; nothing is to be trained."""

    made: dict[str, Any] = {}

    class Timed(SFTTrainer):
        def _prepare_dataset(self, *args: Any, **options: Any) -> Any:
            started = time.perf_counter()
            made["dataset"] = super()._prepare_dataset(*args, **options)
            made["seconds"] = time.perf_counter() - started
            raise Prepared

    tokenizer = AutoTokenizer.from_pretrained(spec["model"])
    tokenizer.chat_template = Path(spec["template"]).read_text()
    narrow = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1
    )
    config = SFTConfig(
        output_dir=spec["scratch"],
        use_cpu=True,
        report_to=[],
        bf16=False,
        packing=True,
        max_length=spec["pack_length"],
        assistant_only_loss=True,
        **spec["settings"],
    )
    dataset = load_dataset("json", data_files=spec["chats"], split="train")
    with suppress(Prepared):
        Timed(model=LlamaForCausalLM(narrow), args=config, train_dataset=dataset, processing_class=tokenizer)
    samples = []
    for pack in made["dataset"]:
        start = 0
        for length in pack["seq_lengths"]:
            samples.append((pack["input_ids"][start : start + length], pack["labels"][start : start + length]))
            start += length
    return report(samples, made["seconds"], len(made["dataset"]))


def llamafactory(spec: dict[str, Any]) -> dict[str, Any]:
    """The function that its trainer calls on a dataset that is loaded and converted to its own form."""
    from llamafactory.data import loader
    from llamafactory.data.template import get_template_and_fix_tokenizer
    from llamafactory.hparams import get_train_args
    from llamafactory.model import load_tokenizer

    folder = Path(spec["scratch"]) / f"llamafactory-{os.getpid()}"
    folder.mkdir(parents=True)
    tags = {
        "role_tag": "role",
        "content_tag": "content",
        "user_tag": "user",
        "assistant_tag": "assistant",
        "system_tag": "system",
    }
    described = {
        "file_name": spec["chats"],
        "formatting": "sharegpt",
        "columns": {"messages": "messages"},
        "tags": tags,
    }
    (folder / "dataset_info.json").write_text(json.dumps({"chats": described}))
    arguments = {
        "model_name_or_path": spec["model"],
        "stage": "sft",
        "do_train": True,
        "finetuning_type": "lora",
        "dataset": "chats",
        "dataset_dir": str(folder),
        "template": "chatml",
        "cutoff_len": spec["pack_length"],
        "packing": True,
        "preprocessing_num_workers": 2,
        "overwrite_cache": True,
        "output_dir": str(folder / "out"),
        "report_to": "none",
    }
    model_args, data_args, training_args, _, _ = get_train_args(arguments)
    tokenizer_module = load_tokenizer(model_args)
    template = get_template_and_fix_tokenizer(tokenizer_module["tokenizer"], data_args)
    prepare = loader._get_preprocessed_dataset
    clock = {"seconds": 0.0}

    def timed(*args: Any, **options: Any) -> Any:
        started = time.perf_counter()
        dataset = prepare(*args, **options)
        clock["seconds"] += time.perf_counter() - started
        return dataset

    loader._get_preprocessed_dataset = timed
    module = loader.get_dataset(template, model_args, data_args, training_args, stage="sft", **tokenizer_module)
    packs, samples = module["train_dataset"], []
    pad = tokenizer_module["tokenizer"].pad_token_id
    line_break = tokenizer_module["tokenizer"].encode("\n", add_special_tokens=False)
    for pack in packs:
        starts = [place for place, position in enumerate(pack["position_ids"]) if position == 0]
        for start, end in zip(starts, [*starts[1:], len(pack["position_ids"])], strict=True):
            ids, labels = pack["input_ids"][start:end], pack["labels"][start:end]
            if ids == [pad]:
                continue
            samples.append((ids, without_line_breaks(labels, line_break)))
    return report(samples, clock["seconds"], len(packs))


def without_line_breaks(labels: list[int], line_break: list[int]) -> list[int]:
    """Its targets without the line break that stands behind the end of each turn."""
    size = len(line_break)
    kept = list(labels)
    for place in range(len(labels)):
        ends_here = place + 1 == len(labels) or labels[place + 1] == -100
        if ends_here and labels[place - size + 1 : place + 1] == line_break:
            kept[place - size + 1 : place + 1] = [-100] * size
    return kept


def report(samples: list[Any], seconds: float, packs: int) -> dict[str, Any]:
    """What the driver reads."""
    digests = [digests_of(ids, labels) for ids, labels in samples]
    return {"seconds": seconds, "tokens": sum(len(ids) for ids, _ in samples), "packs": packs, "digests": digests}


def main(spec: dict[str, Any]) -> dict[str, Any]:
    """The peer that is named, with a cache that holds nothing of an earlier round."""
    cache = f"{spec['scratch']}/datasets-{os.getpid()}"
    os.environ.update(HF_DATASETS_CACHE=cache, HF_HUB_OFFLINE="1", DISABLE_VERSION_CHECK="1")
    return {"trl": trl, "llamafactory": llamafactory}[sys.argv[1]](spec)


if __name__ == "__main__":
    work(main)
