"""From a recipe's teacher section to a teacher that can be asked. Every fault that can be known before the first
request is raised here: no key, no price, no script, a missing package."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlsplit

from tunesmith.errors import MissingExtra, RecipeError
from tunesmith.protocols import ServingEngine, Teacher
from tunesmith.recipe import Runtime, TeacherSection
from tunesmith.teachers import TEACHERS
from tunesmith.teachers.local import BuildPrompt
from tunesmith.teachers.prices import resolve_price

if TYPE_CHECKING:  # aiohttp is an extra
    from tunesmith.teachers.batch import BatchTeacher
    from tunesmith.teachers.openai import OpenAITeacher


def build_teacher(
    section: TeacherSection,
    *,
    where: str,
    runtime: Runtime,
    files: Mapping[str, Path],
    engine: ServingEngine | None = None,
    build_prompt: BuildPrompt | None = None,
    local_name: str | None = None,
    notify: Callable[[str], None] = lambda sentence: None,
) -> Teacher:
    """A teacher, not yet connected.

    where: recipe path of the section ("recipe.generate.teacher"), for messages.
    files: paths of the files the section names, by the name as written (`Inputs.files`).
    engine, build_prompt: needed for kind local; local_name: how its weights are called in keys (section.model if None).

    notify: told in a sentence what a teacher does by itself (an endpoint rests, a batch went out).

    Raises RecipeError (no key, no price, no script, a base_url that is none), MissingExtra.
    """
    if section.kind == "scripted":
        price = resolve_price(section, where=where)
        assert section.script is not None  # the recipe checks that they go together
        script = files.get(section.script, Path(section.script))
        return TEACHERS.load(section.kind)(script, price=price, where=where)
    if section.kind == "local":
        if engine is None or build_prompt is None:
            raise ValueError("a local teacher needs an engine and a prompt builder")
        name = local_name or section.model
        return TEACHERS.load(section.kind)(engine, build_prompt, name=name, price=resolve_price(section, where=where))
    if section.kind != "openai":
        return TEACHERS.load(section.kind, where=f"{where}.kind")  # raises: there is no such kind
    return _build_openai(section, where, runtime, notify)


def _build_openai(
    section: TeacherSection, where: str, runtime: Runtime, notify: Callable[[str], None]
) -> OpenAITeacher | BatchTeacher:
    for package in ("aiohttp", "httptools"):
        if find_spec(package) is None:
            raise MissingExtra(package, "data", "a teacher behind an endpoint")
    from tunesmith.teachers.batch import BatchTeacher
    from tunesmith.teachers.openai import Endpoint, OpenAITeacher

    endpoints: list[Endpoint] = []
    for number, place in enumerate(places(section)):
        here = where if number == 0 else f"{where}.extra_endpoints.{number - 1}"
        price = resolve_price(section, where=where, base_url=place.base_url, batch=runtime.teacher_batch)
        _check_url(place.base_url, here)
        key = read_key(place.api_key_env, where=here, environ=os.environ)
        endpoints.append(Endpoint(place.base_url, key, price))
    if runtime.teacher_batch:
        return BatchTeacher(
            model=section.model,
            endpoint=endpoints[0],
            timeout_seconds=runtime.request_timeout_seconds,
            max_retries=runtime.max_retries,
            notify=notify,
        )
    return OpenAITeacher(
        model=section.model,
        endpoints=endpoints,
        concurrency=None if runtime.teacher_concurrency == "auto" else runtime.teacher_concurrency,
        timeout_seconds=runtime.request_timeout_seconds,
        max_retries=runtime.max_retries,
        requests_per_minute=runtime.teacher_requests_per_minute,
        tokens_per_minute=runtime.teacher_tokens_per_minute,
        notify=notify,
    )


class Place(NamedTuple):
    """Where the model is served, and the NAME of the variable with the key."""

    base_url: str
    api_key_env: str | None


def places(section: TeacherSection) -> list[Place]:
    """Every place a section names, the main one first."""
    extra = [Place(more.base_url or section.base_url, more.api_key_env) for more in section.extra_endpoints]
    return [Place(section.base_url, section.api_key_env), *extra]


def read_key(name: str | None, *, where: str, environ: Mapping[str, str]) -> str | None:
    """The key from the variable of this name; None for an endpoint without one. Never part of a message."""
    if name is None:
        return None
    place = f"{where}.api_key_env"
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
        raise RecipeError(
            "this is no name of an environment variable (it may be the key itself; a recipe is no place for it)",
            where=place,
            hint="put the key into a variable and write the variable's name here",
        )
    key = environ.get(name, "").strip()
    if not key:
        raise RecipeError(
            f"the environment variable {name} is not set",
            where=place,
            hint=f"export {name}=..., or write `api_key_env: null` for an endpoint without a key",
        )
    if not re.fullmatch(r"[\x21-\x7e]+", key):
        raise RecipeError(
            f"the key in {name} has a space, a line break or a letter that no key has",
            where=place,
            hint="copy it again",
        )
    return key


def _check_url(base_url: str, where: str) -> None:
    try:
        parts = urlsplit(base_url)
        whole = parts.scheme in ("http", "https") and bool(parts.hostname)
        _ = parts.port
    except ValueError:
        whole = False
    if not whole:
        raise RecipeError(
            "this is no http or https address", where=f"{where}.base_url", hint="for example http://127.0.0.1:8000/v1"
        )
