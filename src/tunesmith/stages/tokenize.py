"""Rows to token ids and loss masks: renders the train split, resolves max_length and pack_length, and counts what stays out.

Wiring only: how a row becomes tokens is chat/renderer.py's, how samples share packs is training/packing.py's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save

from tunesmith.chat.renderer import RenderedArrays, Renderer, own_template
from tunesmith.chat.templates import load_template, read_template
from tunesmith.chat.tokenizer import load_tokenizer
from tunesmith.data.splitting import split_conversation
from tunesmith.errors import DataError, RecipeError
from tunesmith.events import Note, Progress
from tunesmith.model.catalog import base_model_path
from tunesmith.protocols import Context
from tunesmith.recipe import Tokenize
from tunesmith.store import write_atomic
from tunesmith.text.jsonl import read_records, write_records
from tunesmith.training.packing import plan_packs
from tunesmith.types import Artifact, Conversation, Excluded, Inputs, Message, Outcome, Record, Rendered

SAMPLES = "samples.safetensors"
ROWS = "rows.jsonl"
DROPPED = "dropped.jsonl"
TOKENS = "tokens.{split}.jsonl"
TEMPLATE = "chat_template.jinja"
TASK = "task.json"

_ROWS_AT_ONCE = 256
_USUAL_PACK_LENGTH = 2048  # tokens; short samples share packs of this size


class TokenizedRow(Record):
    """One sample of samples.safetensors, in order."""

    id: str  # of the conversation
    length: int  # tokens
    num_supervised: int  # targets among them


class TokensRow(Record):
    """One sample as ids, mask and text, for other programs and for people."""

    id: str
    input_ids: list[int]
    loss_mask: list[int]  # 1 = a target
    text: str


@dataclass
class _Tokenized:
    """What the rows became, in their order."""

    samples: list[RenderedArrays] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)
    dropped: list[Excluded] = field(default_factory=list)
    num_split: int = 0  # rows that were cut into pieces
    num_pieces: int = 0
    num_exchanges_left_out: int = 0  # of rows that were cut

    def add(self, sample: RenderedArrays, sample_id: str) -> None:
        self.samples.append(sample)
        self.ids.append(sample_id)

    @property
    def lengths(self) -> list[int]:
        return [len(sample.input_ids) for sample in self.samples]


def run(section: Tokenize, inputs: Inputs, out_dir: Path, ctx: Context) -> Outcome:
    """Reads curate's train.jsonl and the base model's tokenizer; writes samples.safetensors and its companions."""
    renderer = build_renderer(section, inputs)
    conversations = read_records(inputs["curate"].file("train.jsonl"), Conversation)
    _note_traits(renderer, section, conversations, ctx)
    context_length = int(inputs["base_model"].facts["context_length"])
    limit = _length_limit(section, context_length)
    tokenized = _tokenize(renderer, conversations, section, limit, ctx)
    if not tokenized.samples:
        raise _nothing_left(conversations, tokenized.dropped)
    max_length = max(tokenized.lengths) if section.max_length == "auto" else section.max_length
    pack_length = _pack_length(section, max_length, sum(tokenized.lengths))
    plan = plan_packs(tokenized.lengths, pack_length, rng_seed=0)  # the seed moves samples, not the number of packs
    _write(tokenized, renderer, inputs, out_dir)
    if section.write_text:
        _write_text(tokenized, "train", out_dir)
        held_out = read_records(inputs["curate"].file("test.jsonl"), Conversation)
        _write_text(_tokenize(renderer, held_out, section, limit, ctx), "test", out_dir)
    num_supervised = sum(int(sample.loss_mask.sum()) for sample in tokenized.samples)
    return Outcome(
        kind="tokenized",
        counts={
            "rows": len(conversations),
            "samples": len(tokenized.samples),
            "dropped": len(tokenized.dropped),
            **{f"dropped_{reason}": count for reason, count in _reasons(tokenized.dropped).items()},
            **_split_counts(tokenized),
            "tokens": sum(tokenized.lengths),
            "supervised_tokens": num_supervised,
            "packs": len(plan.packs),
        },
        facts={
            "max_length": max_length,
            "pack_length": pack_length,
            "num_samples": len(tokenized.samples),
            "num_tokens": sum(tokenized.lengths),
            "num_supervised": num_supervised,
            "num_packs": len(plan.packs),
            "packing_efficiency": round(plan.efficiency, 6),
            "template_digest": renderer.template_digest,
            "stop_ids": list(renderer.stop_ids),
        },
    )


def build_renderer(section: Tokenize, inputs: Inputs) -> Renderer:
    """The base model's tokenizer with the template the section names: its own, a built-in one, or a .jinja file."""
    model_dir = base_model_path(inputs["base_model"])
    tokenizer = load_tokenizer(model_dir)
    name = section.chat_template
    if name == "auto":
        return Renderer(tokenizer, own_template(tokenizer, model_dir))
    return Renderer(tokenizer, read_template(inputs.files[name]) if name in inputs.files else load_template(name))


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


