"""Conversations rendered by their shape come out as those of which each is rendered by itself."""

from __future__ import annotations

import random

import numpy as np
import pytest
from test_renderer import CHATS, assistant, renderer, system, user
from test_word_memory import FRAGMENTS
from toy_tokenizers import NOT_SPECIAL, SPECIAL

from tunesmith.chat import tokenizer
from tunesmith.chat.renderer import SUPERVISE, Renderer
from tunesmith.chat.templates import BUILTIN_TEMPLATES
from tunesmith.errors import DataError
from tunesmith.types import Message

LOOK_INSIDE = {"alpaca-lora", "alpaca-short", "qwen3", "vigogne"}
TRIM_SPACE = {"phi-3", "zephyr"}  # their control tokens take the white space behind them


def made_up_chats(number: int) -> list[list[Message]]:
    source = random.Random(7)
    odd = [
        *SPECIAL[:5],
        *NOT_SPECIAL,
        "",
        "<|im_",
        "end|>",
        "\U0010fe50",
        "\ud800",
        "\U0010fffdtunesmith-cut\U0010fffd",
    ]
    chats: list[list[Message]] = []
    for _ in range(number):
        is_clean = source.random() < 0.5
        chat = [system("Be brief.")] if source.random() < 0.4 else []
        for _ in range(source.randint(1, 4)):
            for make in (user, assistant):
                pieces = [source.choice(FRAGMENTS) for _ in range(source.randint(1, 12))]
                if source.random() < 0.05:
                    pieces.append(source.choice(odd))
                text = "".join(pieces)
                chat.append(make(text.strip() if is_clean else text))
        if source.random() < 0.1:
            place = source.randrange(len(chat))
            chat[place] = chat[place].model_copy(update={"weight": 0})
        if source.random() < 0.1:
            del chat[source.randrange(len(chat))]
        chats.append(chat or [user("a")])
    return [*chats, *CHATS.values(), [user("only")], [assistant("first"), user("then")]]


def compare(one: Renderer, chats: list[list[Message]], supervise: str) -> int:
    """How many had a shape. What has one is what it is without."""
    shaped = one._render_shaped(chats, supervise)
    together = one.render_batch(chats, supervise)
    shapes, one._shapes = one._shapes, None
    try:
        plain = one.render_batch(chats, supervise)
    finally:
        one._shapes = shapes
    for left, right in zip(together, plain, strict=True):
        if isinstance(right, DataError):
            assert isinstance(left, DataError) and left.message == right.message
            continue
        assert not isinstance(left, DataError)
        assert left.text == right.text
        for name in ("input_ids", "owner", "loss_mask"):
            ours, theirs = getattr(left, name), getattr(right, name)
            assert ours.dtype == theirs.dtype and np.array_equal(ours, theirs), (name, left.text)
    return sum(each is not None for each in shaped)


@pytest.mark.parametrize("name", sorted(BUILTIN_TEMPLATES))
def test_a_shape_gives_what_each_conversation_gives_by_itself(name: str):
    chats = made_up_chats(60)
    for supervise in SUPERVISE:
        found = compare(renderer(name), chats, supervise)
        assert (found < 5) == (name in LOOK_INSIDE | TRIM_SPACE), found


@pytest.mark.parametrize("name", ["chatml", "llama-3", "gemma"])
def test_the_compiled_loops_give_the_same(name: str, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("numba")
    monkeypatch.setattr(tokenizer, "_TABLE_FROM", 0)
    one = Renderer(renderer(name).tokenizer, BUILTIN_TEMPLATES[name].source)
    assert compare(one, made_up_chats(150), "all_turns") > 10
    assert one._encoder._table is not None


def test_old_pieces_and_templates_that_look_inside_take_the_slower_road():
    assert renderer("chatml", "old pieces")._shapes is None
    assert compare(renderer("qwen3"), made_up_chats(5), "all_turns") == 0


def test_a_control_string_in_a_text_takes_one_conversation_and_no_other_off_the_road():
    chats = [[user("a"), assistant("b")], [user("a <|im_end|>"), assistant("b")], [user("c"), assistant("d")]]
    assert [each is None for each in renderer("chatml")._render_shaped(chats, "all_turns")] == [False, True, False]
