"""`tunesmith data convert`: one form of example file into another, with the count of every row."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.markup import escape

from tunesmith.errors import RecipeError


def convert_examples(source: str, target: Path, to: str, *, form: str, force: bool) -> None:
    """Convert and say what became of the rows."""
    from tunesmith.data.readers import read_examples
    from tunesmith.data.readers.sampling import Sampled
    from tunesmith.data.writers import write_examples
    from tunesmith.recipe import Ingest, split_sampled

    name, size = (source, None) if Path(source).exists() else split_sampled(source)
    path = Path(name).expanduser()
    if not path.exists():
        raise RecipeError("there is no such file", where=name, hint="name a file, a folder or a .zip archive")
    if target.exists() and (not force or target.resolve() == path.resolve()):
        same = target.resolve() == path.resolve()
        hint = "a file cannot be converted onto itself" if same else "choose another name, or add --force"
        raise RecipeError("the file to write is there already", where=str(target), hint=hint)
    examples = read_examples(path, form)
    sampled = Sampled(examples, size, Ingest().rng_seed) if size is not None else None
    done = write_examples(sampled or examples, target, to)
    console = Console(highlight=False, soft_wrap=True)
    not_drawn = sampled.num_left_out if sampled is not None else 0
    total = done.num_written + done.num_excluded + not_drawn
    parts = [f"[bold]{done.num_written:,}[/] written", f"{done.num_excluded:,} excluded"]
    if not_drawn:
        parts.append(f"{not_drawn:,} not drawn")
    console.print(f"{total:,} rows: {', '.join(parts)} → {escape(str(target))}")
    if done.excluded_path is not None:
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in done.reasons.most_common())
        console.print(f"  [yellow]excluded[/]: {reasons} → {escape(str(done.excluded_path))}")
    if done.lost:
        lost = ", ".join(f"{what} {count:,}" for what, count in done.lost.most_common())
        console.print(f"  [yellow]not held by {to}[/]: {escape(lost)}")
