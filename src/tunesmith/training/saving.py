"""The end of a training: weights to disk, and proof that what was read back answers as the model in memory does.

Refuses to know recipes and artifacts.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from tunesmith.errors import TrainingError
from tunesmith.model.adapters import adapter_layers, load_adapter
from tunesmith.model.load import load_model
from tunesmith.model.whole import copy_tokenizer, load_stored_dtype
from tunesmith.training.batches import Samples

_PROBE_TOKENS = 256
_SAME = 1e-4  # of the largest logit, in fp32: two implementations of one formula, summed in another order
_FP32_PARAMETERS = 2_000_000_000  # above, the second reading (by PEFT, in fp32) would take more memory than training


def first_sample(samples: Samples) -> torch.Tensor:
    """(1, T) the first sample's ids, at most 256: what is asked before and after saving."""
    return torch.from_numpy(samples.input_ids[samples.rows(0)].astype("int64"))[None, :_PROBE_TOKENS]


@torch.no_grad()
def check_saved_adapter(model: PreTrainedModel, folder: Path, base_dir: Path, input_ids: torch.Tensor) -> None:
    """Load the adapter into a fresh base, as later stages do, and through PEFT, as other programs do.

    TrainingError where our reading differs from the model in memory by a single bit, or PEFT's (fp32, up to two
    thousand million parameters) by more than a rounding.
    """
    device, dtype = model.device, next(iter(model.get_input_embeddings().parameters())).dtype
    quantised = any(layer.quantised for layer in adapter_layers(model).values())
    fresh = load_model(base_dir, device=str(device), dtype=dtype, quantised=quantised)
    load_adapter(fresh, folder)
    trained = model(input_ids=input_ids.to(device), use_cache=False).logits
    if not torch.equal(trained, fresh(input_ids=input_ids.to(device), use_cache=False).logits):
        raise _differs(folder, "the adapter read back gives other logits than the model that was trained")
    if quantised or fresh.num_parameters() > _FP32_PARAMETERS:
        return  # 4-bit weights have no fp32 form; the files of qlora are those of lora
    ours = cast("Any", fresh.float())(input_ids=input_ids.to(device), use_cache=False).logits
    del fresh
    # The base is loaded anew: PEFT puts its layers into the model it is given.
    base = load_model(base_dir, device=str(device), dtype=dtype).float()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # PEFT and transformers talking to each other
        peft_model = PeftModel.from_pretrained(base, folder).eval()
    theirs = peft_model(input_ids=input_ids.to(device), use_cache=False).logits
    difference = float((ours - theirs).abs().max())
    if not difference <= _SAME * float(theirs.abs().max()):
        raise _differs(folder, f"PEFT reads another adapter: its logits differ by {difference:.3g}")


def save_full_model(model: PreTrainedModel, weights: Mapping[str, torch.Tensor], base_dir: Path, folder: Path) -> None:
    """Write a transformers folder: the masters rounded once to the dtype the base model is stored in, its config,
    and its tokenizer files unchanged. Weights that were frozen are those of the base model's files, bit for bit: the
    model in memory may hold them in another dtype."""
    stored = load_stored_dtype(base_dir)
    frozen: dict[str, torch.Tensor] = {}
    if any(name not in weights for name, _ in model.named_parameters()):
        frozen = dict(load_model(base_dir, device="cpu", dtype=stored).named_parameters())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            tensor = weights[name] if name in weights else frozen[name]
            parameter.data = tensor.detach().to(parameter.device, stored)
    model.config.dtype = stored  # buffers stay as they are: rotary frequencies are fp32 in every dtype
    model.save_pretrained(folder, max_shard_size="4GB")
    copy_tokenizer(base_dir, folder)


@torch.no_grad()
def check_saved_model(model: PreTrainedModel, folder: Path, input_ids: torch.Tensor) -> None:
    """TrainingError where the folder, loaded again, gives other logits than the model that was saved."""
    fresh = load_model(folder, device=str(model.device), dtype=model.dtype)
    ids = input_ids.to(model.device)
    if not torch.equal(model(input_ids=ids, use_cache=False).logits, fresh(input_ids=ids, use_cache=False).logits):
        raise _differs(folder, "the model read back gives other logits than the one that was saved")


def _differs(folder: Path, message: str) -> TrainingError:
    return TrainingError(message, where=str(folder), hint="the disk or the memory may be faulty; run it again")
