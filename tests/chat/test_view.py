"""The token view: the mask as colour, hostile text made harmless, whole characters."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.console import Console
from toy_tokenizers import byte_tokenizer, sentencepiece_tokenizer

from tunesmith.chat.renderer import Renderer
from tunesmith.chat.templates import load_template
from tunesmith.chat.view import MESSAGE, STOP, TARGET, TEMPLATE, tokens_in_colour, tokens_in_plain
from tunesmith.types import Message


def rendered(question: str, answer: str, tokenizer=None, name: str = "chatml"):
    renderer = Renderer(tokenizer or byte_tokenizer(), load_template(name))
    messages = [Message(role="user", content=question), Message(role="assistant", content=answer)]
    return renderer.render(messages, "all_turns"), renderer.tokenizer


def styled(text, style: str) -> str:
    """Everything after the legend that has a style."""
    body = text.plain.index("\n\n") + 2
    return "".join(
        text.plain[span.start : span.end] for span in text.spans if span.style == style and span.start >= body
    )


def test_targets_stops_messages_and_template_text_have_their_own_style():
    text = tokens_in_colour(*rendered("Where is it?", "On its way."))
    assert styled(text, TARGET) == "On its way."
    assert styled(text, STOP) == "<|im_end|>"
    assert styled(text, TEMPLATE) == "<|im_start|>user⏎\n<|im_end|>⏎\n<|im_start|>assistant⏎\n⏎\n"
    assert MESSAGE == "" and "Where is it?" in text.plain


def test_escape_sequences_and_markup_never_reach_the_terminal():
    hostile = "\x1b[31mred\x07 [bold]x[/bold] [/] \u202eevil\u2028 \x00\r"
    text = tokens_in_colour(*rendered(hostile, hostile))
    stream = io.StringIO()
    Console(file=stream, force_terminal=False, width=200).print(text)
    shown = stream.getvalue()
    assert "⟨U+001B⟩[31mred⟨U+0007⟩ [bold]x[/bold] [/] ⟨U+202E⟩evil⟨U+2028⟩ ⟨U+0000⟩␍" in shown
    assert not set("\x1b\x07\u202e\u2028\x00\r") & set(shown)
    assert not set("\x1b\x07\u202e\u2028\x00\r") & set(tokens_in_plain(*rendered(hostile, hostile)))


def test_a_character_of_several_tokens_is_shown_whole():
    text = tokens_in_colour(*rendered("天气 🙂", "👩‍👩‍👧 好"))
    assert "天气 🙂" in text.plain
    assert "\ufffd" not in text.plain


def texts_of(question: str, tokenizer=None) -> list[str]:
    """The last column of the plain form, of the tokens of the question."""
    one, tokenizer = rendered(question, "a", tokenizer)
    lines = tokens_in_plain(one, tokenizer).splitlines()[1:]
    mine = [line for line in lines if line.split()[3] == "0"]
    return [line.split(maxsplit=4)[4] if len(line.split()) > 4 else "" for line in mine]


@pytest.mark.parametrize("tokenizer", [byte_tokenizer(), sentencepiece_tokenizer(False)], ids=["bytes", "pieces"])
def test_a_part_of_a_character_is_shown_as_its_bytes_and_the_last_part_with_the_character(tokenizer):
    shown = texts_of("龘é🛰", tokenizer)
    assert shown[:3] == ["‹e9›", "‹be›", "‹98› = 龘"]
    assert shown[-1] == "‹b0› = 🛰"
    assert "\ufffd" not in "".join(shown)


def test_a_character_that_is_never_finished_stays_bytes():
    one, tokenizer = rendered("龘", "龘")
    first = one.owner.index(1)
    cut = replace(one, input_ids=one.input_ids[: first + 2], owner=one.owner[: first + 2], loss_mask=one.loss_mask[: first + 2])  # fmt: skip
    assert tokens_in_plain(cut, tokenizer).splitlines()[-1].endswith("‹be›")
    text = tokens_in_colour(cut, tokenizer)
    assert text.plain.endswith("‹e9 be›") and styled(text, TARGET) == "‹e9 be›"


def test_the_replacement_character_itself_is_text():
    assert texts_of("a\ufffdb")[-2:] == ["‹bd› = \ufffd", "b"]
    assert "a\ufffdb" in tokens_in_colour(*rendered("a\ufffdb", "a")).plain


def test_broken_characters_do_not_swallow_the_stop_token():
    text = tokens_in_colour(*rendered("x", "\ufffd"))
    assert styled(text, STOP) == "<|im_end|>"


def test_pieces_keep_their_spaces():
    text = tokens_in_colour(*rendered("how are you", "Fine, thanks!", sentencepiece_tokenizer(False)))
    assert "how are you" in text.plain and styled(text, TARGET) == "Fine, thanks!"


def test_boundaries_put_a_bar_after_each_token():
    one, tokenizer = rendered("a", "b")
    assert tokens_in_colour(one, tokenizer, boundaries=True).plain.count("|") > len(one.input_ids)


def test_the_plain_form_has_a_line_for_each_token():
    one, tokenizer = rendered("Where?", "Here")
    lines = tokens_in_plain(one, tokenizer).splitlines()
    assert len(lines) == len(one.input_ids) + 1
    assert [line.split()[2] for line in lines[1:]].count("S") == 1
    assert lines[1].split() == ["0", str(one.input_ids[0]), ".", "-", "<|im_start|>"]
