"""Conversations whose template looks inside no text, rendered many at once: texts joined, tokens, owners and masks in whole arrays.

Gives what renderer.py gives for each, and None where it cannot be sure to; then that road is taken, which also names every error.
Legend: n messages, S segments, R ranges (one a message), T tokens, all of a batch; places are bytes of its joined text.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tunesmith.chat.shapes import Shape, Shapes
from tunesmith.chat.tokenizer import TextEncoder
from tunesmith.types import Message


@dataclass(frozen=True)
class RenderedArrays:
    """What Rendered holds, as arrays (T tokens)."""

    input_ids: NDArray[np.int32]  # (T,)
    owner: NDArray[np.int16]  # (T,) message index, -1 for the template's own text
    loss_mask: NDArray[np.bool_]  # (T,) never True at 0: nothing predicts the first token
    written: str | bytes

    @property
    def text(self) -> str:
        """What the template wrote."""
        return self.written if isinstance(self.written, str) else self.written.decode()


class _Read(NamedTuple):
    """A conversation of a shape, its texts as bytes."""

    index: int  # in the batch
    shape: Shape
    contents: list[bytes]
    silent: list[int]  # messages of weight 0


class _Laid(NamedTuple):
    """A conversation as text, with the places that matter in it."""

    index: int
    data: bytes
    segments: NDArray[np.int64]  # (S,) where each begins
    segment_ids: NDArray[np.int32]  # (S,)
    begins: NDArray[np.int64]  # (R,) of each message's text, or its turn
    ends: NDArray[np.int64]  # (R,)
    is_target: NDArray[np.bool_]  # (R,)


def render_shaped(
    conversations: Sequence[Sequence[Message]],
    supervise: str,
    shapes: Shapes,
    encoder: TextEncoder,
    stop_ids: Collection[int],
) -> list[RenderedArrays | None]:
    """Of each conversation, where it has a shape."""
    found: list[RenderedArrays | None] = [None] * len(conversations)
    read = [one for index, each in enumerate(conversations) if (one := _read(index, each, shapes)) is not None]
    if not encoder.is_plain([text for one in read for text in one.contents]):
        read = [one for one in read if encoder.is_plain(one.contents)]
    laid = [each for one in read if (each := _lay(one, supervise)) is not None]
    if laid:
        for each, rendered in zip(laid, _tokens(laid, supervise, encoder, stop_ids), strict=True):
            found[each.index] = rendered
    return found


def _read(index: int, messages: Sequence[Message], shapes: Shapes) -> _Read | None:
    shape = shapes.of(messages)
    if shape is None:
        return None
    contents: list[bytes] = []
    silent: list[int] = []
    for place, message in enumerate(messages):
        fields = message.model_fields_set
        if len(fields) > 2:  # more than role and content
            if not _is_text_alone(message):
                return None
            if message.weight == 0:
                silent.append(place)
        text = message.content
        if not text or text.isspace() or (shape.trims[place] and (text[0].isspace() or text[-1].isspace())):
            return None
        try:
            contents.append(text.encode())
        except UnicodeEncodeError:
            return None
    return _Read(index, shape, contents, silent)


def _is_text_alone(message: Message) -> bool:
    return (
        message.reasoning is None
        and message.tool_calls is None
        and message.tool_call_id is None
        and message.name is None
        and message.condition is None
    )


def _lay(read: _Read, supervise: str) -> _Laid | None:
    shape, contents = read.shape, read.contents
    pieces = [b""] * (2 * len(contents) + 1)
    pieces[0::2], pieces[1::2] = shape.literals, contents
    sizes = np.fromiter(map(len, contents), np.int64, len(contents))
    literals = np.zeros(len(contents) + 1, np.int64)  # where each begins
    np.cumsum(shape.sizes[:-1] + sizes, out=literals[1:])
    ends = literals[1:].copy()
    begins = ends - sizes
    turns, starts, stops = shape.answers, shape.turn_starts, shape.turn_ends
    if supervise == "last_turn":
        turns, starts, stops = turns[-1:], starts[-1:], stops[-1:]
    if read.silent:
        heard = ~np.isin(turns, read.silent)
        turns, starts, stops = turns[heard], starts[heard], stops[heard]
    if read.silent if supervise == "everything" else not len(turns):
        return None
    begins[turns] = literals[turns] + starts
    ends[turns] = literals[turns + 1] + stops
    is_target = np.zeros(len(contents), np.bool_)
    is_target[turns] = True
    segments = literals[shape.segment_literals] + shape.segment_offsets
    return _Laid(read.index, b"".join(pieces), segments, shape.segment_ids, begins, ends, is_target)


def _tokens(
    batch: Sequence[_Laid], supervise: str, encoder: TextEncoder, stop_ids: Collection[int]
) -> list[RenderedArrays | None]:
    nothing: list[RenderedArrays | None] = [None] * len(batch)
    shifts = np.cumsum([0, *(len(each.data) for each in batch)])
    segments = np.concatenate(
        [*(each.segments + shift for each, shift in zip(batch, shifts, strict=False)), shifts[-1:]]
    )
    first_segments = np.cumsum([0, *(len(each.segments) for each in batch)])
    encoded = encoder.encode_segments(
        b"".join([each.data for each in batch]),
        segments,
        np.concatenate([each.segment_ids for each in batch]),
    )
    if encoded is None:
        return nothing
    ids, offsets, sizes = encoded
    token_ends = np.cumsum(sizes)
    if not np.array_equal(np.append(0, token_ends)[offsets], segments):  # a tokenizer that leaves bytes out
        return nothing
    bounds = np.empty(2 * sum(len(each.begins) for each in batch), np.int64)
    begins = np.concatenate([each.begins + shift for each, shift in zip(batch, shifts, strict=False)])
    ends = np.concatenate([each.ends + shift for each, shift in zip(batch, shifts, strict=False)])
    is_target = np.concatenate([each.is_target for each in batch])
    bounds[0::2] = np.searchsorted(token_ends, begins, side="right")
    bounds[1::2] = np.searchsorted(token_ends - sizes, ends)
    if (np.diff(bounds) < 0).any():  # a token holds the end of one text and the beginning of the next
        return nothing
    stops = ids[np.maximum(bounds[1::2] - 1, 0)]
    is_ended = ~is_target | ((bounds[0::2] < bounds[1::2]) & np.isin(stops, list(stop_ids)))
    runs = np.diff(bounds, prepend=0, append=len(ids))
    owners, targets = np.full(len(runs), -1, np.int16), np.zeros(len(runs), np.bool_)
    owners[1::2] = np.concatenate([np.arange(len(each.begins)) for each in batch])
    targets[1::2] = is_target
    owner = np.repeat(owners, runs)
    mask = np.repeat(targets, runs) if supervise != "everything" else np.ones(len(ids), np.bool_)
    firsts = offsets[first_segments]
    mask[firsts[:-1]] = False
    ranges = np.cumsum([0, *(len(each.begins) for each in batch)])
    results: list[RenderedArrays | None] = []
    for number, each in enumerate(batch):
        here = slice(int(firsts[number]), int(firsts[number + 1]))
        is_good = is_ended[ranges[number] : ranges[number + 1]].all() and mask[here].any()
        results.append(RenderedArrays(ids[here], owner[here], mask[here], each.data) if is_good else None)
    return results
