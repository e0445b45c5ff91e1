"""The options of the filters of `curate.filters` that go by rules, a row at a time, and what all options have.

Those that compare rows are in duplicate_filters.py, those that ask a model in score_filters.py.

`scope` says which rows a filter sees: "all" rows before the split, or "train": those
that are left for training, test rows never. Knows what may be asked for; not how it is done (data/filters).
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import BeforeValidator, Field

from tunesmith.recipe.listing import ListedOptions
from tunesmith.recipe.section import Section, StrList, as_list

Part = Literal["instruction", "prompt", "reply", "all"]
"""What a filter reads: the first message of the user up to its first blank line (there a reader puts the input), all
the user says, all the assistant says, or both."""

LintRule = Literal[
    "merged_instruction", "internet_claim", "image_task", "missing_code", "not_applicable", "wrong_arithmetic",
    "nonsense", "control_characters", "colon_end",
]  # fmt: skip
LINT_RULES: tuple[LintRule, ...] = (
    "merged_instruction", "internet_claim", "image_task", "missing_code", "not_applicable", "wrong_arithmetic",
    "nonsense", "control_characters", "colon_end",
)  # fmt: skip

PiiKind = Literal["email", "phone", "card", "iban", "ip", "id_number", "secret"]
PII_KINDS: tuple[PiiKind, ...] = ("email", "phone", "card", "iban", "ip", "id_number", "secret")

Probability = Annotated[float, Field(ge=0, le=1)]


class FilterOptions(ListedOptions):
    """Base of the options of a listed filter."""

    scope: ClassVar[Literal["all", "train"]] = "all"
    asks_teacher: ClassVar[bool] = False


class LengthOptions(FilterOptions):
    """Texts outside these bounds. The defaults are Alpaca's: instructions of 4 to 150 words."""

    name: Literal["length"] = "length"
    of: Part = "instruction"
    """Which text is measured."""
    min_words: int = Field(default=4, ge=0)
    """Fewest words (a CJK character counts as one)."""
    max_words: int | None = Field(default=150, ge=0)
    """Most words."""
    min_chars: int = Field(default=0, ge=0)
    """Fewest characters."""
    max_chars: int | None = Field(default=None, ge=0)
    """Most characters."""


class CharLengthOptions(FilterOptions):
    """BELLE's bounds of an instruction in characters, which fit Chinese."""

    name: Literal["char_length"] = "char_length"
    min_chars: int = Field(default=4, ge=0)
    """Fewest characters of the instruction."""
    max_chars_with_input: int = Field(default=100, ge=1)
    """An instruction with an input has fewer characters than this."""
    max_chars: int = Field(default=150, ge=1)
    """An instruction without an input, or one that holds an example, has fewer characters than this."""


class TokenLengthOptions(FilterOptions):
    """Conversations that a context cannot hold."""

    name: Literal["token_length"] = "token_length"
    chief: ClassVar[str | None] = "max_tokens"
    max_tokens: int = Field(default=2048, ge=1)
    """Most tokens of all messages together, without the template's own."""
    action: Literal["exclude", "cut"] = "exclude"
    """cut = leave out the last turns until the rest fits; a row whose first turn does not fit is excluded."""
    model: str = "smollm2-135m"
    """Whose tokenizer counts."""


class BlacklistOptions(FilterOptions):
    """Rows with a listed word or phrase: whole words, case ignored."""

    name: Literal["blacklist"] = "blacklist"
    chief: ClassVar[str | None] = "phrases"
    phrases: StrList = ()
    """Words or phrases of your own."""
    lists: Annotated[tuple[Literal["alpaca", "belle"], ...], BeforeValidator(as_list)] = ()
    """Lists that come with the package: what a text model cannot do, in English (alpaca) and Chinese (belle); both where
    nothing is named."""
    of: Part = "instruction"
    """Which text is searched."""


class ProgramStartOptions(FilterOptions):
    """Instructions that begin "Write a program": without an environment they teach little (Self-Instruct)."""

    name: Literal["program_start"] = "program_start"


class BadStartOptions(FilterOptions):
    """Instructions that begin with punctuation, or, if asked, not in ASCII."""

    name: Literal["bad_start"] = "bad_start"
    allow_non_ascii: bool = True
    """false = Self-Instruct's rule for English sets: the first character is an ASCII letter or digit."""


class EchoOptions(FilterOptions):
    """Replies that only repeat the prompt, or the input in it."""

    name: Literal["echo"] = "echo"


class RepeatedSentencesOptions(FilterOptions):
    """Replies that say a sentence again (Lamini's cleaner)."""

    name: Literal["repeated_sentences"] = "repeated_sentences"
    chief: ClassVar[str | None] = "action"
    action: Literal["clean", "exclude"] = "clean"
    """clean = keep the first of equal sentences; exclude = leave the row out."""
    min_words: int = Field(default=4, ge=1)
    """Shorter sentences may return ("Yes.")."""


