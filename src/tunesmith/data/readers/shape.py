"""Which shape the rows of a file have, found by looking at the first ones; then each row as examples, or the reason why
it has none.

A shape says in which ways a row may be read (readings.py); the file's first rows decide which of them is usual there. A
row that can also be read as another example is never read silently.
"""

from __future__ import annotations

import difflib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

import orjson
from pydantic import ValidationError

from tunesmith.data.readers.containers import SURELY_FLAT, Batch, Row, cut_raw, read_batches
from tunesmith.data.readers.fields import BadRow, Fields, Pair, Parsed, Text, Thumb, check_turns, found, kind_of
from tunesmith.data.readers.readings import Option, Reading, ambiguity, both_shown, candidates, options_of, rival_of
from tunesmith.data.readers.source import DataFile, NoRows, data_file
from tunesmith.errors import DataError
from tunesmith.text.jsonl import dump_record, parse_record
from tunesmith.types import Conversation, Document, Example, Excluded, Labelled, Preference, Split

_NUM_ROWS_LOOKED_AT = 50
_FEW, _NEARLY_ALL = 0.1, 0.9  # shares of the rows
_ENOUGH_ROWS = 5  # so many alike are a form, not an accident
_SPLITS: dict[str, Split] = {"train": "train", "test": "test", "validation": "test"}


@dataclass(frozen=True)
class Shape:
    """A known form of rows (protocol Reader: call it with a path to read a file of this form alone).

    `readings` looks at the names of a row's fields only, so that a wrong value stays a bad row of this shape.
    """

    name: str
    fields: str  # for people: "instruction, input (optional), output"
    names: tuple[str, ...]  # field names that belong to this shape, for finding the nearest one
    readings: Callable[[Mapping[str, Any]], list[Reading]]

    def __call__(self, path: Path) -> Iterator[Example | Excluded]:
        return read_file(data_file(path), [self])


class Usual(NamedTuple):
    """How most rows of a file are read: what matters of a Reading for the others."""

    label: str
    has_reply: bool
    special: str


@dataclass(frozen=True)
class Conversion:
    """Rows of one file as examples, once its shape is known. Picklable: a worker may convert some of the batches."""

    shape: Shape
    usual: Usual
    shapes: tuple[Shape, ...]  # all that a row may have; one where a person named it

    def examples(self, batch: Batch) -> Iterator[Example | Excluded]:
        """Every example of a batch. A row ends as some examples, or as Excluded with the reason."""
        names = frozenset(name for shape in self.shapes for name in shape.names) - {"text"}  # text gives way
        for row in batch.rows():
            if isinstance(row, Excluded):
                yield row
            else:
                yield from _convert(row, self, names)


def read_file(file: DataFile, shapes: Sequence[Shape]) -> Iterator[Example | Excluded]:
    """Every example of a file whose rows have one of these shapes. DataError where none fits or two do."""
    conversion, batches = open_file(file, shapes)
    for batch in batches:
        yield from conversion.examples(batch)


def open_file(file: DataFile, shapes: Sequence[Shape]) -> tuple[Conversion, Iterator[Batch]]:
    """How a file's rows are converted, and the rows. Errors as in read_file."""
    columns = {name for shape in shapes for name in shape.names}
    return recognise(read_batches(file, columns), shapes, file.name)


def recognise(batches: Iterator[Batch], shapes: Sequence[Shape], name: str) -> tuple[Conversion, Iterator[Batch]]:
    """How rows that came from one file, or from files that are read as one, are converted; and all of them. Errors as in
    read_file."""
    looked_at: list[Batch] = []
    first: list[Row | Excluded] = []
    for batch in batches:
        looked_at.append(batch)
        first += islice(batch.rows(), _NUM_ROWS_LOOKED_AT - len(first))
        if len(first) == _NUM_ROWS_LOOKED_AT:
            break
    shape, reading = _recognise(first, shapes, name)
    usual = Usual(reading.label, reading.has_reply, reading.special)
    return Conversion(shape, usual, tuple(shapes)), chain(looked_at, batches)


