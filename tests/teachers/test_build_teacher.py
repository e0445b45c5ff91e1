"""What is wrong with a teacher section is said before the first request."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tunesmith.errors import RecipeError
from tunesmith.protocols import Price
from tunesmith.recipe import Runtime, TeacherSection
from tunesmith.teachers import TEACHERS
from tunesmith.teachers.build import build_teacher
from tunesmith.teachers.openai import dearest
from tunesmith.teachers.prices import price_warning, resolve_price

WHERE = "recipe.generate.teacher"


def build(**section: Any):
    return build_teacher(TeacherSection(**section), where=WHERE, runtime=Runtime(), files={})


@pytest.mark.parametrize("name", sorted(TEACHERS))
def test_every_registered_teacher_loads(name: str) -> None:
    assert TEACHERS.load(name).complete


def test_a_missing_key_names_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(RecipeError, match="OPENAI_API_KEY is not set") as caught:
        build(model="gpt-4o-mini")
    assert caught.value.where == f"{WHERE}.api_key_env"


@pytest.mark.parametrize("value", ["sk-abc def", "sk-ab\ncd", "sk-ключ"])
def test_a_key_with_letters_no_key_has_is_refused_unseen(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", value)
    with pytest.raises(RecipeError, match="the key in OPENAI_API_KEY") as caught:
        build(model="gpt-4o-mini")
    assert value not in str(caught.value)


def test_a_key_in_the_place_of_its_name_is_not_repeated() -> None:
    with pytest.raises(ValueError, match="no name of an environment variable") as caught:
        build(model="gpt-4o-mini", api_key_env="sk-proj-4711")
    assert "4711" not in str(caught.value)


@pytest.mark.parametrize(
    "url", ["localhost:8000/v1", "ftp://host/v1", "http://", "http://host:99999/v1", "http://[::1"]
)
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(RecipeError) as caught:
        build(model="m", base_url=url, api_key_env=None, price_usd_per_mtok=(0, 0))
    assert caught.value.where == f"{WHERE}.base_url"


@pytest.mark.parametrize(
    "section",
    [
        {"model": "gpt-99"},
        {"model": "gpt-4o-mini", "base_url": "http://127.0.0.1:8000/v1"},
    ],
)
def test_an_unpriced_model_is_never_taken_for_free(section: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match="is not known") as caught:
        build(**section)
    assert caught.value.where == f"{WHERE}.price_usd_per_mtok"
    assert "generate.teacher.price_usd_per_mtok" in (caught.value.hint or "")


def test_prices_come_from_the_recipe_then_the_dated_table_and_what_runs_here_is_free() -> None:
    table = resolve_price(TeacherSection(model="gpt-4o-mini"), where=WHERE)
    own = resolve_price(TeacherSection(model="gpt-4o-mini", price_usd_per_mtok=(1, 2)), where=WHERE)
    local = resolve_price(TeacherSection(kind="local", model="smollm2-135m"), where=WHERE)
    assert (table.input_usd_per_mtok, table.output_usd_per_mtok) == (0.15, 0.60)
    assert "20" in table.source
    assert own == Price(1, 2, source="recipe")
    assert local.cost(10**9, 10**9) == 0


def test_a_batch_costs_the_share_the_table_names_and_a_price_of_the_recipe_as_written() -> None:
    table = resolve_price(TeacherSection(model="gpt-4o-mini"), where=WHERE, batch=True)
    own = resolve_price(TeacherSection(model="gpt-4o-mini", price_usd_per_mtok=(1, 2)), where=WHERE, batch=True)
    assert (table.input_usd_per_mtok, own.input_usd_per_mtok) == (0.075, 1)


def test_a_price_from_the_table_says_its_date_and_that_it_must_be_checked() -> None:
    warning = price_warning(TeacherSection(model="gpt-4o-mini"))
    assert warning is not None
    assert "2026-11" in warning
    assert "check" in warning
    assert price_warning(TeacherSection(model="gpt-4o-mini", price_usd_per_mtok=(1, 2))) is None


def test_more_endpoints_need_their_own_price_and_key_and_worst_cases_use_the_dearest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("A", "sk-a")
    monkeypatch.delenv("B", raising=False)
    with pytest.raises(RecipeError, match="variable B is not set") as caught:
        build(model="gpt-4o-mini", api_key_env="A", extra_endpoints=[{"api_key_env": "B"}])
    assert caught.value.where == f"{WHERE}.extra_endpoints.0.api_key_env"
    with pytest.raises(RecipeError, match=r"at '10\.0\.0\.9' is not known"):
        build(model="gpt-4o-mini", api_key_env="A", extra_endpoints=[{"base_url": "http://10.0.0.9/v1"}])
    with pytest.raises(ValueError, match="name another"):
        build(model="gpt-4o-mini", extra_endpoints=[{}])
    monkeypatch.setenv("B", "sk-b")
    teacher = build(model="gpt-4o-mini", api_key_env="A", extra_endpoints=[{"api_key_env": "B"}])
    assert [lane.headers["Authorization"] for lane in teacher.lanes.all] == ["Bearer sk-a", "Bearer sk-b"]
    assert teacher.price.output_usd_per_mtok == 0.60
    prices = [Price(1.0, 5.0), Price(2.0, 3.0)]
    assert (dearest(prices).input_usd_per_mtok, dearest(prices).output_usd_per_mtok) == (2.0, 5.0)


def test_the_batch_setting_changes_the_road_and_not_the_identity(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-a")
    section = TeacherSection(model="gpt-4o-mini")
    single = build_teacher(section, where=WHERE, runtime=Runtime(), files={})
    batch = build_teacher(section, where=WHERE, runtime=Runtime(teacher_batch=True), files={})
    assert single.identity == batch.identity
    assert batch.price.cost(10**6, 0) == single.price.cost(10**6, 0) / 2


def test_the_key_is_not_in_anything_that_can_be_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", " sk-canary ")
    teacher = build(model="m", base_url="http://h/v1", api_key_env="MY_KEY", price_usd_per_mtok=(0, 0))
    assert "canary" not in repr(teacher) + teacher.identity


def test_a_script_is_found_by_the_name_as_written(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "x"}\n')
    section = TeacherSection(kind="scripted", script="data/a.jsonl")
    teacher = build_teacher(section, where=WHERE, runtime=Runtime(), files={"data/a.jsonl": tmp_path / "a.jsonl"})
    assert teacher.identity == "scripted:a.jsonl"
