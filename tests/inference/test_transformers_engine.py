"""The evaluation engine: the same answers as transformers' own generation, whatever runs beside them."""

from __future__ import annotations

import random
from collections.abc import Sequence
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

from tunesmith.errors import EngineError
from tunesmith.inference.drawing import Draw, truncate
from tunesmith.inference.transformers_engine import TransformersEngine, common_prefix
from tunesmith.protocols import Prompt
from tunesmith.types import SamplingParams

VOCABULARY = 97
STOP = 3
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.4,
    "tie_word_embeddings": False,  # tied ones repeat their last token for ever
}


def build(kind: str = "llama") -> Any:
    torch.manual_seed(3)
    if kind == "llama":
        model = LlamaForCausalLM(LlamaConfig(**SIZES))
    elif kind == "qwen2":
        model = Qwen2ForCausalLM(Qwen2Config(**SIZES))
    elif kind == "mistral":  # every layer looks 8 tokens back
        model = MistralForCausalLM(MistralConfig(**SIZES, sliding_window=8))
    elif kind == "gemma3":  # most layers look 8 tokens back, one sees all
        kinds = ["sliding_attention", "full_attention"] * 2
        model = Gemma3ForCausalLM(Gemma3TextConfig(**SIZES, head_dim=8, sliding_window=8, layer_types=kinds))
    else:
        model = LlamaForCausalLM(LlamaConfig(**SIZES))
        model.set_attn_implementation("eager")
    return model.eval()


@pytest.fixture(scope="module")
def llama() -> Any:
    return build()


def prompts(count: int = 20, *, prefix: Sequence[int] = (), stops: tuple[int, ...] = (STOP,)) -> list[Prompt]:
    source = random.Random(5)
    bodies = [tuple(source.randrange(5, VOCABULARY) for _ in range(source.randrange(1, 40))) for _ in range(count)]
    return [Prompt((*prefix, *body), stops) for body in bodies]


def engine(model: Any, batch_size: int = 4, prefix: Sequence[int] = ()) -> TransformersEngine:
    return TransformersEngine(
        model, decode=lambda ids: " ".join(map(str, ids)), batch_size=batch_size, shared_prefix=prefix
    )


def reference(model: Any, prompt: Prompt, max_tokens: int) -> list[int]:
    """transformers' own greedy answer, without the stop token."""
    ids = torch.tensor([prompt.input_ids])
    made = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=max_tokens,
        do_sample=False,
        eos_token_id=STOP,
        pad_token_id=0,
    )[0, ids.shape[1] :].tolist()
    return made[: made.index(STOP)] if STOP in made else made


@pytest.mark.parametrize("kind", ["llama", "qwen2", "mistral", "gemma3", "eager"])
@pytest.mark.slow
def test_greedy_answers_equal_transformers_own_one_by_one(kind: str) -> None:
    model = build(kind)
    asked = prompts(10)
    answers = engine(model).generate(asked, SamplingParams(max_tokens=24))
    assert [answer.token_ids for answer in answers] == [reference(model, prompt, 24) for prompt in asked]
    assert len({tuple(answer.token_ids or ()) for answer in answers}) == len(asked)  # or the test shows nothing


@pytest.mark.slow
def test_an_answer_is_the_same_alone_and_among_others_and_with_the_prefix_computed_once(llama: Any) -> None:
    prefix = tuple(range(10, 40))
    asked = prompts(20, prefix=prefix)
    sampling = SamplingParams(max_tokens=70)  # past a multiple of the width, so that slots grow
    alone = [engine(llama, 1).generate([prompt], sampling)[0] for prompt in asked]
    for batch_size, shared in ((1, ()), (8, ()), (8, prefix), (20, prefix)):
        assert engine(llama, batch_size, shared).generate(asked, sampling) == alone


def test_answers_that_were_cut_short_by_a_kill_come_out_the_same_on_their_own(llama: Any) -> None:
    asked = prompts(20)
    sampling = SamplingParams(max_tokens=30, temperature=1.0, rng_seed=7)
    whole = engine(llama, 8).generate(asked, sampling)
    assert engine(llama, 8).generate(asked[11:], sampling) == whole[11:]


def test_a_stop_id_ends_the_answer_and_is_not_part_of_it(llama: Any) -> None:
    prompt = prompts(1)[0]
    free = engine(llama).generate([Prompt(prompt.input_ids, ())], SamplingParams(max_tokens=12))[0]
    assert free.finish_reason == "length" and free.usage.completion_tokens == 12 and free.token_ids is not None
    stop = free.token_ids[5]
    first = free.token_ids.index(stop)
    ended = engine(llama).generate([Prompt(prompt.input_ids, (stop,))], SamplingParams(max_tokens=12))[0]
    assert (ended.finish_reason, ended.token_ids) == ("stop", free.token_ids[:first])
    assert ended.usage.completion_tokens == first + 1
    assert ended.text == " ".join(map(str, free.token_ids[:first]))


