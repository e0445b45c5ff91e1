"""Text to token ids with the characters each token came from, under two rules no tokenizer keeps by itself:

- a control token (`<|im_end|>`) is one where the template wrote it, and plain text where a person typed it;
- a token never reaches across a given character position, so what stands before it has the same ids whatever follows.

Both are done in one tokenisation. A private copy of the tokenizer takes the control strings for ordinary text; where the
template wrote one, and at each forced boundary, the text handed to it holds a stand-in that the copy knows as a token
of its own. Knows nothing of messages, roles or templates.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray
from tokenizers import AddedToken, Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

from tunesmith.chat.byte_spans import byte_lengths, spans
from tunesmith.chat.word_memory import remember, takes_single_digits
from tunesmith.chat.word_table import WordTable, has_compiler
from tunesmith.errors import DataError, ModelError

# Between what a generation prompt ends in and what an answer starts with: cutting there must change nothing.
_BOUNDARIES = (
    ("assistant\n", "Hello there"),
    ("ASSISTANT:", " Hello there"),
    ("Response:\n", '{"a": 1}'),
    ("]", " It"),
)
_MARK = "\U0010fffdtunesmith-"  # private-use characters: no text has them unless somebody tries
_TABLE_FROM = 1_000_000  # bytes; fewer are read before the compiled loops of word_table.py are there
_HALF_CHARACTER = re.compile("[\ud800-\udfff]")


def load_tokenizer(model_dir: Path) -> PreTrainedTokenizerFast:
    """The tokenizer of a local model folder; nothing is downloaded and no code from the folder is run.

    Raises ModelError where the folder or its tokenizer is missing or broken, or has no fast implementation (spans need
    character offsets).
    """
    if not model_dir.is_dir():
        raise ModelError("there is no model folder here", where=str(model_dir))
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        tokenizer = AutoTokenizer.from_pretrained(model_dir, local_files_only=True, trust_remote_code=False)
    except Exception as error:
        raise ModelError(
            f"the tokenizer cannot be loaded: {_first_line(error)}",
            where=str(model_dir),
            hint="the folder needs tokenizer.json and tokenizer_config.json",
        ) from error
    finally:
        transformers_logging.set_verbosity(verbosity)
    if not getattr(tokenizer, "is_fast", False):
        raise ModelError(
            f"{type(tokenizer).__name__} has no fast implementation, which is needed to know where each token lies",
            where=str(model_dir),
            hint="convert it: the folder needs a tokenizer.json",
        )
    return tokenizer


@dataclass(frozen=True)
class Written:
    """A text to encode. Positions count characters of `text`.

    plain: ranges, in order and disjoint, in which control strings are ordinary text. cuts: positions no token crosses.
    Raises DataError for text that is no Unicode (half a surrogate pair).
    """

    text: str
    plain: Sequence[tuple[int, int]] = ()
    cuts: Sequence[int] = ()

    def __post_init__(self) -> None:
        if self.text.isascii():
            return
        if _HALF_CHARACTER.search(self.text):
            raise DataError("the text holds half of a surrogate pair, which is no character", hint="repair the row")
        if _MARK in self.text:
            raise DataError(f"the text holds the reserved string {_MARK!r}", hint="remove it from the row")


@dataclass(frozen=True)
class Encoded:
    """T tokens and the characters [starts, ends) of the text they stand for."""

    input_ids: NDArray[np.int32]  # (T,)
    starts: NDArray[np.int64]  # (T,) never falls
    ends: NDArray[np.int64]  # (T,)


class TextEncoder:
    """Encodes text with `control` strings as control tokens outside plain ranges only. Added specials: never."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, control: Iterable[str]) -> None:
        added = {token.content: (index, token) for index, token in tokenizer.added_tokens_decoder.items()}
        self._control = {text: added[text] for text in sorted(control)}
        self.control_ids = frozenset(index for index, _ in self._control.values())
        self._control_id_array = np.array(sorted(self.control_ids), dtype=np.int32)
        self._pattern = control_pattern(self._control)
        self._copy, description = _plain_copy(tokenizer, set(self._control))
        self._first_stand_in = _fill_holes(self._copy)
        self._alias = {text: _stand_in(f"control-{number}") for number, text in enumerate(self._control)}
        for text, (_, token) in self._control.items():
            # The same rules as the real one, so that the text around it is split and trimmed the same way.
            self._add(self._alias[text], token)
        self._real_ids = np.array([index for index, _ in self._control.values()], dtype=np.int32)
        self._cut = _stand_in("cut")
        self._cut_id = self._add(self._cut, AddedToken(self._cut, normalized=False))
        self._byte_lengths = byte_lengths(self._copy, description)
        self._memory = remember(self._copy, description) if self._byte_lengths is not None else None
        self._single_digits = takes_single_digits(description)
        others = [token["content"] for token in description["added_tokens"] if token["content"] not in self._control]
        self._in_text = re.compile(control_pattern(others).pattern.encode()) if others else None
        self._not_plain = re.compile(control_pattern([*self._control, _MARK]).pattern.encode())
        self._table: WordTable | None = None
        self._num_read = 0  # bytes, while there is no table
        # Some tokenizers put a space before whatever follows an added token; those get a cut only where they need it.
        self.cuts_are_clean = all(
            self._ids(left + right) == self._ids(left + self._cut + right) for left, right in _BOUNDARIES
        )

    def find_control(self, text: str, start: int, end: int) -> list[tuple[int, int, str]]:
        """(start, end, string) of each control string in text[start:end], left to right."""
        return [(match.start(), match.end(), match.group()) for match in self._pattern.finditer(text, start, end)]

    def has_control(self, text: str) -> bool:
        """Whether a control string occurs anywhere in the text."""
        return self._pattern.search(text) is not None

    def control_id(self, text: str) -> int:
        """Id of a control string."""
        return self._control[text][0]

    @property
    def takes_segments(self) -> bool:
        """Whether encode_segments gives what encode gives of a text with control tokens and cuts between its segments."""
        return self._memory is not None and self.cuts_are_clean

    def takes_space(self, text: str) -> bool:
        """Whether a control token does something to the text around it: then what stands there is no segment."""
        _, token = self._control[text]
        return token.lstrip or token.rstrip or token.single_word

    def is_plain(self, texts: Sequence[bytes]) -> bool:
        """Whether none of the texts holds a control string, or what Written refuses."""
        return self._not_plain.search(b"\xff".join(texts)) is None  # a byte of no text: nothing is found across two

    def encode_segments(
        self, data: bytes, segments: NDArray[np.int64], segment_ids: NDArray[np.int32]
    ) -> tuple[NDArray[np.int32], NDArray[np.int64], NDArray[np.int64]] | None:
        """(T,) ids, (S + 1,) where those of each segment begin, (T,) bytes of each token; see WordTable.encode.

        None where this tokenizer is asked for whole texts alone.
        """
        if self._memory is None or self._byte_lengths is None:
            return None
        self._num_read += len(data)
        if self._table is None and self._num_read > _TABLE_FROM and has_compiler():
            separator = (self._cut, self._cut_id)
            self._table = WordTable(self._copy, separator, self._in_text, single_digits=self._single_digits)
        if self._table is not None:
            ids, offsets = self._table.encode(data, segments, segment_ids)
        else:
            ids, offsets = self._memory.encode_segments(data, segments, segment_ids)
        return ids, offsets, self._byte_lengths[ids]

    def encode(self, written: Written) -> Encoded:
        """Ids and offsets of one text."""
        return self.encode_batch([written])[0]

    def encode_batch(self, batch: Sequence[Written]) -> list[Encoded]:
        """encode() of each, side by side on all cores."""
        if self.cuts_are_clean:
            encoded = self._encode([(written, written.cuts) for written in batch])
        else:
            encoded = self._encode([(written, ()) for written in batch])
            crossed = [_crossed(result, written.cuts) for result, written in zip(encoded, batch, strict=True)]
            again = [index for index, cuts in enumerate(crossed) if cuts]
            for index, result in zip(again, self._encode([(batch[i], crossed[i]) for i in again]), strict=True):
                encoded[index] = result
        return [self._without_forgeries(*pair) for pair in zip(batch, encoded, strict=True)]

    def _without_forgeries(self, written: Written, encoded: Encoded) -> Encoded:
        """A vocabulary may reach a control id from plain text by its own merges: then force a boundary inside it."""
        if not written.plain:
            return encoded
        suspects = encoded.starts[np.isin(encoded.input_ids, self._control_id_array)]
        edges = np.array(written.plain, dtype=np.int64).ravel()  # ranges are disjoint: inside one after an odd number
        forged = {int(at) + 1 for at in suspects[np.searchsorted(edges, suspects, side="right") % 2 == 1]}
        if not forged:
            return encoded
        return self._encode([(written, sorted({*written.cuts, *forged}))])[0]

    def _encode(self, batch: Sequence[tuple[Written, Sequence[int]]]) -> list[Encoded]:
        aliased = [_Aliased(written, self._stand_ins(written, cuts)) for written, cuts in batch]
        encoded: list[Encoded] = []
        for one, found in zip(aliased, self._tokens([one.text for one in aliased]), strict=True):
            kept = found.input_ids != self._cut_id
            input_ids = found.input_ids[kept]
            stand_in = np.flatnonzero(input_ids >= self._first_stand_in)
            input_ids[stand_in] = self._real_ids[input_ids[stand_in] - self._first_stand_in]
            encoded.append(Encoded(input_ids, one.original(found.starts[kept]), one.original(found.ends[kept])))
        return encoded

    def _tokens(self, texts: Sequence[str]) -> list[Encoded]:
        """Of the copy, stand-ins among them. Its own offsets are asked for only where bytes do not tell them."""
        if self._byte_lengths is None:
            return [_with_offsets(each) for each in self._copy.encode_batch(texts, add_special_tokens=False)]
        if self._memory is not None:
            ids = self._memory.encode_batch(texts)
        else:
            fast = self._copy.encode_batch_fast(texts, add_special_tokens=False)
            ids = [np.array(each.ids, dtype=np.int32) for each in fast]
        found: list[Encoded] = []
        for text, input_ids in zip(texts, ids, strict=True):
            places = spans(text, input_ids, self._byte_lengths)
            if places is None:
                found.append(_with_offsets(self._copy.encode(text, add_special_tokens=False)))
            else:
                found.append(Encoded(input_ids, *places))
        return found

    def _stand_ins(self, written: Written, cuts: Sequence[int]) -> list[tuple[int, int, str]]:
        """What to replace: control strings outside plain ranges, and nothing at each cut (not inside a control)."""
        found: list[tuple[int, int, str]] = []
        position = 0
        for start, end in (*written.plain, (len(written.text), len(written.text))):
            found += [(a, b, self._alias[text]) for a, b, text in self.find_control(written.text, position, start)]
            position = end
        starts = [start for start, _, _ in found]
        inside = (cut for cut in cuts if (place := bisect_left(starts, cut)) and found[place - 1][1] > cut)
        whole = set(cuts).difference(inside)
        return sorted([*found, *((cut, cut, self._cut) for cut in whole)])

    def _add(self, content: str, like: AddedToken) -> int:
        token = AddedToken(
            content,
            single_word=like.single_word,
            lstrip=like.lstrip,
            rstrip=like.rstrip,
            normalized=like.normalized,
            special=False,
        )
        self._copy.add_tokens([token])
        index = self._copy.token_to_id(content)
        assert index is not None
        return index

    def _ids(self, text: str) -> list[int]:
        return [index for index in self._copy.encode(text, add_special_tokens=False).ids if index != self._cut_id]


