"""`tunesmith show`: runs, artifacts, and single samples with their tokens and loss mask."""

from __future__ import annotations

import json
import time
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from tunesmith.cli.terminal import duration
from tunesmith.errors import StoreError, nearest
from tunesmith.pipeline import artifact_in_force
from tunesmith.store import Run, default_root, find_run, list_runs
from tunesmith.types import Artifact, Conversation, Sample

MAX_LINES_SHOWN = 3
WIDE_ENOUGH = 120  # characters the score table takes with its last column


def show(run_name: str | None, stage: str | None, sample: str | None, *, tokens: bool, root: Path | None) -> None:
    """What the command prints, by what was named."""
    console = Console()
    place = root or default_root()
    if run_name is None:
        _show_runs(console, place)
        return
    run = find_run(run_name, place)
    if sample is not None:
        _show_sample(console, run, sample, tokens=tokens)
    elif stage is not None:
        _show_artifact(console, run, stage)
    else:
        _show_run(console, run)


def _show_runs(console: Console, root: Path) -> None:
    if root.exists() and not root.is_dir():
        raise StoreError("this is a file, expected the folder that holds the runs", where=str(root))
    runs = list_runs(root)
    if not runs:
        console.print(f"no runs in {escape(str(root))} yet; start one with: tunesmith run RECIPE", highlight=False)
        return
    table = Table(box=None, header_style="bold")
    for column in ("run", "status", "when", "stages done"):
        table.add_column(column)
    for run in runs:
        if run.damaged:
            table.add_row(run.name, "damaged: run.json cannot be read", "", "")
            continue
        info = run.info
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(info.get("created", 0)))
        done = f"{len(info.get('artifacts', {}))} of {len(info.get('stages', []))}"
        table.add_row(run.name, str(info.get("status")), when, done)
    console.print(table)


def _show_run(console: Console, run: Run) -> None:
    info = run.info
    console.print(
        f"[bold]{escape(run.name)}[/]  {info.get('status')}  [dim]{escape(str(run.path))}[/]", highlight=False
    )
    table = Table(box=None, header_style="bold")
    for column in ("stage", "took", "counts", "digest"):
        table.add_column(column, overflow="fold")
    for stage, artifact in run.artifacts().items():
        manifest = artifact.manifest
        counts = "  ".join(f"{name.replace('_', ' ')} {value:,}" for name, value in manifest.counts.items())
        table.add_row(stage, duration(manifest.provenance["seconds"]), counts, manifest.digest[:12])
    console.print(table)
    evaluation = run.artifact("evaluate")
    scores = score_table(evaluation, console.width) if evaluation else None
    if scores is not None:
        console.print(scores)
        console.print(f"every answer: {escape(str(run.path / 'evaluate' / 'report.html'))}", highlight=False)
    console.print(f"look closer: tunesmith show {run.name} STAGE, or --sample N --tokens", style="dim", highlight=False)


def score_table(evaluation: Artifact, width: int) -> Table | None:
    """The scores of an evaluation as a table; None where nothing was evaluated. Where `width` characters are too few,
    the comparison is left to the report."""
    from tunesmith.judging.report import score_table_rows

    rows = score_table_rows(json.loads(evaluation.file("scores.json").read_text(encoding="utf-8")))
    if len(rows) < 2:
        return None
    if width < WIDE_ENOUGH and len(rows[0]) > 3:
        rows = [row[:-1] for row in rows]
    table = Table(box=None, header_style="bold", title="held-out test rows", title_justify="left")
    for index, heading in enumerate(rows[0]):
        table.add_column(escape(heading), justify="left" if index == 0 else "right")
    for row in rows[1:]:
        table.add_row(*(escape(cell) for cell in row))
    return table


def _show_artifact(console: Console, run: Run, stage: str) -> None:
    artifacts = run.artifacts()
    if stage not in artifacts:
        close = nearest(stage, artifacts)
        raise StoreError(
            f"the run has no artifact {stage!r}",
            where=run.name,
            hint=f"did you mean {close!r}?" if close else f"it has: {', '.join(artifacts) or 'none yet'}",
        )
    artifact = artifacts[stage]
    manifest = artifact.manifest
    console.print(f"[bold]{stage}[/]  {manifest.kind}  [dim]{escape(str(artifact.path))}[/]", highlight=False)
    table = Table(box=None, show_header=False)
    table.add_column(style="cyan")
    table.add_column(overflow="fold")
    for title, values in (("count", manifest.counts), ("fact", manifest.facts), ("input", manifest.inputs)):
        for name, value in values.items():
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            table.add_row(f"{title} {name}", escape(text if len(text) <= 300 else text[:297] + "..."))
    for name, entry in manifest.files.items():
        table.add_row(f"file {name}", f"{entry.size_bytes:,} bytes")
    console.print(table)
    for name in manifest.files:
        if name.endswith(".jsonl") and not name.startswith("logs/"):
            _show_head(console, artifact.file(name))


