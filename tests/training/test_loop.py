"""The loop: accumulation changes nothing, a resumed run is bitwise the same run, and bad numbers stop it at once."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tunesmith.errors import TrainingError
from tunesmith.events import Metric, Note, Progress
from tunesmith.model.load import load_model
from tunesmith.recipe import Train
from tunesmith.training.batches import Samples
from tunesmith.training.loop import Trained, train
from tunesmith.training.losses import CrossEntropy
from tunesmith.training.step import Pace

LENGTHS = [30, 12, 25, 40, 8, 33, 21, 17, 38, 5, 29, 14]


@pytest.fixture
def start(base_dir: Path, tmp_path: Path, make_samples: Any, with_adapter: Any, sink: Any) -> Callable[..., Trained]:
    """Train a fresh model; `folder` keeps the checkpoints, so calling it again resumes."""

    def run(folder: str, *, section: dict[str, Any] | None = None, pace: dict[str, Any] | None = None,
            samples: Samples | None = None, dtype: torch.dtype = torch.float32, events: Any = None,
            change: Callable[[Any], None] | None = None) -> Trained:  # fmt: skip
        options: dict[str, Any] = {"num_epochs": 3, "global_batch_size": 2, "max_steps": 6, "warmup_ratio": 0.2}
        train_section = Train(**{**options, **(section or {})})
        model = load_model(base_dir, device="cpu", dtype=dtype)
        if train_section.method == "lora":
            with_adapter(model, dropout=train_section.lora_dropout)
        else:
            model.requires_grad_(True)
        if change is not None:
            change(model)
        every: dict[str, Any] = {
            "micro_batch_size": 1,
            "checkpoint_every_steps": 1,
            "keep_checkpoints": 2,
            "log_every_steps": 1,
            "gradient_checkpointing": False,
            "share_prefixes": True,
            "trim_last_block": True,
            "cache_activations": True,
            "compile_blocks": False,
        }
        return train(
            model,
            samples or make_samples(LENGTHS),
            train_section,
            learning_rate=1e-3,
            pack_length=48,
            pace=Pace(**{**every, **(pace or {})}),
            checkpoint_dir=tmp_path / folder / "checkpoints",
            metrics_path=tmp_path / folder / "logs" / "metrics.jsonl",
            events=events or sink,
            loss=CrossEntropy(),
        )

    return run


def losses(trained: Trained) -> list[float]:
    return [row.loss for row in trained.losses]


class StopAfter:
    """A sink that interrupts when a step is reported."""

    def __init__(self, step: int) -> None:
        self.step = step

    def emit(self, event: Any) -> None:
        if isinstance(event, Metric) and event.step == self.step:
            raise KeyboardInterrupt


@pytest.mark.parametrize(
    "section",
    [{"method": "lora"}, {"method": "lora", "lora_dropout": 0.3}, {"method": "full", "weight_decay": 0.1}],
    ids=["lora", "dropout", "full"],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_three_steps_and_three_more_are_bitwise_six(start: Any, section: Any, dtype: torch.dtype) -> None:
    whole = start("whole", section=section, dtype=dtype)
    with pytest.raises(KeyboardInterrupt):
        start("parts", section=section, dtype=dtype, events=StopAfter(3), pace={"checkpoint_every_steps": 100})
    parts = start("parts", section=section, dtype=dtype)
    assert len(whole.losses) == 6
    assert losses(parts) == losses(whole)
    assert parts.weights.keys() == whole.weights.keys()
    for name, weight in whole.weights.items():
        assert torch.equal(parts.weights[name], weight), name


def test_where_checkpoints_fall_changes_nothing(start: Any) -> None:
    never = start("never", pace={"checkpoint_every_steps": 100})
    always = start("always", pace={"checkpoint_every_steps": 1})
    assert losses(never) == losses(always)


def test_a_finished_training_resumed_from_an_earlier_step_ends_the_same(start: Any, tmp_path: Path) -> None:
    first = start("again", pace={"checkpoint_every_steps": 2})
    assert sorted(path.name for path in (tmp_path / "again" / "checkpoints").iterdir()) == [
        "step-000002",
        "step-000004",
    ]
    second = start("again")
    assert losses(first) == losses(second)
    for name, weight in first.weights.items():
        assert torch.equal(second.weights[name], weight)


def test_a_damaged_checkpoint_is_passed_over_with_a_warning(start: Any, tmp_path: Path, sink: Any) -> None:
    whole = start("damaged", pace={"checkpoint_every_steps": 2})
    (tmp_path / "damaged/checkpoints/step-000004/tensors.safetensors").write_bytes(b"torn")
    assert losses(start("damaged", pace={"checkpoint_every_steps": 100})) == losses(whole)
    notes = [event.message for event in sink.events if isinstance(event, Note)]
    assert any("step-000004 is damaged" in note for note in notes)
    assert "training continues after step 2 of 6" in notes


@pytest.mark.parametrize("method", ["lora", "full"])
def test_eight_packs_at_once_equal_eight_packs_one_by_one(start: Any, method: str) -> None:
    section = {"method": method, "global_batch_size": 8, "max_steps": 3, "num_epochs": 3}
    together = start("together", section=section, pace={"micro_batch_size": 8})
    apart = start("apart", section=section, pace={"micro_batch_size": 1})
    assert [row.num_supervised for row in together.losses] == [row.num_supervised for row in apart.losses]
    assert losses(together) == pytest.approx(losses(apart), rel=1e-5)
    for name, weight in together.weights.items():
        torch.testing.assert_close(
            apart.weights[name], weight, atol=3e-4, rtol=0
        )  # AdamW magnifies the last bits of tiny gradients; a wrong weight would move by 3e-3


def test_packing_changes_nothing_when_a_step_holds_all_samples(start: Any, make_samples: Any) -> None:
    """One step over every sample, packed or one sample a pack: the denominators are global, so the loss is the same."""
    few = make_samples([40, 45, 30, 47])
    section = {"global_batch_size": 8, "max_steps": 1}
    assert losses(start("a", samples=few, section=section)) == pytest.approx(
        losses(start("b", samples=few, section=section, pace={"micro_batch_size": 3})), rel=1e-6
    )


def test_gradient_checkpointing_changes_nothing(start: Any) -> None:
    assert losses(start("plain")) == losses(start("again", pace={"gradient_checkpointing": True}))


def test_the_loss_falls(start: Any) -> None:
    trained = start("fall", section={"num_epochs": 20, "max_steps": None})
    assert losses(trained)[-1] < 0.8 * losses(trained)[0]
    assert trained.num_trainable == sum(weight.numel() for weight in trained.weights.values())
    assert trained.peak_memory_bytes > 50_000_000 and trained.tokens_per_second > 0


def test_a_run_tells_its_steps_speed_and_end(start: Any, sink: Any, tmp_path: Path) -> None:
    trained = start("told", pace={"log_every_steps": 4})
    progress = [event for event in sink.events if isinstance(event, Progress)]
    assert [event.done for event in progress] == [0, 1, 2, 3, 4, 5, 6]
    assert {event.total for event in progress} == {6}
    metrics = [event for event in sink.events if isinstance(event, Metric)]
    assert [event.step for event in metrics] == [4, 6]
    assert metrics[-1].values["loss"] == losses(trained)[-1]
    assert {"learning_rate", "grad_norm", "tokens_per_second"} <= metrics[0].values.keys()
    lines = (tmp_path / "told/logs/metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    spent = [(each["seconds"], each["seconds"] * each["tokens_per_second"]) for each in map(json.loads, lines)]
    seconds, tokens = (sum(column) for column in zip(*spent, strict=True))
    assert tokens / seconds == pytest.approx(trained.tokens_per_second, rel=0.02)


def test_a_loss_that_is_not_finite_stops_at_once_and_names_rows_and_layer(start: Any, tmp_path: Path) -> None:
    def damage(model: Any) -> None:
        model.model.layers[1].mlp.up_proj.base.weight.data[:] = float("inf")

    with pytest.raises(TrainingError, match="the loss is nan at step 1") as caught:
        start("nan", change=damage)
    assert "first bad layer: model.layers.1.mlp.up_proj" in caught.value.message
    assert "row-" in caught.value.message
    assert not (tmp_path / "nan" / "checkpoints").exists()


def test_a_gradient_that_is_not_finite_stops_before_the_weights_change(start: Any) -> None:
    def damage(model: Any) -> None:
        model.model.layers[0].mlp.down_proj.lora_B.register_hook(lambda grad: grad * float("nan"))

    with pytest.raises(TrainingError, match=r"gradient of model\.layers\.0\.mlp\.down_proj\.lora_B is not finite"):
        start("nan-gradient", change=damage)


def test_a_loss_of_exactly_zero_stops_and_names_the_rows(start: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(loss: Any, head: Any, hidden: Any, batch: Any) -> Any:
        return hidden.sum() * 0.0, {}

    monkeypatch.setattr(CrossEntropy, "__call__", nothing)
    with pytest.raises(TrainingError, match="exactly 0, so nothing can be learnt at step 1") as caught:
        start("zero")
    assert "row-" in caught.value.message


def test_training_leaves_the_callers_random_numbers_alone(start: Any) -> None:
    torch.manual_seed(99)
    expected = torch.rand(3)
    torch.manual_seed(99)
    start("random", section={"lora_dropout": 0.2, "max_steps": 2})
    assert torch.equal(torch.rand(3), expected)


def under_one_prompt(make_samples: Any) -> Samples:
    """Twelve samples whose first ten tokens are the same, where they have as many."""
    samples = make_samples([max(length, 10) for length in LENGTHS])
    for index in range(len(LENGTHS)):
        samples.input_ids[samples.rows(index)][:10] = range(50, 60)
    return samples


def test_sharing_beginnings_changes_nothing_but_the_work(start: Any, make_samples: Any, sink: Any) -> None:
    section = {"global_batch_size": 4}
    samples = under_one_prompt(make_samples)
    shared = start("shared", section=section, samples=samples, pace={"micro_batch_size": 4})
    note = next(event.message for event in sink.events if isinstance(event, Note) and "share" in event.message)
    assert "279 tokens are computed as 179 (1.56x)" in note  # two micro batches: ten of twelve beginnings saved
    apart = start("apart", section=section, samples=samples, pace={"micro_batch_size": 4, "share_prefixes": False})
    assert losses(shared) == pytest.approx(losses(apart), rel=1e-5)
    for name, weight in apart.weights.items():
        torch.testing.assert_close(shared.weights[name], weight, atol=3e-4, rtol=0)


def test_dropout_turns_sharing_off(start: Any, make_samples: Any, sink: Any) -> None:
    section = {"lora_dropout": 0.1, "max_steps": 1}
    start("dropout", section=section, samples=under_one_prompt(make_samples))
    assert not [event for event in sink.events if isinstance(event, Note) and "share" in event.message]


def test_a_trained_model_has_its_gradients_to_itself(start: Callable[..., Trained]) -> None:
    models: list[Any] = []
    start("run", section={"method": "full", "max_steps": 1}, dtype=torch.bfloat16, change=models.append)
    models[0](input_ids=torch.tensor([[5, 6, 7]])).logits.float().sum().backward()
    without = [name for name, p in models[0].named_parameters() if p.requires_grad and p.grad is None]
    assert without == []
