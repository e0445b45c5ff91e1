"""Common beginnings are computed once, and nothing else changes: loss, gradients, who sees whom."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from small_models import build_model
from tunesmith.model.load import load_model
from tunesmith.training.attention import attend
from tunesmith.training.batches import Samples, build_batch
from tunesmith.training.forward import draws_dropout, hidden_states, output_head, varlen_forward
from tunesmith.training.prefixes import lay_as_trie, lay_end_to_end
from tunesmith.training.segments import build_segments

CPU = torch.device("cpu")


def tokens(*runs: tuple[int, int]) -> np.ndarray:
    """Runs of (first id, how many)."""
    return np.concatenate([np.arange(first, first + count) for first, count in runs]).astype(np.int32)


def chats() -> list[np.ndarray]:
    """Two dialogues under one system prompt of 20 tokens; the first one branches again after 15 more."""
    system, opening = (3, 20), (40, 15)
    return [
        tokens(system, opening, (100, 7)),
        tokens(system, (200, 11)),
        tokens(system, opening, (120, 9)),
        tokens((250, 5)),
        tokens(system, opening),
    ]


def test_a_trie_holds_each_common_beginning_once() -> None:
    layout = lay_as_trie(chats())
    assert len(layout.input_ids) == 20 + 15 + 7 + 9 + 11 + 5
    assert layout.ratio == pytest.approx((42 + 31 + 44 + 5 + 35) / 67)
    lengths = [(each.length, each.num_before) for each in layout.segments]
    assert lengths == [(20, 0), (15, 20), (7, 35), (9, 35), (11, 20), (5, 0)]
    assert layout.segments[3].seen == ((0, 20), (20, 35))


def test_a_beginning_of_seven_tokens_is_not_worth_a_segment() -> None:
    short = [tokens((3, 7), (50, 4)), tokens((3, 7), (60, 4))]
    assert lay_as_trie(short).ratio == 1.0
    assert lay_as_trie([tokens((3, 8), (50, 4)), tokens((3, 8), (60, 4))]).ratio == 24 / 16


def test_equal_samples_share_everything() -> None:
    layout = lay_as_trie([tokens((3, 12))] * 3)
    assert len(layout.input_ids) == 12 and layout.ratio == 3
    assert all(rows.tolist() == list(range(12)) for rows in layout.row_of)


sequences = st.lists(st.lists(st.integers(1, 2), min_size=1, max_size=30), min_size=1, max_size=12)


@settings(max_examples=150, deadline=None)
@given(sequences)
def test_every_token_of_every_sample_has_its_row_and_sees_exactly_what_came_before_it(ids: list[list[int]]) -> None:
    samples = [np.array(each, dtype=np.int32) for each in ids]
    layout = lay_as_trie(samples)
    assert 1 <= layout.ratio <= lay_end_to_end(samples).ratio * len(samples)
    starts = [segment.start for segment in layout.segments]
    assert starts == np.cumsum([0, *(segment.length for segment in layout.segments)])[:-1].tolist()
    segment_of = np.repeat(np.arange(len(starts)), [segment.length for segment in layout.segments])
    for sample, rows in zip(samples, layout.row_of, strict=True):
        assert layout.input_ids[rows].tolist() == sample.tolist()
        assert layout.position_ids[rows].tolist() == list(range(len(sample)))
        last = layout.segments[segment_of[rows[-1]]]
        visible = np.concatenate([np.arange(start, end) for start, end in last.places])
        assert visible[: len(rows)].tolist() == rows.tolist()


@pytest.mark.parametrize("scale_up", [1, 30], ids=["whole segments", "pieces of segments"])
def test_attention_of_a_trie_equals_each_sample_alone(scale_up: int) -> None:
    samples = [np.repeat(ids, scale_up) if len(ids) > 35 else ids for ids in chats()]
    layout = lay_as_trie(samples)
    generator = torch.Generator().manual_seed(4)
    rows = len(layout.input_ids)
    q, k, v = (torch.randn(1, heads, rows, 16, generator=generator).requires_grad_() for heads in (6, 2, 2))
    found = attend(q, k, v, 0.3, layout.segments, 0.0)
    direction = torch.randn(found.shape, generator=generator)
    for sample, row_of in zip(samples, layout.row_of, strict=True):
        index = torch.from_numpy(row_of)
        alone = attend(q[:, :, index], k[:, :, index], v[:, :, index], 0.3, build_segments([len(sample)]), 0.0)
        torch.testing.assert_close(found[:, index], alone, atol=1e-5, rtol=1e-5)
    # A row shared by several samples gets the sum of what each of them sends back, and its own output once.
    wide = [tensor.detach().clone().requires_grad_() for tensor in (q, k, v)]
    mask = torch.full((rows, rows), float("-inf"))
    for segment in layout.segments:
        for offset in range(segment.length):
            seen = [place for start, end in segment.seen for place in range(start, end)]
            mask[segment.start + offset, [*seen, *range(segment.start, segment.start + offset + 1)]] = 0
    groups = [wide[0], *(tensor.repeat_interleave(3, 1) for tensor in wide[1:])]
    expected = (torch.softmax(groups[0] @ groups[1].transpose(2, 3) * 0.3 + mask, -1) @ groups[2]).transpose(1, 2)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    ours = torch.autograd.grad(found, (q, k, v), direction)
    for one, other in zip(ours, torch.autograd.grad(expected, wide, direction), strict=True):
        torch.testing.assert_close(one, other, atol=3e-5, rtol=1e-4)


def chat_samples() -> Samples:
    """The second half of each chat is supervised, so one target of the shared opening counts three times."""
    ids = chats()
    return Samples(
        input_ids=np.concatenate(ids),
        loss_mask=np.concatenate([np.arange(len(each)) >= len(each) // 2 for each in ids]).astype(np.uint8),
        lengths=np.array([len(each) for each in ids], dtype=np.int64),
        ids=tuple("abcde"),
    )


def test_a_row_is_asked_once_for_every_sample_that_goes_through_it() -> None:
    samples = chat_samples()
    plain, shared = (build_batch(samples, range(5), CPU, share_prefixes=share) for share in (False, True))
    assert plain.input_ids.shape == (1, 157) and shared.input_ids.shape == (1, 67)
    assert plain.num_tokens == shared.num_tokens == 157
    assert sorted(plain.targets.tolist()) == sorted(shared.targets.tolist())
    branching = shared.rows.tolist().count(34)  # the last row of the opening: two continuations, one end
    assert branching == 2
    assert {shared.targets[i].item() for i, row in enumerate(shared.rows.tolist()) if row == 34} == {100, 120}


def test_a_saving_under_a_twentieth_is_left_alone(make_samples: Any) -> None:
    samples = make_samples([200, 200])
    samples.input_ids[200:215] = samples.input_ids[:15]
    assert lay_as_trie([samples.input_ids[:200], samples.input_ids[200:]]).ratio == pytest.approx(400 / 385)
    assert build_batch(samples, (0, 1), CPU, share_prefixes=True).input_ids.shape == (1, 400)


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2", "qwen3"])
@pytest.mark.parametrize("method", ["lora", "full"])
def test_loss_and_every_gradient_are_those_of_samples_end_to_end(
    kind: str, method: str, tmp_path: Path, with_adapter: Any
) -> None:
    model = load_model(build_model(tmp_path, kind), device="cpu", dtype=torch.float32)
    if method == "lora":
        with_adapter(model)
    else:
        model.requires_grad_(True)
    found: list[tuple[float, dict[str, torch.Tensor]]] = []
    for share in (False, True):
        batch = build_batch(chat_samples(), range(5), CPU, share_prefixes=share)
        with varlen_forward(model):
            hidden = hidden_states(model, batch)
            loss = output_head(model).negative_log_likelihood(hidden[batch.rows], batch.targets)
            loss.backward()
        found.append((float(loss.detach()), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}))
        model.zero_grad(set_to_none=True)
    (loss, gradients), (shared_loss, shared_gradients) = found
    assert shared_loss == pytest.approx(loss, rel=1e-6)
    assert gradients.keys() == shared_gradients.keys() and len(gradients) >= 20
    for name, gradient in gradients.items():
        limit = 1e-4 * float(gradient.abs().max())
        torch.testing.assert_close(shared_gradients[name], gradient, atol=limit, rtol=1e-3, msg=name)


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_a_token_of_a_branch_moves_no_bit_outside_it(kind: str, tmp_path: Path) -> None:
    model = load_model(build_model(tmp_path, kind), device="cpu", dtype=torch.float32)
    with varlen_forward(model), torch.no_grad():
        batch = build_batch(chat_samples(), range(5), CPU, share_prefixes=True)
        before = hidden_states(model, batch)
        for segment in batch.segments:
            own = segment.start, segment.start + segment.length
            below = [each for each in batch.segments if own in each.seen or each is segment]
            changed = build_batch(chat_samples(), range(5), CPU, share_prefixes=True)
            changed.input_ids[0, segment.start] = 299
            moved = (hidden_states(model, changed) != before).any(-1)
            expected = torch.zeros_like(moved)
            for each in below:
                expected[each.start : each.start + each.length] = True
            assert torch.equal(moved, expected)


def test_dropout_is_noticed_because_it_forbids_sharing(base_dir: Path, with_adapter: Any) -> None:
    model = load_model(base_dir, device="cpu", dtype=torch.float32)
    assert not draws_dropout(model)
    with_adapter(model, dropout=0.1)
    assert draws_dropout(model)
