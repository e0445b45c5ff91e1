"""`tunesmith data map` at 50,000 rows: seconds of each step, and milliseconds of each frame while the page turns.

    python benchmarks/map_page.py [--data FILE ...] [--rows 50000] [--no-umap]

Frames are those of headless Chromium without a graphics card, at 1280 x 800, 300 of them: once with the painter the page
chooses by itself there (raster), once with WebGL in software. Rows of --data are repeated with other words mixed in where
they are too few; without --data the rows are made up.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tunesmith.data.atlas.clusters import find_clusters
from tunesmith.data.atlas.document import MapDocument, Projection, as_json, encoded, fitted
from tunesmith.data.atlas.groupings import Grouping, groupings
from tunesmith.data.atlas.page import map_page
from tunesmith.data.atlas.projection import UMAP_DIMENSIONS, nearest_neighbours, pca, umap_layout
from tunesmith.data.atlas.rows import MapRow, map_row, placed_text
from tunesmith.data.readers import read_examples
from tunesmith.data.semantic import wordllama_embedder
from tunesmith.types import Conversation, Message

_SEED = 17
_TOPICS = [
    "bread oven flour yeast dough crust", "bicycle wheel chain gear brake saddle", "poem verse rhyme spring blossom", "loop array index string function python",
    "planet orbit moon gravity comet", "invoice refund order parcel delivery", "triangle angle area radius length", "guitar chord melody rhythm song",
]  # fmt: skip
_VERBS = ["write", "explain", "list", "compare", "translate", "summarise", "invent", "correct", "describe", "answer"]
_FRAMES = """(wanted) => new Promise((done) => {
    const times = [];
    let last = null;
    const next = (now) => {
        if (last !== null) times.push(now - last);
        last = now;
        if (times.length < wanted) requestAnimationFrame(next);
        else done(times);
    };
    requestAnimationFrame(next);
})"""


def made_up(count: int) -> Iterator[Conversation]:
    """Rows about eight topics, about 600 characters each."""
    rng = random.Random(_SEED)
    for number in range(count):
        words = _TOPICS[rng.randrange(len(_TOPICS))].split()
        prompt = f"{rng.choice(_VERBS)} {' '.join(rng.choices(words, k=8))} {number}"
        reply = " ".join(rng.choices([*words, *_VERBS], k=80))
        messages = [Message(role="user", content=prompt), Message(role="assistant", content=reply)]
        yield Conversation(messages=messages, source=f"made_up:{number}")


def given(paths: list[Path], count: int) -> Iterator[Conversation]:
    """Rows of files, again and again with a word of another row added until there are enough."""
    rows = [row for path in paths for row in read_examples(path) if isinstance(row, Conversation)]
    rng = random.Random(_SEED)
    for number in range(count):
        row = rows[number % len(rows)]
        if number >= len(rows):
            other = rows[rng.randrange(len(rows))].messages[-1].content.split()[:12]
            messages = [
                *row.messages[:-1],
                row.messages[-1].model_copy(update={"content": f"{row.messages[-1].content} {' '.join(other)}"}),
            ]
            row = Conversation(messages=messages, source=row.source)
        yield row


class Clock:
    """Prints the seconds of each step, and those of the processor: on a shared machine they are fewer."""

    def __init__(self) -> None:
        self.last = (time.perf_counter(), time.process_time())

    def lap(self, name: str) -> None:
        now = (time.perf_counter(), time.process_time())
        wall, processor = (after - before for after, before in zip(now, self.last, strict=True))
        print(f"{name:<34}{wall:8.1f} s{processor:8.1f} s of one core", flush=True)
        self.last = now


def build(rows: list[MapRow], with_umap: bool) -> MapDocument:
    """The document, step by step."""
    texts = [placed_text(row, "conversation") for row in rows]
    clock = Clock()
    embed = wordllama_embedder()
    clock.lap("load the embedding")
    vectors = embed(texts)
    clock.lap(f"embed {len(rows):,} rows")
    main_axes = pca(vectors, UMAP_DIMENSIONS)
    clock.lap("PCA, 50 axes")
    clusters = find_clusters(vectors, texts, None, _SEED)
    clock.lap(f"k-means, {len(clusters.names)} clusters, names")
    projections = [Projection("pca", "PCA", "", fitted(main_axes.coordinates[:, :3]))]
    if with_umap:
        nearest_neighbours(main_axes.coordinates, 15, _SEED)
        clock.lap("of UMAP: neighbours (done twice)")
        projections.append(Projection("umap", "UMAP", "", fitted(umap_layout(main_axes.coordinates, _SEED))))
        clock.lap("UMAP with neighbours and compiling")
    colours = [Grouping("cluster", "Cluster", clusters.names, clusters.of.tolist()), *groupings(rows, None)]
    clock.lap("groupings")
    return MapDocument("benchmark", "wordllama", rows, colours, projections, {"placed": len(rows)})


def measure_frames(page_path: Path, num_frames: int, chromium: str) -> None:
    """Load the page, let it turn, and time its frames, with either painter."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--headless", "--no-sandbox"])
        for painter in ("", "#webgl"):
            page: Any = browser.new_page(viewport={"width": 1280, "height": 800})
            started = time.perf_counter()
            page.goto(page_path.as_uri() + painter)
            page.wait_for_selector("#legend li", timeout=120_000)
            loaded = time.perf_counter() - started
            name = page.evaluate("document.documentElement.dataset.painter")
            page.wait_for_timeout(1500)
            page.focus("#space")
            page.keyboard.press("r")
            page.wait_for_timeout(500)
            times = sorted(page.evaluate(_FRAMES, num_frames))
            median, p95 = statistics.median(times), times[int(0.95 * (len(times) - 1))]
            print(
                f"{name:<8} load {loaded:4.1f} s   frame median {median:5.1f} ms   p95 {p95:5.1f} ms   ({num_frames} frames)"
            )
            page.close()
        browser.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, nargs="*", default=[])
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--frames", type=int, default=300)
    parser.add_argument("--no-umap", action="store_true")
    parser.add_argument("--chromium", default=os.environ.get("TUNESMITH_CHROMIUM", "/usr/bin/chromium"))
    options = parser.parse_args()
    examples = given(options.data, options.rows) if options.data else made_up(options.rows)
    rows = [map_row(example) for example in examples]
    document = build(rows, not options.no_umap)
    clock = Clock()
    data = as_json(document)
    page = map_page(data)
    clock.lap("write the page")
    print(
        f"JSON {len(encoded(data)) / 1e6:.1f} MB, page {len(page) / 1e6:.1f} MB, load average {os.getloadavg()[0]:.1f}"
    )
    with TemporaryDirectory() as folder:
        path = Path(folder) / "map.html"
        path.write_bytes(page)
        measure_frames(path, options.frames, options.chromium)


if __name__ == "__main__":
    main()
