"""Rows to token ids and loss masks: renders the train split, resolves max_length and pack_length, and counts what stays out.

Wiring only: how rows become samples is rendering.py's, how samples share packs is training/packing.py's.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

from tunesmith.chat.renderer import Renderer, own_template
from tunesmith.chat.templates import load_template, read_template
from tunesmith.data.rows import RowFile, RowWriter, all_rows
from tunesmith.errors import DataError, RecipeError
from tunesmith.events import Note, Progress
from tunesmith.model.catalog import base_model_path
from tunesmith.protocols import Context, Pool
from tunesmith.recipe import Tokenize
from tunesmith.stages.rendering import How, Tokenized, text_lines, tokenize_rows, tokenizer_of
from tunesmith.store import write_atomic
from tunesmith.text.jsonl import dump_record, read_records
from tunesmith.training.packing import plan_packs
from tunesmith.training.sample_file import SampleWriter
from tunesmith.types import Artifact, Excluded, Inputs, Outcome, Record, Rendered
from tunesmith.workers import open_pool

SAMPLES = "samples.safetensors"
ROWS = "rows.jsonl"
DROPPED = "dropped.jsonl"
TOKENS = "tokens.{split}.jsonl"
TEMPLATE = "chat_template.jinja"
TASK = "task.json"

_USUAL_PACK_LENGTH = 2048  # tokens; short samples share packs of this size


class TokenizedRow(Record):
    """One sample of samples.safetensors, in order."""

    id: str  # of the conversation
    length: int  # tokens
    num_supervised: int  # targets among them


@dataclass
class _Totals:
    """Sums over all rows."""

    rows: int = 0
    tokens: int = 0
    supervised: int = 0
    thinking: int = 0
    conditioned: int = 0
    split: int = 0
    pieces: int = 0
    exchanges_left_out: int = 0
    lengths: list[NDArray[np.int64]] = field(default_factory=list[NDArray[np.int64]])
    reasons: Counter[str] = field(default_factory=Counter[str])
    first: dict[str, Excluded] = field(default_factory=dict[str, Excluded])  # the first dropped row of each reason

    def add(self, part: Tokenized, num_supervised: int) -> None:
        lengths = np.array(part.lengths, np.int64)
        self.rows += part.num_rows
        self.tokens += int(lengths.sum())
        self.supervised += num_supervised
        self.thinking += part.num_thinking
        self.conditioned += part.num_conditioned
        self.split += part.num_split
        self.pieces += part.num_pieces
        self.exchanges_left_out += part.num_exchanges_left_out
        self.lengths.append(lengths)
        for row in part.dropped:
            self.reasons[row.reason] += 1
            self.first.setdefault(row.reason, row)


def run(section: Tokenize, inputs: Inputs, out_dir: Path, ctx: Context) -> Outcome:
    """Reads curate's train.jsonl and the base model's tokenizer; writes samples.safetensors and its companions."""
    model_dir = base_model_path(inputs["base_model"])
    context_length = int(inputs["base_model"].facts["context_length"])
    how = How(
        model_dir=model_dir,
        template=template_of(section, inputs.files, model_dir),
        section=section,
        limit=_length_limit(section, context_length),
    )
    renderer = how.renderer()
    _note_traits(renderer, section, ctx)
    train = RowFile.scan(inputs["curate"].file("train.jsonl"))
    with open_pool(ctx.runtime.workers, ctx.runtime.workers_for(len(train))) as pool:
        totals = _write_samples(how, train, pool, out_dir, ctx)
        if section.write_text:
            _write_text(how, train, pool, out_dir / TOKENS.format(split="train"))
            test = RowFile.scan(inputs["curate"].file("test.jsonl"))
            _write_text(how, test, pool, out_dir / TOKENS.format(split="test"))
    write_atomic(out_dir / TEMPLATE, renderer.template.encode())
    write_atomic(out_dir / TASK, inputs["curate"].file(TASK).read_bytes())
    lengths = np.concatenate([np.zeros(0, np.int64), *totals.lengths]).tolist()
    if not lengths:
        raise _nothing_left(totals)
    _tell(renderer, totals, ctx)
    max_length = max(lengths) if section.max_length == "auto" else section.max_length
    pack_length = _pack_length(section, max_length, totals.tokens)
    plan = plan_packs(lengths, pack_length, rng_seed=0)  # the seed moves samples, not the number of packs
    return Outcome(
        kind="tokenized",
        counts={
            "rows": totals.rows,
            "samples": len(lengths),
            "dropped": totals.reasons.total(),
            **{f"dropped_{reason}": count for reason, count in totals.reasons.items()},
            **_split_counts(totals),
            "tokens": totals.tokens,
            "supervised_tokens": totals.supervised,
            "packs": len(plan.packs),
        },
        facts={
            "max_length": max_length,
            "pack_length": pack_length,
            "num_samples": len(lengths),
            "num_tokens": totals.tokens,
            "num_supervised": totals.supervised,
            "num_packs": len(plan.packs),
            "packing_efficiency": round(plan.efficiency, 6),
            "template_digest": renderer.template_digest,
            "stop_ids": list(renderer.stop_ids),
        },
    )


def template_of(section: Tokenize, files: Mapping[str, Path], model_dir: Path) -> str:
    """The template the section names: the base model's own, a built-in one, or a .jinja file."""
    name = section.chat_template
    if name == "auto":
        return own_template(tokenizer_of(model_dir), model_dir)
    return read_template(files[name]) if name in files else load_template(name)


