"""`tunesmith data map`: writes the page with its PCA, and again when UMAP is done."""

from __future__ import annotations

import webbrowser
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rich.console import Console
from rich.markup import escape

from tunesmith.cli.data_input import find_rows
from tunesmith.cli.terminal import TerminalSink
from tunesmith.errors import RecipeError
from tunesmith.events import StageSink
from tunesmith.store import write_atomic

if TYPE_CHECKING:
    from tunesmith.data.atlas.document import MapDocument

_PAGE_MARK = b"tunesmith map</title>"
_JSON_MARK = b'{"tunesmith_map"'
_HEAD_BYTES = 4096  # a map says what it is within these


def write_map(
    source: str | None,
    *,
    root: Path | None,
    form: str,
    of: Literal["prompt", "reply", "conversation"],
    num_clusters: int | None,
    max_rows: int,
    with_umap: bool | None,
    rng_seed: int,
    page_path: Path,
    json_path: Path | None,
    open_page: bool,
) -> None:
    """The map of IN as a page, and as JSON where asked for. Without IN the page is empty and takes a dropped JSON."""
    console = Console(highlight=False, soft_wrap=True)
    _refuse_to_replace(page_path, _PAGE_MARK)
    if json_path is not None:
        _refuse_to_replace(json_path, _JSON_MARK)
    if source is None:
        _write_empty(page_path, json_path, console)
        _open(page_path, open_page)
        return
    from tunesmith.data.atlas.build import build_map

    found = find_rows(source, root, form)
    with TerminalSink(console) as sink:
        documents = build_map(
            found.rows(),
            title=Path(found.name).name if Path(found.name).exists() else found.name,
            max_rows=max_rows,
            of=of,
            num_clusters=num_clusters,
            with_umap=with_umap,
            rng_seed=rng_seed,
            events=StageSink(sink, "map"),
        )
        last = _write_as_they_come(documents, page_path, json_path, console, open_page=open_page)
    parts = ", ".join(f"{number:,} {_WORDS.get(name, name)}" for name, number in last.counts.items())
    projections = " and ".join(projection.title for projection in last.projections)
    console.print(f"{parts}; {projections} → {escape(str(page_path))}")
    if json_path is not None:
        console.print(f"  its points → {escape(str(json_path))}")


def _write_empty(page_path: Path, json_path: Path | None, console: Console) -> None:
    from tunesmith.data.atlas.page import map_page

    if json_path is not None:
        raise RecipeError(
            "there is no IN to write points of", where="--points", hint="tunesmith data map IN --points FILE"
        )
    _write(page_path, map_page(None))
    console.print(f"an empty page, for maps to be dropped on → {escape(str(page_path))}")


def _write_as_they_come(
    documents: Iterable[MapDocument], page_path: Path, json_path: Path | None, console: Console, *, open_page: bool
) -> MapDocument:
    """Each in the place of the one before it. An interrupt leaves the last one, which then says that no other follows."""
    last: MapDocument | None = None
    try:
        for document in documents:
            _write_both(document, page_path, json_path)
            if last is None:
                _open(page_path, open_page)
            last = document
            if document.pending is not None:
                console.print(f"  PCA → {escape(str(page_path))}; UMAP follows: reload the page then")
    except KeyboardInterrupt:
        if last is not None and last.pending is not None:
            last.pending = None
            last.notes.append("UMAP was interrupted")
            _write_both(last, page_path, json_path)
        raise
    assert last is not None  # build_map gives a document or raises
    return last


_WORDS = {
    "placed": "rows placed",
    "not_drawn": "not drawn",
    "no_text": "without text",
    "no_prompt": "without a prompt",
    "no_reply": "without a reply",
    "no_known_word": "without a word the embedding knows",
}


def _refuse_to_replace(path: Path, mark: bytes) -> None:
    """A map may be written over an older map, and over nothing else."""
    if path.is_dir():
        raise RecipeError("this is a folder, expected the file to write", where=str(path))
    if path.exists():
        with path.open("rb") as stream:
            head = stream.read(_HEAD_BYTES)
        if mark not in head:
            raise RecipeError(
                "the file to write is there already, and it is no map", where=str(path), hint="choose another name"
            )


def _write_both(document: MapDocument, page_path: Path, json_path: Path | None) -> None:
    from tunesmith.data.atlas.document import as_json, encoded
    from tunesmith.data.atlas.page import map_page

    data = as_json(document)
    if json_path is not None:
        _write(json_path, encoded(data))
    _write(page_path, map_page(data))


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, content)


def _open(path: Path, wanted: bool) -> None:
    if wanted:
        webbrowser.open(path.resolve().as_uri())
