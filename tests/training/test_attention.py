"""Varlen attention equals plain masked attention, and no sample can see another."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from small_models import build_model
from tunesmith.errors import ModelError, TrainingError
from tunesmith.model.load import load_model
from tunesmith.training.attention import attend, build_segments, varlen_attention
from tunesmith.training.batches import build_batch
from tunesmith.training.probing import hidden_states, probe_model, varlen_forward

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
    with pytest.raises(ModelError, match=r"sliding_window \(5 tokens"):
        varlen_attention(SimpleNamespace(), q, k, v, None, segments=segments, sliding_window=5)


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
    def leaky(q: Any, k: Any, v: Any, scale: float, segments: Any, dropout: float) -> torch.Tensor:
        return plain_attention(q, k, v, scale, [q.shape[2]]) + v.mean(2).repeat(1, 2, 1)[:, None]

    monkeypatch.setattr("tunesmith.training.attention.attend", leaky)
    with pytest.raises(ModelError, match="can see its neighbour"):
        probe_model(tiny_model)


def test_the_probe_refuses_damaged_weights(tiny_model: Any) -> None:
    tiny_model.model.layers[1].mlp.up_proj.weight.data[0, 0] = float("nan")
    with pytest.raises(ModelError, match="not finite"):
        probe_model(tiny_model)
