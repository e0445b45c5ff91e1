"""Stage pretrain: the base model learns from text, with new pieces in its vocabulary; a base model comes out.

Order: hold text out, learn or merge pieces, give them rows, bring these to their frequencies, train embeddings and head, train everything (or LoRA, merged at
the end), write the folder, look at it, measure. What is left of a killed run is taken up at the step it had reached.
Wiring only: pieces and rows are model/vocabulary's, steps training/loop.py's.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import torch
from tokenizers import Tokenizer
from transformers import PreTrainedModel

from tunesmith.errors import RecipeError
from tunesmith.events import Note, Progress
from tunesmith.model.catalog import base_model_path
from tunesmith.model.checkpoint import Checkpoint, newest_checkpoint, save_checkpoint
from tunesmith.model.folder import inspect_folder
from tunesmith.model.load import MODEL_DIR, load_model
from tunesmith.model.vocabulary.base import TOKENIZER, BaseTokenizer
from tunesmith.model.vocabulary.check import check_folder
from tunesmith.model.vocabulary.extension import Extension, write_tokenizer
from tunesmith.model.vocabulary.learn import learn_pieces
from tunesmith.model.vocabulary.report import TokenCounts, bits_per_byte, count_tokens
from tunesmith.model.vocabulary.rows import grow_rows, matrices
from tunesmith.model.vocabulary.sentencepiece import merge_pieces, read_sentencepiece
from tunesmith.protocols import Context
from tunesmith.recipe import Optimisation
from tunesmith.recipe.pretrain import Pretrain
from tunesmith.resolve import NUM_NEW_TOKENS, PRETRAIN_RATES
from tunesmith.stages.corpus import Corpus, TextTokenizer, read_corpus
from tunesmith.stages.pretrain_rows import apply_calibration, find_calibration
from tunesmith.stages.pretrain_weights import make_trainable, put_weights, write_model
from tunesmith.stages.section_names import errors_name
from tunesmith.stages.spreading import Spreading
from tunesmith.stages.train import LOSSES_FILE, METRICS_FILE, choose_device, pace_of, precision_of, report, threads
from tunesmith.store import SCRATCH, write_atomic
from tunesmith.text.jsonl import write_records
from tunesmith.training.batches import Samples
from tunesmith.training.loop import StepLoss, Trained, train
from tunesmith.training.losses import CrossEntropy
from tunesmith.training.measuring import measure_losses
from tunesmith.training.probing import probe_model
from tunesmith.training.ranks import Ranks
from tunesmith.types import Inputs, Outcome, Record

PIECES, REPORT, EXCLUDED, HELD_OUT = "pieces.jsonl", "report.json", "excluded.jsonl", "held-out.jsonl"
_EMBEDDINGS, _ALL = "embeddings", "all"  # the two phases, and their folders under scratch/


class NewPiece(Record):
    """One line of pieces.jsonl. text: what it stands for, a part of a character as \\ufffd."""

    id: int
    text: str
    old_ids: list[int]


class HeldOut(Record):
    """One line of held-out.jsonl: what a passage takes under the base model, and under what came of it."""

    text: str
    num_bytes: int
    bits_before: float
    bits_after: float


class PhaseLoss(Record):
    """One line of losses.jsonl."""

    phase: str
    step: int
    loss: float
    num_supervised: int


@dataclass(frozen=True)
class _Job:
    section: Pretrain
    base_dir: Path
    out_dir: Path
    ctx: Context
    device: torch.device
    dtype: torch.dtype

    @property
    def spreading(self) -> Spreading:
        return Spreading(self.ctx.runtime.shard_weights, self.device, quantised=False)

    @property
    def folder(self) -> Path:
        return self.out_dir / MODEL_DIR

    def say(self, message: str) -> None:
        self.ctx.events.emit(Note(message=message))


def run(section: Pretrain, inputs: Inputs, out_dir: Path, ctx: Context) -> Outcome:
    """Reads the base model and the text; writes model/, and what is known of it as base_model does."""
    base_facts = inputs["base_model"].facts
    if section.pack_length > base_facts["context_length"]:
        raise RecipeError(
            f"{section.pack_length} tokens are more than the model reads ({base_facts['context_length']})",
            where="recipe.pretrain.pack_length",
        )
    files = [(name, inputs.files[name]) for name in section.files]
    corpus = read_corpus(files, section.num_test_texts, section.rng_seed, int(base_facts["context_length"]))
    ranks = Ranks.current()
    if ranks.is_first:
        write_records(out_dir / EXCLUDED, corpus.excluded)
    job = _open(section, base_model_path(inputs["base_model"]), out_dir, ctx)
    base = BaseTokenizer.load(job.base_dir)
    extension = ranks.from_first(lambda: _extension(job, base, corpus, inputs))
    with errors_name(section, "pretrain"), threads(ctx.runtime):
        before = _held_out_bits(job, job.base_dir, corpus) if ranks.is_first else []
        losses, trained = _train(job, extension, corpus)
        if not ranks.is_first:
            return Outcome("base_model", {"steps": len(losses)}, {})
        check_folder(job.folder, base, extension, corpus.test_texts)
        after = _held_out_bits(job, job.folder, corpus)
    counts = count_tokens(base.tokenizer, Tokenizer.from_file(str(job.folder / TOKENIZER)), corpus.test_texts)
    write_records(out_dir / LOSSES_FILE, losses)
    measured = {**counts.rates(), **_write_held_out(job, corpus, before, after)}
    return _outcome(job, base_facts, corpus, extension, counts, measured, trained)


def _open(section: Pretrain, base_dir: Path, out_dir: Path, ctx: Context) -> _Job:
    device = choose_device(ctx.runtime.device)
    with threads(ctx.runtime):
        precision = precision_of(ctx.runtime, base_dir, device)
    ctx.events.emit(Note(message=f"pre-training on {device}, {precision.reason}"))
    return _Job(section, base_dir, out_dir, ctx, device, precision.dtype)


def _extension(job: _Job, base: BaseTokenizer, corpus: Corpus, inputs: Inputs) -> Extension:
    """The new pieces, kept in scratch/ once found; the extended tokenizer and pieces.jsonl are written."""
    kept = job.out_dir / SCRATCH / "extension.json"
    if kept.is_file():
        extension = _from_json(kept.read_bytes())
    else:
        extension = _merge(job, base, inputs) if job.section.sentencepiece else _learn(job, base, corpus)
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(kept, _to_json(extension))
    write_tokenizer(base, extension, job.folder)
    decode = Tokenizer.from_file(str(job.folder / TOKENIZER)).decode
    ids = range(extension.first_id, extension.size)
    rows = zip(ids, extension.old_pieces, strict=True)
    pieces = (NewPiece(id=index, text=decode([index]), old_ids=list(old)) for index, old in rows)
    write_records(job.out_dir / PIECES, pieces)
    return extension


def _learn(job: _Job, base: BaseTokenizer, corpus: Corpus) -> Extension:
    section = job.section
    wanted = NUM_NEW_TOKENS if section.num_new_tokens == "auto" else section.num_new_tokens

    def on_piece(done: int, total: int) -> None:
        if done % 100 == 0 or done == total:
            job.ctx.events.emit(Progress(task="learn pieces", done=done, total=total, unit="pieces"))

    learned = learn_pieces(
        base,
        base.count_words(corpus.texts),
        num_new_tokens=wanted,
        max_piece_characters=section.max_piece_characters,
        min_piece_count=section.min_piece_count,
        on_piece=on_piece,
    )
    found = len(learned.extension.pieces)
    fewer = f" of {wanted:,} (no more stand {section.min_piece_count} times)" if found < wanted else ""
    job.say(f"{found:,} pieces learnt{fewer}: words of {learned.tokens_before:,} tokens take {learned.tokens_after:,}")
    return learned.extension


def _merge(job: _Job, base: BaseTokenizer, inputs: Inputs) -> Extension:
    name = job.section.sentencepiece
    assert name is not None
    wanted = None if job.section.num_new_tokens == "auto" else job.section.num_new_tokens
    merged = merge_pieces(base, read_sentencepiece(inputs.files[name]), wanted)
    job.say(
        f"{merged.num_added:,} pieces of {Path(name).name} added, and {merged.num_halves:,} to make them of; "
        f"{merged.num_known:,} were known, {merged.num_split:,} are cut by the tokenizer's own rules, "
        f"{merged.num_not_text:,} are no text, {merged.num_left_out:,} left out; {merged.num_unreached:,} stand in no text"
    )
    return merged.extension


def _train(job: _Job, extension: Extension, corpus: Corpus) -> tuple[list[PhaseLoss], Trained]:
    """Both phases, and the folder with what came of them."""
    model = _load(job, extension)
    probe_model(model)
    samples = _tokenizer(job.folder).training_samples(corpus.texts, job.section.pack_length)
    losses: list[PhaseLoss] = []
    if extension.pieces and job.section.new_rows == "calibrated":
        _calibrate(job, model, samples, extension)
    if extension.pieces and job.section.embedding_steps:
        ended = _train_embeddings(job, model, samples)
        model = _load(job, extension) if ended.is_spent else model
        put_weights(model, ended.weights)
        losses += ended.losses
    section = job.section
    adapter = make_trainable(model, section)
    rate = PRETRAIN_RATES[section.method] if section.learning_rate == "auto" else section.learning_rate
    trained = _steps(job, model, samples, section, rate, _ALL)[0]
    report(trained, job.ctx)
    losses += _phase(_ALL, trained.losses)
    del model
    if Ranks.current().is_first:
        write_model(job.base_dir, extension, adapter, section.rng_seed, trained.weights, job.folder)
    return losses, trained


def _calibrate(job: _Job, model: PreTrainedModel, samples: Samples, extension: Extension) -> None:
    section, kept = job.section, job.out_dir / SCRATCH / "calibration.safetensors"
    found = Ranks.current().from_first(
        lambda: find_calibration(model, samples, extension, section.calibration_tokens, section.rng_seed, kept)
    )
    share = apply_calibration(model, found)
    if share is None:
        return job.say("rows stay means: the model's hidden states share no direction that could carry a frequency")
    job.say(
        f"{len(found.ids):,} rows brought to how often their tokens stand in the text: changed by {share:.1%} of their length"
    )


def _load(job: _Job, extension: Extension) -> PreTrainedModel:
    model = load_model(job.base_dir, device=job.spreading.loading_device, dtype=job.dtype)
    grow_rows(model, extension)
    return model


@dataclass(frozen=True)
class _Ended:
    """What the first phase ended in. is_spent: whether its model serves nothing more."""

    weights: dict[str, torch.Tensor]
    losses: list[PhaseLoss]
    is_spent: bool


def _train_embeddings(job: _Job, model: PreTrainedModel, samples: Samples) -> _Ended:
    """The first phase; what it ended in is kept, so that a killed second one does not repeat it."""
    ended, ranks = job.out_dir / SCRATCH / f"{_EMBEDDINGS}-ended", Ranks.current()
    checkpoint, is_spent = ranks.from_first(lambda: newest_checkpoint(ended)[0]), False
    model.requires_grad_(False)
    for matrix in matrices(model):
        matrix.requires_grad_(True)
    if checkpoint is None:
        update = {"max_steps": job.section.embedding_steps, "num_epochs": 10_000, "rng_seed": job.section.rng_seed + 1}
        section = job.section.model_copy(update=update)
        trained, is_spent = _steps(job, model, samples, section, section.embedding_learning_rate, _EMBEDDINGS)
        report(trained, job.ctx)
        state = {"losses": [loss.model_dump(exclude_none=True) for loss in trained.losses]}
        made = Checkpoint(len(trained.losses), trained.weights, state)
        if ranks.is_first:
            save_checkpoint(ended, made, keep=1)
        checkpoint = ranks.from_first(lambda: made) if is_spent else made
    losses = _phase(_EMBEDDINGS, [StepLoss.model_validate(row) for row in checkpoint.state["losses"]])
    return _Ended(checkpoint.tensors, losses, is_spent)


def _steps(
    job: _Job, model: PreTrainedModel, samples: Samples, section: Optimisation, rate: float, phase: str
) -> tuple[Trained, bool]:
    """The phase's training, and whether the model was spread for it and serves nothing more."""
    spread_over = job.spreading.settle(model, job.ctx.events)
    trained = train(
        model,
        samples,
        section,
        learning_rate=rate,
        pack_length=job.section.pack_length,
        pace=pace_of(job.ctx.runtime),
        checkpoint_dir=job.out_dir / SCRATCH / phase,
        metrics_path=job.out_dir / Path(METRICS_FILE).with_name(f"metrics-{phase}.jsonl"),
        events=job.ctx.events,
        loss=CrossEntropy(),
        spread_over=spread_over,
    )
    return trained, spread_over is not None


