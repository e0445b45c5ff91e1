"""How a filter may be written in `curate.filters`: as its name (`refusal`), as a name with its chief option (`pii: mask`),
or with all options (`{name: length, min_words: 3}`). Owns the messages about wrong ones; knows no option itself.
"""

from __future__ import annotations

from typing import Annotated, Any, cast

from pydantic import BeforeValidator, SerializeAsAny, ValidationError

from tunesmith.errors import nearest
from tunesmith.recipe_filters import FilterOptions

FILTER_OPTIONS: dict[str, type[FilterOptions]] = {
    str(options.model_fields["name"].default): options for options in FilterOptions.__subclasses__()
}
"""Every filter that can be listed, by name."""


def read_filter(value: Any) -> FilterOptions:
    """One entry of the list in any of its three forms. ValueError names the nearest filter or option."""
    if isinstance(value, FilterOptions):
        return value
    name, options = _name_and_options(value)
    model = FILTER_OPTIONS.get(name)
    if model is None:
        close = nearest(name, FILTER_OPTIONS)
        known = f"did you mean {close!r}?" if close else f"known: {', '.join(sorted(FILTER_OPTIONS))}"
        raise ValueError(f"there is no filter named {name!r}; {known}")
    if not isinstance(options, dict):
        if model.chief is None:
            raise ValueError(f"the filter {name!r} has no chief option; write {{name: {name}, option: value}}")
        options = {model.chief: options}
    for key in cast("dict[str, Any]", options):
        if key not in model.model_fields:
            close = nearest(str(key), model.model_fields)
            known = ", ".join(each for each in model.model_fields if each != "name") or "none"
            hint = f"did you mean {close!r}?" if close else f"its options: {known}"
            raise ValueError(f"the filter {name!r} has no option {key!r}; {hint}")
    try:
        return model.model_validate({**cast("dict[str, Any]", options), "name": name})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        problem = first["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
        raise ValueError(
            f"option {place!r} of the filter {name!r}: expected {problem}, found {first['input']!r}"
        ) from None


def _name_and_options(value: Any) -> tuple[str, Any]:
    if isinstance(value, str):
        return value, {}
    if isinstance(value, dict):
        given = cast("dict[str, Any]", value)
        if "name" in given:
            return str(given["name"]), {key: option for key, option in given.items() if key != "name"}
        if len(given) == 1:
            return next((str(name), {} if options is None else options) for name, options in given.items())
    raise ValueError(f"a filter is a name, `name: value`, or {{name: ..., option: ...}}; found {value!r}")


FilterList = tuple[Annotated[SerializeAsAny[FilterOptions], BeforeValidator(read_filter)], ...]
