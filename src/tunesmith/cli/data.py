"""`tunesmith data`: commands on example files. Each imports what it needs when it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    name="data",
    help="Look at, convert and check example files.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.command(
    epilog="Examples: `tunesmith data convert pages/ talk.jsonl --to sharegpt` · "
    "`tunesmith data convert alpaca.json#500 sample.csv --to csv`"
)
def convert(
    source: Annotated[
        str, typer.Argument(metavar="IN", help="A file, a folder or a .zip; `IN#500` draws 500 examples.")
    ],
    target: Annotated[Path, typer.Argument(metavar="OUT", help="The file to write.")],
    to: Annotated[str, typer.Option("--to", help="alpaca, sharegpt, messages, csv or parquet.")],
    form: Annotated[str, typer.Option("--from", help="The form of IN; auto looks at the rows.")] = "auto",
    force: Annotated[bool, typer.Option("--force", help="Replace OUT where it exists.")] = False,
) -> None:
    """Read examples in any known form and write them in another. Every row is accounted for."""
    from tunesmith.cli.data_convert import convert_examples

    convert_examples(source, target, to, form=form, force=force)