def _phase(name: str, losses: list[StepLoss]) -> list[PhaseLoss]:
    return [
        PhaseLoss(phase=name, step=each.step, loss=each.loss, num_supervised=each.num_supervised) for each in losses
    ]


def _tokenizer(folder: Path) -> TextTokenizer:
    """<|endoftext|> separates texts where the vocabulary has it, else the end-of-sequence token."""
    tokenizer = Tokenizer.from_file(str(folder / TOKENIZER))
    path = folder / "tokenizer_config.json"
    eos = json.loads(path.read_bytes()).get("eos_token") if path.is_file() else None
    names = ("<|endoftext|>", eos["content"] if isinstance(eos, dict) else eos)
    separator = next((index for name in names if name and (index := tokenizer.token_to_id(name)) is not None), None)
    if separator is None:
        raise RecipeError("the tokenizer has no token that ends a text", where="recipe.base_model.name")
    return TextTokenizer(tokenizer, separator)


def _held_out_bits(job: _Job, folder: Path, corpus: Corpus) -> list[float]:
    """Of each held-out text: comparable between vocabularies, which a loss per token is not."""
    model = load_model(folder, device=str(job.device), dtype=job.dtype)
    samples = _tokenizer(folder).test_samples(corpus.test_texts)
    total = len(samples.lengths)

    def on_done(index: int, _: Any) -> None:
        job.ctx.events.emit(Progress(task="measure held-out text", done=index + 1, total=total, unit="texts"))

    return [loss.total / math.log(2) for loss in measure_losses(model, samples, on_done)]


