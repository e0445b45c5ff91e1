"""curate: conversations in, train and test rows out. Every other row is in excluded.jsonl with its reason, and the counts
add up: rows_in = train + test + all excluded_<reason>.

One rule for all rows, in the order test rows, given rows, generated rows: the earlier one stays. First every row is
checked by itself and by the listed filters of scope "all", then repetitions go. Training rows are then compared with test
rows and each other, and the listed filters of scope "train" choose among what is left. Test rows are left out only where
they are unusable or repeat each other; no likeness to a training row removes one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from tunesmith.data.filters import build_field_filters, build_filter
from tunesmith.data.filters.contamination import Contamination, Question, questions_of
from tunesmith.data.filters.novel import Novelty
from tunesmith.data.identity import with_system_prompt
from tunesmith.data.readers import read_examples
from tunesmith.data.split import decide_splits, straddling
from tunesmith.errors import DataError
from tunesmith.events import Note, Progress
from tunesmith.protocols import Context, EventSink, Filter, SetFilter, Verdict
from tunesmith.recipe import Curate
from tunesmith.stages.filter_context import FilterTools
from tunesmith.text.jsonl import read_records, write_records
from tunesmith.types import Conversation, Excluded, Inputs, Outcome, Task

_ROWS_PER_EVENT = 500
_REMEDIES = {
    "no_reply": "every row needs a reply: check the names of the columns, or let a `generate` section write rows",
    "schema": "correct ingest.output_schema or the replies, or set curate.check_schema: false",
    "rouge_l": "set curate.max_similarity: 1 where prompts are meant to be alike",
    "rouge_l_test": "set curate.max_similarity: 1 where prompts are meant to be alike",
    "contaminated": "set curate.max_eval_coverage: 1, or look at the spans in excluded.jsonl",
    "contaminated_test": "set curate.max_eval_coverage: 1 where all prompts share their words",
    "blacklist": "shorten curate.blacklist",
    "prompt_length": "change curate.min_prompt_words and max_prompt_words",
    "reply_length": "change curate.min_reply_words and max_reply_words",
}


def run(section: Curate, inputs: Inputs, out_dir: Path, ctx: Context) -> Outcome:
    """See protocols.Stage. DataError where no training row is left."""
    source = inputs["generate"] if "generate" in inputs else inputs["ingest"]
    task = read_records(source.file("task.json"), Task)[0]
    rows = [with_system_prompt(row, task.system_prompt) for row in _rows(inputs)]
    excluded: list[Excluded] = []
    with FilterTools(section, inputs.files, out_dir, ctx) as tools:
        fields = build_field_filters(section, task)
        listed = [(options.scope, build_filter(options, tools.context(task))) for options in section.filters]
        last = fields.pop("duplicate")  # rewritten rows may have become equal
        checks = [*fields.values(), *(each for scope, each in listed if scope == "all"), last]
        kept = apply_filters(rows, checks, excluded, "check", ctx.events)
        kept = decide_splits(kept, section.test_fraction, section.rng_seed)
        test = [row for row in kept if row.split == "test"]
        comparisons = _comparisons(section, inputs, kept, test, tools.num_threads, ctx.events)
        comparisons += [each for scope, each in listed if scope == "train"]
        train = [row for row in kept if row.split == "train"]
        train = apply_filters(train, comparisons, excluded, "compare", ctx.events)
        facts = {"num_train": len(train), "num_test": len(test), **tools.facts()}
    reasons = Counter(each.reason for each in excluded)
    if not train:
        raise _empty(len(rows), len(test), reasons)
    _tell(section, train, test, reasons, ctx.events)
    write_records(out_dir / "train.jsonl", train)
    write_records(out_dir / "test.jsonl", test)
    write_records(out_dir / "excluded.jsonl", excluded)
    write_records(out_dir / "task.json", [task])
    counts = {
        "rows_in": len(rows),
        "train": len(train),
        "test": len(test),
        **{f"excluded_{reason}": number for reason, number in sorted(reasons.items())},
    }
    return Outcome("curated", counts, facts)


def apply_filters(
    rows: Sequence[Conversation],
    filters: Sequence[Filter | SetFilter],
    excluded: list[Excluded],
    task: str,
    events: EventSink,
) -> list[Conversation]:
    """The rows that every filter keeps, as the filters left them. The others go to `excluded`, in the order of the rows.

    Neighbouring filters of single rows share one pass. task: name of the work in progress events.
    """
    numbered = list(enumerate(rows))
    lost: dict[int, Excluded] = {}

    def settle(number: int, row: Conversation, verdict: Verdict) -> Conversation | None:
        if isinstance(verdict, tuple):
            reason, detail = verdict
            lost[number] = Excluded(reason=reason, detail=detail, where=row.source, conversation=row)
            return None
        return verdict or row

    for together, group in groupby(filters, key=lambda each: isinstance(each, SetFilter)):
        members = list(group)
        if together:
            for member in members:
                assert isinstance(member, SetFilter)
                verdicts = member.judge_all([row for _, row in numbered])
                settled = [(n, settle(n, row, verdict)) for (n, row), verdict in zip(numbered, verdicts, strict=True)]
                numbered = [(n, row) for n, row in settled if row is not None]
                _progress(task, len(settled), len(settled), len(numbered), events)
            continue
        left: list[tuple[int, Conversation]] = []
        for done, (number, row) in enumerate(numbered, start=1):
            current: Conversation | None = row
            for member in members:
                assert not isinstance(member, SetFilter)
                current = settle(number, current, member(current))
                if current is None:
                    break
            else:
                left.append((number, current))
            if done % _ROWS_PER_EVENT == 0 or done == len(numbered):
                _progress(task, done, len(numbered), len(left), events)
        numbered = left
    excluded += [lost[number] for number in sorted(lost)]
    return [row for _, row in numbered]


def _comparisons(
    section: Curate,
    inputs: Inputs,
    kept: Sequence[Conversation],
    test: Sequence[Conversation],
    num_threads: int,
    events: EventSink,
) -> list[Filter | SetFilter]:
    """What training rows are compared with: test rows by origin, likeness and n-grams, evaluation files, each other."""
    parted = straddling(kept)
    questions = questions_of(test, are_test_rows=True)
    for name in section.decontaminate_against:
        questions += _questions_in(name, inputs, events)

    def in_test(row: Conversation) -> Verdict:
        return ("in_test", f"its origin {row.origin!r} also has test rows") if row.origin in parted else None

    contamination = Contamination(questions, max_coverage=section.max_eval_coverage, num_threads=num_threads)
    return [in_test, Novelty(test, section.max_similarity), contamination]


def _questions_in(name: str, inputs: Inputs, events: EventSink) -> list[Question]:
    examples = list(read_examples(inputs.files[name]))
    rows = [each for each in examples if isinstance(each, Conversation)]
    questions = questions_of(rows, are_test_rows=False)
    if not questions:
        raise DataError(
            f"{name} has no question among {len(examples):,} rows",
            where="recipe.curate.decontaminate_against",
            hint="name a file of rows with a question or a prompt",
        )
    if len(questions) < len(examples):
        unread = len(examples) - len(questions)
        message = (
            f"{unread:,} of {len(examples):,} rows of {name} have no question that training rows can be compared with"
        )
        events.emit(Note(level="warning", message=message))
    return questions


def _rows(inputs: Inputs) -> list[Conversation]:
    """Test rows, then given rows, then generated ones."""
    given = read_records(inputs["ingest"].file("conversations.jsonl"), Conversation)
    if "generate" in inputs:
        given += read_records(inputs["generate"].file("conversations.jsonl"), Conversation)
    return sorted(given, key=lambda row: row.split != "test")


def _progress(task: str, done: int, total: int, num_kept: int, events: EventSink) -> None:
    live: dict[str, float | int | str] = {"kept": num_kept}
    events.emit(Progress(task=task, done=done, total=total, unit="rows", detail=live))


def _empty(num_rows: int, num_test: int, reasons: Counter[str]) -> DataError:
    if not num_rows:
        return DataError("there are no rows", where="recipe.ingest.files", hint="name files with examples")
    shown = ", ".join(f"{reason} {number:,}" for reason, number in reasons.most_common(3)) or "none"
    remedies = (_REMEDIES.get(reason) for reason, _ in reasons.most_common())
    everything_tested = "every row is a test row: give files without test_files, or a lower test_fraction"
    return DataError(
        f"no training row is left of {num_rows:,} rows ({num_test:,} are test rows; excluded: {shown})",
        where="recipe.curate",
        hint=next((remedy for remedy in remedies if remedy), everything_tested),
    )


def _tell(
    section: Curate,
    train: Sequence[Conversation],
    test: Sequence[Conversation],
    reasons: Counter[str],
    events: EventSink,
) -> None:
    if not test:
        message = (
            "there are no test rows, so the result will not be measured: name ingest.test_files, or set "
            "ingest.test_fraction"
        )
        events.emit(Note(level="warning", message=message))
    alike = reasons["rouge_l"] + reasons["rouge_l_test"]
    if alike > len(train):
        message = (
            f"{alike:,} rows are left out because their prompts are alike (ROUGE-L above {section.max_similarity:g}), and "
            f"{len(train):,} stay; set curate.max_similarity: 1 where prompts are meant to be alike"
        )
        events.emit(Note(level="warning", message=message))