def _recognise(first: Sequence[Row | Excluded], shapes: Sequence[Shape], name: str) -> tuple[Shape, Reading]:
    """The shape that fits most rows, and the reading of most of those. DataError where none fits or two do."""
    rows = [row for row in first if isinstance(row, Row) and isinstance(row.value, dict)]
    if not rows:
        raise _no_object(first, shapes, name)
    found_there = [(row, options_of(row.value, shapes) or candidates(row.value, shapes)[:1]) for row in rows]
    fitting = Counter(
        {
            shape.name: sum(any(each.form == shape.name for each in several) for _, several in found_there)
            for shape in shapes
        }
    )
    (best, count), *others = [*fitting.most_common(2), ("", 0)]
    if not count:
        raise _no_shape(rows, shapes)
    unclear = [(row, several) for row, several in found_there if len(several) > 1]
    if 2 * len(unclear) >= count:
        row, several = unclear[0]
        raise _two_readings([(row, each) for each in several], shapes)
    if others[0][1] == count:
        tied = (best, others[0][0])
        firsts = {each.form: (row, each) for row, several in reversed(found_there) for each in several}
        raise _two_readings(sorted((firsts[name] for name in tied), key=lambda each: rows.index(each[0])), shapes)
    shape = next(each for each in shapes if each.name == best)
    special = _special_reading(shape, [(row, shape.readings(row.value)) for row in rows])
    if special is not None:
        return shape, special
    clear = [several[0].reading for _, several in found_there if len(several) == 1 and several[0].form == best]
    # Rows without a reply are read as such only where no row has one.
    labels = Counter(reading.label for reading in clear)
    known = {reading.label: reading for reading in clear}
    return shape, known[max(labels, key=lambda each: (known[each].has_reply, labels[each]))]


def _special_reading(shape: Shape, readings: Sequence[tuple[Row, list[Reading]]]) -> Reading | None:
    """The special reading where nearly all rows have it, None where few have. DataError in between: it could be both."""
    fitting = [(row, several) for row, several in readings if several]
    found_there = [(row, several, special) for row, several in fitting for special in several if special.special]
    if len(found_there) <= _FEW * len(fitting):
        return None
    strong = sum(special.special == "strong" for _, _, special in found_there)
    if len(found_there) >= _NEARLY_ALL * len(fitting) and (
        strong >= _NEARLY_ALL * len(found_there) or len(found_there) >= _ENOUGH_ROWS
    ):
        return found_there[0][2]
    row, several, _ = found_there[0]
    shown = [(row.value, Option(shape.name, reading)) for reading in several[:2]]
    which = f"{len(found_there)} of the first {len(fitting)} rows"
    raise ambiguity(shown, [reading.form for reading in several[:2]], which=which, where=row.where)


def _two_readings(shown: Sequence[tuple[Row, Option]], shapes: Sequence[Shape]) -> DataError:
    """The error for rows of which nobody knows what is meant. Each reading comes with a row that has it."""
    # A form is worth naming where its own reading of the row is one.
    by_name = {shape.name: shape for shape in shapes}
    forms = dict.fromkeys(each.form for row, each in shown if len(options_of(row.value, [by_name[each.form]])) == 1)
    pairs = [(row.value, each) for row, each in shown]
    return ambiguity(pairs, list(forms) if len(shapes) > 1 else [], which="the rows", where=shown[0][0].where)


def _no_object(first: Sequence[Row | Excluded], shapes: Sequence[Shape], name: str) -> DataError:
    if not first:
        return NoRows("the file has a header but no row", where=name, hint="expected at least one example")
    bad = first[0]
    if isinstance(bad, Excluded):
        problem = f"none of the first {len(first)} rows can be read: {bad.detail}"
        return DataError(problem, where=bad.where, hint=_known(shapes))
    return DataError(f"the rows are {kind_of(bad.value)} each, expected objects", where=bad.where, hint=_known(shapes))


