"""Rollouts: the log-probability of every token is that of the policy, and an answer's luck is its own."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from tunesmith.errors import EngineError, RecipeError
from tunesmith.inference import rollouts
from tunesmith.inference.drawing import draw_tokens
from tunesmith.inference.rollouts import Rollout, RolloutSampler
from tunesmith.protocols import Prompt
from tunesmith.training.forward import varlen_forward
from tunesmith.types import SamplingParams

VOCABULARY = 97
STOP = 3
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.3,
    "tie_word_embeddings": False,
}
SAMPLING = SamplingParams(max_tokens=16, temperature=0.8, rng_seed=11)


def build(kind: str = "llama") -> Any:
    torch.manual_seed(3)
    if kind == "qwen2":
        return Qwen2ForCausalLM(Qwen2Config(**SIZES)).eval()
    if kind == "mistral":  # every layer looks 8 tokens back
        return MistralForCausalLM(MistralConfig(**SIZES, sliding_window=8)).eval()
    if kind == "gemma3":  # half of the layers look 8 tokens back
        kinds = ["sliding_attention", "full_attention"]
        return Gemma3ForCausalLM(Gemma3TextConfig(**SIZES, head_dim=8, sliding_window=8, layer_types=kinds)).eval()
    return LlamaForCausalLM(LlamaConfig(**SIZES)).eval()


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    """Two threads wait for each other where the machine has other work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def llama() -> Any:
    return build()


def prompts(count: int = 5, *, prefix: Sequence[int] = (), stops: tuple[int, ...] = (STOP,)) -> list[Prompt]:
    source = random.Random(5)
    bodies = [tuple(source.randrange(5, VOCABULARY) for _ in range(source.randrange(1, 30))) for _ in range(count)]
    return [Prompt((*prefix, *body), stops) for body in bodies]


def sample(
    model: Any,
    asked: Sequence[Prompt],
    sampling: SamplingParams = SAMPLING,
    *,
    group_size: int = 4,
    batch_size: int = 8,
    prefix: Sequence[int] = (),
) -> list[list[Rollout]]:
    sampler = RolloutSampler(model, batch_size=batch_size)
    return sampler.sample(asked, sampling, group_size=group_size, shared_prefix=prefix)


@torch.no_grad()
def recomputed(model: Any, prompt: Prompt, rollout: Rollout, temperature: float) -> torch.Tensor:
    """Log-probabilities of the answer's tokens by one plain forward pass over prompt and answer."""
    ids = torch.tensor([[*prompt.input_ids, *rollout.token_ids]], device=model.device)
    logits = model(input_ids=ids, use_cache=False).logits[0].float() / temperature
    start = len(prompt.input_ids)
    table = torch.log_softmax(logits[start - 1 : -1], -1)
    return table.gather(1, ids[0, start:, None])[:, 0].cpu()


def worst_ratio(model: Any, asked: Sequence[Prompt], groups: Sequence[Sequence[Rollout]], temperature: float) -> float:
    """Largest |pi / pi_behaviour - 1| over all tokens."""
    return max(
        float((recomputed(model, prompt, each, temperature) - torch.tensor(each.log_probs)).expm1().abs().max())
        for prompt, group in zip(asked, groups, strict=True)
        for each in group
    )


@pytest.mark.parametrize("kind", ["llama", "qwen2", "mistral", "gemma3"])
def test_a_plain_forward_pass_gives_every_token_the_probability_it_was_drawn_with(kind: str) -> None:
    model, asked = build(kind), prompts()
    groups = sample(model, asked)
    assert [len(group) for group in groups] == [4] * len(asked)
    assert worst_ratio(model, asked, groups, 0.8) < 2e-5
    assert worst_ratio(model, asked, groups, 1.0) > 0.1, "or the temperature would not matter"


def test_an_answer_is_the_same_alone_and_among_others_in_any_order_and_with_its_prefix_computed_once(
    llama: Any,
) -> None:
    prefix = tuple(range(10, 30))
    asked = prompts(prefix=prefix)
    together = sample(llama, asked)
    ids = [[each.token_ids for each in group] for group in together]
    assert len({each for group in ids for each in group}) == 20  # or the test shows nothing
    for batch_size, shared in ((1, ()), (3, prefix), (32, prefix)):
        again = sample(llama, asked, batch_size=batch_size, prefix=shared)
        assert [[each.token_ids for each in group] for group in again] == ids
    backwards = sample(llama, asked[::-1])[::-1]
    assert [[each.token_ids for each in group] for group in backwards] == ids
    alone = sample(llama, asked[4:5], group_size=2)
    assert [each.token_ids for each in alone[0]] == ids[4][:2], "a smaller group is the beginning of a larger one"
    for group, others in zip(together, backwards, strict=True):
        for one, other in zip(group, others, strict=True):
            assert one.log_probs == pytest.approx(other.log_probs, abs=1e-5)


