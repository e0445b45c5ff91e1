"""Stage export on adapters that are not plain LoRA: the merged folder answers as the model that was trained."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from test_export import FOLDER, ctx, inputs, out_dir  # noqa: F401  # fixtures of the stage

from tunesmith.model.adapters import (
    AdapterConfig,
    adapter_layers,
    add_adapter,
    choose_targets,
    load_adapter,
    save_adapter,
    target_names,
)
from tunesmith.model.load import load_model
from tunesmith.stages import evaluate, export
from tunesmith.types import Inputs

pytestmark = pytest.mark.slow


def exchange_adapter(inputs: Inputs, **kind: Any) -> tuple[Inputs, Path]:  # noqa: F811
    """The same artifacts with another adapter in the checkpoint, and the base's folder."""
    base_dir = Path(inputs["base_model"].facts["name"])
    model = load_model(base_dir, device="cpu", dtype=torch.float32)
    targets = choose_targets(model, ["all-linear"])
    config = AdapterConfig(4, 8, 0.0, targets, target_names(model, targets), "small", **kind)
    add_adapter(model, config, rng_seed=3)
    torch.manual_seed(4)
    for layer in adapter_layers(model).values():
        layer.lora_B.data.normal_(std=0.05)
        if "lora_magnitude_vector" in layer.parts:
            layer.lora_magnitude_vector.data.mul_(1.1)
    weights = {name: p for name, p in model.named_parameters() if "lora_" in name}
    save_adapter(inputs["train"].path / "adapter", config, weights)
    method = "dora" if config.use_dora else "lora"
    manifest = inputs["train"].manifest.model_copy(update={"facts": {**inputs["train"].facts, "method": method}})
    artifacts = {**inputs.artifacts, "train": replace(inputs["train"], manifest=manifest)}
    return Inputs(artifacts, inputs.files), base_dir


@pytest.mark.parametrize("kind", [{"use_dora": True}, {"use_rslora": True}, {"use_dora": True, "use_rslora": True}])
def test_the_merged_folder_holds_each_maps_tuned_weight(
    inputs: Inputs,  # noqa: F811
    out_dir: Path,  # noqa: F811
    ctx: Any,  # noqa: F811
    kind: dict[str, bool],
) -> None:
    given, base_dir = exchange_adapter(inputs, **kind)
    export.run(FOLDER, given, out_dir, ctx)
    checks = json.loads((out_dir / "checks.json").read_bytes())
    assert checks["merge"]["max_logit_difference"] < 1e-3
    model = load_model(base_dir, device="cpu", dtype=torch.float32)
    load_adapter(model, given["train"].path / "adapter")
    merged = load_file(out_dir / "safetensors" / "model.safetensors")
    for path, layer in adapter_layers(model).items():
        assert torch.equal(merged[f"{path}.weight"], layer.tuned_weight().bfloat16()), path
        assert not torch.equal(merged[f"{path}.weight"], layer.weight.bfloat16())


def test_evaluation_measures_the_merged_dora_model(inputs: Inputs, ctx: Any) -> None:  # noqa: F811
    given, base_dir = exchange_adapter(inputs, use_dora=True)
    job: Any = type("Job", (), {"inputs": given, "base_dir": base_dir})
    tuned = evaluate._load_tuned(job, "cpu", torch.float32)
    active = load_model(base_dir, device="cpu", dtype=torch.float32)
    load_adapter(active, given["train"].path / "adapter")
    ids = torch.arange(3, 30)[None]
    assert not adapter_layers(tuned)
    with torch.no_grad():
        torch.testing.assert_close(tuned(input_ids=ids).logits, active(input_ids=ids).logits, atol=1e-3, rtol=1e-4)
