"""Dialogues that begin with questions of a tree of topics."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from generating.workbench import Outcome, generate, last, words
from tunesmith.errors import TeacherError
from tunesmith.generating.estimate import max_requests
from tunesmith.generating.topic_tree import topics
from tunesmith.recipe import Generate
from tunesmith.types import Task, TeacherRequest

TASK = Task(description="Answer cyclists.", system_prompt="Be kind.")


def answer(request: TeacherRequest) -> str:
    """Two areas, subtopics or questions, as a function of what is asked; talks of two exchanges."""
    text = last(request)
    for name in ("areas", "subtopics", "messages"):
        if re.search(rf"(Name|Write) \d+ {name}", text):
            return f"1. {name} one {words(request, 3)}\n2. {name} two {words(request, 3)[::-1]}"
    if "You play a person" in request.messages[0].content:
        return "And what about " + words(request, 4)
    if "Write one dialogue" in text:
        first = text.split("starts from this:\n")[1].splitlines()[0]
        return (
            f"User: {first}\nAssistant: a {words(request, 3)}\nUser: b {words(request, 4)}\nAssistant: "
            f"c {words(request, 3)}"
        )
    return "Well, " + words(request, 5)


def tree(folder: Path, script: Any = answer, **options: Any) -> Outcome:
    chosen = {"dialogue_topics": "tree", "rows_per_request": 2, "max_rounds": 2, "seeds": [], **options}
    return generate("dialogue", script, folder, **chosen)


def lists(found: Outcome) -> dict[str, set[str]]:
    """Kind of list -> keys of the requests for it."""
    kinds: dict[str, set[str]] = {"areas": set(), "subtopics": set(), "messages": set()}
    for request in found.asked:
        for kind, keys in kinds.items():
            if re.search(rf"\d+ {kind}", last(request)):
                keys.add(request.key("t"))
    return kinds


@pytest.mark.parametrize("form", ["transcript", "self_chat"])
def test_a_talk_begins_with_a_question_of_its_subtopic(tmp_path: Path, form: str) -> None:
    found = tree(tmp_path, num_rows=8, task=TASK, dialogue_form=form)
    assert len(found.kept) == 8
    places = [(row.metadata["topic"], row.metadata["subtopic"]) for row in found.kept]
    assert len(set(places)) == 4  # two topics, two subtopics each, two questions on each
    assert places[0][0] != places[1][0]  # neighbours have different topics
    assert all(row.messages[0].content == "Be kind." for row in found.kept)
    first = [row.messages[1].content for row in found.kept]
    assert all(text.startswith("messages ") for text in first)
    assert len(set(first)) == 8
    assert {kind: len(keys) for kind, keys in lists(found).items()} == {"areas": 1, "subtopics": 2, "messages": 4}
    subtopic_lists = [last(request) for request in found.asked if "2 subtopics" in last(request)]
    assert all("Answer cyclists." in text for text in subtopic_lists)


def test_with_two_teachers_the_tree_and_the_replies_are_the_first_ones(tmp_path: Path) -> None:
    from generating.workbench import FunctionClient

    person = FunctionClient(answer)
    found = tree(
        tmp_path, num_rows=2, max_rounds=2, dialogue_form="two_teachers", user_client=person,
        user_teacher={"kind": "scripted", "script": "u.jsonl"},
    )  # fmt: skip
    assert len(found.kept) == 2
    assert len(person.asked) == 2  # the opening question is given, one message follows
    assert all("You play a person" in request.messages[0].content for request in person.asked)


def test_a_pass_through_the_whole_tree_is_followed_by_another_with_new_lists(tmp_path: Path) -> None:
    found = tree(tmp_path, num_rows=13, task=TASK)
    assert len(found.kept) == 13
    assert {kind: len(keys) for kind, keys in lists(found).items()}["messages"] > 4


def test_without_a_task_the_topics_come_from_the_table_in_an_order_of_the_seed(tmp_path: Path) -> None:
    one, other = (tree(tmp_path, num_rows=5, rng_seed=number) for number in (1, 2))
    for found in (one, other):
        drawn = [row.metadata["topic"] for row in found.kept]
        assert len(set(drawn)) == 5
        assert set(drawn) <= set(topics("en"))
    assert [row.metadata["topic"] for row in one.kept] != [row.metadata["topic"] for row in other.kept]
    assert lists(one)["areas"] == set()


@pytest.mark.parametrize("form", ["transcript", "generated_chat", "self_chat"])
def test_a_longer_order_begins_with_a_shorter_one(tmp_path: Path, form: str) -> None:
    def reply(request: TeacherRequest) -> str:
        named = re.search(r'begins on a new line with "(\w+):" or "(\w+):"', last(request))
        text = answer(request)
        if form == "generated_chat" and named:
            return text.replace("User:", f"{named[1]}:").replace("Assistant:", f"{named[2]}:")
        return text

    short, long = (tree(tmp_path, reply, num_rows=number, task=TASK, dialogue_form=form) for number in (3, 9))
    assert [row.id for row in long.kept[:3]] == [row.id for row in short.kept]
    assert {request.key("t") for request in short.asked} <= {request.key("t") for request in long.asked}


def test_lists_that_are_too_short_or_unreadable_are_told_once_and_passed_over(tmp_path: Path) -> None:
    refused: list[str] = []

    def short(request: TeacherRequest) -> str:
        text = last(request)
        if "2 subtopics" in text and (not refused or request.key("t") in refused):
            refused.append(request.key("t"))
            return ""
        if "2 messages" in text:
            return "1. One question " + words(request, 3)
        return answer(request)

    found = tree(tmp_path, short, num_rows=3, task=TASK, repair=False)
    assert found.reasons == ["unreadable"]  # four leaves hang on that list
    assert len(refused) > 1
    first = found.kept[0].metadata["request"]
    assert first in (0, 1)  # the other topic
    assert [row.metadata["request"] for row in found.kept] == [first, first + 4, 8]  # its other subtopic, a new pass


def test_a_list_that_cannot_be_had_counts_as_one_failure(tmp_path: Path) -> None:
    talk = "User: hello {0}\nAssistant: good {0}\nUser: more {0}\nAssistant: done {0}"
    script = [
        {"match": "2 areas", "text": "1. wheels\n2. brakes"},
        {"match": "Topic: wheels.*2 subtopics", "error": "overloaded"},
        {"match": "2 subtopics", "text": "1. pads\n2. cables"},
        {"match": "Subtopic: pads", "text": "1. When are pads worn?\n2. Why do they squeal?"},
        {"match": "Subtopic: cables", "text": "1. Who oils cables?\n2. What if one snaps?"},
        *(
            {"match": f"from this:\nW.*{word}", "text": talk.format(word)}
            for word in ("worn", "squeal", "oils", "snaps")
        ),
    ]
    found = tree(tmp_path, script, num_rows=4, task=TASK, max_failures=1)
    assert [row.messages[1].content for row in found.kept] == [
        "hello worn",
        "hello squeal",
        "hello oils",
        "hello snaps",
    ]
    assert found.rejected == []


def test_the_same_entry_twice_is_rejected_once(tmp_path: Path) -> None:
    def twice(request: TeacherRequest) -> str:
        return "1. Same?\n2. Same?" if "2 messages" in last(request) else answer(request)

    found = tree(tmp_path, twice, num_rows=1, task=TASK)
    assert found.reasons == ["duplicate"]
    assert found.rejected[0].raw == "Same?"


def test_a_teacher_that_writes_no_lists_ends_the_stage(tmp_path: Path) -> None:
    with pytest.raises(TeacherError, match="not one of the last 4 answers"):
        tree(tmp_path, lambda request: "", num_rows=2, task=TASK, max_failures=3)


def test_the_lists_are_held_to_a_schema_where_answers_are(tmp_path: Path) -> None:
    def in_json(request: TeacherRequest) -> str:
        schema = request.sampling.json_schema or {}
        if schema.get("items", {}).get("type") == "string":
            return json.dumps([f"entry {n} {words(request, 3)}" for n in range(schema["minItems"])])
        return answer(request)

    found = tree(tmp_path, in_json, num_rows=2, constrain=True)
    assert len(found.kept) == 2
    assert all(row.messages[0].content.startswith("entry ") for row in found.kept)


def test_a_tree_costs_its_lists() -> None:
    teacher = {"kind": "scripted", "script": "s"}
    plain, of_tree = (
        Generate(teacher=teacher, generator="dialogue", num_rows=100, dialogue_topics=name) for name in ("seeds", "tree")
    )  # fmt: skip
    assert max_requests(plain) == 20 * 100 + 1
    assert max_requests(of_tree) == 20 * 7 * 20 + 1  # 5 talks share two lists


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_table_of_topics_has_thirty_different_ones(language: str) -> None:
    assert len(set(topics(language))) == 30
