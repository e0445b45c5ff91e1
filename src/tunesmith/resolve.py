"""From a YAML file and `--set` overrides to a checked Recipe. Owns every message about a wrong recipe.

Order: defaults < YAML < overrides. `auto` values that the recipe alone decides are replaced here; the others are
decided by their stage and recorded in its manifest. Opens no data file and knows no model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, get_args

import yaml
from pydantic import BaseModel, ValidationError

from tunesmith.errors import RecipeError, nearest
from tunesmith.recipe import SYNONYMS, Recipe

Location = tuple[str | int, ...]

LEARNING_RATES = {"lora": 2e-4, "dora": 2e-4, "qlora": 2e-4, "full": 1e-5}
"""What `train.learning_rate: auto` means. LoRA wants about ten times the rate of full tuning (Biderman et al. 2024)."""

NUM_NEW_TOKENS = 8000
"""What `pretrain.num_new_tokens: auto` means where pieces are learnt."""

PRETRAIN_RATES = {"lora": 2e-4, "full": 1e-4}
"""What `pretrain.learning_rate: auto` means; 2e-4 is that of Chinese-LLaMA (Cui et al. 2023, arXiv 2304.08177)."""

ALIGN_RATES = {"adapter": 2e-5, "full": 1e-6}
"""What `align.learning_rate: auto` means: comparisons move a model that is nearly right, a tenth of what taught it."""

REWARD_MODEL_RATES = {"adapter": 1e-4, "full": 1e-5, "head": 1e-3}
"""What `reward_model.learning_rate: auto` means; 1e-5 is about that of Ouyang et al. 2022 (9e-6)."""


@dataclass(frozen=True)
class ResolvedRecipe:
    """A recipe ready to plan: checked, overridden, with the folder its file names are relative to."""

    recipe: Recipe
    as_written: str
    folder: Path

    def as_yaml(self) -> str:
        """The recipe with every default and resolved value spelled out."""
        return yaml.safe_dump(self.recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> ResolvedRecipe:
    """Read and check a recipe file. Raises RecipeError that names file, line, key and the nearest known key."""
    if path.is_dir():
        path = path / "recipe.yaml"
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise RecipeError(
            "there is no such recipe file", where=str(path), hint="`tunesmith new FOLDER` writes one to start from"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"cannot be read: {error}", where=str(path)) from error
    data, lines = _parse_yaml(text, path)
    return _resolve(data, lines, overrides, path.name, text, path.resolve().parent)


def resolve_mapping(data: Mapping[str, Any], *, folder: Path, overrides: Sequence[str] = ()) -> ResolvedRecipe:
    """Check a recipe given as a mapping (the Python API)."""
    text = yaml.safe_dump(dict(data), sort_keys=False, allow_unicode=True)
    return _resolve(yaml.safe_load(text), {}, overrides, "recipe", text, folder.resolve())


def _resolve(
    data: dict[str, Any], lines: dict[Location, int], overrides: Sequence[str], name: str, text: str, folder: Path
) -> ResolvedRecipe:
    places = {location: f"{name}:{line}" for location, line in lines.items()}
    for override in overrides:
        given = _apply_override(data, override)
        places = {location: place for location, place in places.items() if location[: len(given)] != given}
        places[given] = "--set"
    try:
        recipe = Recipe.model_validate(data)
    except ValidationError as error:
        raise _explain(error, data, places, name) from None
    beside = folder / recipe.base_model.name
    if not Path(recipe.base_model.name).is_absolute() and beside.exists() and recipe.base_model.name.strip():
        # Like every file name of a recipe: relative to its folder, wherever the command was typed.
        base_model = recipe.base_model.model_copy(update={"name": str(beside.resolve())})
        recipe = recipe.model_copy(update={"base_model": base_model})
    if recipe.train.learning_rate == "auto":
        train = recipe.train.model_copy(update={"learning_rate": LEARNING_RATES[recipe.train.method]})
        recipe = recipe.model_copy(update={"train": train})
    return ResolvedRecipe(recipe, text, folder)


def _parse_yaml(text: str, path: Path) -> tuple[dict[str, Any], dict[Location, int]]:
    """The mapping, and the line of every key. A key given twice is an error: YAML would keep the last in silence."""
    try:
        compose = cast("Callable[..., Any]", yaml.compose)  # pyright: ignore[reportUnknownMemberType]
        node = compose(text, Loader=yaml.SafeLoader)
        data = yaml.safe_load(text)
        lines: dict[Location, int] = {}
        _collect_lines(node, (), lines, path.name)
    except RecipeError:
        raise
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path.name}:{mark.line + 1}" if mark else path.name
        problem = getattr(error, "problem", None) or str(error)
        raise RecipeError(
            f"this is not YAML: {problem}", where=where, hint="check indentation, colons and quotes"
        ) from None
    except (ValueError, RecursionError) as error:  # a date like 2026-13-45, a list that holds itself
        problem = "a list or mapping holds itself" if isinstance(error, RecursionError) else str(error)
        raise RecipeError(
            f"a value cannot be read: {problem}", where=path.name, hint="put text that looks like a date into quotes"
        ) from None
    if not isinstance(data, dict):
        found = "nothing" if data is None else type(data).__name__
        raise RecipeError(f"a recipe is a mapping of keys to values, found {found}", where=path.name)
    return cast("dict[str, Any]", data), lines


def _collect_lines(node: Any, at: Location, lines: dict[Location, int], name: str) -> None:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            place = (*at, key.value)
            line = key.start_mark.line + 1
            if place in lines:
                raise RecipeError(
                    f"the key `{'.'.join(map(str, place))}` stands twice, first in line {lines[place]}",
                    where=f"{name}:{line}",
                    hint="keep one of them",
                )
            lines[place] = line
            _collect_lines(value, place, lines, name)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            lines[(*at, index)] = value.start_mark.line + 1
            _collect_lines(value, (*at, index), lines, name)


def _apply_override(data: dict[str, Any], override: str) -> Location:
    """Puts the value into the data; returns where."""
    path, separator, value_text = override.partition("=")
    keys = path.strip().split(".")
    if not separator or not all(keys):
        raise RecipeError(
            f"an override looks like train.num_epochs=3, found {override!r}", where="--set", hint="use key.key=value"
        )
    try:
        value = yaml.safe_load(value_text)
    except (yaml.YAMLError, ValueError, RecursionError):
        raise RecipeError(f"the value is not YAML: {value_text!r}", where=f"--set {path}", hint="quote it") from None
    place = data
    for key in keys[:-1]:
        inner = place.get(key)
        if key == "base_model" and isinstance(inner, str):
            inner = {"name": inner}
        if inner is None:
            inner = {}
        if not isinstance(inner, dict):
            raise RecipeError(f"`{key}` is a value, not a section", where=f"--set {path}")
        place[key] = inner
        place = cast("dict[str, Any]", inner)
    place[keys[-1]] = value
    return tuple(keys)


def _explain(error: ValidationError, data: dict[str, Any], places: dict[Location, str], name: str) -> RecipeError:
    problems: dict[str, tuple[str, str | None]] = {}
    for item in error.errors(include_url=False):
        location: Location = item["loc"]
        kept = location if item["type"] in ("extra_forbidden", "missing") else _within(location, data)
        path = ".".join(map(str, ("recipe", *kept)))
        place = next((places[kept[:n]] for n in range(len(kept), 0, -1) if kept[:n] in places), None)
        where = f"{path} ({place})" if place else path
        message, hint = _describe(dict(item), location, kept)
        if where in problems and problems[where][0] != message:
            message = f"{problems[where][0]}, or {message.removeprefix('expected ')}"
        problems[where] = (message, hint or problems.get(where, ("", None))[1])
    found = list(problems.items())
    if len(found) == 1:
        where, (message, hint) = found[0]
        return RecipeError(message, where=where, hint=hint)
    listing = "\n".join(f"  {where}: {message}" + (f" ({hint})" if hint else "") for where, (message, hint) in found)
    return RecipeError(f"{len(found)} problems in the recipe\n{listing}", where=name)


def _within(location: Location, data: Any) -> Location:
    """The part of a pydantic location that exists in the data: unions and types add parts of their own."""
    kept: list[str | int] = []
    for part in location:
        if isinstance(data, dict) and part in data:
            data = cast("dict[Any, Any]", data)[part]
        elif isinstance(data, list) and isinstance(part, int) and part < len(cast("list[Any]", data)):
            data = cast("list[Any]", data)[part]
        else:
            break
        kept.append(part)
    return tuple(kept)


def _describe(item: dict[str, Any], location: Location, kept: Location) -> tuple[str, str | None]:
    kind, value = item["type"], item.get("input")
    if kind == "string_pattern_mismatch":
        return "expected letters, digits, dot, dash and underscore, at most 64 of them, found " + _shown(value), None
    if kind == "extra_forbidden":
        return _unknown_key(str(location[-1]), location[:-1])
    if kind == "missing":
        return "is missing", _field_description(location)
    if kind == "value_error":
        return str(item["ctx"]["error"]), None
    found = _shown(value)
    expected = str(item["msg"])
    expected = expected.removeprefix("Input should be ").removeprefix("Value error, ")
    return f"expected {expected}, found {found}", _field_description(kept)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _unknown_key(key: str, section: Location) -> tuple[str, str | None]:
    if key in SYNONYMS:
        return f"there is no key `{key}` here", f"this is called {SYNONYMS[key]}"
    here = _model_at(section)
    close = nearest(key, here.model_fields) if here is not None else None
    if close:
        return f"there is no key `{key}` here", f"did you mean `{close}`?"
    for name, field in Recipe.model_fields.items():
        inner = _section_model(field.annotation)
        if inner is not None and key in inner.model_fields:
            return f"there is no key `{key}` here", f"it belongs to the section `{name}`"
    known = ", ".join(here.model_fields) if here is not None else ""
    return f"there is no key `{key}` here", f"known keys: {known}" if known else None


def _section_model(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):  # pyright: ignore[reportUnknownArgumentType]
        return annotation
    for inner in get_args(annotation):
        found = _section_model(inner)
        if found is not None:
            return found
    return None


def _model_at(location: Location) -> type[BaseModel] | None:
    model: type[BaseModel] | None = Recipe
    for part in location:
        if model is None or part not in model.model_fields:
            return None
        model = _section_model(model.model_fields[str(part)].annotation)
    return model


def _field_description(location: Location) -> str | None:
    model = _model_at(location[:-1])
    if model is None or not location or str(location[-1]) not in model.model_fields:
        return None
    return model.model_fields[str(location[-1])].description