def test_a_stop_string_ends_the_answer_before_it(llama: Any) -> None:
    prompt = Prompt(prompts(1)[0].input_ids, ())
    free = engine(llama).generate([prompt], SamplingParams(max_tokens=12))[0]
    words = free.text.split(" ")
    stopped = engine(llama).generate([prompt], SamplingParams(max_tokens=12, stop=(f" {words[4]} ",)))[0]
    assert stopped.finish_reason == "stop"
    assert free.text.startswith(stopped.text) and f" {words[4]} " not in stopped.text


def test_answers_are_reported_as_they_end_and_returned_in_order(llama: Any) -> None:
    asked = prompts(12)
    seen: dict[int, Any] = {}
    answers = engine(llama, 4).generate(
        asked, SamplingParams(max_tokens=9), lambda index, answer: seen.update({index: answer})
    )
    assert [seen[index] for index in range(12)] == answers
    assert list(seen) != sorted(seen)  # shorter prompts begin first


def test_the_models_context_bounds_prompt_and_answer(llama: Any) -> None:
    nearly, over = Prompt((5,) * 250, ()), Prompt((5,) * 256, ())
    short, refused, empty = engine(llama).generate([nearly, over, Prompt((), ())], SamplingParams(max_tokens=50))
    assert (short.finish_reason, short.usage.completion_tokens) == ("length", 6)
    assert refused.finish_reason == "error" and "256 tokens" in (refused.error or "")
    assert empty.error == "the prompt is empty"


def test_a_seed_gives_the_same_sampled_text_in_any_batch_and_another_seed_another(llama: Any) -> None:
    asked = prompts(6, stops=())
    hot = SamplingParams(max_tokens=20, temperature=1.0, top_p=0.9, top_k=40, rng_seed=1)
    together = engine(llama, 6).generate(asked, hot)
    assert [engine(llama, 1).generate([prompt], hot)[0] for prompt in asked] == together
    other = engine(llama, 6).generate(asked, hot.model_copy(update={"rng_seed": 2}))
    assert all(a.token_ids != b.token_ids for a, b in zip(together, other, strict=True))


def test_a_json_schema_is_refused_by_name(llama: Any) -> None:
    with pytest.raises(EngineError, match="JSON schema") as caught:
        engine(llama).generate(prompts(1), SamplingParams(json_schema={"type": "object"}))
    assert caught.value.where == "json_schema"


def test_a_model_that_computes_nan_stops_the_engine() -> None:
    model = build()
    model.lm_head.weight.data[5] = float("nan")
    with pytest.raises(EngineError, match="not finite"):
        engine(model).generate(prompts(2), SamplingParams(max_tokens=2))


def test_truncation_keeps_what_each_parameter_says() -> None:
    chances = torch.tensor([0.5, 0.2, 0.2, 0.06, 0.04])
    kept = lambda **options: truncate(chances, SamplingParams(**options)).nonzero().flatten().tolist()  # noqa: E731
    assert kept(top_k=1) == [0]
    assert kept(top_p=0.6) == [0, 1]
    assert kept(top_p=0.5) == [0]
    assert kept(min_p=0.1) == [0, 1, 2, 3]
    assert kept(top_p=0.95, min_p=0.3) == [0, 1, 2]
    assert kept() == [0, 1, 2, 3, 4]


def test_penalties_turn_a_greedy_answer_away_from_what_it_said() -> None:
    logits = torch.tensor([1.0, 0.9, 0.5])
    draw = Draw(SamplingParams(presence_penalty=0.2), [1])
    assert [draw.next(logits) for _ in range(4)] == [0, 1, 0, 0]
    draw = Draw(SamplingParams(frequency_penalty=0.2), [1])
    assert [draw.next(logits) for _ in range(4)] == [0, 1, 0, 1]


def test_the_common_prefix_of_sequences() -> None:
    assert common_prefix([(1, 2, 3), (1, 2), (1, 2, 4)]) == (1, 2)
    assert common_prefix([(1, 2)]) == (1, 2)
    assert common_prefix([(1,), (2,)]) == () == common_prefix([])


@pytest.mark.real
def test_the_embedded_model_answers_alike_alone_and_in_a_batch(smollm2_dir) -> None:
    from transformers import AutoModelForCausalLM

    from tunesmith.chat.renderer import Renderer
    from tunesmith.types import Message

    renderer = Renderer.for_model(smollm2_dir)
    model = AutoModelForCausalLM.from_pretrained(smollm2_dir, dtype=torch.float32).eval()
    questions = ["What is the capital of France?", "Say hi.", "Name three colours, one per line, please."]
    asked = [renderer.prompt([Message(role="user", content=question)]) for question in questions]
    sampling = SamplingParams(max_tokens=16)
    shared = common_prefix([prompt.input_ids for prompt in asked])
    batch = TransformersEngine(model, decode=renderer.decode, batch_size=8, shared_prefix=shared).generate(
        asked, sampling
    )
    alone = TransformersEngine(model, decode=renderer.decode, batch_size=1)
    assert [alone.generate([prompt], sampling)[0].token_ids for prompt in asked] == [each.token_ids for each in batch]
    assert "Paris" in batch[0].text
    assert len(shared) > 10