class _Aliased:
    """A text with stand-ins for the template's control tokens and for cuts, and the way back to the original."""

    def __init__(self, written: Written, stand_ins: Sequence[tuple[int, int, str]]) -> None:
        """stand_ins: (start, end, stand-in) in order and disjoint; start == end for a cut."""
        pieces: list[str] = []
        here: list[int] = []  # where each piece starts in the text with stand-ins
        there: list[int] = []  # and in the original
        length = position = 0
        for start, end, stand_in in (*stand_ins, (len(written.text), len(written.text), "")):
            for origin, piece in ((position, written.text[position:start]), (start, stand_in)):
                if piece:
                    pieces.append(piece)
                    here.append(length)
                    there.append(origin)
                    length += len(piece)
            position = end
        self.text = "".join(pieces)
        self._here = np.array([*here, length], dtype=np.int64)
        self._there = np.array([*there, len(written.text)], dtype=np.int64)

    def original(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """Positions in the original text. A position inside a stand-in cannot come up: each is one token."""
        piece = np.searchsorted(self._here, places, side="right") - 1
        return self._there[piece] + places - self._here[piece]


def control_pattern(control: Iterable[str]) -> re.Pattern[str]:
    """Matches any of the strings, the longest first; nothing where there are none."""
    return re.compile("|".join(map(re.escape, sorted(control, key=len, reverse=True))) or r"(?!)")


def _with_offsets(result: Any) -> Encoded:
    """What a tokenizer says of a text, with its own offsets."""
    places = np.array(result.offsets, dtype=np.int64).reshape(-1, 2)
    return Encoded(np.array(result.ids, dtype=np.int32), places[:, 0].copy(), places[:, 1].copy())


def _crossed(encoded: Encoded, cuts: Sequence[int]) -> list[int]:
    """The cuts that some token reaches across."""
    return [cut for cut in cuts if bool(np.any((encoded.starts < cut) & (encoded.ends > cut)))]


def _plain_copy(tokenizer: PreTrainedTokenizerFast, control: set[str]) -> tuple[Tokenizer, dict[str, Any]]:
    """A copy that takes control strings for text, adds nothing, and leaves offsets as they are (a ByteLevel
    post-processor would trim them); and its tokenizer.json."""
    description: dict[str, Any] = orjson.loads(tokenizer.backend_tokenizer.to_str())
    description.update(post_processor=None, truncation=None, padding=None)
    for token in description["added_tokens"]:
        token["special"] = token["content"] in control
    copy = Tokenizer.from_str(orjson.dumps(description).decode())
    copy.encode_special_tokens = True
    return copy, description


def _fill_holes(copy: Tokenizer) -> int:
    """The first id above every other. A vocabulary with holes would otherwise give new tokens an id in use."""
    free = max(copy.get_vocab(with_added_tokens=True).values()) + 1
    copy.add_tokens([AddedToken(_stand_in("probe"), normalized=False)])
    first = copy.token_to_id(_stand_in("probe"))
    assert first is not None
    copy.add_tokens([AddedToken(_stand_in(f"hole-{hole}"), normalized=False) for hole in range(free - first - 1)])
    return max(free, first + 1)


def _stand_in(name: str) -> str:
    return f"{_MARK}{name}\U0010fffd"


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
