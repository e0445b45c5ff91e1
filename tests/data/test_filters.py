"""Each filter keeps what it should and says why it drops the rest."""

from __future__ import annotations

import pytest

from tunesmith.data.filters import ROW_FILTERS
from tunesmith.data.filters.fields import Duplicate
from tunesmith.data.filters.novel import Novelty
from tunesmith.protocols import Filter
from tunesmith.recipe import Curate
from tunesmith.types import Conversation, Message, Task

SCHEMA = {
    "type": "object",
    "properties": {"urgency": {"enum": ["low", "high"]}, "order": {"$ref": "#/$defs/order"}},
    "required": ["urgency"],
    "additionalProperties": False,
    "$defs": {"order": {"type": ["string", "null"], "pattern": "^[0-9]+$"}},
}


def pair(prompt: str, reply: str | None = "fine", source: str = "") -> Conversation:
    messages = [Message(role="user", content=prompt)]
    if reply is not None:
        messages.append(Message(role="assistant", content=reply))
    return Conversation(messages=messages, source=source)


def build(name: str, task: Task | None = None, **parameters: object) -> Filter:
    built = ROW_FILTERS.load(name)(Curate.model_validate(parameters), task or Task())
    assert built is not None
    return built


def test_a_prompt_alone_has_nothing_to_learn_from():
    judge = build("no_reply")
    assert judge(pair("q", None)) == ("no_reply", "the conversation does not end in a reply")
    assert judge(pair("q", " ")) is not None
    assert judge(pair("q", "a")) is None
    call = Message(role="assistant", tool_calls=[{"name": "f"}])
    assert judge(Conversation(messages=[Message(role="user", content="q"), call])) is None


@pytest.mark.parametrize(
    ("prompt", "reply", "expected"),
    [
        ("one two", "one", None),
        ("one", "one", ("prompt_length", "the prompt has 1 words, allowed are 2 to 4")),
        ("1 2 3 4 5", "one", ("prompt_length", "the prompt has 5 words, allowed are 2 to 4")),
        ("你好吗", "好", None),
        ("你好吗我好", "好", ("prompt_length", "the prompt has 5 words, allowed are 2 to 4")),
        ("one two", "1 2 3 4", ("reply_length", "the reply has 4 words, allowed are 1 to 3")),
        ("one two", "👍", None),
    ],
)
def test_length_is_counted_in_words(prompt: str, reply: str, expected: tuple[str, str] | None):
    judge = build("length", min_prompt_words=2, max_prompt_words=4, min_reply_words=1, max_reply_words=3)
    assert judge(pair(prompt, reply)) == expected


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Draw a Graph.", "Graph"),
        ("photograph", None),
        ("graphs", None),
        ("GO\n to town", "GO\n to"),
        ("ergo to", None),
        ("请看图片吧", "图片"),
        ("c++ is hard", "c++"),
        ("日本graph日本", "graph"),
        ("그래프를", "그래프"),
        ("naïvegraph", None),
    ],
)
def test_the_blacklist_knows_whole_words_and_scripts_without_spaces(text: str, found: str | None):
    judge = build("blacklist", blacklist=["graph", "go to", "图片", "c++", "그래프"])
    expected = None if found is None else ("blacklist", f"the user says {found!r}")
    assert judge(pair(text)) == expected
    in_reply = judge(pair("hello", text))
    assert (in_reply is None) == (found is None)


@pytest.mark.parametrize(
    ("reply", "detail"),
    [
        ('{"urgency": "low", "order": null}', None),
        ('{"urgency": "low", "order": "12"}', None),
        ("Sure! {}", "the reply is no JSON: Expecting value: line 1 column 1 (char 0)"),
        ('```json\n{"urgency": "low"}\n```', "the reply is no JSON: Expecting value: line 1 column 1 (char 0)"),
        ('{"urgency": "hgih"}', "$.urgency: 'hgih' is not one of ['low', 'high']"),
        ('{"urgency": "low", "order": "x"}', "$.order: 'x' does not match '^[0-9]+$'"),
        ("{}", "$: 'urgency' is a required property"),
        ('{"urgency": "low", "more": 1}', "$: Additional properties are not allowed ('more' was unexpected)"),
    ],
)
def test_replies_that_break_the_schema_name_the_place(reply: str, detail: str | None):
    judge = build("schema", Task(output_schema=SCHEMA))
    assert judge(pair("q", reply)) == (None if detail is None else ("schema", detail))


def test_filters_the_recipe_does_not_ask_for_are_not_built():
    assert ROW_FILTERS.load("schema")(Curate(), Task()) is None
    assert ROW_FILTERS.load("schema")(Curate(check_schema=False), Task(output_schema=SCHEMA)) is None
    assert ROW_FILTERS.load("blacklist")(Curate(), Task()) is None
    assert [name for name in ROW_FILTERS if ROW_FILTERS.load(name)(Curate(), Task())] == ["no_reply", "length"]


def test_the_first_row_of_a_prompt_stays():
    rows = [
        pair("Hello  there", "Hi", "a:1"),
        pair("hello there", "hi", "a:2"),
        pair("hello there", "Go away", "a:3"),
        pair("hello you", "hi", "a:4"),
    ]
    assert list(Duplicate().judge_all(rows)) == [
        None,
        ("duplicate", "the same as a:1"),
        ("conflicting_reply", "another reply to the prompt of a:1"),
        None,
    ]


def test_novelty_tells_likeness_to_test_rows_from_likeness_to_others():
    novelty = Novelty([pair("how do i change a bicycle tyre quickly", source="test:1")], 0.7)
    rows = [
        pair("how do i change a bicycle chain quickly", source="a:1"),
        pair("a b c d e f g h i j", source="a:2"),
        pair("a b c d e f g x y z", source="a:3"),  # exactly 0.7 stays
        pair("a b c d e f g h y w", source="a:4"),
    ]
    assert novelty.judge_all(rows) == [
        ("rouge_l_test", "ROUGE-L 0.875 with test:1, allowed is 0.7"),
        None,
        None,
        ("rouge_l", "ROUGE-L 0.800 with a:2, allowed is 0.7"),
    ]
    off = Novelty([pair("same words")], 1.0)
    assert off.judge_all([pair("same words")]) == [None]
