"""Dialogues between two people with names and roles."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path

import pytest

from generating.workbench import generate, last, seed, words
from tunesmith.generating.parsing import Broken
from tunesmith.generating.roles import draw_cast, tables
from tunesmith.generating.texts import transcript
from tunesmith.types import Task, TeacherRequest


def people(request: TeacherRequest) -> tuple[str, str]:
    found = re.search(r'begins on a new line with "(\w+):" or "(\w+):"', last(request))
    assert found is not None
    return found[1], found[2]


def talk(request: TeacherRequest) -> str:
    user, assistant = people(request)
    return (
        f"{user}: first {words(request, 5)}\n**{assistant}:** reply {words(request, 3)}\n"
        f"{user} (worried): then {words(request, 4)}\n{assistant}: last {words(request, 3)}"
    )


def test_names_become_turns_and_the_roles_become_the_system_message(tmp_path: Path) -> None:
    task = Task(description="Help people.", system_prompt="Be kind.")
    found = generate(
        "dialogue", talk, tmp_path, num_rows=6, seeds=[], task=task, dialogue_form="generated_chat", max_rounds=2
    )
    assert len(found.kept) == 6
    for row in found.kept:
        cast = row.metadata["cast"]
        assert [turn.role for turn in row.messages] == ["system", *["user", "assistant"] * 2]
        assert row.messages[0].content == (
            f"Be kind.\n\nYou are {cast['assistant_name']}, {cast['assistant_role']}. You talk with {cast['user_name']}, "
            f"{cast['user_role']}, {cast['occasion']}."
        )
        assert row.messages[1].content.startswith("first ")
        assert row.messages[3].content.startswith("then ")
        assert (row.metadata["form"], row.metadata["num_exchanges"]) == ("generated_chat", 2)
    assert len({row.metadata["cast"]["user_role"] for row in found.kept}) > 1
    assert len({request.key("t") for request in found.asked}) == 6


def test_a_talk_of_two_people_may_start_from_a_seed(tmp_path: Path) -> None:
    found = generate(
        "dialogue",
        talk,
        tmp_path,
        num_rows=1,
        seeds=[seed("chain?", "yes")],
        dialogue_form="generated_chat",
        max_rounds=2,
    )
    assert "chain?" in last(found.asked[0])
    assert len(found.kept[0].metadata["seeds"]) == 1


def test_a_talk_that_the_wrong_one_begins_is_asked_for_once_more(tmp_path: Path) -> None:
    def turned(request: TeacherRequest) -> str:
        if "cannot be used as it stands" in last(request):
            return talk(request.model_copy(update={"messages": request.messages[:2]}))
        user, assistant = people(request)
        return f"{assistant}: I begin {words(request, 3)}\n{user}: why?"

    task = Task(description="Help people.")
    found = generate("dialogue", turned, tmp_path, num_rows=1, seeds=[], task=task, dialogue_form="generated_chat")
    assert len(found.kept) == 1
    assert found.reasons == ["bad_turns"]


def test_answers_in_json_have_the_names_as_keys(tmp_path: Path) -> None:
    def in_json(request: TeacherRequest) -> str:
        schema = request.sampling.json_schema
        assert schema is not None
        names = schema["items"]["required"]
        return json.dumps(
            [{name: f"{n} {words(request, 4)} {name}" for name in names} for n in range(schema["minItems"])]
        )

    task = Task(description="Help people.")
    found = generate(
        "dialogue", in_json, tmp_path, num_rows=2, seeds=[], task=task, dialogue_form="generated_chat", constrain=True
    )
    assert len(found.kept) == 2
    cast = found.kept[0].metadata["cast"]
    assert found.kept[0].messages[1].content.endswith(cast["user_name"])
    assert (found.kept[0].reply or "").endswith(cast["assistant_name"])


def test_chinese_names_and_colons_are_labels() -> None:
    text = "小李：你好，我的暖气坏了。\n老张（耐心地）：是哪个房间？\n小李: 客厅。\n老张：我下午来看看。"
    turns = transcript(text, cut=False, names=("小李", "老张"))
    assert not isinstance(turns, Broken)
    assert [(turn.role, turn.content) for turn in turns][1:3] == [("assistant", "是哪个房间？"), ("user", "客厅。")]
    lost = transcript("User: a\nAssistant: b", cut=False, names=("小李", "老张"))
    assert isinstance(lost, Broken)
    assert "`小李:`" in lost.detail


@pytest.mark.parametrize("language", ["en", "zh"])
def test_casts_are_drawn_from_every_table_and_never_talk_to_themselves(language: str) -> None:
    drawn = [draw_cast(random.Random(n), language) for n in range(1500)]
    assert all(cast.user_name != cast.assistant_name for cast in drawn)
    table = tables(language)
    assert {(cast.user_role, cast.assistant_role) for cast in drawn} == set(map(tuple, table["pairs"]))
    assert {cast.occasion for cast in drawn} == set(table["occasions"])
    assert {name for cast in drawn for name in cast.names} == set(table["names"])
    assert not any(a != b and (a in b) for a in table["names"] for b in table["names"])  # no label begins another
