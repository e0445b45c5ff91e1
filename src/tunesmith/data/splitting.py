"""A conversation that is longer than the context, cut into pieces that fit, without orphans.

A piece starts with a user turn, ends with an assistant turn, and has the system message of the whole in front. An exchange
that only asks to go on ("continue", "继续") stays with the one it continues: alone it would be an answer to nothing. Lengths
are those of the rendered pieces, so a template's own text counts. Refuses to cut inside a turn.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from tunesmith.types import Conversation, Message

Measure = Callable[[Sequence[list[Message]]], list[int]]
"""Tokens of each list of messages as rendered; 0 where the template refuses one."""

_GO_ON = re.compile(
    r"(please |pls |can you |could you )?(continue|go on|keep going|carry on|proceed|more|next|finish)"
    r"( please| writing| from (here|there|where you (left|stopped)( off)?)| the (code|list|text|story))?[\s.!?…]*|"
    r"(请)?(你)?(继续|接着|往下|再来|然后呢|还有吗)(写|说|吧|讲|生成|输出|下去)*[。！？…\s]*",
    re.IGNORECASE,
)


@dataclass
class Pieces:
    """Pieces in order, and the exchanges that fit into none: longer than the context by themselves, or without a reply."""

    kept: list[list[Message]] = field(default_factory=list)
    left_out: list[list[Message]] = field(default_factory=list)


def split_messages(messages: Sequence[Message], max_tokens: int, measure: Measure) -> Pieces:
    """The pieces of a conversation, none longer than max_tokens, as few as filling one after another gives."""
    lead, exchanges = _exchanges(messages)
    pieces = Pieces(left_out=[exchange for exchange in exchanges if exchange[-1].role != "assistant"])
    units = _units([exchange for exchange in exchanges if exchange[-1].role == "assistant"])
    lengths = measure([lead + _flat(unit) for unit in units])
    shared = (
        0  # tokens that two units in one piece have once instead of twice: the system message, the template's start
    )
    if len(units) > 1:
        both = measure([lead + _flat(units[0]) + _flat(units[1])])[0]
        shared = max(0, lengths[0] + lengths[1] - both)
    open_piece: list[list[list[Message]]] = []
    filled = 0
    for unit, length in zip(units, lengths, strict=True):
        fitting = unit if length <= max_tokens else _longest_start(unit, lead, max_tokens, measure, pieces)
        if open_piece and (fitting is not unit or filled + length - shared > max_tokens):
            _close(open_piece, lead, max_tokens, measure, pieces)
            open_piece, filled = [], 0
        if fitting is not unit:
            if fitting:
                pieces.kept.append(lead + _flat(fitting))
            continue
        filled += length - (shared if open_piece else 0)
        open_piece.append(unit)
    _close(open_piece, lead, max_tokens, measure, pieces)
    return pieces


def split_conversation(
    conversation: Conversation, max_tokens: int, measure: Measure
) -> tuple[list[Conversation], Pieces]:
    """The pieces as conversations of one origin, each with `piece` ("2/3") in its metadata; and the pieces themselves."""
    pieces = split_messages(conversation.messages, max_tokens, measure)
    fields = {name: getattr(conversation, name) for name in ("source", "origin", "split", "licence")}
    total = len(pieces.kept)
    rows = [
        Conversation(messages=kept, metadata=_metadata(conversation, kept, f"{number}/{total}"), **fields)
        for number, kept in enumerate(pieces.kept, start=1)
    ]
    return rows, pieces


def _exchanges(messages: Sequence[Message]) -> tuple[list[Message], list[list[Message]]]:
    """The system message, and the turns in groups that each begin with the user."""
    lead = [message for message in messages[:1] if message.role == "system"]
    groups: list[list[Message]] = []
    for message in messages[len(lead) :]:
        if message.role == "user" or not groups:
            groups.append([])
        groups[-1].append(message)
    return lead, groups


def _units(exchanges: Sequence[list[Message]]) -> list[list[list[Message]]]:
    """Exchanges that must stay together: one, and those after it that only ask to go on."""
    units: list[list[list[Message]]] = []
    for exchange in exchanges:
        if units and _GO_ON.fullmatch(exchange[0].content.strip()):
            units[-1].append(exchange)
        else:
            units.append([exchange])
    return units


def _flat(unit: Sequence[list[Message]]) -> list[Message]:
    return [message for exchange in unit for message in exchange]


def _longest_start(
    unit: list[list[Message]], lead: list[Message], max_tokens: int, measure: Measure, pieces: Pieces
) -> list[list[Message]]:
    """As many exchanges of a unit, from its first, as fit; the others are left out."""
    for size in range(len(unit) - 1, 0, -1):
        if measure([lead + _flat(unit[:size])])[0] <= max_tokens:
            pieces.left_out += unit[size:]
            return unit[:size]
    pieces.left_out += unit
    return []


def _close(
    units: list[list[list[Message]]], lead: list[Message], max_tokens: int, measure: Measure, pieces: Pieces
) -> None:
    """Add a piece, cut in two where the template makes it longer than its parts let expect."""
    if not units:
        return
    piece = lead + [message for unit in units for message in _flat(unit)]
    if len(units) > 1 and measure([piece])[0] > max_tokens:
        middle = len(units) // 2
        _close(units[:middle], lead, max_tokens, measure, pieces)
        _close(units[middle:], lead, max_tokens, measure, pieces)
    else:
        pieces.kept.append(piece)


def _metadata(conversation: Conversation, kept: list[Message], piece: str) -> dict[str, Any]:
    """The whole's, with the weights of the messages that are in the piece."""
    metadata = {**conversation.metadata, "piece": piece}
    weights = metadata.get("weights")
    if isinstance(weights, list) and len(weights) == len(conversation.messages):
        weight_of = {id(message): weight for message, weight in zip(conversation.messages, weights, strict=True)}
        metadata["weights"] = [weight_of[id(message)] for message in kept]
    return metadata
