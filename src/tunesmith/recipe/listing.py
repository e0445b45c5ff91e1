"""The three forms in which a list of the recipe names a member: as its name (`refusal`), as a name with its chief option
(`pii: mask`), or with all options (`{name: length, min_words: 3}`). Owns the messages about wrong ones; knows no option itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar, cast

from pydantic import ValidationError

from tunesmith.errors import nearest
from tunesmith.recipe.section import Section


class ListedOptions(Section):
    """Base of the options of a listed member. `chief`: the option meant by `member: value`."""

    name: str
    """Name of the member."""

    chief: ClassVar[str | None] = None


Options = TypeVar("Options", bound=ListedOptions)


def read_listed(value: Any, kind: str, members: Mapping[str, type[Options]]) -> Options:
    """One entry of a list in any of the three forms. ValueError names the nearest member or option.

    kind: what a member is called ("filter"); members: the options of each, by name.
    """
    name, options = _name_and_options(value, kind)
    model = members.get(name)
    if model is None:
        close = nearest(name, members)
        known = f"did you mean {close!r}?" if close else f"known: {', '.join(sorted(members))}"
        raise ValueError(f"there is no {kind} named {name!r}; {known}")
    if not isinstance(options, dict):
        if model.chief is None:
            raise ValueError(f"the {kind} {name!r} has no chief option; write {{name: {name}, option: value}}")
        options = {model.chief: options}
    for key in cast("dict[str, Any]", options):
        if key not in model.model_fields:
            close = nearest(str(key), model.model_fields)
            known = ", ".join(each for each in model.model_fields if each != "name") or "none"
            hint = f"did you mean {close!r}?" if close else f"its options: {known}"
            raise ValueError(f"the {kind} {name!r} has no option {key!r}; {hint}")
    try:
        return model.model_validate({**cast("dict[str, Any]", options), "name": name})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        problem = first["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
        raise ValueError(
            f"option {place!r} of the {kind} {name!r}: expected {problem}, found {first['input']!r}"
        ) from None


def _name_and_options(value: Any, kind: str) -> tuple[str, Any]:
    if isinstance(value, str):
        return value, {}
    if isinstance(value, dict):
        given = cast("dict[str, Any]", value)
        if "name" in given:
            return str(given["name"]), {key: option for key, option in given.items() if key != "name"}
        if len(given) == 1:
            return next((str(name), {} if options is None else options) for name, options in given.items())
    raise ValueError(f"a {kind} is a name, `name: value`, or {{name: ..., option: ...}}; found {value!r}")
