"""`tunesmith data stats`: what a data set is like, on the terminal, as one HTML page, or as JSON."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from tunesmith.cli.data_input import RowSource, find_rows
from tunesmith.errors import RecipeError
from tunesmith.recipe import Runtime

CountTokens = Callable[[Sequence[str]], list[int]]

_NUM_NAMES = 10


def show_stats(
    reference: str,
    *,
    root: Path | None,
    form: str,
    model: str | None,
    max_rows: int,
    num_clusters: int,
    rng_seed: int,
    html: Path | None,
    as_json: bool,
) -> None:
    """What the command prints and writes."""
    from tunesmith.cli.data_tables import show_survey
    from tunesmith.data.statistics.survey import Survey, SurveyOptions, survey

    check_page(html)
    source = find_rows(reference, root, form)
    options = SurveyOptions(
        max_rows, num_clusters, _NUM_NAMES, rng_seed, num_threads=Runtime().usable_threads, closely=True
    )
    console = Console(highlight=False)
    with progress(source) as on_rows:
        found: Survey = survey(
            source.rows(), name=source.name, options=options, count_tokens=open_counter(model), on_rows=on_rows
        )
    if as_json:
        print(json.dumps({"counts": source.counts, **dataclasses.asdict(found)}, ensure_ascii=True, allow_nan=False))
    else:
        show_survey(console, found, source.counts)
    if html is not None:
        from tunesmith.data.statistics.survey_page import survey_page

        write_page(html, survey_page(found, source.counts), quiet=as_json)


def check_page(html: Path | None) -> None:
    """RecipeError before any work where the page could not be written."""
    if html is not None and (html.is_dir() or not html.expanduser().absolute().parent.is_dir()):
        found = "this is a folder" if html.is_dir() else "there is no such folder"
        raise RecipeError(found, where=str(html), hint="name the page with its file name, such as stats.html")


def write_page(path: Path, page: str, *, quiet: bool) -> None:
    """Write the page as a whole and say where it is."""
    from tunesmith.store import write_atomic

    write_atomic(path.expanduser(), page.encode("utf-8", "replace"))
    if not quiet:
        Console(highlight=False, soft_wrap=True).print(f"\npage → {escape(str(path))}")


@contextmanager
def progress(*sources: RowSource) -> Generator[Callable[[int], None]]:
    """Tells on a terminal's error stream how many rows were read."""
    console = Console(stderr=True, highlight=False)
    names = escape(" and ".join(source.name for source in sources))
    if not console.is_terminal:
        yield lambda _num_rows: None
        return
    with console.status(f"reading {names}") as status:
        yield lambda num_rows: status.update(f"reading {names}: {num_rows:,} rows")


def open_counter(model: str | None) -> CountTokens | None:
    """Counts tokens of texts with the model's own tokenizer; None where no model is named."""
    if model is None:
        return None
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from tunesmith.chat.tokenizer import load_tokenizer
    from tunesmith.cli.terminal import TerminalSink
    from tunesmith.model.catalog import fetch_model

    with TerminalSink(Console(stderr=True)) as sink:
        tokenizer = load_tokenizer(fetch_model(model, events=sink).path)

    def count(texts: Sequence[str]) -> list[int]:
        return [len(ids) for ids in tokenizer(list(texts), add_special_tokens=False)["input_ids"]] if texts else []

    return count
