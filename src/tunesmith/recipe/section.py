"""Base of every section of a recipe, and the kinds of values that several have. Knows no parameter."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

Auto = Literal["auto"]


def as_list(value: Any) -> Any:
    """A bare string as a list of one, for fields that take several."""
    return [value] if isinstance(value, str) else value


def _environment_name(value: str) -> str:
    """Refuses what may be the key itself, without repeating it: names are short and made of words."""
    longest_run = max(map(len, value.split("_")), default=0)
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,63}", value) or (longest_run > 20 and re.search(r"\d", value)):
        raise ValueError(
            "this is no name of an environment variable (it may be the key itself, and a recipe is no place for it): "
            "put the key into a variable and write the variable's name here"
        )
    return value


def _address(value: str) -> str:
    """Refuses parts of an address that hold secrets, without repeating them."""
    try:
        parts = urlsplit(value)
    except ValueError:
        return value  # no address at all: whoever opens it says so
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise ValueError(
            "the address holds a user, a password, a query or a fragment, which would be written into every run: "
            "give the key by `api_key_env`"
        )
    return value


StrList = Annotated[tuple[str, ...], BeforeValidator(as_list)]
EnvironmentName = Annotated[str, AfterValidator(_environment_name)]
Address = Annotated[str, AfterValidator(_address)]
RngSeed = Annotated[int, Field(ge=0, lt=2**31)]


class Section(BaseModel):
    """Base of every section: frozen, unknown keys refused, descriptions taken from the docstrings under the fields."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        validate_default=True,
        allow_inf_nan=False,
        hide_input_in_errors=True,  # what stands in the wrong place may be a secret
    )

    def file_names(self) -> list[str]:
        """Files this section names, as written; the pipeline hands them to the stage and hashes their content."""
        return []
