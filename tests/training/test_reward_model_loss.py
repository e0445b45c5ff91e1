"""A reward model's loss in packs and tries equals a plain loop over pairs, in the loss and in every gradient."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tunesmith.chat.renderer import RenderedArrays
from tunesmith.errors import DataError
from tunesmith.events import CallbackSink
from tunesmith.model.load import load_model
from tunesmith.model.value_head import ValueHead, attached, new_value_head
from tunesmith.recipe import RewardModel
from tunesmith.training.batches import Samples, build_batch
from tunesmith.training.forward import output_head, varlen_forward
from tunesmith.training.loop import train
from tunesmith.training.reward_model import RewardModelLoss, measure_scores, scored_pairs
from tunesmith.training.step import Pace, Stepper
from tunesmith.training.supervised_rows import supervised_hidden

CPU = torch.device("cpu")
PACE = Pace(1, None, 1, 1, False, True, True, True, False)
STOP, AFTER = 2, 7
MARGINS = [0.5, 0.0, 1.0, 0.25, 0.0]
SECTION = RewardModel(centre_weight=0.1)


def answer(prompt: list[int], reply: list[int], goes_on: bool) -> RenderedArrays:
    """A reply with its end of turn; the template goes on after some."""
    ids = np.array([*prompt, *reply, STOP, *([AFTER, AFTER] if goes_on else [])], dtype=np.int32)
    place = np.arange(len(ids))
    return RenderedArrays(ids, np.zeros(len(ids), np.int16), (place >= len(prompt)) & (ids != AFTER), "")


@pytest.fixture(scope="module")
def pairs() -> list[tuple[RenderedArrays, RenderedArrays]]:
    rng = np.random.default_rng(4)
    made = []
    for number, (length, chosen, rejected) in enumerate([(20, 5, 9), (12, 1, 3), (31, 14, 2), (9, 6, 6), (25, 3, 30)]):
        prompt = rng.integers(8, 300, length).tolist()
        made.append(
            tuple(answer(prompt, rng.integers(8, 300, n).tolist(), number % 2 == 0) for n in (chosen, rejected))
        )
    return made


@pytest.fixture(scope="module")
def samples(pairs: Any) -> Samples:
    return scored_pairs(pairs, [f"pair-{n}" for n in range(len(pairs))], MARGINS)


@pytest.fixture
def head() -> ValueHead:
    made = new_value_head(64, rng_seed=1)
    made.bias.data.fill_(0.3)
    return made


def plain_score(model: Any, head: ValueHead, rendered: RenderedArrays) -> torch.Tensor:
    """The head of the last hidden state at the token that ends the answer; transformers' own forward pass."""
    end = list(rendered.input_ids).index(STOP)
    ids = torch.from_numpy(rendered.input_ids[: end + 1].astype(np.int64))[None]
    last = model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state[0, -1]
    return last @ head.weight[0] + head.bias[0]


def plain_loss(model: Any, head: ValueHead, pairs: Any) -> torch.Tensor:
    """The mean over pairs, written out."""
    total = torch.zeros(())
    for (chosen, rejected), margin in zip(pairs, MARGINS, strict=True):
        good, bad = plain_score(model, head, chosen), plain_score(model, head, rejected)
        total = total + torch.log1p(torch.exp(-(good - bad - margin))) + 0.1 * (good + bad) ** 2
    return total / len(pairs)


@pytest.mark.parametrize("share_prefixes", [True, False])
@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_packed_loss_and_its_gradients_equal_a_plain_loop(
    method: str, share_prefixes: bool, tiny_model: Any, with_adapter: Any, samples: Samples, pairs: Any, head: ValueHead
) -> None:
    if method == "lora":
        with_adapter(tiny_model)
    else:
        tiny_model.requires_grad_(True)
    with attached(tiny_model, head):
        plain = plain_loss(tiny_model, head, pairs)
        plain.backward()
        expected = {n: p.grad.clone() for n, p in tiny_model.named_parameters() if p.grad is not None}
        tiny_model.zero_grad()
        loss = RewardModelLoss(SECTION, head)
        with varlen_forward(tiny_model):
            batch = build_batch(samples, range(10), CPU, share_prefixes=share_prefixes)
            summed, measured = loss(output_head(tiny_model), supervised_hidden(tiny_model, batch, trim=True), batch)
            found = summed / loss.units(samples, range(10))
            found.backward()
        assert found.item() == pytest.approx(plain.item(), rel=1e-5)
        assert {"value_head.weight", "value_head.bias"} < expected.keys() and len(expected) > 10
        for parameter, gradient in expected.items():
            ours = tiny_model.get_parameter(parameter).grad
            assert float((ours - gradient).abs().max() / gradient.abs().max()) < 2e-4, parameter
    assert measured["accuracy"] in range(6)
    assert (batch.input_ids.shape[1] < batch.num_tokens) == share_prefixes
    assert not any("value_head" in name for name, _ in tiny_model.named_parameters())