def _write_held_out(job: _Job, corpus: Corpus, before: list[float], after: list[float]) -> dict[str, float | None]:
    """Every passage into its file; the means, and the error of their difference."""
    rows = [
        HeldOut(text=text, num_bytes=len(text.encode()), bits_before=old, bits_after=new)
        for text, old, new in zip(corpus.test_texts, before, after, strict=True)
    ]
    write_records(job.out_dir / HELD_OUT, rows)
    sizes = [row.num_bytes for row in rows]
    changes = [new - old for old, new in zip(before, after, strict=True)]
    return {
        "bits_per_byte_before": bits_per_byte(before, sizes)[0],
        "bits_per_byte_after": bits_per_byte(after, sizes)[0],
        "bits_per_byte_change_stderr": bits_per_byte(changes, sizes)[1],
    }


def _outcome(
    job: _Job,
    base_facts: dict[str, Any],
    corpus: Corpus,
    extension: Extension,
    counts: TokenCounts,
    measured: dict[str, Any],
    trained: Trained,
) -> Outcome:
    found = inspect_folder(job.folder)
    facts = {
        **base_facts,
        "name": f"{base_facts['name']}-pretrained",
        "weights_digest": found.weights_digest,
        "num_parameters": found.num_parameters,
        "original_name": base_facts["name"],
        "original_weights_digest": base_facts["weights_digest"],
        "num_new_tokens": len(extension.pieces),
        **{name: round(value, 4) if value is not None else None for name, value in measured.items()},
    }
    write_atomic(job.out_dir / REPORT, orjson.dumps({**counts.model_dump(), **measured}, option=orjson.OPT_INDENT_2))
    write_atomic(
        job.out_dir / "model.json", orjson.dumps(facts, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)
    )
    (job.out_dir / "logs").mkdir(exist_ok=True)
    location = {"path": MODEL_DIR, "gguf": None, "name": facts["name"], "revision": facts["revision"]}
    write_atomic(job.out_dir / "logs" / "location.json", orjson.dumps(location, option=orjson.OPT_INDENT_2))
    job.say(
        f"{counts.tokens_before:,} tokens of held-out text are now {counts.tokens_after:,}; "
        f"{measured['bits_per_byte_before']:.3f} bits per byte are now {measured['bits_per_byte_after']:.3f}"
    )
    totals = {
        "num_parameters": found.num_parameters,
        "documents": corpus.num_documents,
        "excluded": len(corpus.excluded),
        "held_out_texts": len(corpus.test_texts),
        "repeats_of_held_out": corpus.num_repeats,
        "new_pieces": len(extension.pieces),
        "tokens_seen": sum(loss.num_supervised for loss in trained.losses),
    }
    return Outcome("base_model", totals, facts)


def _to_json(extension: Extension) -> bytes:
    return orjson.dumps(
        {
            "first_id": extension.first_id,
            "pieces": extension.pieces,
            "merges": extension.merges,
            "old_pieces": extension.old_pieces,
        }
    )


def _from_json(text: bytes) -> Extension:
    raw = orjson.loads(text)
    return Extension(
        first_id=raw["first_id"],
        pieces=tuple(raw["pieces"]),
        merges=tuple((left, right) for left, right in raw["merges"]),
        old_pieces=tuple(tuple(old) for old in raw["old_pieces"]),
    )
