"""Every answer of a teacher, written down as it arrives: the file `answers.jsonl` and its index in memory.

One JSON object a line. Fields: key; event; then for
  answer  request, completion, seconds (how long it took), time (since the epoch), raw (what else the endpoint said);
  sent    usd (the request goes out and may cost this much), batch (the batch it goes with, where it does);
  lost    usd (no answer will come: the process died with it in flight, or it was refused, then 0);
  broken  text (bytes that were paid for and are no answer);
and crc32 of the line without that field, last. Knows neither endpoints nor budgets.
"""

from __future__ import annotations

import os
import re
import time
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import orjson
from pydantic_core import PydanticSerializationError

from tunesmith.errors import DataError, StoreError
from tunesmith.store import disk_error
from tunesmith.teachers.answer_log import AnswerLog
from tunesmith.types import Completion, TeacherRequest

_SEAL = re.compile(rb',"crc32":"([0-9a-f]{8})"}$')
_SEAL_BYTES = len(',"crc32":"01234567"}')
_MAX_BROKEN_BYTES = 65536

_VOLATILE = ("seconds", "time", "raw")
"""Fields that differ between equal runs."""


class _Place(NamedTuple):
    """Where an answer is in the file, and whether a new process asks for it again."""

    offset: int
    size_bytes: int
    is_final: bool