def load_sample(artifact: Artifact, sample_id: str) -> Rendered:
    """One sample of a tokenized artifact, by conversation id or a beginning of it. DataError where there is none."""
    rows = read_records(artifact.file(ROWS), TokenizedRow)
    places = [place for place, row in enumerate(rows) if row.id.startswith(sample_id)]
    if not places:
        raise DataError(
            f"no sample has an id that begins with {sample_id!r}",
            where=str(artifact.file(ROWS)),
            hint=f"the first ids: {', '.join(row.id for row in rows[:5])}",
        )
    place = places[0]
    arrays = load_file(artifact.file(SAMPLES))
    start = int(arrays["lengths"][:place].sum())
    here = slice(start, start + int(arrays["lengths"][place]))
    return Rendered(
        input_ids=tuple(arrays["input_ids"][here].tolist()),
        owner=tuple(arrays["owner"][here].tolist()),
        loss_mask=tuple(bool(value) for value in arrays["loss_mask"][here]),
        segment_ids=(0,) * rows[place].length,
        stop_ids=tuple(artifact.facts["stop_ids"]),
        template_digest=artifact.facts["template_digest"],
    )


def _note_traits(renderer: Renderer, section: Tokenize, ctx: Context) -> None:
    traits = renderer.traits
    if not traits.prefix_stable and section.supervise == "all_turns":
        ctx.events.emit(
            Note(
                level="warning",
                message="this chat template rewrites earlier turns (it strips thoughts, or moves the system message): "
                "the model learns earlier turns in a form it does not write itself; `tokenize.supervise: last_turn` "
                "trains only on what it will write",
            )
        )
    if traits.folds_system:
        message = "this chat template has no place for a system message: it is put before the first user message"
        ctx.events.emit(Note(message=message))
    if traits.reads_clock:
        message = "this chat template writes today's date: the tokens of the same rows differ from day to day"
        ctx.events.emit(Note(level="warning", message=message))


def length_limit_of(inputs: Inputs) -> int:
    """Longest sample, in tokens, that the tokenize stage among these inputs let through: what comes after keeps to it."""
    section = Tokenize.model_validate(inputs["tokenize"].manifest.section)
    return _length_limit(section, int(inputs["base_model"].facts["context_length"]))


