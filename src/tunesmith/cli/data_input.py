"""What IN names in `tunesmith data`: a file in any known form, or what a run has made. Gives rows, again at every call."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tunesmith.errors import DataError, RecipeError, StoreError, nearest
from tunesmith.recipe import Ingest, split_sampled
from tunesmith.store import MANIFEST, Run, default_root, find_run, list_runs, load_artifact
from tunesmith.types import Artifact, Conversation, Document, Example, Excluded, Labelled, Preference

Rows = Iterator[Example | Excluded]

_FILES: dict[str, type[Example] | type[Excluded]] = {
    "train.jsonl": Conversation,
    "test.jsonl": Conversation,
    "conversations.jsonl": Conversation,
    "preferences.jsonl": Preference,
    "labelled.jsonl": Labelled,
    "documents.jsonl": Document,
    "excluded.jsonl": Excluded,
    "rejects.jsonl": Excluded,
}
"""Files of artifacts that hold rows, in the order in which they are read."""

_STAGES = ("curate", "generate", "ingest")
"""Where a run alone is named: the first of these that it has."""


@dataclass(frozen=True)
class RowSource:
    """A data set by the name it was asked for. `counts` are those of the stage that made it; of FILE#500 the rows that were
    not drawn, known once all rows were read; {} of a file."""

    name: str
    made_by: str  # "curate" ..., "" of a file
    counts: dict[str, int]
    rows: Callable[[], Rows] = field(repr=False)


def find_rows(reference: str, root: Path | None, form: str) -> RowSource:
    """IN as the command line has it. RecipeError or StoreError says what was looked for and where."""
    path = Path(reference).expanduser()
    if path.exists():
        if (path / "run.json").is_file():
            return _of_run(Run(path), None, reference)
        if (path / MANIFEST).is_file():
            return _of_artifact(load_artifact(path), reference)
        return RowSource(reference, "", {}, lambda: _read(path, form))
    name, size = split_sampled(reference)
    sampled = Path(name).expanduser()
    if size is not None and sampled.exists():
        counts: dict[str, int] = {}
        return RowSource(reference, "", counts, lambda: _draw(sampled, form, size, counts))
    return _of_reference(reference, root or default_root())


def _of_reference(reference: str, root: Path) -> RowSource:
    run_name, _, stage = reference.rstrip("/").rpartition("/") if "/" in reference else (reference, "", "")
    bare = "/" not in reference and "." not in reference
    if list_runs(root) or bare:
        try:
            return _of_run(find_run(run_name, root), stage or None, reference)
        except StoreError as error:
            if "there is no run" not in error.message:
                raise
    path = Path(split_sampled(reference)[0]).expanduser()
    close = nearest(path.name, (each.name for each in path.parent.iterdir())) if path.parent.is_dir() else None
    if close is not None:
        raise RecipeError("there is no such file", where=reference, hint=f"did you mean {close!r}?")
    have = ", ".join([*(run.name for run in list_runs(root)[-6:]), *(["latest"] if list_runs(root) else [])])
    raise RecipeError(
        "there is no such file, and no run of that name",
        where=reference,
        hint=f"name a file, a folder, a .zip, FILE#500, or a run as RUN or RUN/STAGE; runs in {root}: {have or 'none yet'}",
    )


def _of_run(run: Run, stage: str | None, reference: str) -> RowSource:
    artifacts = run.artifacts()
    stage = stage or next((name for name in _STAGES if name in artifacts), None)
    if stage is None:
        raise StoreError(
            "the run has no rows yet", where=run.name, hint="let `tunesmith run` finish its ingest stage first"
        )
    if stage not in artifacts:
        close = nearest(stage, artifacts)
        have = ", ".join(name for name in artifacts if name in _STAGES) or "none yet"
        raise StoreError(
            f"the run has no artifact {stage!r}",
            where=run.name,
            hint=f"did you mean {close!r}?" if close else f"it has rows of: {have}",
        )
    found = _of_artifact(artifacts[stage], reference)
    return RowSource(f"{run.name}/{stage}", found.made_by, found.counts, found.rows)


def _of_artifact(artifact: Artifact, reference: str) -> RowSource:
    manifest = artifact.manifest
    files = [name for name in _FILES if name in manifest.files]
    if not files or all(_FILES[name] is Excluded for name in files):
        raise StoreError(
            f"the artifact of {manifest.stage} holds no conversations",
            where=reference,
            hint=f"look at those of {', '.join(_STAGES)}: RUN/{_STAGES[0]}",
        )
    return RowSource(reference, manifest.stage, dict(manifest.counts), lambda: _records(artifact, files))


def _records(artifact: Artifact, files: list[str]) -> Rows:
    from tunesmith.text.jsonl import iter_records

    for name in files:
        yield from iter_records(artifact.file(name), _FILES[name])


def _read(path: Path, form: str) -> Rows:
    from tunesmith.data.readers import read_examples

    return _at_least_one(read_examples(path, form), path)


def _draw(path: Path, form: str, size: int, counts: dict[str, int]) -> Rows:
    from tunesmith.data.readers.sampling import Sampled

    drawn = Sampled(_read(path, form), size, Ingest().rng_seed)
    yield from drawn
    counts["not_drawn"] = drawn.num_left_out


def _at_least_one(rows: Rows, path: Path) -> Rows:
    """The rows; DataError where there is none at all."""
    empty = True
    for row in rows:
        empty = False
        yield row
    if empty:
        raise DataError("there is no row", where=str(path), hint="name a file with examples")
