"""`tunesmith weights context-report`: the table of losses by position, or its JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from tunesmith.cli.terminal import TerminalSink
from tunesmith.errors import DataError
from tunesmith.events import Progress

if TYPE_CHECKING:
    from tunesmith.model.context_report import ContextReport

_BAR_WIDTH = 10


def show_context_report(
    name: str, files: Sequence[Path], *, length: int | None, rope_scaling: str, max_windows: int, as_json: bool
) -> None:
    """Measure and print."""
    import torch

    from tunesmith.chat.tokenizer import load_tokenizer
    from tunesmith.model.catalog import fetch_model
    from tunesmith.model.context import scaled_view
    from tunesmith.model.context_report import measure_context
    from tunesmith.model.folder import context_length_of, read_config
    from tunesmith.model.load import load_model

    console = Console()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with TerminalSink(Console(stderr=True)) as sink:
        folder = fetch_model(name, events=sink).path
        reach = length if rope_scaling != "none" else None
        with scaled_view(folder, rope_scaling=rope_scaling, context_length=reach) as view:
            length = length or context_length_of(read_config(view), view / "config.json")
            model = load_model(view, device=device, dtype=torch.float32 if device == "cpu" else torch.bfloat16)
            tokenizer = load_tokenizer(folder)
        tokenizer.model_max_length = 1 << 40  # a text is cut into windows, so its length is no matter
        report = measure_context(
            model,
            (tokenizer(text)["input_ids"] for text in _texts(files)),  # pyright: ignore[reportArgumentType]
            length=length,
            max_windows=max_windows,
            on_done=lambda done: sink.emit(Progress(task="windows", done=done, total=None, unit="windows")),
        )
    if as_json:
        print(json.dumps({"model": name, "rope_scaling": rope_scaling, **asdict(report)}, indent=2))
        return
    console.print(_table(report))
    console.print(
        f"{report.num_tokens:,} tokens in {report.num_windows:,} windows of at most {report.length:,}, "
        f"from {report.num_texts:,} texts: mean loss {report.mean_loss:.4f}",
        highlight=False,
    )


def _texts(files: Sequence[Path]) -> Iterator[str]:
    """The documents of all files. DataError where rows are no plain text: a chat's positions mean something else."""
    from tunesmith.data.readers import read_examples
    from tunesmith.types import Document

    for file in files:
        found = 0
        for example in read_examples(file):
            if isinstance(example, Document):
                found += 1
                yield example.text
        if not found:
            raise DataError(
                "there is no plain text here", where=str(file), hint="expected .txt, .md, or rows with a field `text`"
            )


def _table(report: ContextReport) -> Table:
    table = Table(box=None, header_style="bold")
    for column in ("position", "loss", "stderr", "perplexity", "tokens", "windows"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    highest = max(bucket.mean_loss for bucket in report.buckets)
    for bucket in report.buckets:
        table.add_row(
            f"{bucket.start:,} – {bucket.end - 1:,}",
            f"{bucket.mean_loss:.4f}",
            f"{bucket.stderr:.4f}" if bucket.num_windows > 1 else "–",
            f"{math.exp(min(bucket.mean_loss, 50)):,.2f}",
            f"{bucket.num_tokens:,}",
            f"{bucket.num_windows:,}",
            "█" * round(_BAR_WIDTH * bucket.mean_loss / highest),
        )
    return table
