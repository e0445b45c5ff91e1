"""A row that can be read as two different examples is never silently one of them, whatever the two forms are."""

from __future__ import annotations

import json
import pickle
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from tunesmith.data.readers import READERS, read_examples
from tunesmith.data.readers.read import _shapes
from tunesmith.data.readers.readings import options_of
from tunesmith.errors import DataError
from tunesmith.types import Conversation, Example, Excluded, Labelled, Preference


def talk(
    *texts: str, names: tuple[str, str] = ("role", "content"), roles: tuple[str, str] = ("user", "assistant")
) -> Any:
    return [{names[0]: roles[place % 2], names[1]: text} for place, text in enumerate(texts)]


SHAREGPT: Any = {"names": ("from", "value"), "roles": ("human", "gpt")}
FORMS: dict[str, dict[str, Any]] = {
    # a whole row of each form, with texts of its own
    "alpaca": {"instruction": "i1", "output": "o1"},
    "seed_tasks": {"instruction": "i1", "instances": [{"input": "", "output": "o2"}]},
    "sharegpt": {"conversations": talk("h3", "g3", **SHAREGPT)},
    "sharegpt_page": {"items": talk("h4", "<p>g4</p>", **SHAREGPT)},
    "openai_messages": {"messages": talk("u5", "a5")},
    "question_response": {"prompt": "p6", "completion": "c6"},
    "preference": {"query": "q7", "chosen": "c7", "rejected": "r7"},
}
UNITED = [
    # the one holds the fields of the other: a form of its own
    {"alpaca", "seed_tasks"},
    {"openai_messages", "preference"},
    {"sharegpt", "preference"},
    {"question_response", "preference"},
    {"alpaca", "preference"},
    {"seed_tasks", "preference"},
]


def read(tmp_path: Path, *rows: Any, form: str = "auto") -> list[Example | Excluded]:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return list(read_examples(path, form))


def texts(example: Example | Excluded) -> list[str]:
    assert isinstance(example, Conversation), example
    return [message.content for message in example.messages]


PAIRS = [pair for pair in combinations(FORMS, 2) if set(pair) not in UNITED]


@pytest.mark.parametrize("pair", PAIRS, ids="+".join)
def test_two_whole_forms_in_a_row_are_an_error_that_shows_both(tmp_path: Path, pair: tuple[str, str]):
    row = {**FORMS[pair[0]], **FORMS[pair[1]]}
    with pytest.raises(DataError) as caught:
        read(tmp_path, row, row)
    message = str(caught.value)
    assert f"rows.jsonl:1: the rows can be read in two ways ({pair[0]} and {pair[1]}): as " in message
    assert message.count("as ") >= 2 and "; or as " in message
    hint = caught.value.hint or ""
    assert f"`--from {pair[0]}` or `--from {pair[1]}` on the command line" in hint
    assert f"`ingest.format: {pair[0]}` in a recipe" in hint


@pytest.mark.parametrize("pair", PAIRS, ids="+".join)
def test_the_form_that_the_error_says_to_name_is_then_read(tmp_path: Path, pair: tuple[str, str]):
    row = {**FORMS[pair[0]], **FORMS[pair[1]]}
    read_as = {}
    for form in pair:
        (example,) = read(tmp_path, row, form=form)
        assert not isinstance(example, Excluded), example
        (alone,) = read(tmp_path, FORMS[form], form=form)
        assert not isinstance(alone, Excluded)
        assert example.id == alone.id
        read_as[form] = example.id
    assert len(set(read_as.values())) == 2


@pytest.mark.parametrize("pair", PAIRS, ids="+".join)
def test_a_row_of_two_forms_in_a_file_of_one_is_kept_apart_with_both_readings(tmp_path: Path, pair: tuple[str, str]):
    for form in pair:
        both = {**FORMS[pair[0]], **FORMS[pair[1]]}
        *usual, last = read(tmp_path, *[FORMS[form]] * 4, both)
        assert not any(isinstance(each, Excluded) for each in usual)
        assert isinstance(last, Excluded)
        assert (last.reason, last.where) == ("ambiguous", "rows.jsonl:5")
        assert "; or as " in last.detail and "`--from`" in last.detail and "`ingest.format`" in last.detail


