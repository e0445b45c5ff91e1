"""Answers to compare, for the stage align: preferences and labels of the files and of the prefer stage, as tokens.

Owns which rows are used and why others stay out. Knows no loss but whether it wants pairs or labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from tunesmith.chat.renderer import RenderedArrays, Renderer
from tunesmith.errors import DataError, RecipeError
from tunesmith.hashing import digest_json
from tunesmith.recipe.align import Align
from tunesmith.stages.held_out import Row, apart_from_test
from tunesmith.stages.tokenize import TASK
from tunesmith.text.jsonl import read_records
from tunesmith.types import Excluded, Inputs, Labelled, Message, Preference, Task, conversation_id

PREFERENCES, LABELLED = "preferences.jsonl", "labelled.jsonl"


@dataclass
class Answers:
    """Rendered rows, and those that stay out."""

    ids: list[str] = field(default_factory=list[str])
    first: list[RenderedArrays] = field(default_factory=list[RenderedArrays])  # chosen answers, or labelled ones
    second: list[RenderedArrays] = field(default_factory=list[RenderedArrays])  # rejected answers, or mismatched ones
    desirable: list[bool] = field(default_factory=list[bool])
    dropped: list[Excluded] = field(default_factory=list[Excluded])


def render_answers(section: Align, inputs: Inputs, renderer: Renderer, limit: int) -> Answers:
    """Every preference (or label) of the training split as tokens."""
    task = read_records(inputs["curate"].file(TASK), Task)[0]
    answers = Answers()
    if section.loss == "kto":
        labelled = _to_learn_from(_labelled(inputs, answers), inputs, answers)
        _render_labelled(labelled, task, renderer, limit, answers)
        wanted = "labelled answers (rows with `label`), or preferences"
    else:
        rows, repeated = without_repeats(read_preferences(inputs))
        answers.dropped += repeated
        pairs = _to_learn_from(rows, inputs, answers)
        render_pairs(pairs, task, renderer, limit, answers)
        wanted = "preferences (rows with `chosen` and `rejected`), or a `prefer` stage that makes them"
    if answers.ids:
        return answers
    if answers.dropped:
        first = answers.dropped[0]
        raise DataError(
            f"none of {len(answers.dropped)} rows can be used; the first: {first.reason}: {first.detail}",
            where=first.where,
        )
    check_prefer_made_pairs(inputs)
    raise RecipeError(
        f"there is nothing to align by: expected {wanted}", where="recipe.align", hint="see docs/alignment.md"
    )


def check_prefer_made_pairs(inputs: Inputs) -> None:
    """DataError where there is a stage prefer and every prompt of it stayed without a pair."""
    counts = inputs["prefer"].manifest.counts if "prefer" in inputs.artifacts else {}
    if counts.get("prompts") and not counts["pairs"]:
        reasons = {name.removeprefix("excluded_"): number for name, number in counts.items() if "excluded_" in name}
        shown = ", ".join(f"{reason} {number:,}" for reason, number in reasons.items())
        raise DataError(
            f"the stage prefer made no pair of {counts['prompts']:,} prompts ({shown})",
            where="recipe.prefer",
            hint="its excluded.jsonl says why of each; raise prefer.max_tokens where answers are cut off, prefer.temperature where "
            "they are alike",
        )


def _to_learn_from(rows: Sequence[Row], inputs: Inputs, answers: Answers) -> list[Row]:
    """Rows that are neither test rows themselves (marked_test) nor ask what one asks; the others are written down."""
    for row in rows:
        if row.split == "test":
            detail = "it is a test row, by its file, its mark or the share that is held out"
            answers.dropped.append(Excluded(reason="marked_test", detail=detail, where=row.source or row.id))
    kept, asked = apart_from_test([row for row in rows if row.split != "test"], inputs)
    answers.dropped += asked
    return kept


def read_preferences(inputs: Inputs) -> list[Preference]:
    """Those of the files and of the prefer stage."""
    found = [inputs[name].file(PREFERENCES) for name in ("ingest", "prefer") if name in inputs.artifacts]
    return [row for path in found if path.is_file() for row in read_records(path, Preference)]


def without_repeats(rows: Sequence[Preference]) -> tuple[list[Preference], list[Excluded]]:
    """Each pair once: one with the prompt and both answers of an earlier one would count double. Test rows are let through."""
    first: dict[str, str] = {}
    kept, repeated = list[Preference](), list[Excluded]()
    for row in rows:
        key = digest_json([conversation_id(row.prompt), row.chosen, row.rejected])
        where = row.source or row.id
        if row.split == "test":
            kept.append(row)
        elif key in first:
            detail = f"prompt and both answers are those of {first[key]}"
            repeated.append(Excluded(reason="duplicate", detail=detail, where=where))
        else:
            first[key] = where
            kept.append(row)
    return kept, repeated


def _labelled(inputs: Inputs, answers: Answers) -> list[Labelled]:
    """Labelled answers; a preference is two of them."""
    path = inputs["ingest"].file(LABELLED)
    rows = read_records(path, Labelled) if path.is_file() else []
    pairs, repeated = without_repeats(read_preferences(inputs))
    answers.dropped += [each for each in repeated for _ in range(2)]
    for pair in pairs:
        shared: dict[str, Any] = {
            "prompt": pair.prompt,
            "source": pair.source,
            "origin": pair.origin,
            "split": pair.split,
        }
        rows.append(Labelled(reply=pair.chosen, desirable=True, **shared))
        rows.append(Labelled(reply=pair.rejected, desirable=False, **shared))
    return rows


def render_pairs(rows: Sequence[Preference], task: Task, renderer: Renderer, limit: int, answers: Answers) -> None:
    """Adds the pairs that both fit into `limit` tokens."""
    chosen = renderer.render_batch([_messages(row.prompt, row.chosen, task) for row in rows], "last_turn")
    rejected = renderer.render_batch([_messages(row.prompt, row.rejected, task) for row in rows], "last_turn")
    for row, first, second in zip(rows, chosen, rejected, strict=True):
        better, worse = _usable(answers, row, first, limit), None
        if better is not None:  # a row is left out for one reason
            worse = _usable(answers, row, second, limit)
        if better is not None and worse is not None:
            _keep(answers, row, better, worse)


def _render_labelled(rows: Sequence[Labelled], task: Task, renderer: Renderer, limit: int, answers: Answers) -> None:
    """second: each prompt with the reply of another row, which KTO's KL term is measured on."""
    own = renderer.render_batch([_messages(row.prompt, row.reply, task) for row in rows], "last_turn")
    usable: list[tuple[Labelled, RenderedArrays]] = []
    for row, first in zip(rows, own, strict=True):
        if (found := _usable(answers, row, first, limit)) is not None:
            usable.append((row, found))
    strangers = [_stranger(place, usable, limit) for place in range(len(usable))]
    asked = [_messages(row.prompt, reply, task) for (row, _), reply in zip(usable, strangers, strict=True)]
    mismatched = renderer.render_batch(asked, "last_turn")
    for (row, first), second in zip(usable, mismatched, strict=True):
        if (found := _usable(answers, row, second, limit)) is not None:
            _keep(answers, row, first, found)
            answers.desirable.append(row.desirable)


