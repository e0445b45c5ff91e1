"""Varlen attention equals plain masked attention, and no sample can see another."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from small_models import build_model
from tunesmith.errors import ModelError, TrainingError
from tunesmith.model.load import load_model
from tunesmith.training import attention, attention_products
from tunesmith.training.alibi import alibi_slopes
from tunesmith.training.attention import attend, varlen_attention
from tunesmith.training.batches import build_batch
from tunesmith.training.forward import hidden_states, varlen_forward
from tunesmith.training.prefixes import lay_as_trie
from tunesmith.training.probing import probe_model
from tunesmith.training.segments import PLAIN, Bias, build_segments

CPU = torch.device("cpu")


def plain_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, lengths: list[int]) -> Any:
    """Block-diagonal causal mask over the whole row, soft-max, done."""
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    segment = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    position = torch.arange(len(segment))
    allowed = (segment[:, None] == segment[None]) & (position[:, None] >= position[None])
    scores = (q @ k.transpose(2, 3) * scale).masked_fill(~allowed, float("-inf"))
    return (torch.softmax(scores, -1) @ v).transpose(1, 2)


def random_heads(tokens: int, *, heads: int = 6, key_heads: int = 2) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    shapes = [(1, tokens, heads, 16), (1, tokens, key_heads, 16), (1, tokens, key_heads, 16)]
    made = [torch.randn(shape, generator=generator).transpose(1, 2) for shape in shapes]
    return [tensor.requires_grad_() for tensor in made]


@pytest.mark.parametrize(
    "lengths", [[1], [1, 1, 2], [5, 17, 64], [384, 385], [3, 500, 7, 20]], ids=lambda lengths: str(lengths)
)
@pytest.mark.parametrize("key_heads", [1, 2, 6])
def test_outputs_and_gradients_equal_a_block_diagonal_mask(lengths: list[int], key_heads: int) -> None:
    inputs = random_heads(sum(lengths), key_heads=key_heads)
    expected = plain_attention(*inputs, 0.3, lengths)
    found = attend(*inputs, 0.3, build_segments(lengths), 0.0)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    direction = torch.randn(expected.shape, generator=torch.Generator().manual_seed(2))
    for ours, theirs in zip(
        torch.autograd.grad(found, inputs, direction), torch.autograd.grad(expected, inputs, direction), strict=True
    ):
        torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize(
    "bias", [PLAIN, Bias(window=50), Bias(slopes=alibi_slopes(6))], ids=["plain", "window", "slopes"]
)
def test_weights_that_are_computed_again_change_no_bit_of_a_gradient(
    bias: Bias, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs, segments = (
        [tensor.detach().bfloat16().requires_grad_() for tensor in random_heads(500)],
        build_segments([420, 80]),
    )
    direction = torch.randn(1, 500, 6, 16, generator=torch.Generator().manual_seed(2)).bfloat16()
    computed: list[int] = []
    plain_weights = attention_products._Scores.weights

    def weights(scores: Any, segment: Any) -> torch.Tensor:
        computed.append(segment.length)
        return plain_weights(scores, segment)

    monkeypatch.setattr(attention_products._Scores, "weights", weights)
    found: list[tuple[torch.Tensor, ...]] = []
    for kept in (10_000, 0):
        monkeypatch.setattr(attention_products, "_KEPT_PER_TOKEN", kept)
        computed.clear()
        found.append(torch.autograd.grad(attend(*inputs, 0.25, segments, 0.0, bias), inputs, direction))
        assert sum(computed) == (500 if kept else 1000)
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_gradients_pass_gradcheck_in_double_precision() -> None:
    inputs = [tensor.detach().double().requires_grad_() for tensor in random_heads(9)]
    found = torch.autograd.grad(attend(*inputs, 0.25, build_segments([4, 5]), 0.0).sum(), inputs)
    expected = torch.autograd.grad(plain_attention(*inputs, 0.25, [4, 5]).sum(), inputs)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)  # scores are fp32 inside


def test_bf16_is_as_near_to_fp32_as_torchs_own_kernel() -> None:
    inputs = [tensor.detach().bfloat16().requires_grad_() for tensor in random_heads(200)]
    wide = [tensor.detach().float().requires_grad_() for tensor in inputs]
    direction = torch.ones(1, 200, 6, 16)
    exact = torch.autograd.grad(plain_attention(*wide, 0.25, [200]), wide, direction)
    found = torch.autograd.grad(attend(*inputs, 0.25, build_segments([200]), 0.0), inputs, direction.bfloat16())
    for ours, true in zip(found, exact, strict=True):
        assert (ours.float() - true).norm() / true.norm() < 0.01


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2", "qwen3"])
def test_a_token_of_one_sample_moves_no_bit_of_another(kind: str, tmp_path: Path, make_samples: Any) -> None:
    model = load_model(build_model(tmp_path, kind), device="cpu", dtype=torch.float32)
    samples = make_samples([9, 30, 12])
    with varlen_forward(model), torch.no_grad():
        before = hidden_states(model, build_batch(samples, (0, 1, 2), CPU, share_prefixes=False))
        for changed, row in ((0, 4), (2, 9 + 3), (1, 9 + 12 + 8)):  # they lie in order of length: 0, 2, 1
            disturbed = build_batch(samples, (0, 1, 2), CPU, share_prefixes=False)
            disturbed.input_ids[0, row] = (disturbed.input_ids[0, row] + 1) % 300
            moved = (hidden_states(model, disturbed) != before).any(-1)
            first = {0: 0, 2: 9, 1: 21}[changed]
            last = first + int(samples.lengths[changed])
            assert moved[row:last].all()  # the token and everything after it in its sample
            assert not moved[:row].any() and not moved[last:].any()


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2", "qwen3"])
def test_packed_hidden_states_equal_each_sample_alone_so_positions_restart(
    kind: str, tmp_path: Path, make_samples: Any
) -> None:
    model = load_model(build_model(tmp_path, kind), device="cpu", dtype=torch.float32)
    samples = make_samples([21, 400, 8])
    with varlen_forward(model), torch.no_grad():
        packed = hidden_states(model, build_batch(samples, (0, 1, 2), CPU, share_prefixes=False)).split([8, 21, 400])
    for index, found in zip((2, 0, 1), packed, strict=True):
        ids = torch.from_numpy(samples.input_ids[samples.rows(index)].astype("int64"))[None]
        with torch.no_grad():
            alone = model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state[0]
        torch.testing.assert_close(found, alone, atol=3e-5, rtol=1e-4)


def test_a_call_without_segments_is_an_error() -> None:
    q, k, v = random_heads(4)
    with pytest.raises(TrainingError, match="segments"):
        varlen_attention(SimpleNamespace(is_causal=True), q, k, v, None)


def test_a_mask_beside_the_segments_is_an_error() -> None:
    q, k, v = random_heads(4)
    with pytest.raises(TrainingError, match="no mask"):
        varlen_attention(SimpleNamespace(), q, k, v, torch.ones(4, 4), segments=build_segments([4]))


def test_a_sliding_window_acts_only_where_it_is_shorter_than_a_sample() -> None:
    q, k, v = random_heads(6)
    segments = build_segments([6])
    wide, _ = varlen_attention(SimpleNamespace(), q, k, v, None, segments=segments, sliding_window=6)
    torch.testing.assert_close(wide, plain_attention(q, k, v, 16**-0.5, [6]), atol=1e-5, rtol=1e-5)
    narrow, _ = varlen_attention(SimpleNamespace(), q, k, v, None, segments=segments, sliding_window=5)
    assert torch.equal(narrow[0, :5], wide[0, :5])
    assert bool((narrow[0, 5] != wide[0, 5]).any())


def biased_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, samples: Sequence[Sequence[int]], bias: Bias
) -> list[torch.Tensor]:
    """Each sample (its rows) by itself, position by position, as the formula says."""
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    slopes = torch.zeros(q.shape[1]) if bias.slopes is None else bias.slopes
    found = []
    for rows in samples:
        outputs = []
        for position, row in enumerate(rows):
            first = 0 if bias.window is None else max(position - bias.window + 1, 0)
            seen = list(rows[first : position + 1])
            distance = torch.arange(position - first, -1, -1)
            scores = (q[0, :, row, None] * k[0, :, seen]).sum(-1) * scale - slopes[:, None] * distance  # (H, seen)
            outputs.append((torch.softmax(scores, -1)[..., None] * v[0, :, seen]).sum(1))
        found.append(torch.stack(outputs))
    return found


BIASES = {
    "window 1": Bias(1),
    "window 7": Bias(7),
    "window 350": Bias(350),
    "alibi": Bias(slopes=alibi_slopes(6)),
    "alibi, window 20": Bias(20, alibi_slopes(6)),
}


@pytest.mark.parametrize("name", BIASES)
@pytest.mark.parametrize("lengths", [[1, 9, 30], [400, 3, 385]], ids=["short", "long and short"])
def test_windows_and_falling_biases_equal_the_formula_in_outputs_and_gradients(name: str, lengths: list[int]) -> None:
    inputs, bias = random_heads(sum(lengths)), BIASES[name]
    found = attend(*inputs, 0.3, build_segments(lengths), 0.0, bias)
    samples = [range(segment.start, segment.start + segment.length) for segment in build_segments(lengths)]
    expected = torch.cat(biased_attention(*inputs, 0.3, samples, bias))[None]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    direction = torch.randn(expected.shape, generator=torch.Generator().manual_seed(2))
    for ours, theirs in zip(
        torch.autograd.grad(found, inputs, direction), torch.autograd.grad(expected, inputs, direction), strict=True
    ):
        torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("name", BIASES)
@pytest.mark.parametrize("opening", [12, 390], ids=["short", "long"])
def test_they_reach_back_into_a_shared_beginning(name: str, opening: int) -> None:
    """Two branches behind one beginning, one of them with a branch of its own: windows end in every one of these parts."""
    rng = np.random.default_rng(1)
    begin, turn = rng.integers(0, 90, opening), rng.integers(0, 90, 9)
    tails = [rng.integers(90, 99, count) for count in (5, 14, 11)]
    layout = lay_as_trie(
        [np.concatenate(ids) for ids in ((begin, turn, tails[0]), (begin, turn, tails[1]), (begin, tails[2]))]
    )
    assert [segment.length for segment in layout.segments if not segment.seen] == [opening]
    inputs, bias = random_heads(len(layout.input_ids)), BIASES[name]
    found = attend(*inputs, 0.3, layout.segments, 0.0, bias)
    for rows, expected in zip(layout.row_of, biased_attention(*inputs, 0.3, layout.row_of, bias), strict=True):
        torch.testing.assert_close(found[0, torch.from_numpy(rows)], expected, atol=1e-5, rtol=1e-5)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=8), st.integers(1, 25))
def test_no_cut_of_a_row_into_pieces_changes_who_sees_whom(lengths: list[int], window: int) -> None:
    segments = build_segments(lengths)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tunesmith.training.attention._LONGEST_WHOLE", 8)
        patch.setattr("tunesmith.training.attention._PIECE", 5)
        pieces = attention._cut.__wrapped__(segments, window)
    assert sum(piece.length for piece in pieces) == sum(lengths)
    for piece in pieces:
        sample = next(each for each in segments if each.start <= piece.start < each.start + each.length)
        visible = [row for start, end in piece.places for row in range(start, end)]
        first = max(sample.start, piece.start - window + 1)
        assert visible[-(piece.start + piece.length - first) :] == list(range(first, piece.start + piece.length))
        assert all(sample.start <= row < sample.start + sample.length for row in visible)
        if sample.length > 8:  # it was cut: no row beyond the window is looked at
            assert visible[0] == first


def test_bias_slopes_are_those_of_the_paper() -> None:
    assert alibi_slopes(8).tolist() == [2.0**-i for i in range(1, 9)]
    assert alibi_slopes(4).tolist() == [2**-2, 2**-4, 2**-6, 2**-8]
    assert alibi_slopes(6).tolist() == [2**-2, 2**-4, 2**-6, 2**-8, 2**-1, 2**-3]


def test_in_bf16_a_fall_over_hundreds_of_tokens_is_as_exact_as_one_over_ten() -> None:
    """Biases counted from the first token, as in a common implementation, lose the difference of neighbours in bf16."""
    inputs = [tensor.detach().bfloat16() for tensor in random_heads(900)]
    bias = Bias(slopes=alibi_slopes(6))
    found = attend(*inputs, 0.3, build_segments([900]), 0.0, bias)[0].float()
    exact = attend(*(tensor.float() for tensor in inputs), 0.3, build_segments([900]), 0.0, bias)[0]
    assert (found - exact).norm() / exact.norm() < 0.01
    assert (found[800:] - exact[800:]).norm() / exact[800:].norm() < 0.01


@pytest.mark.parametrize("option", ["softcap", "s_aux"])
def test_attention_that_is_not_computed_here_is_refused_by_name(option: str) -> None:
    q, k, v = random_heads(3)
    with pytest.raises(ModelError, match=option):
        varlen_attention(SimpleNamespace(), q, k, v, None, segments=build_segments([3]), **{option: 30.0})


def test_the_probe_accepts_the_model_and_leaves_it_as_it_was(tiny_model: Any) -> None:
    norms = {name: type(layer) for name, layer in tiny_model.named_modules()}
    probe_model(tiny_model)
    assert tiny_model.config._attn_implementation == "sdpa"
    assert {name: type(layer) for name, layer in tiny_model.named_modules()} == norms


def test_the_probe_refuses_a_model_whose_logits_are_scaled(tiny_model: Any) -> None:
    head = tiny_model.lm_head
    head.register_forward_hook(lambda module, inputs, output: output * 0.5)
    with pytest.raises(ModelError, match="no linear map"):
        probe_model(tiny_model)


def test_the_probe_refuses_attention_that_looks_across_samples(
    tiny_model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def leaky(q: Any, k: Any, v: Any, scale: float, segments: Any, dropout: float, bias: Any) -> torch.Tensor:
        return plain_attention(q, k, v, scale, [q.shape[2]]) + v.mean(2).repeat(1, 2, 1)[:, None]

    monkeypatch.setattr("tunesmith.training.attention.attend", leaky)
    with pytest.raises(ModelError, match="can see its neighbour"):
        probe_model(tiny_model)


def test_the_probe_refuses_damaged_weights(tiny_model: Any) -> None:
    tiny_model.model.layers[1].mlp.up_proj.weight.data[0, 0] = float("nan")
    with pytest.raises(ModelError, match="not finite"):
        probe_model(tiny_model)
