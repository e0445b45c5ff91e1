"""What rows a run learns from: the sections of ingest, curate and tokenize. Filters are in filters.py, teachers in teaching.py."""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import Field, model_validator

from tunesmith.recipe.filter_list import FilterList
from tunesmith.recipe.section import Auto, RngSeed, Section, StrList
from tunesmith.recipe.teaching import TeacherSection

_SAMPLED = re.compile(r"(.+)#(\d+)\Z", re.DOTALL)


def split_sampled(name: str) -> tuple[str, int | None]:
    """("rows.jsonl", 500) of "rows.jsonl#500", ("rows.jsonl", None) of "rows.jsonl": the file and how many to draw."""
    match = _SAMPLED.match(name)
    return (match[1], int(match[2])) if match else (name, None)


class Ingest(Section):
    """What the model is for, and the examples that are at hand."""

    task: str | None = None
    """One or two sentences that say what the model should do; shown to the teacher."""

    system_prompt: str | None = None
    """System message put before every conversation that has none, in training, evaluation and serving alike."""

    output_schema: dict[str, Any] | str | None = None
    """JSON Schema of the answers (inline, or a .json file): curate rejects rows that break it, evaluate scores by it."""

    files: StrList = ()
    """Example files, folders or .zip archives; `rows.jsonl#500` draws 500 of its examples, by `rng_seed`."""

    format: str = "auto"
    """auto = look at the rows; or the name of the one form of all files, where rows could be read in two ways:
    alpaca_plain, belle_multiturn, belle_generated_chat, sharegpt, openai_messages, question_response, preference, ..."""

    test_files: StrList = ()
    """Held-out example files: never shown to a teacher, never trained on."""

    test_fraction: float = Field(default=0.0, ge=0, lt=1)
    """Share of `files` to hold out before a teacher sees any, by origin."""

    licence: str | None = None
    """Licence of the files; travels with every row."""

    rng_seed: RngSeed = 17
    """Seed of the split and of `file#500`."""

    def file_names(self) -> list[str]:
        schema = [self.output_schema] if isinstance(self.output_schema, str) else []
        examples = [split_sampled(name)[0] for name in (*self.files, *self.test_files)]
        return [*dict.fromkeys(examples), *schema]


class Curate(Section):
    """Which rows go on. Excluded rows are kept with their reason."""

    test_fraction: float = Field(default=0.0, ge=0, lt=1)
    """Share of rows without a split of their own that is held out for evaluation, by origin."""

    min_prompt_words: int = Field(default=1, ge=0)
    """Shortest prompt, in words (a CJK character counts as one)."""

    max_prompt_words: int = Field(default=4000, ge=1)
    """Longest prompt, in words."""

    min_reply_words: int = Field(default=1, ge=0)
    """Shortest reply, in words."""

    max_reply_words: int = Field(default=4000, ge=1)
    """Longest reply, in words."""

    blacklist: StrList = ()
    """Words or phrases that exclude a row, whole words, case ignored."""

    max_similarity: float = Field(default=0.7, ge=0, le=1)
    """A training row whose prompt is above this ROUGE-L F1 with a test row or an earlier row is excluded; 1 = off."""

    check_schema: bool = True
    """Exclude rows whose reply breaks `ingest.output_schema`."""

    filters: FilterList = ()
    """Further filters, in the order in which they are asked (see docs/filters.md)."""

    decontaminate_against: StrList = ()
    """Evaluation files: training rows that repeat their questions are excluded, as those that repeat test rows are."""

    max_eval_coverage: float = Field(default=0.5, ge=0, le=1)
    """Share of an evaluation question's 8-grams that a training row may hold; 1 = off, then a 13-gram is no matter either."""

    review: str | None = None
    """File of decisions made with `tunesmith data review`: edits replace rows, rejects go, kept rows pass the filters."""

    teacher: TeacherSection | None = None
    """Who answers for the filters that ask a judge: alpagasus, deita, yes_no."""

    budget_usd: float | None = Field(default=None, ge=0)
    """Hard stop of the judge: worst-case cost is reserved before a request is sent."""

    max_failures: int = Field(default=20, ge=0)
    """Answers of the judge that may fail before the stage gives up."""

    rng_seed: RngSeed = 17
    """Seed of the split."""

    def file_names(self) -> list[str]:
        review = [self.review] if self.review else []
        return [*self.decontaminate_against, *review, *(self.teacher.file_names() if self.teacher else [])]

    @model_validator(mode="after")
    def _judges_have_a_teacher(self) -> Curate:
        judge = next((each.name for each in self.filters if each.asks_teacher), None)
        if judge and self.teacher is None:
            raise ValueError(f"the filter {judge!r} asks a judge: add `curate.teacher`")
        return self


class Tokenize(Section):
    """Rows to token ids and loss masks, and the plan that packs them."""

    chat_template: str = "auto"
    """auto = the base model's own; or a built-in template's name, or a .jinja file."""

    max_length: int | Auto = "auto"
    """Longest sample in tokens; auto = the longest one, at most the model's context."""

    overlong: Literal["error", "drop", "split"] = "drop"
    """What to do with a longer sample: stop, leave it out and count it, or cut it between exchanges into pieces that fit."""

    write_text: bool = False
    """Also write tokens.train.jsonl and tokens.test.jsonl: id, input_ids, loss_mask and text of every sample."""

    pack_length: int | Auto = "auto"
    """Tokens one pack holds; auto = at least max_length, and 2,048 where the data allow."""

    supervise: Literal["all_turns", "last_turn", "everything"] = "all_turns"
    """Which tokens are targets: every assistant turn, the last one, or all text."""

    def file_names(self) -> list[str]:
        return [self.chat_template] if self.chat_template.endswith(".jinja") else []