class Ledger:
    """An append-only file of answers. One process at a time.

    Opening it drops a torn last line (the process died while writing) and damaged lines (`num_damaged`), and counts
    requests that were in flight when a process died as money that may be gone (`lost_usd`, `num_lost`); those that
    went out with a batch (`batch_of`) are not lost, their answers can still be fetched.

    Memory: about 300 bytes a request; the answers stay in the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.num_damaged = 0
        self.num_lost = 0
        self.lost_usd = 0.0
        self._answered_usd = 0.0
        self._places: dict[str, _Place] = {}  # key -> its newest answer
        self._in_flight: dict[str, float] = {}  # key -> worst case in US dollars
        self._batches: dict[str, str] = {}  # key -> batch it went out with
        self._broken: list[tuple[int, int]] = []  # (offset, size) of the bytes that are no answers
        self._log = AnswerLog(path)
        self._read()
        for key, usd in list(self._in_flight.items()):
            if key not in self._batches:
                lost = {"key": key, "event": "lost", "usd": usd}
                self._log.append_bytes(_sealed(orjson.dumps(lost)))
                self._take(lost, 0, 0)

    @property
    def keys(self) -> set[str]:
        """Keys of all requests that were asked and came to an end, failed ones included."""
        return set(self._places)

    @property
    def spent_usd(self) -> float:
        """Cost of every answer, and the worst case of the lost ones."""
        return self._answered_usd + self.lost_usd

    @property
    def is_full(self) -> bool:
        """The disk is full, and what is on its way goes into the room that was kept back."""
        return self._log.is_full

    def keep_room(self, size_bytes: int) -> None:
        """See AnswerLog.keep_room."""
        self._log.keep_room(size_bytes)

    def answer(self, key: str) -> Completion | None:
        """The answer on file. None where there is none, or where the request failed and nothing was billed: a new
        process asks again, because an outage must not be remembered for ever."""
        place = self._places.get(key)
        if place is None or not place.is_final:
            return None
        return Completion.model_validate(orjson.loads(self._log.read_at(*place[:2]))["completion"])

    @property
    def submitted_usd(self) -> float:
        """Worst case of the requests that went out with a batch and have no answer yet."""
        return sum(self._in_flight.get(key, 0.0) for key in self._batches)

    def batch_of(self, key: str) -> tuple[str, float] | None:
        """(batch, worst case in US dollars) of a request whose answer an earlier process did not wait for."""
        batch = self._batches.get(key)
        return None if batch is None else (batch, self._in_flight.get(key, 0.0))

    def sent(self, key: str, usd: float, batch: str | None = None) -> None:
        """Note that a request goes out which may cost up to `usd`. Back when no kill can lose the note.
        StoreError where the disk is full, before the request leaves."""
        if self._log.is_full:
            raise StoreError(
                "the disk is full: no further request goes out",
                where=str(self.path),
                hint="free some space and run the same command again: answers that came are kept",
            )
        entry = {"key": key, "event": "sent", "usd": usd}
        if batch is not None:
            entry["batch"] = batch
            self._batches[key] = batch
        self._in_flight[key] = self._in_flight.get(key, 0.0) + usd
        self._log.append_bytes(_sealed(orjson.dumps(entry)))

    def refused(self, key: str) -> None:
        """Note that a request which went out was turned away unbilled."""
        self._forget_sent(key)
        self._log.append_bytes(_sealed(orjson.dumps({"key": key, "event": "lost", "usd": 0.0})))

    def record(
        self, key: str, request: bytes, completion: Completion, seconds: float, raw: bytes | None = None
    ) -> None:
        """Write an answer down; request: its JSON (`request_json`). When this returns, no kill can lose the answer.
        StoreError where it cannot be written."""
        line = _sealed(_answer_line(key, request, completion, seconds, raw))
        offset = self._log.append_bytes(line)
        self._log.sync_soon()
        self._in_flight.pop(key, None)
        self._batches.pop(key, None)
        self._answered_usd += completion.cost_usd
        self._places[key] = _Place(offset, len(line), _is_final(completion.model_dump()))

    def broken(self, key: str, data: bytes) -> None:
        """Keep bytes that were paid for and are no answer."""
        text = data[:_MAX_BROKEN_BYTES].decode("utf-8", "replace")
        line = _sealed(orjson.dumps({"key": key, "event": "broken", "text": text}))
        self._broken.append((self._log.append_bytes(line), len(line)))

    def finish(self, keys: Iterable[str]) -> None:
        """Leave the file as the artifact keeps it: the answers to `keys` in that order, without what differs between
        equal runs, so that those have equal bytes. What was left out goes to logs/: times and raw answers to
        answer_times.jsonl, answers that nobody asked for to unused_answers.jsonl, bytes that were no answer to
        broken_answers.jsonl."""
        used = dict.fromkeys(key for key in keys if key in self._places)
        unused = [place for key, place in self._places.items() if key not in used]
        self._log.close()
        logs = self.path.parent / "logs"
        with self.path.open("rb") as stream:
            _write_lines(logs / "unused_answers.jsonl", (_line_at(stream, place) for place in unused))
            _write_lines(logs / "broken_answers.jsonl", (_line_at(stream, place) for place in self._broken))
        self.write_excerpt(used, self.path)
        self._log = AnswerLog(self.path)

    def write_excerpt(self, keys: Iterable[str], path: Path) -> None:
        """Write the answers to `keys`, in that order, to another file as an artifact keeps them, their times and raw answers
        to logs/answer_times.jsonl beside it. This file stays as it is."""
        places = [self._places[key] for key in dict.fromkeys(keys) if key in self._places]
        with self.path.open("rb") as stream:
            timed = _timed(_line_at(stream, place) for place in places)
            _write_lines(path.parent / "logs" / "answer_times.jsonl", timed)
            bare = (_untimed(_line_at(stream, place)) for place in places)
            _write_lines(path, bare, even_if_empty=True)

    def close(self) -> None:
        """Sync and close. Closing twice is harmless."""
        try:
            self._log.sync()
        except ValueError:  # closed already
            return
        self._log.close()

    def _read(self) -> None:
        offset = 0
        with self.path.open("rb") as stream:
            for line in stream:
                entry = _opened(line)
                if entry is None or not self._take(entry, offset, len(line)):
                    self.num_damaged += 1
                offset += len(line)

    def _take(self, entry: dict[str, Any], offset: int, size_bytes: int) -> bool:
        """One entry of the file into the index; False where it is none."""
        key, event, usd = entry.get("key"), entry.get("event"), entry.get("usd") or 0.0
        if not isinstance(key, str):
            return False
        if event == "sent":
            self._in_flight[key] = self._in_flight.get(key, 0.0) + usd
            if "batch" in entry:
                self._batches[key] = entry["batch"]
        elif event == "broken":
            self._broken.append((offset, size_bytes))
        elif event == "lost":
            self._forget_sent(key)
            self.lost_usd += usd
            self.num_lost += usd > 0
        elif event == "answer" and isinstance(entry.get("completion"), dict):
            self._forget_sent(key)
            self._answered_usd += entry["completion"].get("cost_usd", 0.0)
            self._places[key] = _Place(offset, size_bytes, _is_final(entry["completion"]))
        else:
            return False
        return True

    def _forget_sent(self, key: str) -> None:
        self._in_flight.pop(key, None)
        self._batches.pop(key, None)


def request_json(request: TeacherRequest) -> bytes:
    """The request as the ledger writes it. DataError where it holds what no file can (half a surrogate pair): to be
    made before the request is paid for."""
    try:
        return request.model_dump_json(exclude_none=True).encode()
    except (PydanticSerializationError, UnicodeEncodeError) as error:
        raise DataError(f"a request to the teacher cannot be written as JSON: {error}") from error


def _answer_line(key: str, request: bytes, completion: Completion, seconds: float, raw: bytes | None) -> bytes:
    times = b',"seconds":%.3f,"time":%.3f' % (seconds, time.time())
    return b'{"key":"%s","event":"answer","request":%s,"completion":%s%s%s}' % (
        key.encode(),
        request,
        completion.model_dump_json(exclude_none=True).encode(),
        times,
        b"" if raw is None else b',"raw":' + raw,
    )


def _sealed(entry: bytes) -> bytes:
    """A JSON object as its line, with the checksum: a damaged line is noticed and asked again."""
    return b'%s,"crc32":"%08x"}\n' % (entry[:-1], zlib.crc32(entry + b"\n"))


def _opened(line: bytes) -> dict[str, Any] | None:
    """The entry of a line, None where it is damaged."""
    body = line.rstrip(b"\n")
    seal = _SEAL.search(body[-_SEAL_BYTES:])
    if seal is None or zlib.crc32(body[:-_SEAL_BYTES] + b"}\n") != int(seal.group(1), 16):
        return None
    try:
        entry = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
    return entry if isinstance(entry, dict) else None


def _line_at(stream: BinaryIO, place: tuple[int, int] | _Place) -> bytes:
    stream.seek(place[0])
    return stream.read(place[1])


def _untimed(line: bytes) -> bytes:
    entry = orjson.loads(line)
    return _sealed(orjson.dumps({name: value for name, value in entry.items() if name not in (*_VOLATILE, "crc32")}))


def _timed(lines: Iterable[bytes]) -> Iterator[bytes]:
    for line in lines:
        entry = orjson.loads(line)
        if "time" in entry:
            kept = {name: entry[name] for name in ("key", "event", *_VOLATILE) if name in entry}
            yield _sealed(orjson.dumps(kept))


def _is_final(completion: dict[str, Any]) -> bool:
    """Whether the answer stands: it came, or it failed and was billed all the same."""
    billed = completion.get("cost_usd", 0.0) > 0 or completion.get("usage", {}).get("completion_tokens", 0) > 0
    return completion.get("finish_reason") != "error" or billed


def _write_lines(path: Path, lines: Iterable[bytes], *, even_if_empty: bool = False) -> None:
    """The whole file or the old one; no file for no lines, unless asked for."""
    temporary = path.with_name(f".{path.name}.tmp")
    size_bytes = 0
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as stream:
            for line in lines:
                size_bytes += stream.write(line)
            stream.flush()
            os.fsync(stream.fileno())
        if size_bytes or even_if_empty:
            temporary.replace(path)
        else:
            temporary.unlink()
            if not any(path.parent.iterdir()):
                path.parent.rmdir()
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise disk_error(error, path, size_bytes) from error
