"""Errors of shared code under the name of the section whose stage runs it. Owns the names alone.

The training loop is the stages' common ground and speaks of `train`; a person who aligns has to change `align`.
"""

from __future__ import annotations

import re
from collections.abc import Generator
from contextlib import contextmanager

from tunesmith.errors import TunesmithError
from tunesmith.recipe import Section

_SPOKEN_OF = "train"


@contextmanager
def errors_name(section: Section, name: str) -> Generator[None]:
    """Inside, what an error says of `train` it says of the section `name`, where that has the field too."""
    try:
        yield
    except TunesmithError as error:

        def renamed(text: str | None, prefix: str) -> str | None:
            def put(found: re.Match[str]) -> str:
                field = found["field"]
                return f"{prefix}{name}{found['rest']}" if field in (None, *type(section).model_fields) else found[0]

            rest = r"(?P<rest>(?:\.(?P<field>\w+))?)" if prefix else r"(?P<rest>\.(?P<field>\w+))"
            return text and re.sub(rf"(?<![\w.]){re.escape(prefix)}{_SPOKEN_OF}\b{rest}", put, text)

        TunesmithError.__init__(
            error, error.message, where=renamed(error.where, "recipe."), hint=renamed(error.hint, "")
        )
        raise
