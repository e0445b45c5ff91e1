"""Rows to samples, some at a time, in whatever process: what a worker of the tokenize stage does.

How a row becomes tokens is chat/renderer.py's; here it is decided whether the row stays, is cut into pieces or stays out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerFast

from tunesmith.chat.renderer import RenderedArrays, Renderer
from tunesmith.chat.tokenizer import load_tokenizer
from tunesmith.data.rows import Span
from tunesmith.data.splitting import split_conversation
from tunesmith.errors import DataError
from tunesmith.recipe import Tokenize
from tunesmith.text.jsonl import dump_record
from tunesmith.types import Conversation, Excluded, Message, Record

_ROWS_AT_ONCE = 256


class TokensRow(Record):
    """One sample as ids, mask and text, for other programs and for people."""

    id: str
    input_ids: list[int]
    loss_mask: list[int]  # 1 = a target
    text: str


@dataclass(frozen=True)
class How:
    """How rows become samples: what a worker builds its renderer from."""

    model_dir: Path
    template: str
    section: Tokenize
    limit: int  # tokens of the longest sample that may go on

    def renderer(self) -> Renderer:
        """Built once in each process."""
        return _renderer(self.model_dir, self.template)


@cache
def tokenizer_of(model_dir: Path) -> PreTrainedTokenizerFast:
    """Loaded once in each process."""
    return load_tokenizer(model_dir)


@cache
def _renderer(model_dir: Path, template: str) -> Renderer:
    return Renderer(tokenizer_of(model_dir), template)


@dataclass
class Tokenized:
    """What some rows became, in their order."""

    num_rows: int
    samples: list[RenderedArrays] = field(default_factory=list[RenderedArrays])
    weights: list[NDArray[np.float32] | None] = field(default_factory=list[NDArray[np.float32] | None])  # of each
    ids: list[str] = field(default_factory=list[str])
    dropped: list[Excluded] = field(default_factory=list[Excluded])
    num_thinking: int = 0  # rows that hold reasoning
    num_conditioned: int = 0  # rows with a C-RLFT condition
    num_split: int = 0  # rows that were cut into pieces
    num_pieces: int = 0
    num_exchanges_left_out: int = 0  # of rows that were cut

    def add(self, sample: RenderedArrays, row: Conversation) -> None:
        """A sample goes on where something in it counts."""
        weights = _token_weights(sample, row)
        if weights is not None and not bool((weights[1:][sample.loss_mask[1:]] > 0).any()):
            self.dropped.append(_weightless(row))
            return
        self.samples.append(sample)
        self.weights.append(weights)
        self.ids.append(row.id)

    @property
    def lengths(self) -> list[int]:
        return [len(sample.input_ids) for sample in self.samples]


def text_lines(how: How, span: Span) -> bytes:
    """In a worker: the samples of some rows as lines for people."""
    part = tokenize_rows(how, span)
    return b"".join(
        dump_record(
            TokensRow(
                id=sample_id,
                input_ids=sample.input_ids.tolist(),
                loss_mask=sample.loss_mask.astype(int).tolist(),
                text=sample.text,
            )
        )
        for sample_id, sample in zip(part.ids, part.samples, strict=True)
    )


def tokenize_rows(how: How, span: Span) -> Tokenized:
    """In a worker: the samples of some rows."""
    renderer, section = how.renderer(), how.section
    rows = span.rows()
    part = Tokenized(len(rows))
    for start in range(0, len(rows), _ROWS_AT_ONCE):
        batch = rows[start : start + _ROWS_AT_ONCE]
        results = renderer.render_batch([conditioned(row) for row in batch], section.supervise)
        for row, result in zip(batch, results, strict=True):
            part.num_thinking += any(message.reasoning for message in row.messages)
            part.num_conditioned += "condition" in row.metadata
            if isinstance(result, DataError):
                part.dropped.append(_refused(row, result))
            elif len(result.input_ids) > how.limit and section.overlong == "split":
                _split(renderer, row, len(result.input_ids), section, how.limit, part)
            elif len(result.input_ids) > how.limit:
                part.dropped.append(_overlong(row, len(result.input_ids), how.limit, section))
            else:
                part.add(result, row)
    return part


def conditioned(row: Conversation) -> list[Message]:
    """The row's messages, each with the condition that its metadata name (the filter `classes` writes it)."""
    condition = row.metadata.get("condition")
    if not isinstance(condition, str):
        return row.messages
    return [message.model_copy(update={"condition": condition}) for message in row.messages]


def _token_weights(sample: RenderedArrays, row: Conversation) -> NDArray[np.float32] | None:
    """(T,) what each target counts, by the weights that the row's metadata give its messages; None where all are 1."""
    weights = row.metadata.get("weights")
    if not isinstance(weights, list) or len(weights) != len(row.messages):
        return None
    by_token = np.array([*weights, 1.0], dtype=np.float32)[sample.owner]  # owner -1, the template's own text: the last
    return None if bool((by_token[sample.loss_mask] == 1).all()) else by_token


def _weightless(row: Conversation) -> Excluded:
    named = row.metadata.get("source_class")
    detail = f"its source class {named!r} has weight 0" if named else "all that is supervised in it has weight 0"
    return Excluded(reason="weightless", detail=detail, where=row.source or row.id, conversation=row)


def _split(renderer: Renderer, row: Conversation, length: int, section: Tokenize, limit: int, part: Tokenized) -> None:
    """Add the pieces of a row that is too long. A row of which no piece fits is dropped."""

    def measure(lists: Sequence[list[Message]]) -> list[int]:
        results = renderer.render_batch(lists, section.supervise)
        return [0 if isinstance(result, DataError) else len(result.input_ids) for result in results]

    pieces, parts = split_conversation(row, limit, measure)
    results = renderer.render_batch([conditioned(piece) for piece in pieces], section.supervise)
    whole = [(p, r) for p, r in zip(pieces, results, strict=True) if not isinstance(r, DataError)]
    refused = [_refused(p, r) for p, r in zip(pieces, results, strict=True) if isinstance(r, DataError)]
    part.dropped += refused
    if not pieces:
        part.dropped.append(_overlong(row, length, limit, section))
        return
    part.num_split += 1
    part.num_pieces += len(pieces)
    part.num_exchanges_left_out += len(parts.left_out)
    for piece, sample in whole:
        part.add(sample, piece)


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
