"""A peer's preparation of long chats in its own environment. Started by preprocessing.py; imports nothing of tunesmith.

PEER_PYTHON preprocessing_peers.py trl|llamafactory|axolotl SPEC.json RESULT.json
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from preprocessing import digests_of
from rounds import work


def trl(spec: dict[str, Any]) -> dict[str, Any]:
    """SFTTrainer's preparation, timed where it is called, after tokenizer and rows; the trainer gets a model of one narrow layer."""
    from datasets import load_dataset
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM
    from trl import SFTConfig, SFTTrainer

    class Prepared(Exception):
        """The preparation is done; nothing is to be trained."""

    made: dict[str, Any] = {}
    clock = Clock()

    class Timed(SFTTrainer):
        def _prepare_dataset(self, *args: Any, **options: Any) -> Any:
            with clock.preparation():
                made["dataset"] = super()._prepare_dataset(*args, **options)
            raise Prepared

    with clock.whole():
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
    with clock.whole():
        dataset = load_dataset("json", data_files=spec["chats"], split="train")
    with suppress(Prepared):
        Timed(model=LlamaForCausalLM(narrow), args=config, train_dataset=dataset, processing_class=tokenizer)
    samples = []
    for pack in made["dataset"]:
        start = 0
        for length in pack["seq_lengths"]:
            samples.append((pack["input_ids"][start : start + length], pack["labels"][start : start + length]))
            start += length
    return report(samples, clock, len(made["dataset"]))


def llamafactory(spec: dict[str, Any]) -> dict[str, Any]:
    """Its tokenizer and dataset as its trainer loads them; the preparation is what it does to one that is loaded and converted."""
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
    clock = Clock()
    prepare = loader._get_preprocessed_dataset

    def timed(*args: Any, **options: Any) -> Any:
        with clock.part():
            return prepare(*args, **options)

    loader._get_preprocessed_dataset = timed
    with clock.whole():
        tokenizer_module = load_tokenizer(model_args)
        template = get_template_and_fix_tokenizer(tokenizer_module["tokenizer"], data_args)
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
    return report(samples, clock, len(packs))


def axolotl(spec: dict[str, Any]) -> dict[str, Any]:
    """Its tokenizer and datasets as `axolotl preprocess` loads them; which samples share a pack it decides while it trains."""
    os.environ.update(AXOLOTL_IS_PREPROCESS="1", AXOLOTL_DO_NOT_TRACK="1")
    from axolotl.cli.config import load_cfg
    from axolotl.loaders import load_tokenizer
    from axolotl.utils.data import prepare_datasets

    folder = Path(spec["scratch"]) / f"axolotl-{os.getpid()}"
    folder.mkdir(parents=True)
    dataset = {"path": spec["chats"], "ds_type": "json", "type": "chat_template", "field_messages": "messages"}
    settings = {
        "base_model": spec["model"],
        "datasets": [{**dataset, "roles_to_train": ["assistant"], "train_on_eos": "turn"}],
        "chat_template": "tokenizer_default",
        "sequence_len": spec["pack_length"],
        "sample_packing": True,
        "dataset_prepared_path": str(folder / "prepared"),
        "dataset_num_proc": 2,
        "output_dir": str(folder / "out"),
        "adapter": "lora",
        "lora_r": 8,
        "lora_alpha": 16,
        "lora_target_linear": True,
        "micro_batch_size": 1,
        "gradient_accumulation_steps": 1,
        "num_epochs": 1,
        "learning_rate": 1e-4,
        "optimizer": "adamw_torch",
        "bf16": False,
        "sdp_attention": True,
    }
    (folder / "axolotl.yml").write_text(json.dumps(settings))
    config = load_cfg(str(folder / "axolotl.yml"), is_preprocess=True)
    config.is_preprocess = True
    clock = Clock()
    with clock.whole():
        tokenizer = load_tokenizer(config)
        with clock.part():
            rows, _, _, _ = prepare_datasets(config, tokenizer)
    return report([(row["input_ids"], row["labels"]) for row in rows], clock, 0)


class Clock:
    """Seconds from the file and the tokenizer's folder to what is prepared, and of the preparation alone."""

    def __init__(self) -> None:
        self.seconds = self.preparing = 0.0

    @contextmanager
    def whole(self) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.seconds += time.perf_counter() - started

    @contextmanager
    def part(self) -> Iterator[None]:
        """Of something whose whole is timed."""
        started = time.perf_counter()
        yield
        self.preparing += time.perf_counter() - started

    @contextmanager
    def preparation(self) -> Iterator[None]:
        """Of something that is not a part of a whole."""
        with self.whole(), self.part():
            yield


def without_line_breaks(labels: list[int], line_break: list[int]) -> list[int]:
    """Its targets without the line break that stands behind the end of each turn."""
    size = len(line_break)
    kept = list(labels)
    for place in range(len(labels)):
        ends_here = place + 1 == len(labels) or labels[place + 1] == -100
        if ends_here and labels[place - size + 1 : place + 1] == line_break:
            kept[place - size + 1 : place + 1] = [-100] * size
    return kept


def report(samples: list[Any], clock: Clock, packs: int) -> dict[str, Any]:
    """What the driver reads."""
    digests = [digests_of(ids, labels) for ids, labels in samples]
    tokens = sum(len(ids) for ids, _ in samples)
    seconds = {"seconds": clock.seconds, "preparing": clock.preparing}
    return {**seconds, "tokens": tokens, "packs": packs, "digests": digests}


def main(spec: dict[str, Any]) -> dict[str, Any]:
    """The peer that is named, with a cache that holds nothing of an earlier round."""
    cache = f"{spec['scratch']}/datasets-{os.getpid()}"
    os.environ.update(HF_DATASETS_CACHE=cache, HF_HUB_OFFLINE="1", DISABLE_VERSION_CHECK="1")
    return {"trl": trl, "llamafactory": llamafactory, "axolotl": axolotl}[sys.argv[1]](spec)


if __name__ == "__main__":
    work(main)