def _note_traits(renderer: Renderer, section: Tokenize, conversations: Sequence[Conversation], ctx: Context) -> None:
    traits = renderer.traits
    thinking = sum(any(message.reasoning for message in row.messages) for row in conversations)
    if thinking and not traits.shows_reasoning:
        message = f"{thinking} rows hold reasoning, which this chat template does not write: it is not trained on"
        ctx.events.emit(Note(level="warning", message=message))
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


def _tokenize(
    renderer: Renderer, conversations: Sequence[Conversation], section: Tokenize, limit: int, ctx: Context
) -> _Tokenized:
    tokenized = _Tokenized()
    num_tokens = 0
    for done, conversation, result in _render(renderer, conversations, section.supervise):
        if isinstance(result, DataError):
            tokenized.dropped.append(_refused(conversation, result))
        elif len(result.input_ids) > limit and section.overlong == "split":
            num_tokens += _split(renderer, conversation, len(result.input_ids), section, limit, tokenized)
        elif len(result.input_ids) > limit:
            tokenized.dropped.append(_overlong(conversation, len(result.input_ids), limit, section))
        else:
            tokenized.add(result, conversation.id)
            num_tokens += len(result.input_ids)
        if done % _ROWS_AT_ONCE == 0 or done == len(conversations):
            detail: dict[str, float | int | str] = {"tokens": num_tokens, "dropped": len(tokenized.dropped)}
            total = len(conversations)
            ctx.events.emit(Progress(task="tokenize", done=done, total=total, unit="rows", detail=detail))
    for reason, count in _reasons(tokenized.dropped).items():
        first = next(row for row in tokenized.dropped if row.reason == reason)
        message = f"{count} of {len(conversations)} rows stay out ({reason}); the first: {first.where}: {first.detail}"
        ctx.events.emit(Note(level="warning", message=message))
    return tokenized


def _render(
    renderer: Renderer, conversations: Sequence[Conversation], supervise: str
) -> Iterator[tuple[int, Conversation, RenderedArrays | DataError]]:
    done = 0
    for start in range(0, len(conversations), _ROWS_AT_ONCE):
        batch = conversations[start : start + _ROWS_AT_ONCE]
        results = renderer.render_batch([conversation.messages for conversation in batch], supervise)
        for conversation, result in zip(batch, results, strict=True):
            done += 1
            yield done, conversation, result


def _split(
    renderer: Renderer, row: Conversation, length: int, section: Tokenize, limit: int, tokenized: _Tokenized
) -> int:
    """Add the pieces of a row that is too long; the number of their tokens. A row of which no piece fits is dropped."""

    def measure(lists: Sequence[list[Message]]) -> list[int]:
        results = renderer.render_batch(lists, section.supervise)
        return [0 if isinstance(result, DataError) else len(result.input_ids) for result in results]

    pieces, parts = split_conversation(row, limit, measure)
    results = renderer.render_batch([piece.messages for piece in pieces], section.supervise)
    whole = [(p, r) for p, r in zip(pieces, results, strict=True) if not isinstance(r, DataError)]
    refused = [_refused(p, r) for p, r in zip(pieces, results, strict=True) if isinstance(r, DataError)]
    tokenized.dropped += refused
    if not pieces:
        tokenized.dropped.append(_overlong(row, length, limit, section))
        return 0
    tokenized.num_split += 1
    tokenized.num_pieces += len(pieces)
    tokenized.num_exchanges_left_out += len(parts.left_out)
    for piece, sample in whole:
        tokenized.add(sample, piece.id)
    return sum(len(sample.input_ids) for _, sample in whole)


