"""The options of the filters that score a row by a model or a judge."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from tunesmith.recipe.filters import FilterOptions, Part


class PerplexityOptions(FilterOptions):
    """Replies that a small model finds too surprising, or not at all."""

    name: Literal["perplexity"] = "perplexity"
    scope: ClassVar[Literal["all", "train"]] = "train"
    min: float = Field(default=1.0, ge=1)
    """Smallest perplexity."""
    max: float = Field(default=1000.0, ge=1)
    """Largest perplexity."""
    of: Part = "reply"
    """Which text is scored."""
    model: str = "smollm2-135m"
    """Who scores."""


class IfdOptions(FilterOptions):
    """Instruction-following difficulty: how little the prompt helps to predict the reply (Li et al. 2024)."""

    name: Literal["ifd"] = "ifd"
    scope: ClassVar[Literal["all", "train"]] = "train"
    max: float = Field(default=1.0, gt=0)
    """Above this the prompt hinders, so reply and prompt do not belong together."""
    keep_fraction: float = Field(default=1.0, gt=0, le=1)
    """Of the rows that are left, the share with the highest IFD that stays; the paper keeps 0.05 to 0.1."""
    model: str = "smollm2-135m"
    """Who scores."""


class AlpagasusOptions(FilterOptions):
    """A judge's rating of the reply from 1 to 5 (Chen et al. 2024). Needs `curate.teacher`."""

    name: Literal["alpagasus"] = "alpagasus"
    chief: ClassVar[str | None] = "min_score"
    scope: ClassVar[Literal["all", "train"]] = "train"
    asks_teacher: ClassVar[bool] = True
    min_score: float = Field(default=4.5, ge=1, le=5)
    """Lower ratings are excluded."""
    dimension: Literal["accuracy", "helpfulness"] = "accuracy"
    """What is rated."""
    language: Literal["en", "zh"] = "en"
    """Language of the question to the judge."""
    unscored: Literal["exclude", "keep"] = "exclude"
    """Rows whose rating cannot be read."""


class DeitaOptions(FilterOptions):
    """Complexity and quality from 1 to 6 by a judge, multiplied and summed over turns; the best rows stay (Liu et al.
    2024). Needs `curate.teacher`."""

    name: Literal["deita"] = "deita"
    scope: ClassVar[Literal["all", "train"]] = "train"
    asks_teacher: ClassVar[bool] = True
    min_score: float = Field(default=0.0, ge=0)
    """Lower products are excluded."""
    keep_rows: int | None = Field(default=None, ge=1)
    """At most this many rows stay, the best ones; none = all."""
    language: Literal["en", "zh"] = "en"
    """Language of the questions to the judge."""
    unscored: Literal["exclude", "keep"] = "exclude"
    """Rows whose scores cannot be read."""


class YesNoOptions(FilterOptions):
    """A question about each row that a judge answers with yes or no. Needs `curate.teacher`."""

    name: Literal["yes_no"] = "yes_no"
    chief: ClassVar[str | None] = "question"
    scope: ClassVar[Literal["all", "train"]] = "train"
    asks_teacher: ClassVar[bool] = True
    question: str = "Is the answer correct, complete and on topic?"
    """What is asked; the row stays where the answer is yes."""
    language: Literal["en", "zh"] = "en"
    """Language of the frame around the question."""
    unscored: Literal["exclude", "keep"] = "exclude"
    """Rows for which neither yes nor no can be read."""
