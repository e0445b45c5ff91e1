"""Preference losses in packs and tries equal a plain loop over pairs, in the loss and in every gradient."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tunesmith.chat.renderer import RenderedArrays
from tunesmith.errors import DataError
from tunesmith.events import CallbackSink
from tunesmith.recipe.align import Align
from tunesmith.training.batches import Samples, build_batch
from tunesmith.training.forward import output_head, varlen_forward
from tunesmith.training.loop import train
from tunesmith.training.losses import LOSSES
from tunesmith.training.pairs import labelled_samples, pair_rows, pair_samples, with_reference
from tunesmith.training.preference_losses import Kto
from tunesmith.training.reference import reference_log_probs
from tunesmith.training.step import Pace, Stepper
from tunesmith.training.supervised_rows import supervised_hidden

CPU = torch.device("cpu")
PACE = Pace(1, None, 1, 1, False, True, True, True, False)


def answer(prompt: list[int], reply: list[int]) -> RenderedArrays:
    ids = np.array(prompt + reply, dtype=np.int32)
    return RenderedArrays(ids, np.zeros(len(ids), np.int16), np.arange(len(ids)) >= len(prompt), "")


@pytest.fixture(scope="module")
def pairs() -> list[tuple[RenderedArrays, RenderedArrays]]:
    rng = np.random.default_rng(4)
    made = []
    for prompt_length, chosen, rejected in [(20, 5, 9), (12, 1, 3), (31, 14, 2), (9, 6, 6), (25, 3, 30)]:
        prompt = rng.integers(3, 300, prompt_length).tolist()
        made.append(tuple(answer(prompt, rng.integers(3, 300, n).tolist()) for n in (chosen, rejected)))
    return made


@pytest.fixture(scope="module")
def samples(pairs: Any) -> Samples:
    return pair_samples(pairs, [f"pair-{n}" for n in range(len(pairs))])


def plain_log_prob(model: Any, ids: np.ndarray, mask: np.ndarray) -> torch.Tensor:
    logits = model(input_ids=torch.from_numpy(ids.astype(np.int64))[None], use_cache=False).logits[0, :-1].float()
    targets = torch.from_numpy(ids[1:].astype(np.int64))
    log_probs = torch.log_softmax(logits, -1).gather(1, targets[:, None])[:, 0]
    return log_probs[torch.from_numpy(mask[1:])].sum()


def plain_loss(model: Any, pairs: Any, reference: np.ndarray, name: str) -> torch.Tensor:
    """The mean over pairs, one answer at a time: the formulas of the papers, written out."""
    total = torch.zeros(())
    for index, (chosen, rejected) in enumerate(pairs):
        good, bad = (plain_log_prob(model, each.input_ids, each.loss_mask) for each in (chosen, rejected))
        good_length, bad_length = int(chosen.loss_mask.sum()), int(rejected.loss_mask.sum())
        good_ratio, bad_ratio = good - reference[2 * index], bad - reference[2 * index + 1]
        if name == "dpo":
            total = total - F.logsigmoid(0.1 * (good_ratio - bad_ratio))
        elif name == "ipo":
            total = total + (good_ratio / good_length - bad_ratio / bad_length - 1 / 0.2) ** 2
        elif name == "simpo":
            total = total - F.logsigmoid(0.1 * (good / good_length - bad / bad_length) - 0.5)
        else:
            p, q = torch.exp(good / good_length), torch.exp(bad / bad_length)
            total = total - good / good_length - 0.1 * F.logsigmoid(torch.log(p / (1 - p)) - torch.log(q / (1 - q)))
    return total / len(pairs)


@pytest.mark.parametrize("name", ["dpo", "ipo", "orpo", "simpo"])
@pytest.mark.parametrize("share_prefixes", [True, False])
def test_a_packed_loss_and_its_gradients_equal_a_plain_loop(
    name: str, share_prefixes: bool, tiny_model: Any, with_adapter: Any, samples: Samples, pairs: Any
) -> None:
    with_adapter(tiny_model)
    reference = np.linspace(-60, -5, 10)
    referenced = with_reference(samples, reference)
    loss = LOSSES.load(name, where="recipe.align.loss")(Align(loss=name))
    plain = plain_loss(tiny_model, pairs, reference, name)
    tiny_model.zero_grad()
    plain.backward()
    expected = {n: p.grad.clone() for n, p in tiny_model.named_parameters() if p.grad is not None}
    tiny_model.zero_grad()
    with varlen_forward(tiny_model):
        batch = build_batch(referenced, range(10), CPU, share_prefixes=share_prefixes)
        summed, measured = loss(output_head(tiny_model), supervised_hidden(tiny_model, batch, trim=True), batch)
        found = summed / loss.units(referenced, range(10))
        found.backward()
    assert found.item() == pytest.approx(plain.item(), rel=1e-5)
    assert measured["accuracy"] in range(6)
    for parameter, gradient in expected.items():
        ours = tiny_model.get_parameter(parameter).grad
        assert float((ours - gradient).abs().max() / gradient.abs().max()) < 2e-4, parameter
    assert (batch.input_ids.shape[1] < batch.num_tokens) == share_prefixes


def test_pairs_are_packed_whole_and_their_prompt_counts_once(samples: Samples) -> None:
    assert samples.group_lengths.tolist() == [34, 16, 47, 21, 58]
    half = build_batch(samples, [0, 1, 2], CPU, share_prefixes=True)
    with pytest.raises(DataError, match="one answer of a pair"):
        pair_rows(half)


def test_reference_log_probs_are_computed_once_for_each_content(
    tiny_model: Any, samples: Samples, pairs: Any, tmp_path: Path
) -> None:
    path = tmp_path / "reference" / "a.jsonl"
    told: list[tuple[int, int]] = []
    first = reference_log_probs(tiny_model, samples, path, lambda done, total: told.append((done, total)))
    with torch.no_grad():
        expected = [
            float(plain_log_prob(tiny_model, each.input_ids, each.loss_mask)) for pair in pairs for each in pair
        ]
    assert first.tolist() == pytest.approx(expected, rel=1e-4)
    assert told[0] == (0, 10) and told[-1] == (10, 10)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:4]) + lines[4][:7])  # killed while it wrote the fifth
    told.clear()
    again = reference_log_probs(tiny_model, pair_samples(pairs[::-1], "abcde"), path, lambda *at: told.append(at))
    assert told[0][0] > 0 and told[-1] == (10, 10)
    assert again.tolist() == pytest.approx(first.reshape(5, 2)[::-1].ravel().tolist(), rel=1e-4)


def stepped(model: Any, loss: Any, samples: Samples, packs: Any, **pace: Any) -> tuple[Any, dict[str, torch.Tensor]]:
    stepper = Stepper(model, loss, Align(), dataclasses.replace(PACE, **pace), learning_rate=1e-3)
    grads: dict[str, torch.Tensor] = {}
    stepper.weights.step = lambda rate: grads.update(  # type: ignore[method-assign]
        {name: master.grad.clone() for name, master in stepper.weights.masters.items()}
    )
    with varlen_forward(model):
        return stepper.take(samples, packs, 0, 1e-3), grads


def test_kto_gives_the_same_step_however_it_is_cut_into_micro_batches(
    tiny_model: Any, with_adapter: Any, pairs: Any
) -> None:
    with_adapter(tiny_model)
    answers = [each for pair in pairs for each in pair]
    strangers = [answer(each.input_ids[:8].tolist(), [5, 6, 7]) for each in answers]
    labels = [True, False] * 5
    samples = with_reference(labelled_samples(answers, labels, list("abcdefghij")), np.full(10, -40.0))
    mismatched = with_reference(labelled_samples(strangers, labels, list("abcdefghij")), np.full(10, -30.0))
    at_once, grads = stepped(tiny_model, Kto(Align(), mismatched), samples, [tuple(range(10))])
    apart, others = stepped(tiny_model, Kto(Align(), mismatched), samples, [(n,) for n in range(10)])
    assert at_once.loss == pytest.approx(apart.loss, rel=1e-5) and at_once.loss > 0
    assert at_once.measures["desirable"] == 0.5
    for name, grad in grads.items():
        torch.testing.assert_close(grad, others[name], atol=1e-6, rtol=1e-3)


@pytest.mark.parametrize("name", ["dpo", "ipo", "orpo", "simpo"])
def test_training_on_pairs_makes_the_better_answer_likelier(
    name: str, tiny_model: Any, with_adapter: Any, samples: Samples, tmp_path: Path
) -> None:
    with_adapter(tiny_model)
    reference = reference_log_probs(tiny_model, samples, tmp_path / "a.jsonl", lambda *at: None)
    section = Align(loss=name, num_epochs=20, lr_schedule="constant")
    trained = train(
        tiny_model,
        with_reference(samples, reference),
        section,
        learning_rate=5e-3,
        pack_length=100,
        pace=PACE,
        checkpoint_dir=tmp_path / "checkpoints",
        metrics_path=tmp_path / "metrics.jsonl",
        events=CallbackSink(lambda event: None),
        loss=LOSSES.load(name, where="")(section),
    )
    first, last = trained.losses[0], trained.losses[-1]
    assert last.loss < first.loss
    assert first.measures and last.measures and last.measures["margin"] > first.measures["margin"]
    if name == "dpo":
        assert first.loss == pytest.approx(np.log(2), rel=1e-4) and first.measures["accuracy"] < 0.5 + 1e-9
