"""Whose terms a row stands under."""

from __future__ import annotations

from datetime import date
from importlib.resources import files

import pytest
import yaml

from generating.workbench import seed
from tunesmith.errors import DataError, RecipeError
from tunesmith.generating.terms import Stamp, Terms, doubts, joined_licences, require_trade, seeds_for, terms_of
from tunesmith.recipe import Generate, TeacherSection

LOCAL = TeacherSection(kind="local", model="m")


def options(**changes) -> Generate:
    return Generate(teacher=LOCAL, require_commercial_use=True, **changes)


@pytest.mark.parametrize(
    ("licence", "may_train"),
    [("apache-2.0 upstream; the packages declare none", "yes"), ("MIT", "yes"), ("llama3.1", "with_conditions"),
     ("llama2", "no"), ("Llama-3-community", "no"), ("cc-by-nc-4.0", "no"), ("gemma", "with_conditions"),
     ("tongyi-qianwen", "no"), ("tongyi-qianwen-research", "no"), ("tencent-hunyuan-community", "no"), ("mnpl-0.1", "no"),
     ("bigcode-openrail-m", "with_conditions"), ("cc-by-nc-sa-4.0", "no"), ("cc-by-sa-4.0", "yes"), ("qwen", "unknown"),
     ("not stated", "unknown"), (None, "unknown")],
)  # fmt: skip
def test_the_licence_of_the_weights_decides_for_a_local_teacher(licence: str | None, may_train: str) -> None:
    assert terms_of(LOCAL, weights_licence=licence, stated=None).may_train == may_train


def test_an_endpoint_is_looked_up_by_its_host_and_unknown_is_never_allowed() -> None:
    known = terms_of(TeacherSection(), weights_licence=None, stated=None)
    own = terms_of(TeacherSection(base_url="http://127.0.0.1:8000/v1"), weights_licence=None, stated=None)
    assert (known.may_train, own.may_train) == ("no_competitors", "unknown")
    assert "2026" in known.source
    for one in (known, own):
        with pytest.raises(RecipeError, match=one.may_train) as caught:
            require_trade(options(), [one])
        assert "outputs_licence" in str(caught.value.hint)
    stated = terms_of(TeacherSection(base_url="http://127.0.0.1:8000/v1"), weights_licence=None, stated="apache-2.0")
    require_trade(options(), [stated])


def test_every_entry_of_the_table_says_whether_it_was_compared_with_its_source() -> None:
    table = yaml.safe_load((files("tunesmith.generating") / "teacher_terms.yaml").read_text(encoding="utf-8"))
    entries = [*table["hosts"].values(), *table["licences"]]
    for entry in entries:
        assert entry["checked"] is False or isinstance(entry["checked"], date), entry
        assert entry["says"]
        assert entry["source"].startswith("https://") or not entry["checked"], entry
    assert {bool(entry["checked"]) for entry in entries} == {True, False}


def test_an_entry_that_nobody_checked_is_named_as_such() -> None:
    unchecked = terms_of(TeacherSection(), weights_licence=None, stated=None)
    with pytest.raises(RecipeError, match="not checked"):
        require_trade(options(), [unchecked])
    checked = terms_of(LOCAL, weights_licence="tongyi-qianwen", stated=None)
    with pytest.raises(RecipeError, match="checked on 2026-11-21") as caught:
        require_trade(options(), [checked])
    assert "not checked" not in caught.value.message
    unknown = terms_of(TeacherSection(base_url="http://127.0.0.1:8000/v1"), weights_licence=None, stated=None)
    assert "checked" not in unknown.told


def test_terms_that_allow_trade_by_an_unchecked_entry_leave_a_doubt() -> None:
    found = [
        terms_of(LOCAL, weights_licence=name, stated=None) for name in ("bigcode-openrail-m", "apache-2.0", "llama2")
    ]
    (doubt,) = doubts(options(), found)
    assert "not checked" in doubt
    assert "with_conditions" in doubt
    assert doubts(Generate(teacher=LOCAL), found) == []
    stated = terms_of(LOCAL, weights_licence=None, stated="cc-by-sa-4.0")
    assert len(doubts(options(), [stated])) == 1


def test_licences_are_joined_once_each() -> None:
    assert joined_licences(["a AND b", None, "b", "c"]) == "a AND b AND c"
    assert joined_licences([None, ""]) is None


def test_examples_that_exclude_trade_or_state_nothing_are_not_shown() -> None:
    rows = [seed("a", "b", licence="cc-by-nc-4.0"), seed("c", "d", licence="cc0-1.0"), seed("e", "f")]
    assert seeds_for(options(), rows) == rows[1:2]
    assert seeds_for(Generate(teacher=LOCAL), rows) == rows
    with pytest.raises(DataError, match=r"found: cc-by-nc-4\.0, no licence"):
        seeds_for(options(), [rows[0], rows[2]])


def test_a_row_carries_the_licences_of_its_seeds_and_the_strictest_terms() -> None:
    seeds = [seed("a", "b", licence="cc0-1.0"), seed("c", "d", licence="cc-by-4.0")]
    stamp = Stamp([Terms("yes", "x", "apache-2.0"), Terms("no_competitors", "y")], seeds)
    row = stamp(seed("new", "row", metadata={"seeds": [seeds[1].id]}))
    assert row.licence == "cc-by-4.0 AND apache-2.0"
    assert row.metadata["teacher_may_train"] == "no_competitors"
    assert Stamp([Terms("unknown", "z")], [])(seed("new", "row")).licence is None


@pytest.mark.parametrize(
    ("licences", "terms", "brought", "expected"),
    [
        (["cc0-1.0"], "yes", {}, True),
        (["cc0-1.0", None], "yes", {}, False),
        (["cc-by-nc-4.0"], "yes", {}, False),
        (["cc0-1.0"], "no_competitors", {}, False),
        (["cc0-1.0"], "yes", {"commercial_use": False}, False),
        (["cc0-1.0"], "yes", {"teacher_may_train": "no"}, False),
        ([], "with_conditions", {}, True),
    ],
)
def test_a_row_is_commercially_usable_where_every_teacher_and_every_example_is_known_to_allow_it(
    licences: list[str | None], terms: str, brought: dict[str, object], expected: bool
) -> None:
    seeds = [seed(f"a{number}", "b", licence=licence) for number, licence in enumerate(licences)]
    made = seed("new", "row", metadata={"seeds": [one.id for one in seeds], **brought})
    assert Stamp([Terms(terms, "x")], seeds)(made).metadata["commercial_use"] is expected
