"""The data engine's kernels against the best peers that install, on the same rows with planted duplicates.

    python -m venv /tmp/peers && /tmp/peers/bin/pip install rensa datasketch rouge-score semhash
    python benchmarks/data_kernels.py --peer-python /tmp/peers/bin/python --rows 200000

Rows are made here from a seed: words drawn by the law of Zipf and Mandelbrot, 70 % unique, 10 % exact copies, 20 % near copies (3 % of the
words replaced). Each measurement is a process of its own, which reads the rows, then starts the clock; compiled loops
are loaded before it. Prints rows/s, the ratio to ours, peak memory, and the removed rows against the planted truth:
precision = removed rows whose origin is the origin of a row that stays, recall = removed / all planted copies.
A peer reads at most --peer-rows, so that the slow ones end; its rate is that of these rows, and its pool is smaller.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

Rows = list[str]
Answer = Iterable[int]  # the rows that stay

THRESHOLD, NGRAM, BANDS, BAND_ROWS = 0.7, 5, 16, 8


def make_rows(num_rows: int, words: tuple[int, int], seed: int) -> tuple[Rows, list[int]]:
    """(texts of `words` words, the origin of each: the unique row it was copied from)."""
    import numpy as np

    rng = np.random.default_rng(seed)
    letters = rng.integers(97, 123, (30_000, 10)).astype(np.uint8)
    vocabulary = [bytes(row[: 2 + k % 8]).decode() for k, row in enumerate(letters)]
    num_unique, num_near = int(num_rows * 0.7), int(num_rows * 0.2)
    chances = np.cumsum(1 / (np.arange(30_000) + 2.7))  # Mandelbrot's shift; "the" is then some 4 % of all words
    sizes = rng.integers(*words, num_unique)
    drawn = np.searchsorted(chances, rng.random(sizes.sum()) * chances[-1])
    rows = np.split(drawn, np.cumsum(sizes)[:-1])
    sources = rng.integers(0, num_unique, num_rows - num_unique)
    for number, source in enumerate(sources):
        row = rows[source].copy()
        if number < num_near:
            row[rng.integers(0, len(row), max(1, round(0.03 * len(row))))] = rng.integers(0, 30_000)
        rows.append(row)
    origins = [*range(num_unique), *sources.tolist()]
    order = rng.permutation(num_rows)
    return [" ".join([vocabulary[word] for word in rows[k]]) for k in order], [origins[k] for k in order]


def ours_novelty(texts: Rows, pool: Rows) -> Callable[[], Answer]:
    from tunesmith.data.kernels.pool import CompiledPool
    from tunesmith.data.novelty import RougeNoveltyIndex
    from tunesmith.text.rouge import alphabet_of, unicode_tokens

    alphabet = alphabet_of(unicode_tokens)
    assert alphabet is not None
    CompiledPool(alphabet).search(texts[:50], THRESHOLD, add=True)
    index = RougeNoveltyIndex()
    index.add_novel(pool, THRESHOLD)
    return lambda: index.add_novel(texts, THRESHOLD).kept.tolist()


def peer_rouge_score(texts: Rows, pool: Rows) -> Callable[[], Answer]:
    """The Self-Instruct loop at its best: the pool tokenized once."""
    from rouge_score import rouge_scorer, tokenize

    kept_tokens = [tokenize.tokenize(text, None) for text in pool]

    def run() -> Answer:
        kept = []
        for number, text in enumerate(texts):
            tokens = tokenize.tokenize(text, None)
            if max((rouge_scorer._score_lcs(other, tokens).fmeasure for other in kept_tokens), default=0) <= THRESHOLD:
                kept_tokens.append(tokens)
                kept.append(number)
        return kept

    return run


def ours_exact(texts: Rows, pool: Rows) -> Callable[[], Answer]:
    from tunesmith.data.exact import find_exact

    options: dict[str, Any] = {"nfkc": True, "collapse_whitespace": True, "ignore_case": True, "num_threads": 2}
    find_exact(texts[:50], **options)
    return lambda: find_exact(texts, **options).kept.tolist()


def peer_set(texts: Rows, pool: Rows) -> Callable[[], Answer]:
    """A Python set of blake2b digests of the normalised texts, as data pipelines write it."""
    import hashlib
    import unicodedata

    def run() -> Answer:
        seen: set[bytes] = set()
        kept = []
        for number, text in enumerate(texts):
            normal = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
            digest = hashlib.blake2b(normal.encode(), digest_size=16).digest()
            if digest not in seen:
                seen.add(digest)
                kept.append(number)
        return kept

    return run


def ours_minhash(texts: Rows, pool: Rows) -> Callable[[], Answer]:
    from tunesmith.data.minhash import find_near

    options: dict[str, Any] = {"threshold": THRESHOLD, "ngram": NGRAM, "num_bands": BANDS, "rows_per_band": BAND_ROWS}
    options |= {"num_threads": 2, "rng_seed": 1}
    find_near(texts[:200], **options)
    return lambda: find_near(texts, **options).kept.tolist()


def word_grams(text: str) -> list[str]:
    words = text.split()
    return [" ".join(words[k : k + NGRAM]) for k in range(max(1, len(words) - NGRAM + 1))]


def peer_datasketch(texts: Rows, pool: Rows) -> Callable[[], Answer]:
    from datasketch import MinHash, MinHashLSH

    def run() -> Answer:
        index = MinHashLSH(num_perm=BANDS * BAND_ROWS, params=(BANDS, BAND_ROWS))
        kept = []
        for number, text in enumerate(texts):
            signature = MinHash(num_perm=BANDS * BAND_ROWS)
            signature.update_batch([gram.encode() for gram in word_grams(text)])
            if not index.query(signature):
                index.insert(number, signature)
                kept.append(number)
        return kept

    return run


def peer_rensa(texts: Rows, pool: Rows) -> Callable[[], Answer]:
    from rensa import RMinHash, RMinHashDeduplicator

    def run() -> Answer:
        index = RMinHashDeduplicator(
            threshold=THRESHOLD, num_perm=BANDS * BAND_ROWS, use_lsh=True, num_bands=BANDS, seed=1
        )
        kept = []
        for number, text in enumerate(texts):
            signature = RMinHash(num_perm=BANDS * BAND_ROWS, seed=1)
            signature.update(word_grams(text))
            if index.add(str(number), signature):
                kept.append(number)
        return kept

    return run


def ours_contamination(texts: Rows, pool: Rows) -> Callable[[], Answer]:
    from tunesmith.data.decontamination import EvaluationIndex

    index = EvaluationIndex(pool, ngram=8, long_ngram=13, num_threads=2)
    index.find(texts[:50], max_coverage=0.5)
    return lambda: index.find(texts, max_coverage=0.5).kept.tolist()


def peer_gram_set(texts: Rows, pool: Rows) -> Callable[[], Answer]:
    """A Python set of 13-grams, any hit removes: what evaluation harnesses ship. Names no item, span or share."""
    grams = {tuple(words[k : k + 13]) for words in map(str.split, pool) for k in range(len(words) - 12)}

    def run() -> Answer:
        kept = []
        for number, text in enumerate(texts):
            words = text.split()
            if not any(tuple(words[k : k + 13]) in grams for k in range(len(words) - 12)):
                kept.append(number)
        return kept

    return run


KERNELS: dict[str, dict[str, Callable[[Rows, Rows], Callable[[], Answer]]]] = {
    "novelty": {"tunesmith": ours_novelty, "rouge_score": peer_rouge_score},
    "exact": {"tunesmith": ours_exact, "blake2b set": peer_set},
    "minhash": {"tunesmith": ours_minhash, "rensa": peer_rensa, "datasketch": peer_datasketch},
    "contamination": {"tunesmith": ours_contamination, "13-gram set": peer_gram_set},
}
SHORT_ROWS = ("novelty",)  # instructions; the others are whole texts
PEER_ROWS = {"rouge_score": 20}  # at a pool of --pool rows each row takes about a second


def measure(kernel: str, side: str, rows: int, source: Path) -> None:
    """Child process: one measurement, its answer as JSON on stdout."""
    given = json.loads(source.read_text())
    texts = given["texts"][:rows]
    run = KERNELS[kernel][side](texts, given["pool"])
    start, start_cpu = time.perf_counter(), time.process_time()
    kept = list(run())
    seconds, cpu = time.perf_counter() - start, time.process_time() - start_cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"seconds": seconds, "cpu": cpu, "peak_mib": peak, "rows": len(texts), "kept": kept}))


def quality(kept: list[int], origins: list[int], known: set[int]) -> tuple[float, float]:
    """(precision, recall) of the removed rows; `known` origins have a row in the pool."""
    stays = set(kept)
    seen, copies, found, right = set(known), 0, 0, 0
    origins_kept = known | {origins[row] for row in kept}
    for row, origin in enumerate(origins):
        copies += origin in seen
        seen.add(origin)
        if row not in stays:
            found += 1
            right += origin in origins_kept
    return right / found if found else 1.0, min(1.0, found / copies) if copies else 1.0


def prepare(kernel: str, options: argparse.Namespace, folder: Path) -> tuple[Path, list[int], set[int]]:
    """Write the rows of one kernel: (file, origins, origins that the pool has)."""
    if kernel in SHORT_ROWS:
        texts, origins = make_rows(options.pool + options.novelty_rows, (6, 15), seed=1)
        pool, known = texts[: options.pool], set(origins[: options.pool])
        texts, origins = texts[options.pool :], origins[options.pool :]
    elif kernel == "contamination":
        pool, _ = make_rows(28_000, (20, 80), seed=2)
        texts, origins = make_rows(options.rows, (15, 100), seed=3)
        known = {-1}
        origins = list(range(len(texts)))
        for row in range(0, len(texts), 100):  # planted: one row in a hundred has an item inside
            texts[row] = f"{texts[row]} {pool[row % len(pool)]}"
            origins[row] = -1
    else:
        pool, known = [], set()
        texts, origins = make_rows(options.rows, (15, 100), seed=3)
    path = folder / f"{kernel}.json"
    path.write_text(json.dumps({"texts": texts, "pool": pool}))
    return path, origins, known


def compare(kernel: str, options: argparse.Namespace, folder: Path) -> None:
    """All sides of one kernel, `--rounds` times; prints the best round of each."""
    path, origins, known = prepare(kernel, options, folder)
    ours = 0.0
    for side in KERNELS[kernel]:
        peer = side != "tunesmith"
        python = options.peer_python if peer else sys.executable
        if python is None:
            print(f"{kernel:14} {side:12} skipped: give --peer-python", flush=True)
            continue
        rows = min(PEER_ROWS.get(side, options.peer_rows), len(origins)) if peer else len(origins)
        command = [python, __file__, "--child", kernel, side, str(rows), str(path)]
        runs = [subprocess.run(command, capture_output=True, text=True) for _ in range(1 if peer else options.rounds)]
        failed = next((run for run in runs if run.returncode), None)
        if failed:
            print(f"{kernel:14} {side:12} skipped: {failed.stderr.strip().splitlines()[-1]}", flush=True)
            continue
        best = min((json.loads(run.stdout) for run in runs), key=lambda each: each["seconds"])
        rate = best["rows"] / best["seconds"]
        ours = ours or rate
        precision, recall = quality(best["kept"], origins[: best["rows"]], known)
        print(
            f"{kernel:14} {side:12} {best['rows']:>9,} rows {best['seconds']:8.2f} s ({best['cpu']:7.2f} s of CPU) {rate:>12,.1f} rows/s "
            f"ours/this {ours / rate:>10,.1f} peak {best['peak_mib']:>6,.0f} MiB "
            f"precision {precision:.3f} recall {recall:.3f}",
            flush=True,
        )


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        kernel, side, rows, path = sys.argv[2:]
        return measure(kernel, side, int(rows), Path(path))
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "--peer-python", help="interpreter of an environment with the peers; without it they are skipped"
    )
    parser.add_argument("--rows", type=int, default=200_000, help="rows of exact, minhash and contamination")
    parser.add_argument("--peer-rows", type=int, default=50_000, help="the first of them that peers read")
    parser.add_argument(
        "--pool", type=int, default=52_000, help="rows put into the novelty pool before the clock starts"
    )
    parser.add_argument("--novelty-rows", type=int, default=50_000, help="rows then looked up and added")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--only", choices=KERNELS, nargs="*", default=list(KERNELS))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for kernel in options.only:
            compare(kernel, options, Path(folder))


if __name__ == "__main__":
    main()
