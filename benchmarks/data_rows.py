"""Rows with a planted truth for data_kernels.py, and how an answer is held against it. Imports nothing of tunesmith: the
peers' environment reads this too.

A file of rows is one JSON value per line: first {"pool": [...], "known": [...]}, then {"row": ..., "truth": ...} each.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

THRESHOLD, NGRAM, BANDS, BAND_ROWS, COSINE = 0.7, 5, 16, 8, 0.95

SENTENCES = {
    "en": ["Where can I buy a cheap bicycle?", "Explain the difference between a list and a tuple.", "The river was slow and green under the old trees.", "Write a short letter to the landlord about the heating."],
    "de": ["Wo kann ich ein günstiges Fahrrad kaufen?", "Erkläre den Unterschied zwischen einer Liste und einem Tupel.", "Der Fluss war langsam und grün unter den alten Bäumen.", "Schreibe dem Vermieter einen kurzen Brief über die Heizung."],
    "fr": ["Où puis-je acheter un vélo pas cher ?", "Explique la différence entre une liste et un tuple.", "La rivière était lente et verte sous les vieux arbres.", "Écris une courte lettre au propriétaire à propos du chauffage."],
    "es": ["¿Dónde puedo comprar una bicicleta barata?", "Explica la diferencia entre una lista y una tupla.", "El río era lento y verde bajo los viejos árboles.", "Escribe una carta breve al casero sobre la calefacción."],
    "it": ["Dove posso comprare una bicicletta economica?", "Spiega la differenza tra una lista e una tupla.", "Il fiume era lento e verde sotto i vecchi alberi.", "Scrivi una breve lettera al padrone di casa sul riscaldamento."],
    "ru": ["Где можно купить недорогой велосипед?", "Объясни разницу между списком и кортежем.", "Река была медленной и зелёной под старыми деревьями.", "Напиши хозяину короткое письмо об отоплении."],
    "zh": ["在哪里可以买到便宜的自行车？", "请解释列表和元组的区别。", "老树下的河水又慢又绿。", "给房东写一封关于暖气的短信。"],
    "ja": ["安い自転車はどこで買えますか。", "リストとタプルの違いを説明してください。", "古い木々の下で川はゆっくりと緑色に流れていた。", "暖房について大家さんに短い手紙を書いてください。"],
}  # fmt: skip


def make_rows(num_rows: int, words: tuple[int, int], seed: int) -> tuple[list[str], list[int]]:
    """(texts of `words` words, the origin of each: the unique row it was copied from). Words are drawn by the law of Zipf
    and Mandelbrot; 70 % unique rows, 10 % exact copies, 20 % near copies (3 % of the words replaced)."""
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


def instructions(folder: Path) -> list[str]:
    """What users ask in the Alpaca-family files of a folder, in a fixed random order."""
    texts: list[str] = []
    for path in sorted((folder / "alpaca").glob("*.json")):
        texts += [f"{row['instruction']}\n{row.get('input') or ''}".strip() for row in json.loads(path.read_text())]
    lines = (folder / "lamini/lamini_dataset.jsonl").read_text().splitlines()
    texts += [json.loads(line)["question"] for line in lines]
    random.Random(0).shuffle(texts)
    return texts


def exchanges(num_rows: int, folder: Path | None) -> list[list[str]]:
    """(question, answer) of each row; of the folder's files as often as needed, without it made-up words."""
    if folder is None:
        asked, _ = make_rows(num_rows, (8, 50), seed=5)
        said, _ = make_rows(num_rows, (10, 90), seed=6)
        return [list(pair) for pair in zip(asked, said, strict=True)]
    pairs: list[list[str]] = []
    for path in sorted((folder / "alpaca").glob("*.json")):
        for row in json.loads(path.read_text()):
            pairs.append([f"{row['instruction']}\n\n{row.get('input') or ''}".strip(), row["output"]])
    for line in (folder / "lamini/lamini_dataset.jsonl").read_text().splitlines():
        row = json.loads(line)
        pairs.append([row["question"], row["response"]])
    pairs = [pair for pair in pairs if pair[0].strip() and pair[1].strip()]
    random.Random(0).shuffle(pairs)
    return (pairs * (1 + num_rows // len(pairs)))[:num_rows]


def sentences(num_rows: int) -> tuple[list[str], list[str]]:
    """(texts of two or three sentences, the language of each)."""
    rng = random.Random(4)
    codes = [rng.choice(list(SENTENCES)) for _ in range(num_rows)]
    return [" ".join(rng.choices(SENTENCES[code], k=rng.choice((2, 3)))) for code in codes], codes


def write_rows(
    path: Path, rows: Sequence[Any], truth: Sequence[Any], pool: Sequence[str], known: Iterable[int]
) -> None:
    """See the top."""
    with path.open("w") as stream:
        stream.write(json.dumps({"pool": list(pool), "known": sorted(known)}) + "\n")
        for row, true in zip(rows, truth, strict=True):
            stream.write(json.dumps({"row": row, "truth": true}) + "\n")


def read_rows(path: Path, num_rows: int) -> tuple[dict[str, Any], list[Any], list[Any]]:
    """(header, rows, truth) of the first rows."""
    rows: list[Any] = []
    truth: list[Any] = []
    with path.open() as stream:
        header = json.loads(stream.readline())
        for line in stream:
            if len(rows) == num_rows:
                break
            each = json.loads(line)
            rows.append(each["row"])
            truth.append(each["truth"])
    return header, rows, truth


def judge_kept(kept: Sequence[int], origins: Sequence[int], header: dict[str, Any]) -> str:
    """precision = removed rows whose origin has a row that stays, recall = removed / all planted copies."""
    stays = set(kept)
    known = set(header["known"])
    seen, copies, found, right = set(known), 0, 0, 0
    origins_kept = known | {origins[row] for row in stays}
    for row, origin in enumerate(origins):
        copies += origin in seen
        seen.add(origin)
        if row not in stays:
            found += 1
            right += origin in origins_kept
    precision = right / found if found else 1.0
    recall = min(1.0, right / copies) if copies else 1.0
    return f"precision {precision:.3f} recall {recall:.3f}"


def judge_languages(found: Sequence[str], codes: Sequence[str], _: dict[str, Any]) -> str:
    """How many languages are the planted ones."""
    right = sum(one == other for one, other in zip(found, codes, strict=True))
    return f"right {right / len(codes):.3f}"


def judge_pages(texts: Sequence[str], marks: Sequence[Sequence[int]], _: dict[str, Any]) -> str:
    """Code fences, those with their language, and tables found, of those planted."""
    fences = sum(len(re.findall(r"^ *(?:```|~~~)", text, re.MULTILINE)) // 2 for text in texts)
    named = sum(len(re.findall(r"^ *```python$", text, re.MULTILINE)) for text in texts)
    tables = sum(len(re.findall(r"^\|?(?: ?:?-{3,}:? ?\|?){3}$", text, re.MULTILINE)) for text in texts)
    all_fences, all_tables = (sum(each[k] for each in marks) for k in (0, 1))
    return f"fences {fences / all_fences:.3f} with language {named / all_fences:.3f} tables {tables / all_tables:.3f}"


def judge_tokens(counts: Sequence[Sequence[int]], _: Sequence[Any], __: dict[str, Any]) -> str:
    """Tokens and targets in all: the sides should agree."""
    return f"tokens {sum(each[0] for each in counts):,} targets {sum(each[1] for each in counts):,}"


JUDGES: dict[str, Callable[[Any, Any, dict[str, Any]], str]] = {
    **dict.fromkeys(("novelty", "exact", "minhash", "semantic", "contamination"), judge_kept),
    "language": judge_languages,
    "pages": judge_pages,
    "tokenize": judge_tokens,
}
