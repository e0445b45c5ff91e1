"""Our side of data_kernels.py: of each kernel a function that gets ready and returns the one that is timed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from data_rows import BAND_ROWS, BANDS, COSINE, NGRAM, THRESHOLD

Run = Callable[[], list[Any]]
_THREADS = 2


def _enough(texts: list[str], number: int) -> list[str]:
    """So many that the compiled loops are loaded and the clock does not see it."""
    return (texts[:number] * (1 + number // len(texts)))[:number]


def novelty(texts: list[str], pool: list[str]) -> Run:
    from tunesmith.data import novelty as kernel

    kernel.COMPILED_FROM = 1  # the compiled loops from the first row on, so that the clock does not see them load
    kernel.RougeNoveltyIndex().add_novel(texts[:50], THRESHOLD)
    index = kernel.RougeNoveltyIndex()
    index.add_novel(pool, THRESHOLD)
    return lambda: index.add_novel(iter(texts), THRESHOLD).kept.tolist()


def exact(texts: list[str], _: list[str]) -> Run:
    from tunesmith.data.exact import COMPILED_FROM, find_exact

    options: dict[str, Any] = {"nfkc": True, "collapse_whitespace": True, "ignore_case": True, "num_threads": _THREADS}
    find_exact(_enough(texts, COMPILED_FROM), **options)
    return lambda: find_exact(iter(texts), **options).kept.tolist()


def minhash(texts: list[str], _: list[str]) -> Run:
    from tunesmith.data.minhash import COMPILED_FROM, find_near

    options: dict[str, Any] = {"threshold": THRESHOLD, "ngram": NGRAM, "num_bands": BANDS, "rows_per_band": BAND_ROWS}
    options |= {"num_threads": _THREADS, "rng_seed": 1}
    find_near(_enough(texts, COMPILED_FROM), **options)
    return lambda: find_near(iter(texts), **options).kept.tolist()


def semantic(texts: list[str], _: list[str]) -> Run:
    from tunesmith.data.semantic import find_semantic, wordllama_embedder

    options: dict[str, Any] = {"threshold": COSINE, "keep": "first", "num_clusters": None, "rng_seed": 1}
    embed = wordllama_embedder()
    embed(_enough(texts, 2000))
    return lambda: find_semantic(iter(texts), embed=embed, **options).kept.tolist()


def contamination(texts: list[str], pool: list[str]) -> Run:
    from tunesmith.data.decontamination import COMPILED_FROM, EvaluationIndex

    index = EvaluationIndex(pool, ngram=8, long_ngram=13, num_threads=_THREADS)
    index.find(_enough(texts, COMPILED_FROM), max_coverage=0.5)
    return lambda: index.find(iter(texts), max_coverage=0.5).kept.tolist()


def language(texts: list[str], _: list[str]) -> Run:
    from tunesmith.data.language import LanguageDetector

    detector = LanguageDetector()
    return lambda: [detector.detect(text).code for text in texts]


def pages(texts: list[str], _: list[str]) -> Run:
    from tunesmith.data.pages.markdown import html_to_markdown

    return lambda: [html_to_markdown(text) for text in texts]


def tokenize(rows: list[list[str]], pool: list[str]) -> Run:
    from tunesmith.chat.renderer import Renderer
    from tunesmith.types import Message

    renderer = Renderer.for_model(Path(pool[0]))
    talks = [[Message(role="user", content=asked), Message(role="assistant", content=said)] for asked, said in rows]

    def run() -> list[Any]:
        counts = []
        for start in range(0, len(talks), 256):
            for sample in renderer.render_batch(talks[start : start + 256], "all_turns"):
                if isinstance(sample, Exception):
                    raise sample
                counts.append((len(sample.input_ids), int(sample.loss_mask.sum())))
        return counts

    return run


SIDES: dict[str, dict[str, Callable[[list[Any], list[str]], Run]]] = {
    "novelty": {"tunesmith": novelty},
    "exact": {"tunesmith": exact},
    "minhash": {"tunesmith": minhash},
    "semantic": {"tunesmith": semantic},
    "contamination": {"tunesmith": contamination},
    "language": {"tunesmith": language},
    "pages": {"tunesmith": pages},
    "tokenize": {"tunesmith": tokenize},
}