ALPACA = {"instruction": "i", "input": "n", "output": "o"}
ONE_READING: list[tuple[str, dict[str, Any], list[str]]] = [
    ("the input and output of an instruction", ALPACA, ["i\n\nn", "o"]),
    ("another form without values", {**ALPACA, "prompt": "", "completion": ""}, ["i\n\nn", "o"]),
    ("another form with nothing", {**ALPACA, "messages": []}, ["i\n\nn", "o"]),
    ("another form of wrong values", {**ALPACA, "messages": [{"role": "user"}]}, ["i\n\nn", "o"]),
    ("a second answer that is empty", {"question": "q", "answer": "a", "response": " "}, ["q", "a"]),
    ("a first answer that is null", {"question": "q", "answer": None, "response": "r"}, ["q", "r"]),
    ("a prompt without an answer beside a talk", {"prompt": "u", "prompt_id": "7", "messages": talk("u", "a")}, ["u", "a"]),
    ("the same example twice", {"prompt": "u", "response": "a", "messages": talk("u", "a")}, ["u", "a"]),
    ("the same question twice", {"question": "q", "prompt": "q", "answer": "a"}, ["q", "a"]),
    ("its rendering as text", {**ALPACA, "text": "Below is an instruction"}, ["i\n\nn", "o"]),
]  # fmt: skip


@pytest.mark.parametrize(("row", "expected"), [each[1:] for each in ONE_READING], ids=[each[0] for each in ONE_READING])
def test_what_gives_one_example_is_read(tmp_path: Path, row: dict[str, Any], expected: list[str]):
    assert [texts(each) for each in read(tmp_path, row, row)] == [expected] * 2


def test_fields_of_two_forms_are_paired_by_the_names_that_belong_together(tmp_path: Path):
    row = {"instruction": "i", "output": "o", "prompt": "p", "completion": "c"}
    with pytest.raises(DataError) as caught:
        read(tmp_path, row)
    assert (
        "as instruction -> output: instruction = 'i', output = 'o'; or as prompt -> completion: prompt = 'p', "
        "completion = 'c'" in str(caught.value)
    )
    assert [texts(each) for each in read(tmp_path, row, form="alpaca")] == [["i", "o"]]
    assert [texts(each) for each in read(tmp_path, row, form="question_response")] == [["p", "c"]]


def test_two_answers_to_one_instruction_are_no_guess(tmp_path: Path):
    row = {"instruction": "i", "output": "o", "response": "r"}
    with pytest.raises(DataError, match=r"as instruction -> output: .*; or as instruction -> response: "):
        read(tmp_path, row)
    assert [texts(each) for each in read(tmp_path, row, form="alpaca")] == [["i", "o"]]


def test_where_no_form_would_decide_none_is_proposed(tmp_path: Path):
    with pytest.raises(DataError) as caught:
        read(tmp_path, {"question": "q", "answer": "a", "response": "r"})
    assert "--from" not in (caught.value.hint or "") and "remove or rename" in (caught.value.hint or "")


def test_a_preference_says_the_talk_that_ends_in_its_better_answer(tmp_path: Path):
    row = {"prompt": "u", "chosen": talk("u", "good"), "rejected": talk("u", "bad"), "messages": talk("u", "good")}
    (example,) = read(tmp_path, row)
    assert isinstance(example, Preference)
    assert ([each.content for each in example.prompt], example.chosen, example.rejected) == (["u"], "good", "bad")
    with pytest.raises(DataError, match=r"two ways \(question_response and preference\)"):
        read(tmp_path, {"question": "u", "answer": "third", "chosen": "good", "rejected": "bad"})
    (same,) = read(tmp_path, {"question": "u", "answer": "good", "chosen": "good", "rejected": "bad"})
    assert isinstance(same, Preference)


def test_a_bad_answer_with_its_label_is_never_an_answer_to_learn(tmp_path: Path):
    plain = {"prompt": "p", "completion": "c"}
    (labelled,) = read(tmp_path, {**plain, "label": False})
    assert isinstance(labelled, Labelled) and not labelled.desirable
    *_, last = read(tmp_path, *[plain] * 4, {**plain, "label": False})
    assert isinstance(last, Excluded) and last.reason == "ambiguous"
    assert "as prompt -> completion, label: prompt = 'p', completion = 'c', label = 'False'" in last.detail


def test_few_ambiguous_rows_do_not_stop_a_file(tmp_path: Path):
    plain = [{"instruction": f"i{n}", "output": "o"} for n in range(9)]
    examples = read(tmp_path, {**plain[0], "prompt": "p", "completion": "c"}, *plain)
    assert [getattr(each, "reason", "") for each in examples] == ["ambiguous", *[""] * 9]


@pytest.mark.parametrize("name", READERS)
def test_a_form_travels_to_worker_processes(name: str):
    row = {"instruction": "Human: a\nAssistant: b\nHuman: c\nAssistant:", "output": "d"}
    (shape,) = _shapes(name)
    (again,) = pickle.loads(pickle.dumps([shape]))
    assert [each.reading.label for each in options_of(row, [again])] == [
        each.reading.label for each in options_of(row, [shape])
    ]