def test_another_seed_draws_others_and_the_same_prompt_again_draws_on(llama: Any) -> None:
    prompt = prompts(1)[0]
    first, second = sample(llama, [prompt, prompt], group_size=3)
    assert [first, second] == [*_split(sample(llama, [prompt], group_size=6)[0], 3)]
    assert len({each.token_ids for each in [*first, *second]}) == 6
    other = sample(llama, [prompt], SAMPLING.model_copy(update={"rng_seed": 12}), group_size=3)[0]
    assert {each.token_ids for each in other}.isdisjoint(each.token_ids for each in first)


def _split(group: list[Rollout], size: int) -> list[list[Rollout]]:
    return [group[start : start + size] for start in range(0, len(group), size)]


def test_a_stop_token_ends_the_answer_and_belongs_to_it(llama: Any) -> None:
    asked = prompts(12)
    groups = sample(llama, asked)
    answers = [each for group in groups for each in group]
    assert {each.finish_reason for each in answers} == {"stop", "length"}
    for each in answers:
        assert len(each.token_ids) == len(each.log_probs)
        assert (STOP in each.token_ids) == (each.finish_reason == "stop")
        assert STOP not in each.token_ids[:-1]
        assert each.finish_reason == "stop" or len(each.token_ids) == 16


def letters(ids: Sequence[int]) -> str:
    """Tokens 5 to 30 are a to z, the stop token is no text, all others are a dot."""
    return "".join(chr(92 + each) if 5 <= each <= 30 else "." for each in ids if each != STOP)


@pytest.mark.parametrize("batch_size", [1, 3, 32])
def test_a_stop_string_ends_the_answer_with_the_token_that_completes_it_and_nothing_is_drawn_after(
    llama: Any, monkeypatch: pytest.MonkeyPatch, batch_size: int
) -> None:
    asked = prompts(12)
    whole = [each for group in sample(llama, asked) for each in group]
    stops = (".." + letters(whole[0].token_ids[7:8]), letters(whole[5].token_ids[3:5]), "never drawn")
    steps, step = list[int](), rollouts.decode_step

    def counted(model: Any, mask: Any, slots: Any, tokens: Any, lengths: Any) -> Any:
        steps.append(len(tokens))
        return step(model, mask, slots, tokens, lengths)

    monkeypatch.setattr(rollouts, "decode_step", counted)
    sampler = RolloutSampler(llama, batch_size=batch_size, decode=letters)
    stopping = SAMPLING.model_copy(update={"stop": stops})
    found = [each for group in sampler.sample(asked, stopping, group_size=4, shared_prefix=()) for each in group]
    stopped = 0
    for each, before in zip(found, whole, strict=True):
        text = letters(before.token_ids)
        ends = {stop: text.find(stop) for stop in stops if stop in text}
        if not ends:
            assert (each.token_ids, each.finish_reason, each.stop_string) == (
                before.token_ids,
                before.finish_reason,
                None,
            )
            continue
        stopped += 1
        end = min(place + len(stop) for stop, place in ends.items())
        assert each.token_ids == before.token_ids[:end] and len(each.log_probs) == end
        assert each.log_probs == pytest.approx(before.log_probs[:end], abs=1e-5)
        assert each.finish_reason == "stop" and each.stop_string in ends
        assert letters(each.token_ids).endswith(str(each.stop_string))
    assert 2 <= stopped < len(whole)
    # the first token of an answer comes from its prompt's own pass, the last one is never fed back
    assert sum(steps) == sum(len(each.token_ids) - 1 for each in found)
    assert sum(steps) < sum(len(each.token_ids) - 1 for each in whole) and max(steps) == batch_size


def test_stop_strings_without_a_tokenizer_are_refused(llama: Any) -> None:
    with pytest.raises(EngineError, match="no tokenizer to decode with"):
        sample(llama, prompts(1), SAMPLING.model_copy(update={"stop": ("x",)}))


def test_an_answer_ends_with_the_context_and_a_prompt_that_fills_it_is_refused(llama: Any) -> None:
    long = Prompt(tuple(range(4, 90)) + tuple(range(4, 42)), ())  # 124 tokens of 128
    answers = sample(llama, [long])[0]
    assert [(len(each.token_ids), each.finish_reason) for each in answers] == [(4, "length")] * 4
    with pytest.raises(EngineError, match="prompt 1 has 128 tokens"):
        sample(llama, [long, Prompt((*long.input_ids, 5, 5, 5, 5), ())])
    with pytest.raises(EngineError, match="prompt 0 is empty"):
        sample(llama, [Prompt((), ())])


