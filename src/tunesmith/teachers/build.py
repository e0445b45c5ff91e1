"""From a recipe's teacher section to a teacher that can be asked. Every fault that can be known before the first
request is raised here: no key, no price, no script, a missing package."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit

from tunesmith.errors import MissingExtra, RecipeError
from tunesmith.protocols import ServingEngine, Teacher
from tunesmith.recipe import Runtime, TeacherSection
from tunesmith.teachers import TEACHERS
from tunesmith.teachers.local import BuildPrompt
from tunesmith.teachers.prices import resolve_price


def build_teacher(
    section: TeacherSection,
    *,
    where: str,
    runtime: Runtime,
    files: Mapping[str, Path],
    engine: ServingEngine | None = None,
    build_prompt: BuildPrompt | None = None,
    local_name: str | None = None,
) -> Teacher:
    """A teacher, not yet connected.

    where: recipe path of the section ("recipe.generate.teacher"), for messages.
    files: paths of the files the section names, by the name as written (`Inputs.files`).
    engine, build_prompt: needed for kind local; local_name: how its weights are called in keys (section.model if None).

    Raises RecipeError (no key, no price, no script, a base_url that is none), MissingExtra.
    """
    price = resolve_price(section, where=where)
    member = TEACHERS.load(section.kind, where=f"{where}.kind") if section.kind != "openai" else None
    if section.kind == "scripted":
        assert section.script is not None and member is not None  # the recipe checks that they go together
        return member(files.get(section.script, Path(section.script)), price=price, where=where)
    if section.kind == "local":
        if engine is None or build_prompt is None or member is None:
            raise ValueError("a local teacher needs an engine and a prompt builder")
        return member(engine, build_prompt, name=local_name or section.model, price=price)
    _check_url(section.base_url, where)
    api_key = read_key(section, where=where, environ=os.environ)
    if find_spec("aiohttp") is None:
        raise MissingExtra("aiohttp", "data", "a teacher behind an endpoint")
    return TEACHERS.load("openai")(
        model=section.model,
        base_url=section.base_url,
        api_key=api_key,
        price=price,
        concurrency=runtime.teacher_concurrency,
        timeout_seconds=runtime.request_timeout_seconds,
        max_retries=runtime.max_retries,
    )


def read_key(section: TeacherSection, *, where: str, environ: Mapping[str, str]) -> str | None:
    """The key from the variable the section names; None for an endpoint without one. Never part of a message."""
    name = section.api_key_env
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
