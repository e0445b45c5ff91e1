"""curate: conversations in, train and test rows out. Every other row is in excluded.jsonl with its reason, and the counts
add up: rows_in = train + test + all excluded_<reason>. Rows stay on disk; steps of single rows run in workers.

One rule for all rows, in the order test rows, given rows, generated rows: the earlier one stays. First what a person
decided (`review`), then every row is checked by itself and by the listed filters of scope "all", then repetitions go.
Training rows are then compared with test rows and each other, and the listed filters of scope "train" choose among what is
left. So a test row is left out where it is unusable, where a filter for all rows says so, or where it repeats another test
row; no likeness to a training row removes one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tunesmith.data.filters import ROW_FILTERS, build_filter
from tunesmith.data.filters.contamination import Contamination, Question, question_alone, questions_of
from tunesmith.data.filters.fields import Duplicate
from tunesmith.data.filters.novel import HeldOutOrigins, Novelty
from tunesmith.data.readers import read_examples
from tunesmith.data.review import FirstReview, Review, SecondReview, open_review
from tunesmith.data.rows import RowFile
from tunesmith.data.sifting import Sifting, Step
from tunesmith.data.split import TEST, TRAIN, decide_splits, straddling
from tunesmith.errors import DataError
from tunesmith.events import Note
from tunesmith.protocols import Context, EventSink, FilterContext, SetFilter
from tunesmith.recipe import Curate
from tunesmith.recipe.filters import FilterOptions
from tunesmith.stages.filter_context import FilterTools
from tunesmith.text.jsonl import read_records, write_records
from tunesmith.types import Conversation, Excluded, Inputs, Outcome, Task
from tunesmith.workers import open_pool

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
    files = [inputs[stage].file("conversations.jsonl") for stage in ("ingest", "generate") if stage in inputs]
    sources = [RowFile.scan(path) for path in files]
    num_rows = sum(map(len, sources))
    review = open_review(inputs.files[section.review], task.system_prompt) if section.review else None
    runtime = ctx.runtime
    with (
        FilterTools(section, inputs.files, out_dir, ctx) as tools,
        open_pool(runtime.workers, runtime.workers_for(num_rows)) as pool,
        Sifting(out_dir, section, task, pool, ctx.events) as sifting,
    ):
        listed = [(options.scope, _step(options, tools.context(task))) for options in section.filters]
        of_all = [each for scope, each in listed if scope == "all"]
        first, second = _reviews(review)
        # Repetitions last: rewritten rows may have become equal.
        rows = sifting.read(sources, [*first, *ROW_FILTERS, *of_all, *second, Duplicate()], "check")
        sides = decide_splits(rows.origins, rows.sides, section.test_fraction, section.rng_seed)
        test, train = rows.chosen(sides == TEST), rows.chosen(sides == TRAIN)
        contamination = _contamination(section, inputs, test.rows, tools.num_threads, ctx.events)
        held_out = HeldOutOrigins(straddling(rows.origins, sides))
        comparisons: list[Step] = [held_out, Novelty(test.rows, section.max_similarity), contamination]
        train = sifting.sift(train, [*comparisons, *(each for scope, each in listed if scope == "train")], "compare")
        facts = {"num_train": len(train), "num_test": len(test), **tools.facts()}
        if sifting.num_rewritten:
            facts["num_rewritten"] = sifting.num_rewritten
        reasons = sifting.reasons
        if not len(train):
            raise _empty(num_rows, len(test), reasons)
        _tell(section, len(train), len(test), sifting, contamination.num_partial, ctx.events)
        for note in review.notes() if review else ():
            ctx.events.emit(note)
        sifting.write(train, out_dir / "train.jsonl", "train")
        sifting.write(test, out_dir / "test.jsonl", "test")
    write_records(out_dir / "task.json", [task])
    counts = {
        "rows_in": num_rows,
        "train": len(train),
        "test": len(test),
        **{f"excluded_{reason}": number for reason, number in sorted(reasons.items())},
    }
    return Outcome("curated", counts, facts)


def _step(options: FilterOptions, ctx: FilterContext) -> Step:
    """A listed filter as a step: one of single rows by its options, because each worker builds its own."""
    built = build_filter(options, ctx)
    return built if isinstance(built, SetFilter) else options


def _reviews(review: Review | None) -> tuple[list[Step], list[Step]]:
    return ([FirstReview(review)], [SecondReview(review)]) if review else ([], [])


def _contamination(
    section: Curate, inputs: Inputs, test: Sequence[Conversation], num_threads: int, events: EventSink
) -> Contamination:
    """Training rows against the questions of test rows and of evaluation files."""
    questions = questions_of(test, are_test_rows=True)
    for name in section.decontaminate_against:
        questions += _questions_in(name, inputs, events)
    return Contamination(questions, max_coverage=section.max_eval_coverage, num_threads=num_threads)


def _questions_in(name: str, inputs: Inputs, events: EventSink) -> list[Question]:
    examples = list(read_examples(inputs.files[name]))
    questions = questions_of([each for each in examples if isinstance(each, Conversation)], are_test_rows=False)
    questions += [each for row in examples if isinstance(row, Excluded) and (each := question_alone(row)) is not None]
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
    num_train: int,
    num_test: int,
    sifting: Sifting,
    num_partial: int,
    events: EventSink,
) -> None:
    reasons = sifting.reasons
    if sifting.num_rewritten:
        message = f"filters changed what is said in {sifting.num_rewritten:,} rows (masks, sentences taken out)"
        events.emit(Note(message=message))
    if not num_test:
        message = (
            "there are no test rows, so the result will not be measured: name ingest.test_files, or set "
            "ingest.test_fraction"
        )
        events.emit(Note(level="warning", message=message))
    alike = reasons["rouge_l"] + reasons["rouge_l_test"]
    if alike > num_train:
        message = (
            f"{alike:,} rows are left out because their prompts are alike (ROUGE-L above {section.max_similarity:g}), and "
            f"{num_train:,} stay; set curate.max_similarity: 1 where prompts are meant to be alike"
        )
        events.emit(Note(level="warning", message=message))
    if num_partial:
        message = (
            f"{num_partial:,} rows are left out because they hold a part of a test row's question (more than "
            f"curate.max_eval_coverage = {section.max_eval_coverage:g} of it, or 13 of its words in a row); where rows of one kind "
            "share their instruction, set curate.max_eval_coverage: 1"
        )
        events.emit(Note(level="warning", message=message))