def _length_limit(section: Tokenize, context_length: int) -> int:
    """Longest sample that may go on, in tokens."""
    if section.max_length == "auto":
        return context_length if section.pack_length == "auto" else min(context_length, section.pack_length)
    if section.max_length > context_length:
        raise RecipeError(
            f"max_length is {section.max_length}, but the base model reads at most {context_length} tokens",
            where="recipe.tokenize.max_length",
            hint="lower it, or leave it out: auto takes the longest sample that fits",
        )
    if section.pack_length != "auto" and section.pack_length < section.max_length:
        raise RecipeError(
            f"pack_length is {section.pack_length}, less than max_length = {section.max_length}",
            where="recipe.tokenize.pack_length",
            hint="a pack must hold the longest sample",
        )
    return section.max_length


def _pack_length(section: Tokenize, max_length: int, num_tokens: int) -> int:
    """auto: 2,048, more where samples are longer, less where all samples together are shorter."""
    if section.pack_length != "auto":
        return section.pack_length
    return max(max_length, min(_USUAL_PACK_LENGTH, num_tokens))


def _write_samples(how: How, rows: RowFile, pool: Pool, out_dir: Path, ctx: Context) -> _Totals:
    """Renders every row; samples, their ids and the dropped rows go to out_dir."""
    totals = _Totals()
    with (
        SampleWriter(out_dir / SAMPLES, out_dir / "scratch") as samples,
        RowWriter(out_dir / ROWS) as ids,
        RowWriter(out_dir / DROPPED) as dropped,
    ):
        for part in pool.map(partial(tokenize_rows, how), all_rows(rows, pool).spans()):
            for sample, sample_id, weights in zip(part.samples, part.ids, part.weights, strict=True):
                samples.add(sample.input_ids, sample.loss_mask, sample.owner, weights)
                num_supervised = int(sample.loss_mask.sum())
                row = TokenizedRow(id=sample_id, length=len(sample.input_ids), num_supervised=num_supervised)
                ids.write(dump_record(row))
            for row in part.dropped:
                dropped.write(dump_record(row))
            totals.add(part, sum(int(sample.loss_mask.sum()) for sample in part.samples))
            detail: dict[str, float | int | str] = {"tokens": totals.tokens, "dropped": totals.reasons.total()}
            ctx.events.emit(Progress(task="tokenize", done=totals.rows, total=len(rows), unit="rows", detail=detail))
        samples.finish()
    return totals


def _write_text(how: How, rows: RowFile, pool: Pool, path: Path) -> None:
    with RowWriter(path) as writer:
        for lines in pool.map(partial(text_lines, how), all_rows(rows, pool).spans()):
            writer.write(lines)


def _tell(renderer: Renderer, totals: _Totals, ctx: Context) -> None:
    messages: list[str] = []
    if totals.thinking and not renderer.traits.shows_reasoning:
        messages.append(
            f"{totals.thinking} rows hold reasoning, which this chat template does not write: it is not trained on"
        )
    if totals.conditioned and "condition" not in renderer.template:
        messages.append(
            f"{totals.conditioned} rows have a condition (the filter `classes`), which this chat template does not write; "
            "`tokenize.chat_template: openchat-3.5` does"
        )
    for reason, count in totals.reasons.items():
        first = totals.first[reason]
        messages.append(f"{count} of {totals.rows} rows stay out ({reason}); the first: {first.where}: {first.detail}")
    for message in messages:
        ctx.events.emit(Note(level="warning", message=message))


def _split_counts(totals: _Totals) -> dict[str, int]:
    """rows - rows_split + pieces = samples + dropped. None where no row was cut."""
    if not totals.split:
        return {}
    return {
        "rows_split": totals.split,
        "pieces": totals.pieces,
        "exchanges_left_out": totals.exchanges_left_out,
    }


def _nothing_left(totals: _Totals) -> DataError:
    if not totals.rows:
        return DataError("the train split is empty", hint="look at the curate stage's excluded.jsonl for the reasons")
    reasons = ", ".join(f"{reason}: {count}" for reason, count in totals.reasons.items())
    first = next(iter(totals.first.values()))
    return DataError(
        f"no training sample is left of {totals.rows} rows ({reasons}); the first: {first.detail}",
        where=first.where,
        hint="give a source class a weight above 0"
        if set(totals.reasons) == {"weightless"}
        else "raise tokenize.max_length, or choose another template with tokenize.chat_template",
    )
