"""`tunesmith weights`: the conversions, with progress, and what was written."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.markup import escape

from tunesmith.cli.terminal import TerminalSink


def convert_from_llama(folder: Path, out: Path, *, context_length: int | None, tokenizer: Path | None) -> None:
    """Original LLaMA weights to a transformers folder."""
    from tunesmith.model.llama_original import read_original

    console = Console()
    with TerminalSink(console) as sink:
        done = read_original(folder, out, context_length=context_length, tokenizer=tokenizer, events=sink)
    head = "output tied to the embedding" if done.tied else "output of its own"
    _say(console, f"{done.num_parameters:,} parameters from {_counted(done.num_shards, 'file')}, {head}", out)


def convert_to_llama(model: str, out: Path, *, num_shards: int) -> None:
    """A model to original LLaMA weights."""
    from tunesmith.model.catalog import fetch_model
    from tunesmith.model.llama_original import write_original

    console = Console()
    with TerminalSink(console) as sink:
        done = write_original(fetch_model(model, events=sink).path, out, num_shards=num_shards, events=sink)
    _say(console, f"{done.num_parameters:,} parameters in {_counted(num_shards, 'file')}", out)


def convert_from_gguf(file: Path, out: Path) -> None:
    """A GGUF file to a transformers folder."""
    from tunesmith.model.gguf import convert_gguf, read_gguf_metadata
    from tunesmith.model.tensor_files import check_room, new_folder, refuse_existing

    console = Console()
    refuse_existing(out)
    num_parameters = int(read_gguf_metadata(file)["num_parameters"])
    check_room(out, 2 * num_parameters, "the transformers folder")
    with console.status(f"converting {escape(file.name)}"), new_folder(out) as making:
        convert_gguf(file, making)
    _say(console, f"{num_parameters:,} parameters", out)


def write_delta(base: str, tuned: Path, out: Path) -> None:
    """What tuning changed."""
    from tunesmith.model.catalog import fetch_model
    from tunesmith.model.deltas import make_delta

    console = Console()
    with TerminalSink(console) as sink:
        done = make_delta(fetch_model(base, events=sink).path, tuned, out, sink)
    counted = f"{done.num_differences:,} tensors as differences, {done.num_unchanged:,} of them without a change"
    _say(console, f"{counted}, {done.num_whole:,} stored whole", out)


def write_tuned(base: str, delta: Path, out: Path) -> None:
    """The tuned model of a base and a delta."""
    from tunesmith.model.catalog import fetch_model
    from tunesmith.model.deltas import MANIFEST, apply_delta

    console = Console()
    with TerminalSink(console) as sink:
        done = apply_delta(fetch_model(base, events=sink).path, delta, out, sink)
    checked = "every file has the sha256 its maker had" if (delta / MANIFEST).is_file() else "no checksum to compare"
    _say(console, f"{done.size_bytes / 1e6:,.1f} MB, {checked}", out)


def _counted(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _say(console: Console, what: str, out: Path) -> None:
    console.print(f"[green]✓[/] {escape(what)} → {escape(str(out))}", highlight=False, soft_wrap=True)