class RepeatedDigitsOptions(FilterOptions):
    """Texts in which one digit repeats, a mark of broken generation (FastChat)."""

    name: Literal["repeated_digits"] = "repeated_digits"
    chief: ClassVar[str | None] = "min_digits"
    min_digits: int = Field(default=9, ge=2)
    """Repetitions that exclude a row."""


class NoInputOptions(FilterOptions):
    """Takes the many spellings of "no input" (<noinput>, N/A, 无输入) out of prompts; excludes nothing."""

    name: Literal["no_input"] = "no_input"


class LintOptions(FilterOptions):
    """The defects that AlpacaDataCleaned found in Alpaca's rows."""

    name: Literal["lint"] = "lint"
    chief: ClassVar[str | None] = "rules"
    rules: Annotated[tuple[LintRule, ...], BeforeValidator(as_list)] = LINT_RULES
    """Defects to look for; each is a reason of its own."""
    action: Literal["exclude", "report"] = "exclude"
    """report = keep the row and list its defects in metadata.lint."""


class RefusalOptions(FilterOptions):
    """Replies that refuse or speak of the assistant as a language model, in English and Chinese."""

    name: Literal["refusal"] = "refusal"
    patterns: StrList = ()
    """Regular expressions of your own beside the built-in ones, case ignored."""


class VendorOptions(FilterOptions):
    """Rows that name the maker of a model (OpenAI, ChatGPT ...): a tuned model would claim to be theirs."""

    name: Literal["vendor"] = "vendor"
    chief: ClassVar[str | None] = "allow"
    allow: StrList = ()
    """Names that are no reason, for a set that speaks about them."""
    of: Part = "all"
    """Which text is searched."""


class AlternateRolesOptions(FilterOptions):
    """Conversations that do not go user, assistant, user, assistant ... after the system message."""

    name: Literal["alternate_roles"] = "alternate_roles"


class MinTurnsOptions(FilterOptions):
    """Conversations of too few messages, the system's not counted."""

    name: Literal["min_turns"] = "min_turns"
    chief: ClassVar[str | None] = "min_messages"
    min_messages: int = Field(default=2, ge=1)
    """Fewest messages."""


class ModelOptions(FilterOptions):
    """Only rows written by these models."""

    name: Literal["model"] = "model"
    chief: ClassVar[str | None] = "keep"
    keep: StrList = ("*gpt-4*",)
    """Patterns with * and ?, case ignored, for metadata.model, or for the row's source where it has none."""


class ClassesOptions(FilterOptions):
    """Source classes as in C-RLFT: each row gets a class, its condition, and one weight per message."""

    name: Literal["classes"] = "classes"
    chief: ClassVar[str | None] = "classes"
    classes: tuple[SourceClass, ...] = ()
    """Classes, the first that fits counts."""
    unmatched: Literal["exclude", "keep"] = "exclude"
    """Rows of no class."""


class SourceClass(Section):
    """One class of sources."""

    name: str
    """How the class is called in metadata.source_class."""
    match: StrList
    """Patterns with * and ?, case ignored, for metadata.model, or for the row's source where it has none."""
    condition: str = ""
    """What the template may put before the assistant's turns ("GPT4 Correct"); empty = the class's name."""
    weight: Annotated[float, Field(ge=0)] = 1.0
    """Weight of each assistant turn; 1 for the expert class, 0.1 for a weaker one in OpenChat. The user's is 0."""


class LanguageOptions(FilterOptions):
    """Rows in other languages (fastText lid.176)."""

    name: Literal["language"] = "language"
    chief: ClassVar[str | None] = "keep"
    keep: StrList = ("en", "zh")
    """ISO 639-1 codes that stay."""
    of: Part = "all"
    """Which text is looked at."""
    min_probability: Probability = 0.5
    """Below this a language is not known, and the row stays unless exclude_unknown."""
    exclude_unknown: bool = False
    """Also exclude rows whose language is not known."""


class PiiOptions(FilterOptions):
    """Data about persons, and keys: e-mail, phone, card, IBAN, IP, id numbers, secrets."""

    name: Literal["pii"] = "pii"
    chief: ClassVar[str | None] = "action"
    action: Literal["report", "mask", "exclude"] = "mask"
    """report = count in metadata.pii; mask = put [EMAIL] and so on in place; exclude = leave the row out."""
    kinds: Annotated[tuple[PiiKind, ...], BeforeValidator(as_list)] = PII_KINDS
    """What is looked for."""


class ToxicityOptions(FilterOptions):
    """Abusive English (the linear model of alt-profanity-check)."""

    name: Literal["toxicity"] = "toxicity"
    chief: ClassVar[str | None] = "max_probability"
    max_probability: Probability = 0.8
    """A row with a sentence above this is excluded."""
    of: Part = "all"
    """Which text is looked at."""


ClassesOptions.model_rebuild()
