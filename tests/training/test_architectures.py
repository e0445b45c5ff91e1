"""Every architecture that training serves: packed, as a trie, and trained, it computes what transformers computes for
each sample alone. Every other one is refused by name, never trained wrongly."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_architectures import TINY, as_samples, branching_sequences, build_config, build_tiny
from torch import nn
from transformers import AutoTokenizer

from tunesmith.errors import ModelError
from tunesmith.model.cache import cache_dir
from tunesmith.model.load import load_model
from tunesmith.training.attention import attend
from tunesmith.training.batches import Batch, Samples, build_batch
from tunesmith.training.forward import draws_dropout, hidden_states, output_head, varlen_forward
from tunesmith.training.prefixes import Layout, lay_as_trie, lay_end_to_end
from tunesmith.training.probing import probe_model
from tunesmith.training.segments import Bias, Segment
from tunesmith.training.supervised_rows import supervised_hidden

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")
LAYOUTS: dict[str, Callable[..., Layout]] = {"end to end": lay_end_to_end, "trie": lay_as_trie}
every_architecture = pytest.mark.parametrize("name", TINY)
every_layout = pytest.mark.parametrize("layout", LAYOUTS)


def own_logits(model: Any, ids: np.ndarray) -> torch.Tensor:
    """(T, V) of one sample, by transformers alone."""
    return model(input_ids=torch.from_numpy(ids.astype(np.int64))[None], use_cache=False).logits[0]


def packed_logits(model: Any, layout: Layout) -> list[torch.Tensor]:
    """(T, V) of each sample, all in one forward pass of ours."""
    nothing = torch.empty(0, dtype=torch.int64)
    ids, positions = (torch.from_numpy(rows)[None] for rows in (layout.input_ids, layout.position_ids))
    with varlen_forward(model):
        hidden = hidden_states(model, Batch(ids, positions, layout.segments, nothing, nothing, (), ids.shape[1]))
    head = output_head(model)
    logits = nn.functional.linear(hidden, head.weight, head.bias)
    return [logits[torch.from_numpy(rows)] for rows in layout.row_of]


def close(found: torch.Tensor, expected: torch.Tensor, name: str = "") -> None:
    """Equal up to what fp32 rounds: 1e-4 of the largest value."""
    limit = 1e-4 * float(expected.detach().abs().max())
    assert limit > 0, name
    torch.testing.assert_close(found, expected, atol=limit, rtol=0, msg=lambda text: f"{name}: {text}")


@pytest.mark.parametrize("reference", ["eager", "sdpa"])
@every_layout
@every_architecture
@torch.no_grad()
def test_logits_equal_transformers_own_for_each_sample_alone(name: str, layout: str, reference: str) -> None:
    model = build_tiny(name)
    if model.config._attn_implementation != reference:
        if not model._can_set_attn_implementation():
            pytest.skip(f"{type(model).__name__} has no {reference} attention")
        model.set_attn_implementation(reference)
    sequences = branching_sequences()
    for ids, found in zip(sequences, packed_logits(model, LAYOUTS[layout](sequences)), strict=True):
        close(found, own_logits(model, ids))


@every_layout
@pytest.mark.parametrize("name", ["llama", "mistral, windows", "gemma3", "gpt2", "bloom", "bloom, six heads", "pythia"])
@torch.no_grad()
def test_so_do_those_of_a_sample_that_is_computed_in_pieces(name: str, layout: str) -> None:
    model = build_tiny(name)
    sequences = [*branching_sequences(longest=460), branching_sequences(longest=450)[0]]
    for ids, found in zip(sequences, packed_logits(model, LAYOUTS[layout](sequences)), strict=True):
        close(found, own_logits(model, ids))


@pytest.mark.parametrize("name", ["mistral, windows", "gemma3", "bloom", "gpt2", "phi"])
@torch.no_grad()
def test_in_bf16_logits_are_as_near_to_fp32_as_transformers_own(name: str) -> None:
    exact = build_tiny(name)
    model = build_tiny(name).bfloat16()
    sequences = branching_sequences()
    ours, theirs = 0.0, 0.0
    for ids, found in zip(sequences, packed_logits(model, lay_as_trie(sequences)), strict=True):
        true = own_logits(exact, ids)
        ours += float((found.float() - true).square().sum())
        theirs += float((own_logits(model, ids).float() - true).square().sum())
    assert ours <= 1.2 * theirs


def plain_loss(model: Any, samples: Samples) -> torch.Tensor:
    """The reference: one sample at a time, no packing, the model's own forward, full logits, a mean over targets."""
    total, count = torch.zeros(()), 0
    for index in range(len(samples.lengths)):
        rows = samples.rows(index)
        ids, wanted = samples.input_ids[rows], torch.from_numpy(samples.loss_mask[rows].astype(bool))[1:]
        targets = torch.from_numpy(ids.astype(np.int64))[1:, None]
        log_probs = torch.log_softmax(own_logits(model, ids)[:-1].float(), -1).gather(1, targets)[:, 0]
        total = total - log_probs[wanted].sum()
        count += int(wanted.sum())
    return total / count


