"""A trace is what the template writes for every text, or there is none."""

from __future__ import annotations

import pytest

from tunesmith.chat.template import ChatTemplate
from tunesmith.chat.templates import BUILTIN_TEMPLATES
from tunesmith.chat.tracing import Slot, Tracer
from tunesmith.types import Message

VARIABLES = {"bos_token": "<s>", "eos_token": "</s>"}
ROLES = ("system", "user", "assistant", "user", "assistant")
LOOP = "{% for message in messages %}[% EACH %]{% endfor %}"


def trace(source: str, roles=ROLES):
    return Tracer(source, VARIABLES).trace(roles, add_generation_prompt=False)


@pytest.mark.parametrize("name", sorted(BUILTIN_TEMPLATES))
@pytest.mark.parametrize("prompts", [False, True])
def test_what_is_traced_is_what_the_template_writes(name: str, prompts: bool):
    source = BUILTIN_TEMPLATES[name].source
    roles = ROLES[:-1] if prompts else ROLES
    found = Tracer(source, VARIABLES).trace(roles, add_generation_prompt=prompts)
    if found is None:
        assert name in {"alpaca-lora", "alpaca-short", "qwen3", "vigogne"}  # they look inside texts
        return
    for texts in (
        ["Be brief.", "1 + 1?", "2\n\n", " and  ", "<b>3 🙂"],
        ["{{ x }}", "\ttwo\n\nparts", "t", "0", "None"],
    ):
        messages = [Message(role=role, content=text) for role, text in zip(roles, texts, strict=False)]
        written = [text.strip() if slot.trimmed else text for slot in found.slots for text in [texts[slot.message]]]
        expected = ChatTemplate(source, VARIABLES).render(messages, add_generation_prompt=prompts)
        assert expected == "".join(map("".join, zip(found.literals, [*written, ""], strict=True)))


def test_slots_stand_where_contents_do():
    found = trace(
        "{{ bos_token }}" + LOOP.replace("[% EACH %]", "{{ message.role + ': ' + message.content | trim }};"), ROLES[:2]
    )
    assert found is not None
    assert found.literals == ("<s>system: ", ";user: ", ";")
    assert found.slots == (Slot(0, True), Slot(1, True))


@pytest.mark.parametrize(
    "each",
    [
        "{{ message.content | upper }}",
        "{{ message.content | length }}",
        "{{ message.content[:5] }}",
        "{{ message.content[0] }}",
        "{{ message.content.split('x')[0] }}",
        "{{ message.content.nothing }}",
        "{{ message['content'] | replace('a', 'b') }}",
        "{{ [message.content] | join | length }}",
        "{{ (message.content ~ 'x') | length }}",
        "{{ ('%s' % message.content) | length }}",
        "{{ '{}'.format(message.content) }}",
        "{{ message.content | tojson }}",
        "{{ message | tojson }}",
        "{{ message.content | default('') | first }}",
        "{% if 'think' in message.content %}x{% endif %}{{ message.content }}",
        "{% if message.content in 'think' %}x{% endif %}{{ message.content }}",
        "{% if message.content == 'x' %}x{% endif %}{{ message.content }}",
        "{% if message.content > 'x' %}x{% endif %}{{ message.content }}",
        "{% if message.content is lower %}x{% endif %}{{ message.content }}",
        "{% if message.content.startswith('x') %}x{% endif %}{{ message.content }}",
        "{% for part in message.content %}{{ part }}{% endfor %}",
        "{% set text %}{{ message.content }}{% endset %}{{ text | length }}",
        "{% macro say(text) %}{{ text }}{% endmacro %}{{ say(message.content) | length }}",
        "{% filter upper %}{{ message.content }}{% endfilter %}",
        "{{ ('a' + message.content).strip() }}",
        "{{ message.content.strip('x') }}",
        "{{ message.content * 2 }}",
        "{{ {message.content: 1} | length }}",
        "{{ raise_exception('no ' + message.content) }}",
        "{{ strftime_now('%d') }}{{ message.content }}",
        "{{ [1, 2] | random }}{{ message.content }}",
    ],
)
def test_a_template_that_looks_inside_a_text_has_no_trace(each: str):
    assert trace(LOOP.replace("[% EACH %]", each)) is None


@pytest.mark.parametrize(
    "each",
    [
        "{% if message.content is string and message.content %}{{ message.content }}{% endif %}",
        "{% if loop.index0 % 2 == 0 %}a{% else %}b{% endif %}{{ '<' ~ message.content ~ '>' }}",
        "{% set text = message.content %}{% if loop.first %}{% set text = bos_token + text %}{% endif %}{{ text }}",
        "{% if message.tool_calls is defined and message.tool_calls %}x{% endif %}{{ message['content'].strip() }}",
        "{{ message.content | default('nothing') }}",
    ],
)
def test_what_has_one_outcome_for_all_texts_is_traced(each: str):
    source = LOOP.replace("[% EACH %]", each)
    found = trace(source)
    assert found is not None and [slot.message for slot in found.slots] == [0, 1, 2, 3, 4]
    messages = [Message(role=role, content=f"text {role}") for role in ROLES]
    expected = ChatTemplate(source, VARIABLES).render(messages, add_generation_prompt=False)
    contents = [messages[slot.message].content for slot in found.slots]
    assert expected == "".join(map("".join, zip(found.literals, [*contents, ""], strict=True)))