def _split_counts(tokenized: _Tokenized) -> dict[str, int]:
    """rows - rows_split + pieces = samples + dropped. None where no row was cut."""
    if not tokenized.num_split:
        return {}
    return {
        "rows_split": tokenized.num_split,
        "pieces": tokenized.num_pieces,
        "exchanges_left_out": tokenized.num_exchanges_left_out,
    }


def _refused(conversation: Conversation, error: DataError) -> Excluded:
    where = conversation.source or conversation.id
    if not any(message.role == "assistant" for message in conversation.messages):
        # Nothing to learn from, whatever the template: a fault of the data, not something a template may refuse.
        raise DataError(error.message, where=where, hint=error.hint) from error
    detail = f"{error.message} ({error.hint})" if error.hint else error.message
    return Excluded(reason="refused_by_template", detail=detail, where=where, conversation=conversation)


def _overlong(conversation: Conversation, length: int, limit: int, section: Tokenize) -> Excluded:
    detail = f"{length} tokens, expected at most {limit}"
    where = conversation.source or conversation.id
    if section.overlong == "error":
        raise DataError(
            f"the row has {detail}",
            where=where,
            hint="raise tokenize.max_length, or set `tokenize.overlong: drop` to leave such rows out",
        )
    return Excluded(reason="overlong", detail=detail, where=where, conversation=conversation)


def _nothing_left(conversations: Sequence[Conversation], dropped: Sequence[Excluded]) -> DataError:
    if not conversations:
        return DataError("the train split is empty", hint="look at the curate stage's excluded.jsonl for the reasons")
    reasons = ", ".join(f"{reason}: {count}" for reason, count in _reasons(dropped).items())
    return DataError(
        f"no training sample is left of {len(conversations)} rows ({reasons}); the first: {dropped[0].detail}",
        where=dropped[0].where,
        hint="raise tokenize.max_length, or choose another template with tokenize.chat_template",
    )


def _reasons(dropped: Sequence[Excluded]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for row in dropped:
        counts[row.reason] = counts.get(row.reason, 0) + 1
    return counts


def _write(tokenized: _Tokenized, renderer: Renderer, inputs: Inputs, out_dir: Path) -> None:
    samples = tokenized.samples
    arrays = {
        "input_ids": np.concatenate([sample.input_ids for sample in samples]).astype(np.int32),
        "loss_mask": np.concatenate([sample.loss_mask for sample in samples]).astype(np.uint8),
        "owner": np.concatenate([sample.owner for sample in samples]).astype(np.int16),
        "lengths": np.array(tokenized.lengths, dtype=np.int64),
    }
    write_atomic(out_dir / SAMPLES, save(arrays))
    write_atomic(out_dir / TEMPLATE, renderer.template.encode())
    write_atomic(out_dir / TASK, inputs["curate"].file(TASK).read_bytes())
    rows = (
        TokenizedRow(id=sample_id, length=len(sample.input_ids), num_supervised=int(sample.loss_mask.sum()))
        for sample_id, sample in zip(tokenized.ids, samples, strict=True)
    )
    write_records(out_dir / ROWS, rows)
    write_records(out_dir / DROPPED, tokenized.dropped)


def _write_text(tokenized: _Tokenized, split: str, out_dir: Path) -> None:
    rows = (
        TokensRow(
            id=sample_id,
            input_ids=sample.input_ids.tolist(),
            loss_mask=sample.loss_mask.astype(int).tolist(),
            text=sample.text,
        )
        for sample_id, sample in zip(tokenized.ids, tokenized.samples, strict=True)
    )
    write_records(out_dir / TOKENS.format(split=split), rows)
