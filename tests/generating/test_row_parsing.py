"""Rows out of answers as small and large models really write them."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.generating.parsing import Broken, Row, parse_rows


def rows(text: str, cut: bool = False) -> list[tuple[object, object]]:
    return [(piece.input, piece.output) for piece in parse_rows(text, cut=cut) if isinstance(piece, Row)]


def reasons(text: str, cut: bool = False) -> list[str]:
    return [piece.reason for piece in parse_rows(text, cut=cut) if isinstance(piece, Broken)]


A, B = '{"input": "a", "output": "1"}', '{"input": "b", "output": {"x": 2}}'


@pytest.mark.parametrize(
    "text",
    [
        f"{A}\n{B}",
        f"Sure! Here are they:\n\n```json\n{A}\n{B}\n```\nHope that helps {{smile}}.",
        f"1. {A}\n2. {B}",
        f"1) {A}\n\n2) {B}",
        f"- {A}\n- {B}",
        f"[{A},\n {B}]",
        f"[{A}, {B}]",
        f'{{"examples": [{A}, {B}]}}',
        f"<think>maybe {{x}}\n{A}</think>{A}\n{B}",
        json.dumps([json.loads(A), json.loads(B)], indent=2),
        f'{{"Input": "a", "OUTPUT": "1"}}\n{B}',
        '{"prompt": "a", "response": "1"}\n{"question": "b", "answer": {"x": 2}}',
        '{"input": "a", "output": "1",}\n{"input": "b", "output": {"x": 2}',
        "{'input': 'a', 'output': '1'}\n{'input': 'b', 'output': {'x': 2}}",
        f'{{"examples": [{A},\n{B},\n{{"input": "broken',
    ],
)
def test_rows_are_found_in_every_dress(text: str) -> None:
    assert rows(text) == [("a", "1"), ("b", {"x": 2})]


def test_raw_line_breaks_inside_strings_are_read() -> None:
    assert rows('{"input": "a\nb", "output": "c\td"}') == [("a\nb", "c\td")]


def test_alpaca_rows_join_instruction_and_input() -> None:
    assert rows('{"instruction": "Sum", "input": "1 2", "output": "3"}') == [("Sum\n\n1 2", "3")]
    assert rows('{"instruction": "Sing", "input": "", "output": "la"}') == [("Sing", "la")]


@pytest.mark.parametrize(
    "text",
    [
        "### Input:\na\n### Output:\n1\n\n### Input:\nb\n### Output:\n2",
        "Input: a\nOutput: 1\n\nInput: b\nOutput: 2",
        "1. Input: a\nOutput: 1\n\n2. Input: b\nOutput: 2",
        "**Input:** a\n**Output:** 1\n\n**Input:** b\n**Output:** 2",
        "Example 1\nInput: a\nOutput: 1\nExample 2\nInput: b\nOutput: 2",
        "输入：a\n输出：1\n输入：b\n输出：2",
        "Question: a\nAnswer: 1\nQuestion: b\nAnswer: 2",
    ],
)
def test_labelled_blocks_are_read_where_there_is_no_json(text: str) -> None:
    assert rows(text) == [("a", "1"), ("b", "2")]


def test_blocks_with_an_instruction_and_an_input() -> None:
    text = "### Instruction:\nSum\n### Input:\n1 2\n### Output:\n3"
    assert rows(text) == [("Sum\n\n1 2", "3")]


def test_only_the_last_row_of_a_cut_answer_is_lost() -> None:
    assert rows(f'{A}\n{B}\n{{"input": "c", "out', cut=True) == [("a", "1"), ("b", {"x": 2})]
    assert reasons(f'{A}\n{B}\n{{"input": "c", "out', cut=True) == ["cut_off"]
    assert rows("Input: a\nOutput: 1\nInput: b\nOutput: half", cut=True) == [("a", "1")]
    assert reasons("Input: a\nOutput: 1\nInput: b\nOutput: half", cut=True) == ["cut_off"]
    assert rows(f"{A}\n{B}", cut=True) == [("a", "1"), ("b", {"x": 2})]


def test_a_broken_row_does_not_take_its_neighbours_along() -> None:
    text = f'{A}\n{{"input": "c" "output": "oops"}}\n{B}'
    assert rows(text) == [("a", "1"), ("b", {"x": 2})]
    assert reasons(text) == ["bad_json"]


@pytest.mark.parametrize(
    ("text", "cut", "reason"),
    [
        ("", False, "unreadable"),
        ("   \n", True, "unreadable"),
        ("I cannot help with that.", False, "unreadable"),
        ("Well, let me think about", True, "cut_off"),
        ('{"city": "Rome"}', False, "bad_keys"),
        ("Input: a", False, "bad_keys"),
        ("Output: a", False, "bad_keys"),
        ("{" * 5000, False, "bad_json"),
        ("[" * 100000 + "{", False, "bad_json"),
        ('{"input":' * 3000, False, "bad_json"),
    ],
)
def test_what_is_no_row_says_why(text: str, cut: bool, reason: str) -> None:
    pieces = parse_rows(text, cut=cut)
    assert [type(piece) for piece in pieces] == [Broken]
    assert reasons(text, cut) == [reason]


@given(st.text(), st.booleans())
def test_no_text_is_lost_or_raises(text: str, cut: bool) -> None:
    assert len(parse_rows(text, cut=cut)) >= 1


@given(st.lists(st.tuples(st.text(min_size=1), st.text(min_size=1)), min_size=1, max_size=5))
def test_json_lines_are_read_back_exactly(pairs: list[tuple[str, str]]) -> None:
    text = "\n".join(json.dumps({"input": asked, "output": answered}) for asked, answered in pairs)
    expected = [tuple(side.encode("utf-8", "replace").decode() for side in pair) for pair in pairs]
    assert rows(text) == expected
