"""The map of examples, twice: with its PCA as soon as there is one, then with UMAP.

    for document in build_map(examples, title=..., max_rows=..., of=..., num_clusters=..., with_umap=..., ...):
        write the page

Every row that is read ends placed, not drawn, or counted under the reason why it has no place.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from hashlib import blake2b
from importlib.metadata import version
from importlib.util import find_spec

import numpy as np

from tunesmith.data.atlas.clusters import find_clusters
from tunesmith.data.atlas.document import MapDocument, Projection, fitted
from tunesmith.data.atlas.groupings import Grouping, groupings
from tunesmith.data.atlas.projection import UMAP_DIMENSIONS, Pca, pca, umap_layout, why_no_umap
from tunesmith.data.atlas.rows import MapRow, Part, map_row, placed_text
from tunesmith.data.language import LanguageDetector
from tunesmith.data.semantic import Embed, wordllama_embedder
from tunesmith.errors import DataError, MissingExtra
from tunesmith.events import Note, Progress
from tunesmith.protocols import EventSink
from tunesmith.types import Example, Excluded

_TEXTS_AT_ONCE = 2_048


def build_map(
    examples: Iterable[Example | Excluded],
    *,
    title: str,
    max_rows: int,
    of: Part,
    num_clusters: int | None,
    with_umap: bool | None,
    rng_seed: int,
    events: EventSink,
    embed: Embed | None = None,
) -> Iterator[MapDocument]:
    """The document with PCA, then, where UMAP is wanted and possible, the one with both.

    Beyond max_rows rows are drawn evenly. with_umap None = where umap-learn is installed; True = MissingExtra, after the
    first document, where it is not. embed None = the static vectors of the extra `semantic`. DataError where no row has a
    text to be placed by.
    """
    embedding = "given vectors" if embed else f"wordllama {version('wordllama')}" if find_spec("wordllama") else ""
    embed = embed or wordllama_embedder()
    drawn, num_not_drawn = _draw(examples, max_rows, rng_seed)
    rows, texts, unplaced = _with_text(drawn, of)
    vectors = _embedded(texts, embed, events)
    known = np.flatnonzero(np.linalg.norm(vectors, axis=1) > 0) if len(rows) else np.zeros(0, np.int64)
    unplaced["no_known_word"] += len(rows) - len(known)
    if not len(known):
        raise DataError(
            f"no row has a text to be placed by ({len(drawn):,} rows, placed by their {_PARTS[of]})",
            where=title,
            hint="place them by another part: --of prompt, reply or conversation",
        )
    rows, texts, vectors = [rows[n] for n in known], [texts[n] for n in known], vectors[known]
    main_axes = pca(vectors, UMAP_DIMENSIONS)
    clusters = find_clusters(vectors, texts, num_clusters, rng_seed)
    named = Grouping("cluster", "Cluster", clusters.names, clusters.of.tolist())
    notes: list[str] = []
    document = MapDocument(
        title=title,
        embedding=f"{embedding} of the {_PARTS[of]}",
        rows=rows,
        groupings=[named, *groupings(rows, _languages(notes))],
        projections=[_pca_projection(main_axes)],
        counts={
            "placed": len(rows),
            **({"not_drawn": num_not_drawn} if num_not_drawn else {}),
            **{reason: number for reason, number in sorted(unplaced.items()) if number},
        },
        notes=notes,
    )
    why_not = None if with_umap is False else why_no_umap(main_axes.coordinates)
    if why_not is not None:
        notes.append(why_not)
        events.emit(Note(message=why_not))
    if with_umap is False or why_not is not None:
        yield document
        return
    yield from _with_umap(document, main_axes.coordinates, with_umap is True, rng_seed, events)


_PARTS = {"prompt": "prompt", "reply": "last reply", "conversation": "whole conversation"}


def _with_umap(
    document: MapDocument, coordinates: np.ndarray, required: bool, rng_seed: int, events: EventSink
) -> Iterator[MapDocument]:
    yield replace(document, pending="umap", projections=list(document.projections), notes=list(document.notes))
    events.emit(Progress(task="umap", done=0, total=None, unit="rows"))
    try:
        layout = umap_layout(coordinates, rng_seed)
    except MissingExtra as error:
        document.notes.append(f"UMAP is not here: {error.hint}")
        yield document
        if required:
            raise
        events.emit(Note(level="warning", message=f"{error.message}: the map has its PCA alone; {error.hint}"))
        return
    document.projections.append(
        Projection("umap", "UMAP", "neighbours are kept, distances between far groups are not", fitted(layout))
    )
    yield document


def _draw(examples: Iterable[Example | Excluded], size: int, rng_seed: int) -> tuple[list[Example | Excluded], int]:
    """At most `size` rows in their order, and how many were not drawn. Unlike `FILE#500` it draws among excluded rows
    too: a run may have excluded more than it kept."""
    taken: list[tuple[int, int, Example | Excluded]] = []  # a heap, the highest digest on top
    num_not_drawn = 0
    for number, example in enumerate(examples):
        digest = blake2b(f"{rng_seed}\0{number}".encode(), digest_size=8).digest()
        entry = (-int.from_bytes(digest), number, example)
        if len(taken) < size:
            heapq.heappush(taken, entry)
        else:
            heapq.heappushpop(taken, entry)
            num_not_drawn += 1
    return [example for _, _, example in sorted(taken, key=lambda entry: entry[1])], num_not_drawn


def _with_text(examples: Iterable[Example | Excluded], of: Part) -> tuple[list[MapRow], list[str], Counter[str]]:
    rows: list[MapRow] = []
    texts: list[str] = []
    unplaced: Counter[str] = Counter()
    for example in examples:
        row = map_row(example)
        text = placed_text(row, of)
        if text:
            rows.append(row)
            texts.append(text)
        else:
            unplaced["no_text" if of == "conversation" else f"no_{of}"] += 1
    return rows, texts, unplaced


def _embedded(texts: Sequence[str], embed: Embed, events: EventSink) -> np.ndarray:
    parts: list[np.ndarray] = []
    for start in range(0, len(texts), _TEXTS_AT_ONCE):
        parts.append(embed(texts[start : start + _TEXTS_AT_ONCE]))
        done = min(start + _TEXTS_AT_ONCE, len(texts))
        events.emit(Progress(task="embed", done=done, total=len(texts), unit="rows"))
    return np.concatenate(parts) if parts else np.zeros((0, 1), np.float32)


def _pca_projection(main_axes: Pca) -> Projection:
    held = main_axes.shares[:3].sum()
    note = f"the three widest axes hold {held:.0%} of the variance"
    return Projection("pca", "PCA", note, fitted(main_axes.coordinates[:, :3]))


def _languages(notes: list[str]) -> Callable[[MapRow], str] | None:
    try:
        detector = LanguageDetector()
    except MissingExtra as error:
        notes.append(f"no colours by language: {error.hint}")
        return None

    def language_of(row: MapRow) -> str:
        turn = next((turn for turn in row.turns if turn.role != "system" and turn.text.strip()), None)
        return detector.detect(turn.text).code if turn else ""

    return language_of