def _stranger(place: int, rows: Sequence[tuple[Labelled, RenderedArrays]], limit: int) -> str:
    """The reply of the nearest row before this one (the last is before the first) whose prompt is another; of those, one
    that leaves room for it where there is one."""
    row, first = rows[place]
    room = limit - (len(first.input_ids) - int(first.loss_mask.sum()))
    others = (rows[(place - step) % len(rows)] for step in range(1, len(rows)))
    found = None
    for other, rendered in others:
        if other.prompt == row.prompt:
            continue
        if int(rendered.loss_mask.sum()) <= room:
            return other.reply
        found = found or other
    if found is None:
        raise DataError(
            "KTO compares each answer with that of another prompt, and all rows have one prompt",
            where=row.source or row.id,
            hint="add rows with other prompts, or take the loss dpo",
        )
    return found.reply


def _usable(
    answers: Answers, row: Preference | Labelled, rendered: RenderedArrays | DataError, limit: int
) -> RenderedArrays | None:
    """What was rendered, if the row can go on with it; if not, why is written down."""
    where = row.source or row.id
    if isinstance(rendered, DataError):
        answers.dropped.append(Excluded(reason="refused_by_template", detail=str(rendered), where=where))
        return None
    if len(rendered.input_ids) > limit:
        detail = f"{len(rendered.input_ids)} tokens, expected at most {limit}"
        answers.dropped.append(Excluded(reason="overlong", detail=detail, where=where))
        return None
    return rendered


def _keep(answers: Answers, row: Preference | Labelled, first: RenderedArrays, second: RenderedArrays) -> None:
    answers.ids.append(row.id)
    answers.first.append(first)
    answers.second.append(second)


def _messages(prompt: Sequence[Message], reply: str, task: Task) -> list[Message]:
    messages = [*prompt, Message(role="assistant", content=reply)]
    if task.system_prompt and messages[0].role != "system":
        return [Message(role="system", content=task.system_prompt), *messages]
    return messages