def packed_loss(model: Any, samples: Samples, *, share_prefixes: bool) -> torch.Tensor:
    with varlen_forward(model):
        return loss_inside(model, samples, share_prefixes=share_prefixes)


def loss_inside(model: Any, samples: Samples, *, share_prefixes: bool, trim: bool = True) -> torch.Tensor:
    batch = build_batch(samples, range(len(samples.lengths)), CPU, share_prefixes=share_prefixes)
    hidden = supervised_hidden(model, batch, trim=trim)
    return output_head(model).negative_log_likelihood(hidden, batch.targets) / len(batch.targets)


def gradients(model: Any, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad(set_to_none=True)
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("share_prefixes", [False, True], ids=["end to end", "trie"])
@every_architecture
def test_loss_and_every_gradient_equal_the_plain_reference(name: str, share_prefixes: bool) -> None:
    model = build_tiny(name)
    samples = as_samples(branching_sequences())
    expected_loss = plain_loss(model, samples)
    expected = gradients(model, expected_loss)
    found_loss = packed_loss(model, samples, share_prefixes=share_prefixes)
    found = gradients(model, found_loss)
    assert found_loss.item() == pytest.approx(expected_loss.item(), rel=1e-5)
    assert found.keys() == expected.keys() == {name for name, _ in model.named_parameters()}
    largest = max(float(gradient.abs().max()) for gradient in expected.values())
    for path, gradient in expected.items():  # a key's bias moves all scores of a row alike: its gradient is rounding
        limit = max(2e-4 * float(gradient.abs().max()), 1e-6 * largest)
        torch.testing.assert_close(
            found[path], gradient, atol=limit, rtol=0, msg=lambda text, path=path: f"{path}: {text}"
        )


@every_layout
@every_architecture
@torch.no_grad()
def test_a_change_in_one_sample_moves_no_bit_of_another(name: str, layout: str) -> None:
    model = build_tiny(name)
    sequences = branching_sequences()
    before = packed_logits(model, LAYOUTS[layout](sequences))
    for changed, place in ((0, 30), (2, 5), (3, 22), (4, 1)):  # none of them inside a shared beginning
        disturbed = [ids.copy() for ids in sequences]
        disturbed[changed][place] = (disturbed[changed][place] + 1) % 90 + 3
        after = packed_logits(model, LAYOUTS[layout](disturbed))
        for index, (old, new) in enumerate(zip(before, after, strict=True)):
            moved = (old != new).any(-1)
            assert bool(moved[place]) if index == changed else not moved.any()
            assert not moved[:place].any()


@every_architecture
@torch.no_grad()
def test_the_order_of_samples_within_a_pack_changes_nothing_but_rounding(name: str) -> None:
    model = build_tiny(name)
    sequences = branching_sequences()
    expected = packed_logits(model, lay_end_to_end(sequences))
    order = [3, 0, 4, 2, 1]
    for index, found in zip(order, packed_logits(model, lay_end_to_end([sequences[i] for i in order])), strict=True):
        close(found, expected[index])


@pytest.mark.parametrize("side", ["left", "right"])
@every_architecture
@torch.no_grad()
def test_padded_batches_of_transformers_give_the_same_on_either_side(name: str, side: str) -> None:
    model = build_tiny(name)
    sequences = branching_sequences()
    size = max(map(len, sequences))
    places = [slice(size - len(ids), size) if side == "left" else slice(0, len(ids)) for ids in sequences]
    ids, mask, positions = (torch.zeros(len(sequences), size, dtype=torch.int64) for _ in range(3))
    for row, (place, sequence) in enumerate(zip(places, sequences, strict=True)):
        ids[row, place] = torch.from_numpy(sequence.astype(np.int64))
        mask[row, place] = 1
        positions[row, place] = torch.arange(len(sequence))
    logits = model(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False).logits
    for row, (place, found) in enumerate(zip(places, packed_logits(model, lay_end_to_end(sequences)), strict=True)):
        close(found, logits[row, place])


@every_architecture
def test_gradient_checkpointing_changes_no_bit(name: str) -> None:
    model = build_tiny(name).train()
    samples = as_samples(branching_sequences())
    with varlen_forward(model):
        plain = gradients(model, loss_inside(model, samples, share_prefixes=True, trim=False))  # as recomputing has it
    prefix = "activation" if hasattr(model, "activation_checkpointing_enable") else "gradient"
    getattr(model, f"{prefix}_checkpointing_enable")({"use_reentrant": False})
    with varlen_forward(model):  # as the loop does: the backward pass comes before the layers are put back
        again = gradients(model, loss_inside(model, samples, share_prefixes=True))
    assert again.keys() == plain.keys()
    for path, gradient in plain.items():
        assert torch.equal(again[path], gradient), path


@every_architecture
def test_the_probe_accepts_it_and_leaves_it_as_it_was(name: str) -> None:
    model = build_tiny(name)
    layers = {path: id(layer) for path, layer in model.named_modules()}
    attention, windows = model.config._attn_implementation, getattr(model.config, "sliding_window", None)
    names = list(model.state_dict())
    probe_model(model)
    assert {path: id(layer) for path, layer in model.named_modules()} == layers
    assert model.config._attn_implementation == attention
    assert getattr(model.config, "sliding_window", None) == windows
    assert list(model.state_dict()) == names and "build_alibi_tensor" not in vars(model.get_decoder())


@every_architecture
def test_adapters_get_the_gradients_of_the_plain_reference(name: str, with_adapter: Any) -> None:
    model = build_tiny(name)
    with_adapter(model)
    samples = as_samples(branching_sequences())
    expected = gradients(model, plain_loss(model, samples))
    found = gradients(model, packed_loss(model, samples, share_prefixes=True))
    assert found.keys() == expected.keys() and all("lora_" in path for path in found)
    for path, gradient in expected.items():
        close(found[path], gradient, path)


GROUPED = {"num_key_value_heads": 2}
REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "logits soft-capped": ("gemma2", {**GROUPED, "head_dim": 16, "sliding_window": 7}, "final_logit_softcapping"),
    "scores soft-capped": (
        "gemma2",
        {**GROUPED, "head_dim": 16, "final_logit_softcapping": None},
        r"soft-capped scores \(`softcap`\)",
    ),
    "attention sinks": (
        "gpt_oss",
        {**GROUPED, "head_dim": 16, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 7},
        r"attention sinks \(`s_aux`\)",
    ),
    "chunks": ("llama4_text", {**GROUPED, "head_dim": 16, "num_local_experts": 2}, "'chunked_attention'"),
    "convolutions": ("lfm2", {**GROUPED, "layer_types": ["conv", "full_attention"]}, "layers of type 'conv'"),
    "state space": ("mamba", {"state_size": 4}, "layers of type 'linear_attention'"),
    "both ways": ("gemma3_text", {**GROUPED, "head_dim": 16, "use_bidirectional_attention": True}, "not causal"),
    "scaled logits": ("granite", {**GROUPED, "logits_scaling": 2.0}, "no linear map"),
    "falcon": ("falcon", {"ffn_hidden_size": 80}, "FalconForCausalLM computes attention inside its layers"),
    "falcon, alibi": ("falcon", {"alibi": True}, "FalconForCausalLM computes attention inside its layers"),
    "mpt": ("mpt", {"d_model": 48, "n_heads": 4, "n_layers": 2}, "MptForCausalLM computes attention inside"),
    "gptj": ("gptj", {"rotary_dim": 6}, "GPTJForCausalLM computes attention inside its layers"),
    "segments lost on the way": ("stablelm", {**GROUPED, "partial_rotary_factor": 0.5}, "needs the segments"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_computed_is_refused_by_name_before_the_first_step(name: str) -> None:
    kind, special, words = REFUSED[name]
    model = build_config(kind, **special)
    attention = model.config._attn_implementation
    with pytest.raises(ModelError, match=words) as caught:
        probe_model(model)
    assert caught.value.hint
    assert model.config._attn_implementation == attention and not model.training


def test_a_window_that_the_layers_keep_to_themselves_is_found_by_the_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    """A window of 4,096 tokens does nothing to short samples: the probe makes it short, for both sides."""
    model = build_tiny("mistral, windows", sliding_window=4096)
    probe_model(model)
    assert model.config.sliding_window == 4096
    monkeypatch.setattr("tunesmith.training.attention.Bias", lambda window, slopes: Bias(None, slopes))
    with pytest.raises(ModelError, match="forward differs from the model's own"):
        probe_model(model)


def test_a_layer_that_carries_something_from_sample_to_sample_is_found_by_the_probe() -> None:
    """The first sample of a pack would not show it."""
    model = build_tiny("llama")
    model.model.layers[0].register_forward_hook(
        lambda _module, _inputs, output: output + 0.1 * output.cumsum(1).roll(1, 1)
    )
    with pytest.raises(ModelError, match=r"can see its neighbour|differs from the model's own"):
        probe_model(model)


def test_a_trie_that_reads_the_wrong_beginning_is_found_by_the_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build_tiny("gpt2")

    def forget(*arguments: Any) -> torch.Tensor:
        *start, segments, dropout, bias = arguments
        return attend(*start, tuple(Segment(each.start, each.length) for each in segments), dropout, bias)

    monkeypatch.setattr("tunesmith.training.attention.attend", forget)
    with pytest.raises(ModelError, match="forward of a shared beginning differs"):
        probe_model(model)


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_rotary_scaling_that_looks_at_the_longest_sample_is_refused_beyond_its_length(kind: str) -> None:
    rope: dict[str, Any] = {"rope_type": kind, "rope_theta": 10000.0, "factor": 2.0}
    if kind == "longrope":
        rope |= {"short_factor": [1.0] * 6, "long_factor": [2.0] * 6, "original_max_position_embeddings": 32}
    model = build_tiny("llama", rope_parameters=rope, max_position_embeddings=32)
    probe_model(model)
    short, long = branching_sequences(longest=32), branching_sequences(longest=33)
    with torch.no_grad():
        for ids, found in zip(short, packed_logits(model, lay_as_trie(short)), strict=True):
            close(found, own_logits(model, ids))
    with pytest.raises(ModelError, match=f"has 33 tokens; beyond 32 .*{kind}") as caught:
        packed_logits(model, lay_as_trie(long))
    assert caught.value.hint == "lower tokenize.max_length to 32"


@every_architecture
@torch.no_grad()
def test_a_saved_model_is_loaded_with_the_attention_it_has(name: str, tmp_path: Path) -> None:
    model = build_tiny(name)
    model.save_pretrained(tmp_path)
    loaded = load_model(tmp_path, device="cpu", dtype=torch.float32)
    assert loaded.config._attn_implementation == ("eager" if name.startswith("bloom") else "sdpa")
    probe_model(loaded)
    ids = branching_sequences()[0]
    assert torch.equal(own_logits(loaded, ids), own_logits(model, ids))


@pytest.mark.parametrize("kind", ["mixtral", "qwen3_moe"])
def test_layers_of_experts_are_served_up_to_rounding(kind: str) -> None:
    special = {"num_local_experts": 4} if kind == "mixtral" else {"num_experts": 4, "moe_intermediate_size": 40}
    model = build_config(kind, **GROUPED, **special, num_experts_per_tok=2)
    probe_model(model)
    sequences = branching_sequences()
    with torch.no_grad():
        for ids, found in zip(sequences, packed_logits(model, lay_as_trie(sequences)), strict=True):
            close(found, own_logits(model, ids))
    samples = as_samples(sequences)
    expected = gradients(model, plain_loss(model, samples))
    found = gradients(model, packed_loss(model, samples, share_prefixes=True))
    for path, gradient in expected.items():
        torch.testing.assert_close(found[path], gradient, atol=2e-4 * float(gradient.abs().max()), rtol=0, msg=path)


@pytest.mark.parametrize("name", ["gpt2", "gpt_bigcode", "bloom", "phi", "pythia", "starcoder2"])
def test_dropout_is_noticed_under_whatever_name_a_family_gives_it(name: str) -> None:
    assert not draws_dropout(build_tiny(name))
    rates = {
        "gpt2": {"attn_pdrop": 0.1},
        "gpt_bigcode": {"attn_pdrop": 0.1},
        "bloom": {"hidden_dropout": 0.1},
        "phi": {"attention_dropout": 0.1},
        "pythia": {"hidden_dropout": 0.1},
        "starcoder2": {"residual_dropout": 0.1},
    }
    assert draws_dropout(build_tiny(name, **rates[name]))


@pytest.fixture
def two_threads() -> Any:
    torch.set_num_threads(2)  # the fixture of all these tests sets them back


@pytest.mark.real
@torch.no_grad()
def test_the_embedded_model_gives_transformers_own_logits(smollm2_dir: Path, two_threads: None) -> None:
    """Two chats under one system prompt: relative difference of all logits of each."""
    del two_threads
    tokenizer = AutoTokenizer.from_pretrained(smollm2_dir)
    system = "You answer questions of a bicycle shop's customers."
    chats = [[{"role": "system", "content": system}, {"role": "user", "content": text}] for text in QUESTIONS]
    sequences = [np.array(tokenizer.apply_chat_template(chat, return_dict=False), dtype=np.int32) for chat in chats]
    check_real_model(load_model(smollm2_dir, device="cpu", dtype=torch.float32), sequences, 1e-4)


@pytest.mark.real
@torch.no_grad()
def test_so_does_qwen_where_it_was_fetched_before(two_threads: None) -> None:
    del two_threads
    found = sorted((cache_dir() / "models").glob("qwen2.5-coder-1.5b-*"))
    if not found:
        pytest.skip("qwen2.5-coder-1.5b is not in the model cache (tunesmith fetches it when a recipe names it)")
    tokenizer = AutoTokenizer.from_pretrained(found[0])
    sequences = [np.array(tokenizer.encode("# A shop.\ndef orders(shop):\n    " + text)) for text in QUESTIONS]
    check_real_model(load_model(found[0], device="cpu", dtype=torch.bfloat16), sequences, 0.05)


QUESTIONS = ("Where is my order?", "My wheel is broken, I want my money back.")


def check_real_model(model: Any, sequences: list[np.ndarray], limit: float) -> None:
    expected = [own_logits(model, ids).float() for ids in sequences]
    for layout in (lay_end_to_end(sequences), lay_as_trie(sequences)):
        for found, own in zip(packed_logits(model, layout), expected, strict=True):
            assert float((found.float() - own).norm() / own.norm()) < limit
    assert layout.ratio > 1.2  # the trie shared the beginning
