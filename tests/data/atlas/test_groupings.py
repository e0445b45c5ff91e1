"""The colourings of a map."""

from __future__ import annotations

from tunesmith.data.atlas.groupings import by_number, by_value, groupings
from tunesmith.data.atlas.rows import MapRow, Turn


def _row(source: str, text: str, **more: object) -> MapRow:
    return MapRow(row_id="", source=source, turns=(Turn("user", text),), **more)  # type: ignore[arg-type]


def test_rows_of_one_file_share_a_source_and_kept_stands_beside_the_reasons() -> None:
    rows = [_row("a.jsonl:1", "x"), _row("a.jsonl:2", "xx"), _row("b.json#9", "x", reason="rouge_l", split="train")]
    found = {grouping.name: grouping for grouping in groupings(rows, None)}
    assert found["source"].labels == ["a.jsonl", "b.json"] and found["source"].of == [0, 0, 1]
    assert found["reason"].labels == ["kept", "rouge_l"]
    assert found["split"].labels == ["undecided", "train"]


def test_a_grouping_that_tells_no_rows_apart_is_left_out() -> None:
    names = [grouping.name for grouping in groupings([_row("a:1", "x"), _row("a:2", "y")], lambda _: "en")]
    assert names == []


def test_languages_and_models_are_those_of_the_rows() -> None:
    rows = [_row("a:1", "Hallo", metadata={"model": "GPT-4"}), _row("a:2", "Hi")]
    found = {grouping.name: grouping for grouping in groupings(rows, lambda row: row.turns[0].text[:2])}
    assert found["language"].labels == ["Ha", "Hi"]
    assert found["model"].labels == ["GPT-4", "unknown"]


def test_beyond_the_colours_the_rarest_values_are_one_group() -> None:
    values = [f"v{n}" for n in range(40) for _ in range(40 - n)]
    grouping = by_value("source", "Source", values)
    assert len(grouping.labels) == 24 and grouping.labels[-1] == "other (17)"
    assert grouping.of[0] == 0 and grouping.of[-1] == 23
    assert len(by_value("s", "S", [f"v{n}" for n in range(24)]).labels) == 24


def test_ranges_of_a_number_hold_about_the_same_number_of_rows_and_every_row_is_in_its_range() -> None:
    values = [n * n for n in range(600)]
    grouping = by_number("length", "Length", values, "characters")
    assert [grouping.of.count(part) for part in range(6)] == [100] * 6
    for value, part in zip(values, grouping.of, strict=True):
        low, _, high = grouping.labels[part].removesuffix(" characters").partition(" to ")
        assert int(low.replace(",", "")) <= value <= int(high.replace(",", ""))


def test_a_number_with_one_frequent_value_has_fewer_ranges() -> None:
    grouping = by_number("turns", "Turns", [2] * 90 + [4] * 10, "turns")
    assert grouping.labels == ["2 turns", "3 to 4 turns"] and grouping.of.count(1) == 10
