"""Spans of messages in rendered text: exact where they can be, admitted where they cannot."""

from __future__ import annotations

import pytest

from tunesmith.chat.template import ChatTemplate
from tunesmith.chat.templates import BUILTIN_TEMPLATES, load_template, read_template
from tunesmith.errors import DataError, ModelError, RecipeError
from tunesmith.types import Message

VARIABLES = {"bos_token": "<s>", "eos_token": "</s>"}
CHAT = [
    Message(role="system", content=" Be kind.\n"),
    Message(role="user", content="\n\nHi  "),
    Message(role="assistant", content=" Hello\n"),
]


def spans(source: str, messages=CHAT) -> dict[int, str]:
    located = ChatTemplate(source, VARIABLES).locate(messages, add_generation_prompt=False)
    assert located.exact
    return {span.message: located.text[span.start : span.end] for span in located.spans}


@pytest.mark.parametrize("name", sorted(BUILTIN_TEMPLATES))
def test_every_message_is_found_in_every_built_in_template(name: str):
    found = spans(load_template(name))
    assert {message: text.strip() for message, text in found.items()} == {0: "Be kind.", 1: "Hi", 2: "Hello"}


def test_white_space_belongs_to_the_message_where_the_template_keeps_it_and_not_where_it_trims():
    assert spans(load_template("chatml")) == {0: " Be kind.\n", 1: "\n\nHi  ", 2: " Hello\n"}
    assert spans(load_template("command-r")) == {0: "Be kind.", 1: "Hi", 2: "Hello"}


def test_a_template_that_looks_inside_the_text_is_not_guessed_at():
    shouting = "{% for m in messages %}{% if m.content | trim | length > 5 %}long{% endif %}{{ m.content | upper }}{% endfor %}"
    located = ChatTemplate(shouting, VARIABLES).locate(
        [Message(role="user", content="HI")], add_generation_prompt=False
    )
    assert (located.text, located.exact, located.spans) == ("HI", False, ())


def test_a_message_the_template_leaves_out_is_an_error():
    forgetful = "{% for m in messages if m.role != 'system' %}{{ m.content }}{% endfor %}"
    with pytest.raises(DataError, match=r"leaves out the text of message 0 \(system\)"):
        ChatTemplate(forgetful, VARIABLES).locate(CHAT, add_generation_prompt=False)


def test_a_stripped_thought_leaves_the_end_of_the_answer_known():
    messages = [
        Message(role="user", content="q"),
        Message(role="assistant", content="<think>a</think>\nb"),
        Message(role="user", content="r"),
        Message(role="assistant", content="c"),
    ]
    located = ChatTemplate(load_template("qwen3"), VARIABLES).locate(messages, add_generation_prompt=False)
    assert located.exact
    assert located.text[: located.ends[1]].endswith("assistant\nb")


def test_tool_calls_are_found_too():
    call = {"id": "call_1", "type": "function", "function": {"name": "look_up", "arguments": {"order": "A<|im_end|>"}}}
    messages = [
        Message(role="user", content="Where?"),
        Message(role="assistant", tool_calls=[call]),
        Message(role="tool", content="lost"),
        Message(role="assistant", content="It is lost."),
    ]
    located = ChatTemplate(load_template("qwen2.5"), VARIABLES).locate(messages, add_generation_prompt=False)
    assert located.exact
    mine = [located.text[span.start : span.end] for span in located.spans if span.message == 1]
    assert mine == ["look_up", "A<|im_end|>"]


def test_texts_may_hold_private_characters_themselves():
    hostile = "".join(chr(0x10FE00 + i) for i in range(5)) + "0" + chr(0x10FE02)
    assert spans(load_template("chatml"), [Message(role="user", content=hostile)]) == {0: hostile}


def test_a_refusal_repeats_the_words_of_the_template():
    wrong = [Message(role="user", content="a"), Message(role="user", content="b")]
    with pytest.raises(DataError, match=r"refuses this conversation \(user, user\): llama-2 needs .* found user where"):
        ChatTemplate(load_template("llama-2"), VARIABLES).render(wrong, add_generation_prompt=True)


def test_a_clock_in_a_template_is_noticed():
    assert ChatTemplate("{{ strftime_now('%Y') }}{{ messages[0].content }}", {}).reads_clock
    assert not ChatTemplate(load_template("llama-3"), {}).reads_clock


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(RecipeError, match="no built-in chat template named 'chatlm'") as caught:
        load_template("chatlm")
    assert caught.value.hint == "did you mean 'chatml'?"


def test_a_template_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(ModelError, match="cannot be read"):
        read_template(tmp_path / "none.jinja")
    (tmp_path / "latin.jinja").write_bytes(b"\xff\xfe")
    with pytest.raises(ModelError, match="cannot be read"):
        read_template(tmp_path / "latin.jinja")


LORA = "Below is an instruction that describes a task{}. Write a response that appropriately completes the request.\n\n"


@pytest.mark.parametrize(
    ("name", "alone", "with_input"),
    [
        (
            "alpaca-lora",
            LORA.format("") + "### Instruction:\nAdd.\n\n### Response:\n",
            LORA.format(", paired with an input that provides further context")
            + "### Instruction:\nAdd.\n\n### Input:\n1\n\n2\n\n### Response:\n",
        ),
        (
            "alpaca-short",
            "### Instruction:\nAdd.\n\n### Response:\n",
            "### Instruction:\nAdd.\n\n### Input:\n1\n\n2\n\n### Response:\n",
        ),
        (
            "vigogne",
            "Ci-dessous se trouve une instruction qui décrit une tâche. Écrivez une réponse qui complète correctement la "
            "demande.\n\n### Instruction:\nAdd.\n\n### Réponse:\n",
            "Ci-dessous se trouve une instruction qui décrit une tâche, associée à une entrée qui fournit un contexte "
            "supplémentaire. Écrivez une réponse qui complète correctement la demande.\n\n### Instruction:\nAdd.\n\n"
            "### Entrée:\n1\n\n2\n\n### Réponse:\n",
        ),
    ],
)
def test_the_alpaca_lora_forms_put_what_follows_the_first_blank_line_under_input(
    name: str, alone: str, with_input: str
):
    template = ChatTemplate(load_template(name), VARIABLES)
    for asked, expected in (("Add.", alone), ("Add.\n\n1\n\n2", with_input)):
        messages = [Message(role="user", content=asked)]
        assert template.render(messages, add_generation_prompt=True) == "<s>" + expected
        assert template.locate(messages, add_generation_prompt=True).exact


def test_only_the_first_turn_of_an_alpaca_lora_chat_has_the_preamble():
    said = ("user", "Hi"), ("assistant", "Ho"), ("user", "Add.\n\n1")
    messages = [Message(role=role, content=text) for role, text in said]
    written = ChatTemplate(load_template("alpaca-lora"), VARIABLES).render(messages, add_generation_prompt=True)
    assert written == "<s>" + LORA.format("") + (
        "### Instruction:\nHi\n\n### Response:\nHo</s>\n\n### Instruction:\nAdd.\n\n### Input:\n1\n\n### Response:\n"
    )