def test_a_score_is_read_at_the_end_of_turn_and_nothing_after_it_counts(
    tiny_model: Any, samples: Samples, pairs: Any, head: ValueHead
) -> None:
    scores = measure_scores(tiny_model, head, samples)
    with torch.no_grad():
        expected = [float(plain_score(tiny_model, head, each)) for pair in pairs for each in pair]
    assert scores.tolist() == pytest.approx(expected, abs=2e-4)
    assert samples.num_targets.tolist() == [1] * 10
    ends = samples.ends
    assert samples.input_ids[ends - 2].tolist() == [STOP] * 10
    assert samples.input_ids[ends - 1].tolist() == [AFTER, AFTER, STOP, STOP] * 2 + [AFTER, AFTER]


def test_an_answer_without_a_token_has_no_score() -> None:
    empty = RenderedArrays(np.arange(4, dtype=np.int32), np.zeros(4, np.int16), np.zeros(4, bool), "")
    with pytest.raises(DataError, match="no place where a score could be read"):
        scored_pairs([(empty, empty)], ["a"], [0.0])


def stepped(model: Any, loss: Any, samples: Samples, packs: Any, **pace: Any) -> tuple[Any, dict[str, torch.Tensor]]:
    stepper = Stepper(model, loss, SECTION, dataclasses.replace(PACE, **pace), learning_rate=1e-3)
    grads: dict[str, torch.Tensor] = {}
    stepper.weights.step = lambda rate: grads.update(  # type: ignore[method-assign]
        {name: master.grad.clone() for name, master in stepper.weights.masters.items() if master.grad is not None}
    )
    with varlen_forward(model):
        return stepper.take(samples, packs, 0, 1e-3), grads


def test_a_step_is_the_same_however_it_is_packed(
    tiny_model: Any, with_adapter: Any, samples: Samples, head: ValueHead
) -> None:
    with_adapter(tiny_model)
    apart = [tuple(group) for group in samples.groups]
    with attached(tiny_model, head):
        loss = RewardModelLoss(SECTION, head)
        single, grads = stepped(tiny_model, loss, samples, apart, share_prefixes=False)
        for packs, pace in (
            ([tuple(range(10))], {"share_prefixes": True}),
            (apart, {"share_prefixes": True, "micro_batch_size": 2}),
            ([(0, 1, 2, 3), (8, 9, 6, 7, 4, 5)], {"share_prefixes": False}),
        ):
            other, others = stepped(tiny_model, loss, samples, packs, **pace)
            assert other.loss == pytest.approx(single.loss, rel=1e-5)
            assert other.measures["accuracy"] == single.measures["accuracy"]
            assert grads.keys() == others.keys()
            for name, grad in grads.items():
                torch.testing.assert_close(grad, others[name], atol=1e-6, rtol=1e-3)


def run(model: Any, head: ValueHead, samples: Samples, folder: Path, section: RewardModel) -> Any:
    with attached(model, head):
        return train(
            model,
            samples,
            section,
            learning_rate=5e-3,
            pack_length=70,
            pace=dataclasses.replace(PACE, checkpoint_every_steps=1),
            checkpoint_dir=folder / "checkpoints",
            metrics_path=folder / "metrics.jsonl",
            events=CallbackSink(lambda event: None),
            loss=RewardModelLoss(section, head),
        )


def fresh(base_dir: Path, with_adapter: Any) -> tuple[Any, ValueHead]:
    model = load_model(base_dir, device="cpu", dtype=torch.float32)
    with_adapter(model)
    return model, new_value_head(64, rng_seed=1)


def test_training_tells_pairs_apart_and_goes_on_with_its_head_after_a_stop(
    base_dir: Path, with_adapter: Any, samples: Samples, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    section = RewardModel(num_epochs=4, lr_schedule="constant")
    model, first = fresh(base_dir, with_adapter)
    drawn = first.weight.detach().clone()
    whole = run(model, first, samples, tmp_path / "whole", section)

    calls = []

    def stopping(self: Any, *given: Any) -> Any:
        calls.append(given)
        if len(calls) > 6:
            raise KeyboardInterrupt
        return call(self, *given)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        call = RewardModelLoss.__call__
        patch.setattr(RewardModelLoss, "__call__", stopping)
        run(*fresh(base_dir, with_adapter), samples, tmp_path / "stopped", section)
    assert list((tmp_path / "stopped" / "checkpoints").iterdir())
    model, second = fresh(base_dir, with_adapter)
    resumed = run(model, second, samples, tmp_path / "stopped", section)

    assert [row.loss for row in whole.losses] == [row.loss for row in resumed.losses]
    assert torch.equal(first.weight, second.weight) and torch.equal(first.bias, second.bias)
    assert not torch.equal(first.weight, drawn)
    start, end = whole.losses[0], whole.losses[-1]
    assert end.measures["accuracy"] == 1 and end.measures["margin"] > start.measures["margin"] and end.loss < start.loss
