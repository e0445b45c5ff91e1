"""The options of every reward that `align.rewards` can list: declared here once, like the rest of the recipe.

Knows what may be asked for; not how it is done (judging/rewards).
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, SerializeAsAny

from tunesmith.recipe.listing import ListedOptions, read_listed
from tunesmith.recipe.section import Auto, StrList


class RewardOptions(ListedOptions):
    """Base of the options of a listed reward."""

    weight: float = 1.0
    """What the reward counts in the sum; below 0 it is a penalty."""

    asks_teacher: ClassVar[bool] = False


class JsonSchemaOptions(RewardOptions):
    """1 where the whole answer is one JSON value that obeys `ingest.output_schema`, else 0."""

    name: Literal["json_schema"] = "json_schema"


class FieldsOptions(RewardOptions):
    """Share of the fields of a JSON answer that equal the reference's."""

    name: Literal["fields"] = "fields"
    chief: ClassVar[str | None] = "fields"
    fields: StrList | Auto = "auto"
    """Which fields; auto = those the schema restricts by enum, const, pattern, boolean or number."""


class ExactOptions(RewardOptions):
    """1 where the answer is the reference, white space at the ends aside, else 0."""

    name: Literal["exact"] = "exact"


class RougeLOptions(RewardOptions):
    """ROUGE-L F1 of the answer, or of its free-text field, against the reference's."""

    name: Literal["rouge_l"] = "rouge_l"
    chief: ClassVar[str | None] = "field"
    field: str | Auto = "auto"
    """JSON field to compare; auto = the free-text one of the schema, without a schema the whole answer."""


class PythonOptions(RewardOptions):
    """A function of your own: (prompt, completion, reference) -> a number, or None for what it cannot score."""

    name: Literal["python"] = "python"
    chief: ClassVar[str | None] = "function"
    function: Annotated[str, Field(pattern=r"^[^:]+\.py:[A-Za-z_][A-Za-z0-9_]*$")]
    """file.py:function; prompt is a list of {"role", "content"}, reference the answer of the data or None."""

    def file_names(self) -> list[str]:
        return [self.function.rpartition(":")[0]]


class JudgeOptions(RewardOptions):
    """A teacher's mark from 1 to 9, as 0 to 1: the expectation over digits where it gives log-probabilities."""

    name: Literal["judge"] = "judge"
    chief: ClassVar[str | None] = "criteria"
    asks_teacher: ClassVar[bool] = True
    criteria: str | None = None
    """What a good answer is, in a sentence or two; none = helpfulness, correctness and `ingest.task`."""
    show_reference: bool = True
    """Show the judge the answer of the data, where there is one."""
    language: Literal["en", "zh"] = "en"
    """Language of the question."""


class RewardModelOptions(RewardOptions):
    """The score of a trained reward model."""

    name: Literal["reward_model"] = "reward_model"
    chief: ClassVar[str | None] = "model"
    model: str | None = None
    """Folder of its checkpoint: adapter or model, value_head.safetensors and the chat template; none = what the recipe's
    section `reward_model` trains."""

    def file_names(self) -> list[str]:
        return [] if self.model is None else [self.model]


REWARD_OPTIONS: dict[str, type[RewardOptions]] = {
    str(options.model_fields["name"].default): options for options in RewardOptions.__subclasses__()
}
"""Every reward that can be listed, by name."""


def read_reward(value: Any) -> RewardOptions:
    """One entry of the list. ValueError names the nearest reward or option."""
    return value if isinstance(value, RewardOptions) else read_listed(value, "reward", REWARD_OPTIONS)


def is_own_reward_model(options: RewardOptions) -> bool:
    """Whether this means the reward model that the recipe itself trains."""
    return isinstance(options, RewardModelOptions) and options.model is None


RewardList = tuple[Annotated[SerializeAsAny[RewardOptions], BeforeValidator(read_reward)], ...]