def _no_shape(rows: Sequence[Row], shapes: Sequence[Shape]) -> DataError:
    row: dict[str, Any] = rows[0].value
    return DataError(
        f"no known form of example has the fields: {found(row)}", where=rows[0].where, hint=_suggestion(row, shapes)
    )


def _suggestion(row: Mapping[str, Any], shapes: Sequence[Shape]) -> str:
    lists = [name for name, value in row.items() if isinstance(value, list) and value and isinstance(value[0], dict)]
    if lists:
        return f"{lists[0]!r} holds a list of rows: save that list alone. {_known(shapes)}"
    near = [
        (difflib.SequenceMatcher(a=str(field).strip().lower(), b=name).ratio(), str(field), name, shape)
        for field in row
        for shape in shapes
        for name in shape.names
    ]
    ratio, field, name, shape = max(near, key=lambda each: each[0], default=(0.0, "", "", shapes[0]))
    if ratio >= 0.7:
        return f"did you mean {name!r} for {field!r}? Nearest form: {shape.fields}"
    return _known(shapes)


def _known(shapes: Sequence[Shape]) -> str:
    return "known forms: " + "; ".join(shape.fields for shape in shapes)


def _convert(row: Row, how: Conversion, names: frozenset[str]) -> Iterator[Example | Excluded]:
    """The examples of one row, or the reason why it has none. names: fields that could be those of another example."""
    try:
        if not isinstance(row.value, dict):
            problem = f"the row is {kind_of(row.value)}, expected an object with {how.shape.fields}"
            raise BadRow("wrong_type", None, problem)
        reading = _reading_of(row.value, how.shape, how.usual)
        fields = Fields(row.value)
        common = _take_common(fields)
        parsed = reading.parse(fields)
        if len(how.shapes) == 1 or not names.isdisjoint(row.value.keys() - reading.takes):
            _refuse_rival(row.value, how, reading, parsed)
        common["metadata"] = {**_json_values(fields.rest()), **common["metadata"]}
        examples = [_example(each, source=row.where, **common) for each in parsed]
        if not _surely_writable(row.value):
            for example in examples:
                # What cannot be written later, or not be read again, is found here, with its row.
                parse_record(dump_record(example), type(example), where=row.where)
    except BadRow as bad:
        yield Excluded(reason=bad.reason, detail=bad.detail, where=row.where, field=bad.field, raw=cut_raw(row.value))
    except DataError as error:
        yield Excluded(reason="wrong_type", detail=error.message, where=row.where, raw=cut_raw(row.value))
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or None
        yield Excluded(reason="wrong_type", detail=first["msg"], where=row.where, field=field, raw=cut_raw(row.value))
    else:
        # Several examples of one task are one origin: a split must not cut them apart.
        for example in examples:
            if not common["origin"]:
                example.origin = examples[0].id
            yield example


def _surely_writable(value: Any) -> bool:
    """False where a value may have no JSON form (half a surrogate pair, maybe escaped in a cell of JSON, or no finite
    number), or be nested deeper than records are read (200). Writing a row to see costs a third of reading it, so rows that are plainly sound are spared it."""
    try:
        text = orjson.dumps(value)
    except TypeError:
        return False
    return b"\\ud" not in text and b"null" not in text and text.count(b"[") + text.count(b"{") < SURELY_FLAT


def _example(parsed: Parsed, **common: Any) -> Example:
    common["metadata"] = dict(common["metadata"])
    if isinstance(parsed, Pair):
        answers = {"chosen": parsed.chosen, "rejected": parsed.rejected, "scores": parsed.scores}
        return Preference(prompt=parsed.prompt, **answers, **common)
    if isinstance(parsed, Thumb):
        check_turns(parsed.prompt)
        return Labelled(prompt=parsed.prompt, reply=parsed.reply, desirable=parsed.desirable, **common)
    if isinstance(parsed, Text):
        return Document(text=parsed.text, **common)
    check_turns(parsed)
    return Conversation(messages=parsed, **common)


