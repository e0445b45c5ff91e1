"""One option of `tunesmith data` means one thing in every command that has it."""

from __future__ import annotations

from collections.abc import Iterator
from types import NoneType
from typing import Any, get_args, get_type_hints

import pytest
from typer.models import OptionInfo

from tunesmith.cli.data import app


def options_of(command: Any) -> Iterator[tuple[str, Any]]:
    """(name, type of the value, None apart) of each option; `bool` is a flag."""
    for parameter, hint in get_type_hints(command, include_extras=True).items():
        for info in getattr(hint, "__metadata__", ()):
            if isinstance(info, OptionInfo):
                kinds = [each for each in get_args(hint.__origin__) if each is not NoneType] or [hint.__origin__]
                # In Annotated the first name stands where the default would.
                names = [str(each) for each in (info.default, *(info.param_decls or ())) if str(each).startswith("-")]
                names = names or [f"--{parameter.replace('_', '-')}"]
                yield from ((name, kinds[0]) for name in names)


OPTIONS = {each.name or each.callback.__name__: dict(options_of(each.callback)) for each in app.registered_commands if each.callback}  # fmt: skip
NAMES = sorted({name for options in OPTIONS.values() for name in options})


@pytest.mark.parametrize("name", NAMES)
def test_an_option_takes_the_same_kind_of_value_everywhere(name: str):
    kinds = {command: options[name] for command, options in OPTIONS.items() if name in options}
    assert len(set(kinds.values())) == 1, kinds


@pytest.mark.parametrize("command", ["stats", "head", "sample", "diff", "review", "map"])
def test_how_many_rows_has_one_name(command: str):
    assert OPTIONS[command]["-n"] is OPTIONS[command]["--rows"] is int
    assert {"--from", "--root"} <= OPTIONS[command].keys()


def test_only_commands_that_draw_have_a_seed_and_only_those_that_print_data_json():
    having = {name: {command for command, options in OPTIONS.items() if name in options} for name in NAMES}
    assert having["--seed"] == {"stats", "sample", "review", "map"}
    assert having["--json"] == {"stats", "head", "sample", "diff"}
    assert having["--html"] == {"stats", "diff", "map"}
    assert having["--points"] == {"map"}
