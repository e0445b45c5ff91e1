"""Magpie with several exchanges in a row."""

from __future__ import annotations

from pathlib import Path

from generating.workbench import generate, words
from tunesmith.generating.estimate import max_requests
from tunesmith.generating.prompt_files import load_prompt
from tunesmith.recipe import Generate
from tunesmith.types import Task, TeacherRequest

ANIMALS = Task(system_prompt="You know animals.")


def said(request: TeacherRequest) -> list[str]:
    return [turn.content for turn in request.messages if turn.role == "user"]


def person_and_model(request: TeacherRequest) -> str:
    return ("Tell me " if request.prefix_only else "Reply ") + words(request, 6)


def test_the_next_message_continues_the_talk_so_far(tmp_path: Path) -> None:
    found = generate("magpie", person_and_model, tmp_path, num_rows=2, seeds=[], task=ANIMALS, turns=3)
    for row in found.kept:
        assert [turn.role for turn in row.messages] == ["system", *["user", "assistant"] * 3]
        assert row.messages[0].content == "You know animals."  # without the line for follow-ups
        assert row.metadata["num_exchanges"] == 3
        assert "ended_by" not in row.metadata
    first = found.kept[0]
    headers = [
        request for request in found.asked if request.prefix_only and said(request) == [first.messages[1].content]
    ]
    assert len(headers) == 1
    assert list(headers[0].messages[1:]) == first.messages[1:3]
    follow_up = load_prompt("magpie", "en").fill("follow_up", {})
    assert headers[0].messages[0].content == f"You know animals.\n\n{follow_up}"
    opening = [request for request in found.asked if request.prefix_only and not said(request)]
    assert {request.messages[0].content for request in opening} == {"You know animals."}
    replies = [request for request in found.asked if not request.prefix_only]
    assert sorted(len(request.messages) for request in replies) == [2, 2, 4, 4, 6, 6]  # each answers the whole talk
    assert {request.messages[0].content for request in replies} == {"You know animals."}


def test_the_system_line_is_optional(tmp_path: Path) -> None:
    found = generate("magpie", person_and_model, tmp_path, num_rows=1, seeds=[], turns=2, follow_up_system=False)
    assert [turn.role for turn in found.kept[0].messages] == ["user", "assistant"] * 2
    assert not any(turn.role == "system" for request in found.asked for turn in request.messages)


def test_a_fault_of_a_later_exchange_ends_the_row_before_it(tmp_path: Path) -> None:
    later = iter(["", "Translate this:", "Tell me"])

    def answer(request: TeacherRequest) -> str:
        if request.prefix_only and said(request):
            return next(later) if not said(request)[0].endswith("?") else said(request)[0].upper()
        if request.prefix_only:
            return "Tell me " + words(request, 6) + ("?" if request.sample_index == 3 else "")
        return "" if said(request)[-1] == "Tell me" else "Reply " + words(request, 3)

    found = generate("magpie", answer, tmp_path, num_rows=4, seeds=[], turns=2)
    assert sorted(row.metadata["ended_by"] for row in found.kept) == ["empty", "empty", "ends_in_colon", "repeats"]
    assert {row.metadata["num_exchanges"] for row in found.kept} == {1}
    assert all(len(row.messages) == 2 for row in found.kept)
    assert found.rejected == []


def test_a_fault_of_the_first_exchange_rejects_the_row(tmp_path: Path) -> None:
    written = iter(["", "Tell me about otters and their young."])

    def answer(request: TeacherRequest) -> str:
        if request.prefix_only:
            return next(written) if not said(request) else "And " + words(request, 5)
        return "Reply " + words(request, 3)

    found = generate("magpie", answer, tmp_path, num_rows=1, seeds=[], turns=2)
    assert found.reasons == ["empty"]
    assert found.kept[0].metadata["num_exchanges"] == 2


def test_a_longer_order_of_talks_begins_with_a_shorter_one(tmp_path: Path) -> None:
    short, long = (
        generate("magpie", person_and_model, tmp_path, num_rows=number, seeds=[], turns=3) for number in (2, 7)
    )
    assert [row.id for row in long.kept[:2]] == [row.id for row in short.kept]


def test_each_exchange_costs_two_requests() -> None:
    options = Generate(teacher={"kind": "local", "model": "m"}, generator="magpie", num_rows=10, turns=3)
    assert max_requests(options) == 20 * 6 * 10 + 1