def _reading_of(row: Mapping[str, Any], shape: Shape, usual: Usual) -> Reading:
    readings = shape.readings(row)
    if not readings:
        missing = next((name for name in shape.names if name in usual.label.split(" -> ") and name not in row), None)
        raise BadRow("missing_field", missing, f"expected {shape.fields}; the row has: {found(row)}")
    if usual.special and not any(reading.label == usual.label for reading in readings):
        detail = f"the rows of this file are read as {usual.label}, and this one cannot be"
        raise BadRow("bad_turns", usual.label.split()[-1], detail)
    same = [reading for reading in readings if reading.label == usual.label]
    if same:
        return same[0]
    if len(readings) > 1:
        options = options_of(row, [shape])
        if len(options) > 1:
            raise _ambiguous(row, options)
        readings = [each.reading for each in options] or readings
    if usual.has_reply and not readings[0].has_reply:
        reply = usual.label.split(" -> ")[-1]
        raise BadRow("missing_field", reply, f"the row has no field {reply!r}; it has: {found(row)}")
    return readings[0]


def _refuse_rival(row: Mapping[str, Any], how: Conversion, reading: Reading, parsed: Sequence[Parsed]) -> None:
    """BadRow where the row, read as this, can also be read as another example."""
    rival = rival_of(row, how.shapes, reading, parsed)
    if rival is not None:
        raise _ambiguous(row, [Option(how.shape.name, reading), rival])


def _ambiguous(row: Mapping[str, Any], options: Sequence[Option]) -> BadRow:
    shown = both_shown([(row, each) for each in options])
    choice = "name the form (`--from` on the command line, `ingest.format` in a recipe) or take out what is not meant"
    return BadRow("ambiguous", None, f"the row can be read in two ways: {shown}; {choice}")


def _take_common(fields: Fields) -> dict[str, Any]:
    """The fields every shape may have: id, split, origin (or group), licence (or license), tools, metadata."""
    metadata = fields.take("metadata") or {}
    if isinstance(metadata, str):
        metadata = _cell_of_json(metadata)
    if not isinstance(metadata, dict):
        raise BadRow("wrong_type", "metadata", f"field 'metadata' is {kind_of(metadata)}, expected an object")
    row_id = fields.take("id")
    if row_id not in (None, ""):
        metadata = {**metadata, "row_id": row_id}
    tools = fields.take("tools")
    if tools not in (None, ""):
        metadata = {**metadata, "tools": _tools(tools)}
    split = fields.take_optional_text("split").strip().lower()
    if split and split not in _SPLITS:
        raise BadRow("bad_value", "split", f"field 'split' is {split!r}, expected train, test or validation")
    origin = _label(fields, "origin") or _label(fields, "group")
    licence = fields.take_optional_text("licence") or fields.take_optional_text("license")
    return {
        "metadata": _json_values(metadata),
        "split": _SPLITS.get(split),
        "origin": origin,
        "licence": licence or None,
    }


def _tools(value: Any) -> Any:
    """The list of tools a dialogue may call; a table's cell has it as JSON text. Any other value stays what it is."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def _cell_of_json(text: str) -> Any:
    """What a table's cell holds: an object written as JSON, or a word of its own."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    return value if isinstance(value, dict) else {"metadata": text}


def _label(fields: Fields, name: str) -> str:
    value = fields.take(name)
    if value is None or isinstance(value, str | int):
        return "" if value is None else str(value)
    raise BadRow("wrong_type", name, f"field {name!r} is {kind_of(value)}, expected text or a number")


def _json_values(values: Mapping[str, Any]) -> dict[str, Any]:
    # Parquet has dates, decimals and bytes; metadata is for people and travels as JSON.
    return json.loads(json.dumps(dict(values), default=str)) if values else {}
