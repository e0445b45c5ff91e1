"""`tunesmith models` on terminals of any width."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from tunesmith.cli.main import app
from tunesmith.model.catalog import list_models


@pytest.mark.parametrize("width", [60, 80, 300])
def test_the_models_fit_the_terminal_and_no_name_is_cut(width: int) -> None:
    result = CliRunner().invoke(app, ["models"], env={"COLUMNS": str(width)})
    assert result.exit_code == 0
    lines = [line.rstrip() for line in result.output.splitlines()]
    assert max(map(len, lines)) <= width
    words = " ".join(result.output.split())
    for model in list_models():
        assert any(line.startswith(model.name) for line in lines)
        assert model.purpose in words and model.licence in words
    assert lines[0].startswith("name") == (width == 300)
