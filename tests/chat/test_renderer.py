"""The laws of the one renderer, on every built-in chat template, with three kinds of tokenizer and the real SmolLM2."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_tokenizers import NOT_SPECIAL, SPECIAL, SWALLOWS_SPACE, byte_tokenizer, sentencepiece_tokenizer

from tunesmith.chat.renderer import Renderer, check_template
from tunesmith.chat.template import as_template_dict
from tunesmith.chat.templates import BUILTIN_TEMPLATES
from tunesmith.chat.turns import turn_starts
from tunesmith.errors import DataError, ModelError, RecipeError, TemplateMismatch
from tunesmith.types import Message

TOKENIZERS = {
    "bytes": byte_tokenizer,
    "pieces": lambda: sentencepiece_tokenizer(False),
    "old pieces": lambda: sentencepiece_tokenizer(True),
}
_RENDERERS: dict[tuple[str, str], Renderer] = {}

every_template = pytest.mark.parametrize("name", sorted(BUILTIN_TEMPLATES))
every_tokenizer = pytest.mark.parametrize("kind", list(TOKENIZERS))


def renderer(name: str, kind: str = "bytes") -> Renderer:
    if (name, kind) not in _RENDERERS:
        _RENDERERS[name, kind] = Renderer(TOKENIZERS[kind](), BUILTIN_TEMPLATES[name].source)
    return _RENDERERS[name, kind]


def system(text: str) -> Message:
    return Message(role="system", content=text)


def user(text: str) -> Message:
    return Message(role="user", content=text)


def assistant(text: str, **fields) -> Message:
    return Message(role="assistant", content=text, **fields)


CHATS = {
    "one turn": [user("Hello there, how are you?"), assistant("Fine, thanks!")],
    "two turns": [user("Where is my bike?"), assistant("On its way."), user("天气 🙂?"), assistant('{"order": null}')],
    "system": [system("You are a helpful assistant."), user("Say hi"), assistant("Hi 🙂\n\n- there\n")],
    "long": [system("Be brief."), *[user("And now?"), assistant("你好，世界")] * 4],
}


def targets(rendered, message: int) -> list[int]:
    """Ids the model learns to write as one message."""
    places = zip(rendered.input_ids, rendered.loss_mask, rendered.owner, strict=True)
    return [index for index, supervised, owner in places if supervised and owner == message]


@every_template
@every_tokenizer
@pytest.mark.parametrize("chat", list(CHATS))
def test_ids_and_text_are_those_of_the_reference_tokenizer(name: str, kind: str, chat: str):
    one, messages = renderer(name, kind), CHATS[chat]
    dicts = [as_template_dict(message) for message in messages]
    reference = one.tokenizer
    rendered = one.render(messages, "all_turns")
    assert rendered.text == reference.apply_chat_template(dicts, chat_template=one.template, tokenize=False)
    expected = reference.apply_chat_template(dicts, chat_template=one.template, return_dict=False)
    prompt = reference.apply_chat_template(
        dicts[:-1], chat_template=one.template, add_generation_prompt=True, return_dict=False
    )
    assert list(one.prompt(messages[:-1]).input_ids) == prompt or expected[: len(prompt)] != prompt
    if expected[: len(prompt)] == prompt:
        assert list(rendered.input_ids) == expected
    else:  # GPT-2's rule splits white space by what follows it: there the reference itself trains on another prompt
        assert (name, kind) in {("belle", "bytes"), ("llama-3", "bytes")}
        assert reference.decode(rendered.input_ids) == reference.decode(expected)


@every_template
@every_tokenizer
@pytest.mark.parametrize("chat", list(CHATS))
def test_what_stands_before_a_turn_in_training_is_the_prompt_at_inference(name: str, kind: str, chat: str):
    one, messages = renderer(name, kind), CHATS[chat]
    rendered = one.render(messages, "all_turns")
    for index, message in enumerate(messages):
        if message.role == "assistant":
            prompt = one.prompt(messages[:index]).input_ids
            assert rendered.input_ids[: len(prompt)] == prompt
            assert rendered.loss_mask[len(prompt)]
            assert not rendered.loss_mask[len(prompt) - 1]


@every_template
@every_tokenizer
def test_only_answers_and_their_stop_tokens_are_targets(name: str, kind: str):
    one, messages = renderer(name, kind), CHATS["two turns"]
    rendered = one.render(messages, "all_turns")
    supervised = {owner for owner, target in zip(rendered.owner, rendered.loss_mask, strict=True) if target}
    assert supervised == {1, 3}
    stop = BUILTIN_TEMPLATES[name].stop or one.tokenizer.eos_token
    assert one.stop_ids == (one.tokenizer.convert_tokens_to_ids(stop),)
    for message in (1, 3):
        ids = targets(rendered, message)
        assert ids[-1] in one.stop_ids
        assert one.stop_ids[0] not in ids[:-1]
        text = one.decode(ids).strip()
        assert text.removeprefix("<think>").replace("</think>", "").strip() == messages[message].content
    assert one.decode([i for i, own in zip(rendered.input_ids, rendered.owner, strict=True) if own == 2]).strip()


@every_template
def test_last_turn_and_everything_do_what_they_say(name: str):
    one, messages = renderer(name), CHATS["two turns"]
    all_turns, last, everything = (one.render(messages, how) for how in ("all_turns", "last_turn", "everything"))
    assert all_turns.input_ids == last.input_ids == everything.input_ids
    assert targets(last, 3) == targets(all_turns, 3)
    assert targets(last, 1) == []
    assert everything.loss_mask == (False, *[True] * (len(everything.input_ids) - 1))


@every_template
def test_a_turn_of_weight_0_is_shown_and_not_learnt(name: str):
    found = renderer(name)
    talk = CHATS["two turns"]
    silent = [talk[0], talk[1].model_copy(update={"weight": 0}), *talk[2:]]
    whole, rendered = found.render(talk, "all_turns"), found.render(silent, "all_turns")
    assert rendered.input_ids == whole.input_ids and rendered.text == whole.text
    assert targets(whole, 1) and not targets(rendered, 1)
    assert targets(rendered, 3) == targets(whole, 3)
    assert found.prompt(silent[:3]) == found.prompt(talk[:3])
    everything = found.render(silent, "everything")
    assert not targets(everything, 1) and targets(everything, 0) and targets(everything, 3)


def test_a_conversation_in_which_nothing_may_be_learnt_is_an_error_that_says_so():
    talk = [user("Say hi"), assistant("Hi", weight=0), user("More"), assistant("Ho", weight=0)]
    with pytest.raises(DataError, match="every assistant turn of it has weight 0"):
        renderer("chatml").render(talk, "all_turns")
    with pytest.raises(DataError, match="its last assistant turn has weight 0"):
        renderer("chatml").render([talk[0], assistant("Hi"), *talk[2:]], "last_turn")


@every_template
@every_tokenizer
def test_control_strings_that_people_type_are_plain_text(name: str, kind: str):
    one = renderer(name, kind)
    typed = " ".join([*SPECIAL, *SWALLOWS_SPACE])
    hostile = [
        system(f"never {typed} say"),
        user(f"a {typed} b"),
        assistant(f"c {typed} d"),
        user(f"{typed}"),
        assistant(f"{typed}"),
    ]
    calm = [message.model_copy(update={"content": "word"}) for message in hostile]
    control = {one.tokenizer.convert_tokens_to_ids(text) for text in [*SPECIAL, *SWALLOWS_SPACE]} | set(one.stop_ids)
    rendered = one.render(hostile, "all_turns")
    expected = [index for index in one.render(calm, "all_turns").input_ids if index in control]
    assert [index for index in rendered.input_ids if index in control] == expected
    for message in (2, 4):
        ids = targets(rendered, message)
        assert [index for index in ids if index in control] == [one.stop_ids[0]]
        assert typed in one.decode(ids)
    prompt = one.prompt(hostile[:4]).input_ids
    assert rendered.input_ids[: len(prompt)] == prompt


def test_turn_tokens_that_are_not_marked_special_are_plain_in_messages_too():
    one = renderer("command-r")
    rendered = one.render([user("x<|END_OF_TURN_TOKEN|><|START_OF_TURN_TOKEN|>"), assistant("y")], "all_turns")
    stop = one.tokenizer.convert_tokens_to_ids("<|END_OF_TURN_TOKEN|>")
    assert rendered.input_ids.count(stop) == 2
    assert "<|END_OF_TURN_TOKEN|>" in NOT_SPECIAL


def test_a_thought_an_assistant_writes_keeps_its_own_tokens():
    one = renderer("qwen3")
    think = one.tokenizer.convert_tokens_to_ids("<think>")
    rendered = one.render([user("Hi"), assistant("<think>\nHm.\n</think>\n\nHello")], "all_turns")
    assert targets(rendered, 1)[0] == think
    assert rendered.text.endswith("assistant\n<think>\nHm.\n</think>\n\nHello<|im_end|>\n")
    assert rendered == one.render([user("Hi"), assistant("Hello", reasoning="Hm.")], "all_turns")


def test_stripped_thoughts_keep_the_law_for_the_last_turn_and_are_declared():
    one = renderer("qwen3")
    assert not one.prefix_stable
    assert renderer("chatml").prefix_stable
    messages = [user("Hi"), assistant("<think>\na <|im_end|>\n</think>\n\nb"), user("And?"), assistant("c")]
    rendered = one.render(messages, "last_turn")
    assert "a <|im_end|>" not in rendered.text
    prompt = one.prompt(messages[:3]).input_ids
    assert rendered.input_ids[: len(prompt)] == prompt
    assert rendered.loss_mask == (False,) * len(prompt) + (True,) * (len(rendered.input_ids) - len(prompt) - 1) + (
        False,
    )


def test_a_template_that_moves_the_system_text_to_the_last_turn_trains_the_last_turn_only():
    moving = (
        "{%- if messages[0].role == 'system' %}{% set head = messages[0].content + '\n' %}"
        "{% set messages = messages[1:] %}{% else %}{% set head = '' %}{% endif -%}"
        "{%- for m in messages %}{% if m.role == 'user' %}[INST] "
        "{{- head if loop.index0 >= messages | length - 2 + add_generation_prompt | int else '' }}{{ m.content }}[/INST]"
        "{%- else %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
    )
    one = Renderer(byte_tokenizer(), moving)
    messages = [system("S"), user("a"), assistant("b"), user("c"), assistant("d")]
    assert not one.prefix_stable
    assert one.decode(targets(one.render(messages, "last_turn"), 4)) == " d"
    with pytest.raises(DataError, match="does not write the text before message 2 as it writes the prompt for it"):
        one.render(messages, "all_turns")


@every_template
def test_nothing_begins_twice(name: str):
    one = renderer(name)
    bos = one.tokenizer.bos_token_id
    assert one.render(CHATS["one turn"], "all_turns").input_ids[:2].count(bos) <= 1


def test_a_template_that_writes_the_first_token_twice_is_refused():
    with pytest.raises(ModelError, match="beginning-of-sequence token '<s>' twice"):
        Renderer(byte_tokenizer(), "{{ bos_token }}<s>" + BUILTIN_TEMPLATES["alpaca"].source.split("\n", 1)[1])


def test_a_conversation_without_an_answer_is_an_error_that_names_the_row():
    with pytest.raises(DataError, match=r"seeds.jsonl:4: no token .* would be a training target") as caught:
        renderer("chatml").render([user("Anyone?")], "all_turns", where="seeds.jsonl:4")
    assert caught.value.where == "seeds.jsonl:4"


def test_an_empty_answer_teaches_to_stop_at_once():
    one = renderer("chatml")
    rendered = one.render([user("Say nothing"), assistant("")], "all_turns")
    assert targets(rendered, 1) == list(one.stop_ids)


def test_a_batch_answers_like_single_calls_and_keeps_errors_in_their_place():
    one = renderer("llama-2")
    good, bad = CHATS["two turns"], [user("a"), user("b"), assistant("c")]
    first, second, third, fourth = one.render_batch([good, bad, [user("\ud800"), assistant("x")], good], "all_turns")
    assert isinstance(second, DataError) and "turns by turns" in second.message
    assert isinstance(third, DataError) and "surrogate" in third.message
    assert tuple(first.input_ids.tolist()) == one.render(good, "all_turns").input_ids  # type: ignore[union-attr]
    assert first.loss_mask.tolist() == fourth.loss_mask.tolist()  # type: ignore[union-attr]
    assert one.prompt_batch([good[:1], good[:3]]) == [one.prompt(good[:1]), one.prompt(good[:3])]


def test_an_unknown_way_to_supervise_is_a_recipe_error():
    with pytest.raises(RecipeError, match="expected one of all_turns, last_turn, everything"):
        renderer("chatml").render(CHATS["one turn"], "answers")


def test_a_template_that_never_stops_is_refused_and_others_are_named():
    endless = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
    with pytest.raises(ModelError, match="holds no token of this tokenizer") as caught:
        Renderer(byte_tokenizer(), endless)
    assert "zephyr" in str(caught.value.hint)


def test_a_prompt_that_training_never_shows_is_refused():
    forked = BUILTIN_TEMPLATES["chatml"].source.replace(
        "<|im_start|>assistant\\n' -}}", "<|im_start|>assistant\\n<think>\\n' -}}"
    )
    with pytest.raises(ModelError, match="trained on another prompt than it meets"):
        Renderer(byte_tokenizer(), forked)


def test_broken_jinja_is_an_error_with_its_line():
    with pytest.raises(ModelError, match="line 2"):
        Renderer(byte_tokenizer(), "{% for m in messages %}\n{% endif %}")


def test_a_system_message_is_folded_where_the_template_refuses_or_forgets_it():
    plain = "{% for m in messages %}{% if m.role == 'user' %}Q: {{ m.content }}\nA:{% elif m.role == 'assistant' %} {{ m.content }}{{ eos_token }}{% else %}LAST{% endif %}{% endfor %}"
    for answer in ("{{ raise_exception('no system role') }}", ""):
        one = Renderer(byte_tokenizer(), plain.replace("LAST", answer))
        assert one.traits.folds_system
        text = one.render(CHATS["system"], "all_turns").text
        assert text.startswith("Q: You are a helpful assistant.\n\nSay hi\nA: Hi")
        again = Renderer(byte_tokenizer(), one.template)  # what is saved beside the model is whole in itself
        assert again.template_digest == one.template_digest
        assert again.prompt(CHATS["system"][:2]) == one.prompt(CHATS["system"][:2])


def test_an_earlier_turn_without_a_stop_token_cannot_be_supervised_but_the_last_can():
    last_only = (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}"
        "{% if loop.last and m.role == 'assistant' %}{{ eos_token }}{% endif %}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}"
    )
    one = Renderer(byte_tokenizer(), last_only)
    assert not one.prefix_stable
    assert one.decode(targets(one.render(CHATS["two turns"], "last_turn"), 3)) == ' {"order": null}'
    with pytest.raises(DataError, match="ends message 1 without a stop token"):
        one.render(CHATS["two turns"], "all_turns")


def test_a_digest_that_differs_is_refused_with_the_first_differing_token():
    trained, found = renderer("smollm2"), renderer("chatml")
    check_template(trained.template_digest, trained)
    with pytest.raises(TemplateMismatch, match=r"first difference at token 1: 's' .* in training, 'user' .* now"):
        check_template(trained.template_digest, found, expected_template=trained.template)
    with pytest.raises(TemplateMismatch, match="the model was trained with " + trained.template_digest[:12]):
        check_template(trained.template_digest, found, where="runs/desk-001/export")


pieces = st.one_of(
    st.text(max_size=12),
    st.sampled_from(
        [
            *SPECIAL,
            *SWALLOWS_SPACE,
            "<think>",
            "</think>",
            "\n\n",
            " ",
            "\t",
            "好",
            "👩‍👩‍👧",
            "é",
            "[/INST]",
            "ASSISTANT:",
        ]
    ),
)
texts = (
    st.lists(pieces, max_size=5)
    .map("".join)
    .filter(lambda text: text.isascii() or text.encode("utf-8", "replace") == text.encode("utf-8", "surrogatepass"))
)


@every_template
@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(texts, texts), min_size=1, max_size=3), st.none() | texts, st.sampled_from(list(TOKENIZERS)))
def test_the_laws_hold_for_any_text(name, turns, head, kind):
    one = renderer(name, kind)
    messages = [system(head)] if head is not None else []
    for question, answer in turns:
        messages += [user(question), assistant(answer)]
    result = one.render_batch([messages], "all_turns" if one.prefix_stable else "last_turn")[0]
    if isinstance(result, DataError):
        assert any(words in result.message for words in ("control string", "leaves out", "reserved"))
        return
    template_text = one.traits.template.render(messages, add_generation_prompt=False)
    assert result.text == template_text
    for owner, supervised in zip(result.owner.tolist(), result.loss_mask.tolist(), strict=True):
        assert not supervised or messages[owner].role == "assistant"
    wanted = [index for index, message in enumerate(messages) if message.role == "assistant"]
    for index in wanted if one.prefix_stable else wanted[-1:]:
        prompt = list(one.prompt(messages[:index]).input_ids)
        assert result.input_ids[: len(prompt)].tolist() == prompt
        mine = (result.owner == index) & result.loss_mask
        ids = result.input_ids[mine].tolist()
        assert ids[-1] in one.stop_ids
        assert not set(ids[:-1]) & set(one.stop_ids)


@every_template
@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(texts, texts), min_size=2, max_size=4), st.none() | texts)
def test_the_quick_way_to_the_turns_finds_what_rendering_each_prompt_finds(name, turns, head):
    one = renderer(name)
    messages = [system(head)] if head is not None else []
    for question, answer in turns:
        messages += [user(question), assistant(answer)]
    try:
        located = one.traits.template.locate(messages, add_generation_prompt=False)
    except DataError:
        return
    quick, slow = (
        turn_starts(one.traits.template, messages, located, is_prompt=False, prefix_stable=stable)
        for stable in (one.prefix_stable, False)
    )
    assert quick == slow


def test_the_work_is_linear_in_the_turns(monkeypatch):
    one = renderer("chatml")
    calls: list[int] = []
    original = one.traits.template._render
    monkeypatch.setattr(
        one.traits.template,
        "_render",
        lambda messages, prompt: calls.append(len(messages)) or original(messages, prompt),
    )
    one.render([user("And now?"), assistant("Wait.")] * 40, "all_turns")
    assert calls == [80, 80, 79]  # the text, the text with marks, the last prompt


def test_tools_are_rendered_and_only_the_assistants_part_is_learnt():
    call = {"type": "function", "function": {"name": "look_up", "arguments": {"order": "A-1 <|im_end|>"}}}
    messages = [
        user("Where is A-1?"),
        assistant("", tool_calls=[call]),
        Message(role="tool", content="lost <|im_end|>"),
        assistant("It is lost."),
    ]
    one = renderer("qwen2.5")
    rendered = one.render(messages, "all_turns")
    assert one.decode(targets(rendered, 1)).endswith(
        '{"name": "look_up", "arguments": {"order": "A-1 <|im_end|>"}}\n</tool_call>'
    )
    assert one.decode(targets(rendered, 3)) == "It is lost."
    assert targets(rendered, 2) == []
    assert rendered.input_ids.count(one.stop_ids[0]) == 5
    prompt = one.prompt(messages[:3]).input_ids
    assert rendered.input_ids[: len(prompt)] == prompt


@pytest.mark.real
def test_smollm2_renders_its_own_template_token_for_token(smollm2_dir: Path):
    one = Renderer.for_model(smollm2_dir)
    assert one.prefix_stable and one.traits.takes_system and not one.traits.folds_system
    assert one.stop_ids == (2,)
    for messages in CHATS.values():
        dicts = [as_template_dict(message) for message in messages]
        rendered = one.render(messages, "all_turns")
        assert list(rendered.input_ids) == one.tokenizer.apply_chat_template(dicts, return_dict=False)
        prompt = one.tokenizer.apply_chat_template(dicts[:-1], add_generation_prompt=True, return_dict=False)
        assert list(one.prompt(messages[:-1]).input_ids) == prompt
        assert one.decode(targets(rendered, len(messages) - 1)) == messages[-1].content


@pytest.mark.real
@pytest.mark.parametrize("name", ["alpaca", "vicuna", "llama-2", "zephyr", "belle", "qwen2.5"])
def test_smollm2_takes_built_in_templates(smollm2_dir: Path, name: str):
    one = Renderer.for_model(smollm2_dir, BUILTIN_TEMPLATES[name].source)
    rendered = one.render(CHATS["two turns"], "all_turns")
    prompt = one.prompt(CHATS["two turns"][:3]).input_ids
    assert rendered.input_ids[: len(prompt)] == prompt
    assert targets(rendered, 1)[-1] == 2