def _show_head(console: Console, path: Path) -> None:
    with path.open(encoding="utf-8") as stream:
        lines = [line for _, line in zip(range(MAX_LINES_SHOWN), stream, strict=False)]
    if lines:
        console.print(f"\n{path.name}", style="bold")
    for line in lines:
        text = line.rstrip()
        console.print(Text(text if len(text) <= 400 else text[:397] + "..."), style="dim")


def _show_sample(console: Console, run: Run, reference: str, *, tokens: bool) -> None:
    curated = run.artifact("curate")
    tokenized = run.artifact("tokenize")
    if curated is None or (tokens and tokenized is None):
        raise StoreError("the run has not come that far", where=run.name, hint="let `tunesmith run` finish first")
    conversation, split = _find_row(curated, tokenized, reference)
    title = f"{conversation.id}  {split}  from {conversation.source}"
    console.print(Panel(_as_text(conversation), title=escape(title), title_align="left"))
    if split == "test":
        _show_answers(console, run, conversation)
    if tokens:
        if split == "test" or tokenized is None:
            raise StoreError("only training rows have a loss mask", where=f"{run.name} sample {reference}")
        _show_tokens(console, run, tokenized, conversation.id)


def _find_row(curated: Artifact, tokenized: Artifact | None, reference: str) -> tuple[Conversation, str]:
    rows = [(_read(line), split) for split in ("train", "test") for line in _lines(curated.file(f"{split}.jsonl"))]
    if reference.isdecimal() and tokenized is not None and len(reference) < 12:
        order = [json.loads(line)["id"] for line in _lines(tokenized.file("rows.jsonl"))]
        if int(reference) < len(order):
            reference = order[int(reference)]
    for conversation, split in rows:
        if reference in (conversation.id, conversation.metadata.get("row_id")):
            return conversation, split
    raise StoreError(
        f"there is no sample {reference!r}",
        where=str(curated.path),
        hint=f"{len(rows)} rows: a number, or an id as in train.jsonl",
    )


def _lines(path: Path) -> list[str]:
    return [line for line in path.read_text(encoding="utf-8").split("\n") if line]


def _read(line: str) -> Conversation:
    return Conversation.model_validate_json(line)


def _as_text(conversation: Conversation) -> Text:
    text = Text()
    for message in conversation.messages:
        text.append(f"{message.role}\n", style="bold cyan")
        text.append(f"{message.content}\n")
    return text


def _show_answers(console: Console, run: Run, conversation: Conversation) -> None:
    evaluation = run.artifact("evaluate")
    if evaluation is None:
        return
    for line in _lines(evaluation.file("samples.jsonl")):
        sample = Sample.model_validate_json(line)
        if sample.id == conversation.id:
            for name, completion in sample.completions.items():
                console.print(Text(f"{name}: ", style="bold").append(completion.text, style="not bold"))


def _show_tokens(console: Console, run: Run, tokenized: Artifact, row_id: str) -> None:
    from tunesmith.chat.tokenizer import load_tokenizer
    from tunesmith.chat.view import tokens_in_colour, tokens_in_plain
    from tunesmith.model.catalog import base_model_path
    from tunesmith.stages.tokenize import load_sample

    base = artifact_in_force(run, "base_model")
    if base is None:
        raise StoreError("the run has no base model yet", where=run.name)
    sample = load_sample(tokenized, row_id)
    tokenizer = load_tokenizer(base_model_path(base))
    if console.is_terminal:
        console.print(tokens_in_colour(sample, tokenizer, boundaries=True))
    else:
        print(tokens_in_plain(sample, tokenizer))
    trained = sum(sample.loss_mask)
    console.print(f"{len(sample.input_ids)} tokens, {trained} of them targets", style="dim", highlight=False)
