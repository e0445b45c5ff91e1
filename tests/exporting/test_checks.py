"""Checks that pass, and checks that must not."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from small_models import build_tokenizer
from tunesmith.errors import ExportError
from tunesmith.exporting.agreement import (
    AnswerAgreement,
    Divergence,
    EngineAnswer,
    compare_answers,
    compare_logits,
)
from tunesmith.exporting.checks import check_answers, check_cast, check_merge, check_tokens
from tunesmith.exporting.strings import check_strings
from tunesmith.protocols import Prompt

GOOD = AnswerAgreement(20, 0, 19, 400, 399, 0.001, 0.01, (Divergence(3, 7, 0.02),))
HERE = Path("m.gguf")


class Counting(torch.nn.Module):
    """Always expects the token after the last one, with a logit of 2 and the one after it with 1.5; V = 8."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, input_ids, use_cache=False, logits_to_keep=0):
        logits = 2 * torch.nn.functional.one_hot((input_ids + 1) % 8, 8) + 1.5 * torch.nn.functional.one_hot(
            (input_ids + 2) % 8, 8
        )
        return type("Out", (), {"logits": logits[:, -logits_to_keep:].float()})


def answer(*ids: int, stopped: bool = False, whole: bool = True) -> EngineAnswer:
    right = math.log(math.exp(2) / (math.exp(2) + math.exp(1.5) + 6))
    return EngineAnswer(ids, (right,) * len(ids), stopped, whole)


def test_an_answer_that_follows_the_reference_is_equal():
    found = compare_answers(Counting(), [Prompt((1, 2), (6,))], [answer(3, 4, 5, stopped=True)])
    assert (found.num_equal, found.num_tokens, found.num_equal_tokens) == (1, 4, 4)
    assert found.max_logprob_difference == pytest.approx(0, abs=1e-6)


def test_the_first_place_where_answers_part_is_told_with_its_gap():
    found = compare_answers(Counting(), [Prompt((1, 2), (6,))], [answer(3, 5, 6)])
    assert found.divergences == (Divergence(0, 1, pytest.approx(0.5)),)
    assert found.num_equal_tokens == 2  # 6 follows 5: right, given the text so far


def test_an_answer_that_stops_where_the_reference_goes_on_is_not_equal():
    found = compare_answers(Counting(), [Prompt((1,), (7,))], [answer(2, 3, stopped=True)])
    assert found.num_equal == 0
    assert found.divergences[0].position == 2


def test_answers_with_unreported_tokens_are_left_out_and_counted():
    found = compare_answers(Counting(), [Prompt((1,), (7,))] * 2, [answer(2, 3), answer(6, whole=False)])
    assert (found.num_prompts, found.num_unread, found.num_equal, found.num_tokens) == (2, 1, 1, 2)


def test_compared_logits_give_difference_divergence_and_first_choices():
    first = [torch.tensor([[0.0, 1.0], [2.0, 0.0]])]
    second = [torch.tensor([[0.0, 1.5], [0.0, 2.0]])]
    found = compare_logits(first, second)
    assert found.max_logit_difference == 2.0
    assert found.num_equal_top1 == 1
    assert found.mean_kl == pytest.approx((0.0244 + 1.5232) / 2, abs=1e-3)


def test_good_answers_pass():
    assert check_answers(GOOD, "f16", HERE)["equal_token_share"] == 0.9975


@pytest.mark.parametrize(
    ("bad", "quantisation", "message"),
    [
        (replace(GOOD, mean_logprob_difference=0.03), "f16", "log probabilities are 0.03 away"),
        (replace(GOOD, mean_logprob_difference=float("nan")), "q8_0", "log probabilities are nan away"),
        (replace(GOOD, divergences=(Divergence(3, 7, 0.4),)), "f16", "prompt 3 leaves the reference's at token 7"),
        (replace(GOOD, num_equal_tokens=200), "q8_0", "50% of its tokens"),
        (replace(GOOD, num_equal_tokens=200), "q4_k_m", "50% of its tokens"),
        (replace(GOOD, num_unread=15), "q8_0", "15 of its 20 answers hold control tokens"),
    ],
)
def test_bad_answers_do_not_pass(bad, quantisation, message):
    with pytest.raises(ExportError, match="does not answer as the merged model does") as caught:
        check_answers(bad, quantisation, HERE)
    assert message in caught.value.message


def test_a_quantised_file_may_part_where_f16_may_not():
    parted = replace(GOOD, divergences=(Divergence(3, 7, 0.4),), num_equal_tokens=380, mean_logprob_difference=0.05)
    assert check_answers(parted, "q8_0", HERE)["num_equal"] == 19


def test_a_merge_that_changes_the_logits_is_refused_and_so_is_nan():
    same = [torch.zeros(3, 4)]
    assert check_merge(compare_logits(same, same), 1e-3)["limit"] == 1e-3
    for wrong in (torch.full((3, 4), 0.1), torch.full((3, 4), float("nan"))):
        with pytest.raises(ExportError, match=r"merging changed the model.*at most 0\.001"):
            check_merge(compare_logits(same, [wrong]), 1e-3)


def test_a_cast_that_loses_the_adapter_is_refused():
    first, second = [torch.tensor([[0.0, 3.0]])], [torch.tensor([[3.0, 0.0]])]
    with pytest.raises(ExportError, match=r"to bfloat16 changes the model by 2\.7 nats"):
        check_cast(compare_logits(first, second), "bfloat16")


def test_the_500_texts_are_the_same_every_time_and_of_every_kind():
    texts = check_strings(["<|a|>", "<|b|>"])
    assert texts == check_strings(["<|a|>", "<|b|>"])
    assert len(texts) == 500
    assert len(set(texts)) > 480
    joined = "".join(texts)
    for sample in ("🚲", "自", "한", "<|b|>", "\r\n", "\u3000", "9", "    "):
        assert sample in joined
    joined.encode("utf-8")  # no half characters


def test_the_first_text_that_is_split_otherwise_is_shown(tmp_path):
    build_tokenizer(tmp_path)
    from tokenizers import Tokenizer

    ours = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))

    def wrong(texts):
        return [ours.encode(text, add_special_tokens=False).ids[:5] for text in texts]

    with pytest.raises(ExportError, match=r"llama\.cpp splits 'Hello, world!' into other tokens"):
        check_tokens(tmp_path / "tokenizer.json", wrong, HERE)