def test_a_prompt_goes_through_the_model_once_for_its_whole_group(llama: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    forward = llama.forward

    def counted(*args: Any, **kwargs: Any) -> Any:
        seen.append(kwargs["input_ids"].shape[1] if kwargs["input_ids"].shape[0] == 1 else 0)
        return forward(*args, **kwargs)

    monkeypatch.setattr(llama, "forward", counted)
    prefix = tuple(range(10, 30))
    asked = prompts(prefix=prefix)
    sample(llama, asked, prefix=prefix)
    assert sum(seen) == len(prefix) + sum(len(prompt.input_ids) - len(prefix) for prompt in asked)


def test_the_model_is_left_as_it_was_found_also_in_the_middle_of_training(llama: Any) -> None:
    asked = prompts(3)
    expected = sample(llama, asked)
    llama.train()
    with varlen_forward(llama):
        before = llama.config._attn_implementation
        found = sample(llama, asked)
        assert llama.training and llama.config._attn_implementation == before != "sdpa"
        assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
    llama.eval()
    assert [[each.token_ids for each in group] for group in found] == [
        [e.token_ids for e in group] for group in expected
    ]


@pytest.mark.parametrize(
    ("setting", "value"),
    [("top_p", 0.9), ("top_k", 5), ("min_p", 0.1), ("frequency_penalty", 0.5), ("temperature", 0.0)],
)
def test_settings_that_would_draw_from_another_distribution_are_refused_by_name(
    llama: Any, setting: str, value: Any
) -> None:
    with pytest.raises(RecipeError) as caught:
        sample(llama, prompts(1), SAMPLING.model_copy(update={setting: value}))
    assert caught.value.where == f"recipe.align.{setting}"


def test_each_answer_is_told_as_it_ends(llama: Any) -> None:
    told: list[tuple[int, int, Rollout]] = []
    sampler = RolloutSampler(llama, batch_size=4)
    groups = sampler.sample(
        prompts(3), SAMPLING, group_size=2, shared_prefix=(), on_done=lambda *each: told.append(each)
    )
    assert sorted(told, key=lambda each: each[:2]) == [
        (index, number, each) for index, group in enumerate(groups) for number, each in enumerate(group)
    ]


def test_tokens_come_as_often_as_their_probability_says_and_impossible_ones_never() -> None:
    logits = torch.tensor([[0.0, math.log(2), -math.inf, math.log(5), -math.inf]])
    generator = torch.Generator().manual_seed(1)
    drawn = [draw_tokens(logits, [generator], 1.0)[0][0] for _ in range(4000)]
    counts = Counter(drawn)
    assert set(counts) == {0, 1, 3}
    expected = {0: 1 / 8, 1: 2 / 8, 3: 5 / 8}
    chi_squared = sum((counts[token] - 4000 * share) ** 2 / (4000 * share) for token, share in expected.items())
    assert chi_squared < 13.8  # two degrees of freedom, one in a thousand
    tokens, log_probs = draw_tokens(logits, [generator], 2.0)
    roots = {0: 1.0, 1: math.sqrt(2), 3: math.sqrt(5)}
    assert log_probs[0] == pytest.approx(math.log(roots[tokens[0]] / sum(roots.values())), rel=1e-6)


def test_a_model_that_computes_nan_is_an_error(llama: Any) -> None:
    broken = build()
    broken.lm_head.weight.data[7] = float("nan")
    with pytest.raises(EngineError, match="not finite"):
        sample(broken, prompts(1))


@pytest.mark.real
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_embedded_model_gives_ratio_one(smollm2_dir: Path, temperature: float) -> None:
    from tunesmith.chat.renderer import Renderer
    from tunesmith.model.load import load_model
    from tunesmith.types import Message

    model = load_model(smollm2_dir, device="cpu", dtype=torch.float32)
    renderer = Renderer.for_model(smollm2_dir)
    questions = ("Name three colours.", "Write one sentence about a bicycle, please.")
    asked = [renderer.prompt([Message(role="user", content=each)]) for each in questions]
    sampling = SamplingParams(max_tokens=32, temperature=temperature, rng_seed=3)
    groups = sample(model, asked, sampling)
    assert worst_ratio(model, asked, groups, temperature) < 1e-3
    assert all(
        each.token_ids[-1] in asked[0].stop_ids for group in groups for each in group if each.finish_reason == "stop"
    )
